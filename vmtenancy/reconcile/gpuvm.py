"""A GpuVM's life: finalizer, VirtualMachine, status, and an end that leaves nothing behind."""

from __future__ import annotations

from collections import defaultdict

from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.names import FINALIZER
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.reconcile.admit import Admission
from vmtenancy.reconcile.apply import changes, taken_by_others
from vmtenancy.reconcile.finalizer import with_finalizer, without_finalizer
from vmtenancy.reconcile.holders import is_as_asked, vm_is_holding, vm_wants_devices
from vmtenancy.reconcile.machine import machine_objects
from vmtenancy.reconcile.status import Condition, status_steps
from vmtenancy.reconcile.steps import Apply, Chain, Delete, Object
from vmtenancy.reconcile.view import Allocation, View, by_name
from vmtenancy.reconcile.world import is_deleting, ref_of, uid_of
from vmtenancy.runtimes import kubevirt
from vmtenancy.runtimes.kubevirt import VmObservation


def gpuvm_chains(view: View, admission: Admission) -> list[Chain]:
    """What all GpuVMs need now."""
    chains: list[Chain] = []
    for obj in by_name(view.world.of("GpuVM")):
        chains += _end(view, obj) if is_deleting(obj) else _live(view, obj, admission)
    return chains


def _live(view: View, obj: Object, admission: Admission) -> list[Chain]:
    name = ref_of(obj)
    finalizer = with_finalizer(obj)
    if finalizer:
        return [Chain(f"keep {name} until its devices are free", (finalizer,))]
    vm = view.parsed(obj, GpuVM)
    if isinstance(vm, VmtError):
        return _status(
            view, obj, "Failed", "", None, [Condition("Admitted", False, "Invalid", str(vm), True, True)], 0
        )
    grant = view.live_by_owner.get(uid_of(obj))
    steps, problem = _children(view, obj, vm, grant)
    outstanding = bool(steps) or problem is not None or (grant is not None and not is_as_asked(vm, grant))
    applied = _applied_generation(obj, outstanding)
    chains = []
    if steps:
        chains.append(Chain(f"apply {name}", tuple(steps)))
    seen = kubevirt.observe(vm, _observed(view, obj))
    return chains + _report(view, obj, vm, grant, seen, admission, problem, applied)


def _children(
    view: View, obj: Object, vm: GpuVM, grant: Allocation | None
) -> tuple[list[Apply], VmtError | None]:
    """Applies for the VirtualMachine and its Secret. Without a grant none is made, but one that exists is stopped."""
    exists = view.world.get("VirtualMachine", vm.metadata.namespace, vm.metadata.name) is not None
    if grant is None and not exists:
        return [], None
    try:
        tenant = grant.tenant if grant else view.tenant_of(vm.metadata.namespace)
        # With devices that it does not ask for any more it is stopped, until they are released.
        usable = grant is not None and (vm.spec.run_strategy == "Halted" or vm_wants_devices(vm, grant))
        wanted = machine_objects(view, obj, vm, tenant, grant if usable else None)
    except VmtError as error:
        return [], error
    if taken := taken_by_others(view, wanted, uid_of(obj)):
        found = ", ".join(map(str, taken))
        return [], VmtError(
            Problem(Code.CLUSTER, "metadata.name", "the name is taken by another object", found)
        )
    return changes(view, wanted), None


def _observed(view: View, obj: Object) -> dict[str, list[Object]]:
    children: dict[str, list[Object]] = defaultdict(list)
    for child in view.descendants(obj["metadata"]["namespace"], uid_of(obj)):
        children[child["kind"]].append(child)
    return children


def _applied_generation(obj: Object, outstanding: bool) -> int:
    """The generation that the children show (I12): the newest only once nothing of it is left to apply."""
    before = int((obj.get("status") or {}).get("observedGeneration") or 0)
    return before if outstanding else int(obj["metadata"]["generation"])


