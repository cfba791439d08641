"""GpuReservations: which of them stand, what they hold from their start on, and what keeps clear of them before.

One stands unless it is in conflict with those before it: together they would be more than the nominal quota of their
tenant, or than the pool has GPUs, at some moment. Those that hold something come first, then the older ones. From its
start on it is a hold of quota, asked for and committed like every grant; until then the engine keeps its place
(`core.calendar`). What draws on it ends with it (`leases`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vmtenancy.api.gpuclass import PARTS_PER_GPU, GpuClass
from vmtenancy.api.gpureservation import GpuReservation
from vmtenancy.api.gpuvm import GpuVM, GpuVMSpec
from vmtenancy.api.tenant import Tenant
from vmtenancy.core.calendar import Reserved
from vmtenancy.core.explain.shortage import counted, gpus
from vmtenancy.core.fleet.model import Runtime
from vmtenancy.core.requests import Demand, Wait
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.reconcile.requests import Asked, Unclear, tenant_for
from vmtenancy.reconcile.status import Condition, seconds, status_steps
from vmtenancy.reconcile.steps import Chain, Object
from vmtenancy.reconcile.view import View, by_name
from vmtenancy.reconcile.world import is_deleting, ref_of, uid_of

CONFLICT = "ReservationConflict"


@dataclass(frozen=True, slots=True)
class Window:
    """A GpuReservation that has not ended, and the hold that it asks for: parts of a pool from `start` to `end`.

    `refused` says why it does not stand.
    """

    owner: Object
    demand: Demand
    pool: str
    parts: int
    start: float
    end: float
    refused: Unclear | None = None


def windows(view: View) -> list[Window]:
    """All that have not ended, in the order in which they are judged; not those that can not be read."""
    return view.derived(_windows)


def _windows(view: View) -> list[Window]:
    found: list[Window] = []
    stand: dict[str, list[Window]] = defaultdict(list)
    for obj in sorted(view.world.of("GpuReservation"), key=lambda obj: _rank(view, obj)):
        reservation = view.parsed(obj, GpuReservation)
        if isinstance(reservation, VmtError) or is_deleting(obj) or seconds(reservation.spec.end) <= view.now:
            continue
        window = _window(view, obj, reservation, stand)
        found.append(window)
        if window.refused is None:
            stand[window.pool].append(window)
    return found


def reserved(view: View) -> list[Reserved]:
    """The windows to come, as the engine takes them."""
    return [
        Reserved(each.demand, each.start)
        for each in windows(view)
        if each.refused is None and each.start > view.now and uid_of(each.owner) not in view.live_by_owner
    ]


def asking(view: View) -> list[Asked | Unclear]:
    """Those that have begun and hold nothing yet, and those that do not stand."""
    waiting = [each for each in windows(view) if uid_of(each.owner) not in view.live_by_owner]
    return [
        each.refused or Asked(each.owner, each.demand)
        for each in waiting
        if each.refused is not None or each.start <= view.now
    ]


def of_machine(view: View, namespace: str, spec: GpuVMSpec) -> Object | None:
    """The GpuReservation that a GpuVM names; None where it names none, or there is none."""
    return view.world.get("GpuReservation", namespace, spec.reservation) if spec.reservation else None


def end_of(view: View, reservation: Object) -> float | None:
    """When it ends, in seconds; None of one that can not be read."""
    found = view.parsed(reservation, GpuReservation)
    return None if isinstance(found, VmtError) else seconds(found.spec.end)


def machine_refusal(view: View, obj: Object, vm: GpuVM) -> Unclear | None:
    """Why a GpuVM can not draw on the GpuReservation that it names now."""
    if vm.spec.reservation is None:
        return None
    name = f"GpuReservation {vm.metadata.namespace}/{vm.spec.reservation}"
    reservation = of_machine(view, vm.metadata.namespace, vm.spec)
    if reservation is None or is_deleting(reservation):
        return Unclear(obj, "ReservationNotFound", f"{name} does not exist")
    end = end_of(view, reservation)
    if end is not None and end <= view.now:
        return Unclear(
            obj, "ReservationEnded", f"{name} has ended: stop the machine, and name another one or none"
        )
    if uid_of(reservation) not in view.live_by_owner:
        return Unclear(
            obj, "ReservationPending", f"{name} holds nothing yet: its condition says since when or why"
        )
    return None


def next_window(view: View) -> float | None:
    """When the next reservation begins or ends, in seconds."""
    times = (time for each in windows(view) for time in (each.start, each.end) if time > view.now)
    return min(times, default=None)


def reservation_chains(view: View, waits: Mapping[str, Wait], unclear: Mapping[str, Unclear]) -> list[Chain]:
    """Report where every reservation stands."""
    used: dict[str, int] = defaultdict(int)
    for grant in view.live:
        used[grant.parent] += sum(part.count for part in grant.grants)
    chains = []
    for obj in by_name(view.world.of("GpuReservation")):
        told = _told(view, obj, waits.get(uid_of(obj)), unclear.get(uid_of(obj)))
        if is_deleting(obj) or told is None:
            continue
        phase, admitted = told
        held = view.live_by_owner.get(uid_of(obj))
        fields = {
            "phase": phase,
            "used": used[held.name] if held else 0,
            "message": admitted.message[:1024],
        }
        generation = int(obj["metadata"]["generation"])
        if steps := status_steps(obj, fields, [admitted], generation=generation, now=view.now):
            chains.append(Chain(f"report {ref_of(obj)}: {admitted.reason}", steps))
    return chains


def _told(
    view: View, obj: Object, wait: Wait | None, unclear: Unclear | None
) -> tuple[str, Condition] | None:
    """Phase and condition; None where it is decided in this very plan."""
    found = view.parsed(obj, GpuReservation)
    if isinstance(found, VmtError):
        return "Pending", Condition("Admitted", False, "Invalid", str(found), event=True, warning=True)
    spec = found.spec
    what = f"{spec.count} x {spec.class_}"
    if seconds(spec.end) <= view.now:
        return "Ended", Condition("Admitted", False, "Ended", f"it ended at {spec.end}", event=True)
    if uid_of(obj) in view.live_by_owner:
        return "Active", Condition("Admitted", True, "Admitted", f"holds {what} until {spec.end}", event=True)
    if unclear is not None:
        return "Pending", Condition("Admitted", False, unclear.reason, unclear.message, True, warning=True)
    if seconds(spec.start) > view.now:
        message = f"holds {what} from {spec.start} until {spec.end}"
        return "Scheduled", Condition("Admitted", False, "Scheduled", message, event=True)
    if wait is not None:
        return "Pending", Condition("Admitted", False, str(wait.reason), wait.message, True, warning=True)
    return None


def _rank(view: View, obj: Object) -> tuple[bool, str, str, str]:
    meta = obj["metadata"]
    return uid_of(obj) not in view.live_by_owner, meta["creationTimestamp"], meta["namespace"], meta["name"]


def _window(
    view: View, obj: Object, reservation: GpuReservation, stand: Mapping[str, Sequence[Window]]
) -> Window:
    spec, (tenant, refused) = reservation.spec, tenant_for(view, obj)
    cls = view.all_of(GpuClass).get(spec.class_)
    if cls is None and refused is None:
        refused = Unclear(obj, "UnknownClass", f"there is no GpuClass {spec.class_}")
    units = ((spec.class_, spec.count),)
    start, end = seconds(spec.start), seconds(spec.end)
    demand = Demand(
        key=str(ref_of(obj)),
        tenant=tenant,
        runtime=Runtime.HOLD,
        requests=units,
        created=seconds(obj["metadata"]["creationTimestamp"]),
        maximum=units,
        ends=end,
        quota_alone=True,
    )
    pool, parts = (cls.spec.pool, cls.spec.parts * spec.count) if cls else ("", 0)
    window = Window(obj, demand, pool, parts, start, end, refused)
    if refused is None and uid_of(obj) not in view.live_by_owner:
        problem = _conflict(view, window, stand.get(pool, ()))
        refused = Unclear(obj, CONFLICT, str(problem)) if problem else None
    return Window(obj, demand, pool, parts, start, end, refused)


def _conflict(view: View, mine: Window, others: Iterable[Window]) -> Problem | None:
    """What is too much at some moment of the window, and whose reservations are there then."""
    meets = [other for other in others if other.start < mine.end and mine.start < other.end]
    nominal = _nominal(view, mine.demand.tenant, mine.pool)
    pool = view.world.get("GpuPool", "", mine.pool)
    supply = ((pool or {}).get("status") or {}).get("gpus")  # unknown before its first report
    for moment in sorted({mine.start, *(other.start for other in meets if other.start > mine.start)}):
        there = [other for other in meets if other.start <= moment < other.end]
        own = [other for other in there if other.demand.tenant == mine.demand.tenant]
        for whose, most, taking in (
            (f"tenant {mine.demand.tenant} has {nominal} of its own", nominal, own),
            (f"the pool has {supply}", supply, there),
        ):
            taken = sum(other.parts for other in taking)
            if most is not None and taken + mine.parts > most * PARTS_PER_GPU:
                names = ", ".join(sorted(other.demand.key for other in taking))
                reserve = f", of which {gpus(taken)} are reserved by {names}" if names else ""
                message = f"pool {mine.pool}: needs {counted(mine.parts)}, {whose}{reserve}"
                return Problem(Code.RESERVATION_CONFLICT, "spec", message, expected="less, or another time")
    return None


def _nominal(view: View, tenant: str, pool: str) -> int:
    obj = view.world.get("Tenant", "", tenant)
    found = view.parsed(obj, Tenant) if obj else None
    if found is None or isinstance(found, VmtError):
        return 0
    return sum(quota.nominal for quota in found.spec.quota if quota.pool == pool)
