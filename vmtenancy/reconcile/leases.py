"""Leases: when they end, who is warned, and what is taken back then.

A lease runs while its GpuVM or VirtualCluster has a grant. When it began and when it ends stands in the owner's status,
which outlives the grant: one whose lease is over must not be admitted again by itself. So a grant is only taken back
once its end, as it is now, was written there. A new grant begins a new lease, unless it was given before the old one
had ended: what is placed again at once, or was lost and is given again, goes on with the lease that it had.

An end that moves closer, since a duration or what the tenant allows was lowered, still leaves the time of the first
warning: nothing that runs is stopped without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vmtenancy.api.gpuvm import GpuVM, GpuVMSpec
from vmtenancy.api.lease import Lease, TenantLeases, seconds_of
from vmtenancy.api.tenant import Tenant
from vmtenancy.api.virtualcluster import VirtualCluster, VirtualClusterSpec
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.holders import has_notice
from vmtenancy.reconcile.ledger import revoke
from vmtenancy.reconcile.lineage import running_launchers
from vmtenancy.reconcile.requests import Unclear
from vmtenancy.reconcile.reservations import end_of, of_machine
from vmtenancy.reconcile.status import Condition, is_true, seconds, timestamp
from vmtenancy.reconcile.steps import Chain, Object
from vmtenancy.reconcile.view import Allocation, View
from vmtenancy.reconcile.world import is_deleting, ref_of, uid_of

LEASE_EXPIRED = "LeaseExpired"
LEASE_TOO_LONG = "LeaseTooLong"


@dataclass(frozen=True, slots=True)
class Period:
    """A lease that runs: `started` and `ends` in seconds since the epoch, `warnings` as (time, how long before)."""

    started: float
    ends: float
    warnings: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Terms:
    """What an owner and its tenant say: lengths in seconds, `renewed` and `until` since the epoch, 0 if never.

    `until` is the end of its reservation. At least one of `duration`, `maximum` and `until` is given.
    """

    duration: int | None
    maximum: int | None
    until: float | None
    warn_before: tuple[str, ...]
    renewed: float

    @property
    def is_too_long(self) -> bool:
        """Whether it asks for more than the tenant allows."""
        return self.maximum is not None and self.duration is not None and self.duration > self.maximum

    def end(self, started: float) -> float:
        """When a lease of these terms ends."""
        ends = [] if self.until is None else [self.until]
        if self.duration is not None:
            ends.append(max(started, self.renewed) + self.duration)
        if self.maximum is not None:
            ends.append(started + self.maximum)
        return min(ends)


def running(view: View, obj: Object) -> Period | None:
    """The lease of a GpuVM or VirtualCluster that runs now; None where it has none or holds nothing."""
    grant = view.live_by_owner.get(uid_of(obj))
    if is_deleting(obj) or (grant.revoked == LEASE_EXPIRED if grant else _needs_grant(view, obj)):
        return None
    terms, told = _terms(view, obj), recorded(obj)
    if terms is None or (grant is None and told is None and terms.is_too_long):
        return None
    since = _since(view, obj, grant, terms)
    started = told.started if told and since < told.ends else since
    ends = terms.end(started)
    if told and told.started == started and ends < told.ends:
        lengths = [length for length in map(seconds_of, terms.warn_before) if length < told.ends - started]
        ends = min(told.ends, max(ends, int(view.now) + max(lengths, default=0)))
    due = ((ends - seconds_of(text), text) for text in terms.warn_before)
    return Period(started, ends, tuple(warning for warning in due if warning[0] > started))


def ends_of(view: View, obj: Object) -> float | None:
    """When a GpuVM or VirtualCluster ends, or would if it were admitted now; None: nobody knows, or has to.

    It matters where something is reserved.
    """
    return end_of_lease(view, obj) if view.world.objects["GpuReservation"] else None


def end_of_lease(view: View, obj: Object) -> float | None:
    """As `ends_of`, whether or not it matters."""
    if period := running(view, obj):
        return period.ends
    grant = view.live_by_owner.get(uid_of(obj))
    if grant is not None:
        return max(view.now, grant.revoked_since) if grant.revoked else None
    terms = _terms(view, obj)
    return terms.end(int(view.now)) if terms else None


def recorded(obj: Object) -> Period | None:
    """The lease that the status of an owner tells of."""
    told = (obj.get("status") or {}).get("lease")
    return Period(seconds(told["startedAt"]), seconds(told["expiresAt"])) if told else None


def is_over(view: View, obj: Object) -> bool:
    """Whether the lease of a GpuVM or VirtualCluster has ended, and was not renewed since."""
    grant = view.live_by_owner.get(uid_of(obj))
    if grant is not None:
        return grant.revoked == LEASE_EXPIRED
    told, terms = recorded(obj), _terms(view, obj)
    if told is None or terms is None or told.ends > view.now:
        return False
    return terms.renewed < told.ends and terms.end(told.started) <= view.now


def refusal(view: View, obj: Object) -> Unclear | None:
    """Why a GpuVM, a VirtualCluster or a pod of one is not admitted: its lease is over, or asks for too much."""
    owner = view.cluster_of(obj["metadata"]["namespace"]) if obj["kind"] == "Pod" else obj
    if owner is None:
        return None
    if is_over(view, owner):
        return Unclear(obj, LEASE_EXPIRED, expired_message(owner))
    terms = _terms(view, owner)
    if terms is None or not terms.is_too_long or running(view, owner):
        return None
    tenant, wanted = view.tenant_of(owner["metadata"]["namespace"]), _lease(view, owner).duration
    most = _allowed(view, owner).maximum
    message = (
        f"the lease of {ref_of(owner)} is longer than tenant {tenant} allows: found {wanted}, at most {most}"
    )
    return Unclear(obj, LEASE_TOO_LONG, message)


def expired_message(owner: Object) -> str:
    """What the owner of a lease that is over is told."""
    told = recorded(owner)
    when = timestamp(told.ends) if told else "its time"
    return (
        f"the lease of {ref_of(owner)} ended at {when}: renew it by spec.lease.renewedAt, or vmtenancy renew"
    )


def status_of(view: View, obj: Object) -> dict[str, str] | None:
    """The status field: of the lease that runs, or that is over; None once it waits for another, or is stopped."""
    period = running(view, obj)
    if period is None and (is_over(view, obj) or running_launchers(view, obj)):
        period = recorded(obj)
    if period is None:
        return None
    return {"startedAt": timestamp(period.started), "expiresAt": timestamp(period.ends)}


def ending_conditions(view: View, obj: Object) -> list[Condition]:
    """The condition `LeaseEnding` of one with a lease that runs; each warning is told by an event."""
    period = running(view, obj)
    if period is None:
        return []
    end = timestamp(period.ends)
    due = max((warning for warning in period.warnings if warning[0] <= view.now), default=None)
    if due is None:
        return [Condition("LeaseEnding", False, "LeaseRunning", f"its lease ends at {end}")]
    message = (
        f"its lease ends at {end}, in {due[1]} or less: renew it by spec.lease.renewedAt, or vmtenancy renew"
    )
    return [
        Condition(
            "LeaseEnding", True, "LeaseEnding", message, event=True, warning=True, each_message_is_new=True
        )
    ]


def lease_chains(view: View) -> list[Chain]:
    """Take back the grants of leases that are over: a machine's, a virtual cluster's, and those of its pods."""
    chains = []
    over: dict[str, bool] = {}
    for grant in view.live:
        owner = _owner(view, grant)
        if owner is None or is_deleting(owner) or (grant.revoked and not has_notice(view, grant)):
            continue
        uid = uid_of(owner)
        if uid not in over:
            over[uid] = is_over(view, owner) or _is_due(view, owner)
        if over[uid]:
            step = revoke(grant, LEASE_EXPIRED, expired_message(owner), view.now, preemptor=grant.preemptor)
            chains.append(Chain(f"end the lease of {ref_of(owner)}: take {grant.name} back", (step,)))
    return chains


def next_lease_event(view: View) -> float | None:
    """When the next lease ends, or the next warning of one is due, in seconds."""
    times = (time for period in _running(view) for time in (period.ends, *(at for at, _ in period.warnings)))
    return min((time for time in times if time > view.now), default=None)


def _running(view: View) -> Iterator[Period]:
    for kind in ("GpuVM", "VirtualCluster"):
        for obj in view.world.of(kind):
            if period := running(view, obj):
                yield period


def _is_due(view: View, owner: Object) -> bool:
    """Whether the lease has run out, and the status says so: what was not written there would be forgotten."""
    period, told = running(view, owner), recorded(owner)
    return period is not None and told is not None and period.ends <= view.now and period.ends == told.ends


def _owner(view: View, grant: Allocation) -> Object | None:
    """Whose lease a grant ends with."""
    if grant.owner_kind == "Pod":
        return view.cluster_of(grant.owner_namespace)
    if grant.owner_kind == "GpuReservation":
        return None
    found = view.world.get(grant.owner_kind, grant.owner_namespace, grant.owner_name)
    return found if found is not None and uid_of(found) == grant.owner_uid else None


def _since(view: View, obj: Object, grant: Allocation | None, terms: _Terms) -> float:
    """Since when it may have a lease: the commit of its grant, or now if it runs already and had none till now."""
    if recorded(obj) is None and is_true(obj, "Admitted"):
        return float(int(view.now))
    if grant is not None:
        return seconds(grant.object["metadata"]["creationTimestamp"])
    return max(seconds(obj["metadata"]["creationTimestamp"]), terms.renewed)


def _needs_grant(view: View, obj: Object) -> bool:
    """A virtual cluster with nothing guaranteed has no grant of its own, and a lease nevertheless."""
    spec = _spec(view, obj)
    return not isinstance(spec, VirtualClusterSpec) or any(gpu.guaranteed for gpu in spec.gpus)


def _terms(view: View, obj: Object) -> _Terms | None:
    lease, allowed = _lease(view, obj), _allowed(view, obj)
    spec = _spec(view, obj)
    reservation = (
        of_machine(view, obj["metadata"]["namespace"], spec) if isinstance(spec, GpuVMSpec) else None
    )
    until = end_of(view, reservation) if reservation else None
    length = lease.duration or allowed.default or allowed.maximum
    if length is None and until is None:
        return None
    return _Terms(
        seconds_of(length) if length else None,
        seconds_of(allowed.maximum) if allowed.maximum else None,
        until,
        lease.warn_before,
        seconds(lease.renewed_at) if lease.renewed_at else 0.0,
    )


def _lease(view: View, obj: Object) -> Lease:
    spec = _spec(view, obj)
    return (spec.lease if spec else None) or Lease()


def _spec(view: View, obj: Object) -> GpuVMSpec | VirtualClusterSpec | None:
    found = view.parsed(obj, GpuVM) if obj["kind"] == "GpuVM" else view.parsed(obj, VirtualCluster)
    return None if isinstance(found, VmtError) else found.spec


def _allowed(view: View, obj: Object) -> TenantLeases:
    tenant = view.world.get("Tenant", "", view.tenant_of(obj["metadata"]["namespace"]))
    found = view.parsed(tenant, Tenant) if tenant else None
    return TenantLeases() if found is None or isinstance(found, VmtError) else found.spec.leases