def _report(
    view: View,
    obj: Object,
    vm: GpuVM,
    grant: Allocation | None,
    seen: VmObservation,
    admission: Admission,
    problem: VmtError | None,
    generation: int,
) -> list[Chain]:
    uid = uid_of(obj)
    wait, unclear = admission.waits.get(uid), admission.unclear.get(uid)
    position = None
    if grant is not None:
        what = ", ".join(f"{g.count} x {g.class_}" for g in grant.grants)
        admitted = Condition("Admitted", True, "Admitted", f"{what} on node {grant.node}", event=True)
        phase, message = seen.phase, seen.message
        if phase == "Pending":
            phase = "Admitted"
    elif vm.spec.run_strategy == "Halted":
        admitted = Condition("Admitted", False, "Stopped", "it is stopped and holds no GPUs")
        holding = vm_is_holding(view, vm.metadata.namespace, uid)
        phase, message = ("Stopping" if holding else "Stopped"), ""
    elif wait is not None or unclear is not None:
        reason = str(wait.reason) if wait else unclear.reason if unclear else ""
        message = wait.message if wait else unclear.message if unclear else ""
        position = (wait.position or None) if wait else None
        admitted = Condition("Admitted", False, reason, message, event=True, warning=True)
        phase = "Pending"
    else:
        # Decided in this very plan, or still letting go of what it held before.
        return []
    if problem is not None:
        phase, message = "Failed", str(problem)
        degraded = Condition("Degraded", True, "CannotRender", message, event=True, warning=True)
    elif seen.failed:
        degraded = Condition("Degraded", True, "RuntimeFailed", seen.message, event=True, warning=True)
    else:
        degraded = Condition("Degraded", False, "AsExpected")
    ready = Condition("Ready", seen.ready and grant is not None, phase, message, event=seen.ready)
    return _status(view, obj, phase, message, grant, [admitted, ready, degraded], generation, position)


def _status(
    view: View,
    obj: Object,
    phase: str,
    message: str,
    grant: Allocation | None,
    conditions: list[Condition],
    generation: int,
    position: int | None = None,
) -> list[Chain]:
    allocation = None
    if grant is not None:
        devices = [device for g in grant.grants for device in g.devices]
        allocation = {"name": grant.name, "node": grant.node, "devices": devices}
    fields = {"phase": phase, "allocation": allocation, "queuePosition": position, "message": message[:1024]}
    steps = status_steps(obj, fields, conditions, generation=generation, now=view.now)
    return [Chain(f"report {ref_of(obj)}: {phase}", steps)] if steps else []


def _end(view: View, obj: Object) -> list[Chain]:
    """Stop the machine, wait until its devices are free and the grant is gone, then let the GpuVM go (I9)."""
    name, uid = ref_of(obj), uid_of(obj)
    owned = by_name(view.owned.get((name.namespace, uid), ()))
    children = [child for child in owned if not is_deleting(child)]
    if children:
        steps = tuple(Delete(ref_of(child), uid_of(child)) for child in children)
        return [Chain(f"delete what {name} had", steps)]
    has_grant = any(allocation.owner_uid == uid for allocation in view.allocations)
    release = without_finalizer(obj)
    if release and not has_grant and not view.descendants(name.namespace, uid):
        return [Chain(f"let {name} go", (release,))]
    vm = view.parsed(obj, GpuVM)
    if isinstance(vm, VmtError) or FINALIZER not in (obj["metadata"].get("finalizers") or ()):
        return []
    conditions = [
        Condition("Admitted", has_grant, "Deleting", "it is being deleted"),
        Condition("Ready", False, "Deleting", "it is being deleted"),
        Condition("Degraded", False, "AsExpected"),
    ]
    grant = view.live_by_owner.get(uid)
    generation = _applied_generation(obj, outstanding=True)
    return _status(view, obj, "Deleting", "", grant, conditions, generation)
