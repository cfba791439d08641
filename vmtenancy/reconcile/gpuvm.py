"""A GpuVM's life: finalizer, VirtualMachine, status, and an end that leaves nothing behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from vmtenancy.api.gpuvm import MOST_AVOIDED, GpuVM
from vmtenancy.api.names import FINALIZER
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.reconcile.admit import Admission
from vmtenancy.reconcile.apply import changes, leftovers, taken_by_others
from vmtenancy.reconcile.finalizer import with_finalizer, without_finalizer
from vmtenancy.reconcile.granted import granted_text
from vmtenancy.reconcile.holders import (
    PREEMPTING,
    has_notice,
    is_as_asked,
    is_revoked,
    vm_is_holding,
    vm_wants_devices,
)
from vmtenancy.reconcile.leases import ending_conditions, is_over, status_of
from vmtenancy.reconcile.lineage import ancestor, machine_to_adopt, running_launchers
from vmtenancy.reconcile.machine import machine_objects
from vmtenancy.reconcile.node_trouble import trouble_of
from vmtenancy.reconcile.pods import is_gated
from vmtenancy.reconcile.revocation import avoided_nodes, overdue
from vmtenancy.reconcile.status import Condition, status_steps
from vmtenancy.reconcile.steps import Chain, Delete, Object, Replace, Step
from vmtenancy.reconcile.view import Allocation, View, by_name
from vmtenancy.reconcile.volumes import beyond, fit
from vmtenancy.reconcile.world import is_deleting, owner_uids, ref_of, uid_of
from vmtenancy.runtimes import kubevirt
from vmtenancy.runtimes.kubevirt import VmObservation
from vmtenancy.runtimes.vm_adoption import keep_device_names, taken_over


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
    grant = view.live_by_owner.get(uid_of(obj))
    if isinstance(vm, VmtError):
        invalid = Condition("Admitted", False, "Invalid", str(vm), event=True, warning=True)
        return _status(view, obj, "Failed", "", None, [invalid, _degraded(view, grant)], 0)
    steps, problem = _children(view, obj, vm, grant)
    outstanding = (
        bool(steps)
        or problem is not None
        or (grant is not None and not is_as_asked(view, vm, grant))
        or _is_held_back(view, obj, vm, grant)
    )
    applied = _applied_generation(obj, outstanding)
    chains = []
    if steps:
        chains.append(Chain(f"apply {name}", tuple(steps)))
    elif grant is not None:
        chains += _restart_outdated(view, obj)
    seen = kubevirt.observe(vm, _observed(view, obj))
    return chains + _report(view, obj, vm, grant, seen, admission, problem, applied)


def _children(
    view: View, obj: Object, vm: GpuVM, grant: Allocation | None
) -> tuple[Sequence[Step], VmtError | None]:
    """Applies for the VirtualMachine and its Secret. Without a grant none is made, but one that exists is stopped.

    One that is adopted is made ours first, by a write that changes nothing of what runs.
    """
    machine = view.world.get("VirtualMachine", vm.metadata.namespace, vm.metadata.name)
    if grant is None and machine is None:
        return [], None
    if grant is None and running_launchers(view, obj) and vm_wants_devices(view, vm, None):
        return (
            [],
            None,
        )  # one that runs without its grant gets it again (`adoption`), and is not stopped for it
    try:
        tenant = grant.tenant if grant else view.tenant_of(vm.metadata.namespace)
        # With devices that it does not ask for any more, or that are lost, it is stopped until they are released.
        usable = grant is not None and (vm.spec.run_strategy == "Halted" or vm_wants_devices(view, vm, grant))
        wanted = machine_objects(view, obj, vm, tenant, grant if usable else None)
    except VmtError as error:
        return [], error
    if machine is not None:
        wanted = [keep_device_names(child, machine) for child in wanted]
    if adopted := machine_to_adopt(view, obj):
        return [Replace(taken_over(adopted, wanted[-1]))], None
    if refused := beyond(view, obj, wanted[-1], tenant, grant):
        if machine is None or (usable and vm.spec.run_strategy != "Halted"):
            return [], refused
        return _stopped_as_it_is(machine), None
    if taken := taken_by_others(view, wanted, uid_of(obj)):
        found = ", ".join(map(str, taken))
        return [], VmtError(
            Problem(Code.CLUSTER, "metadata.name", "the name is taken by another object", found)
        )
    children = view.owned.get((vm.metadata.namespace, uid_of(obj)), ())
    secrets = [child for child in children if child["kind"] == "Secret"]
    return [*changes(view, obj, wanted), *leftovers(secrets, wanted)], None


def _stopped_as_it_is(machine: Object) -> Sequence[Step]:
    """It would get volumes that are not charged: it keeps those that it has until it is admitted again."""
    if machine["spec"].get("runStrategy") == "Halted":
        return []
    return [Replace({**machine, "spec": {**machine["spec"], "runStrategy": "Halted"}})]


def _is_held_back(view: View, obj: Object, vm: GpuVM, grant: Allocation | None) -> bool:
    meta = vm.metadata
    tenant = grant.tenant if grant else view.tenant_of(meta.namespace)
    machine = view.world.get("VirtualMachine", meta.namespace, meta.name)
    return machine is not None and not fit(view, obj, vm, tenant, grant)


def _observed(view: View, obj: Object) -> dict[str, list[Object]]:
    children: dict[str, list[Object]] = defaultdict(list)
    for child in view.descendants(obj["metadata"]["namespace"], uid_of(obj)):
        children[child["kind"]].append(child)
    return children


def _restart_outdated(view: View, obj: Object) -> list[Chain]:
    """Have KubeVirt make a new instance where one of an earlier template waits with other GPUs than were granted.

    It may do so for good: the gate holds its launcher, and KubeVirt makes no other one for a machine that is to run.
    What is held has nothing yet, so nothing is lost.
    """
    chains = []
    below = view.descendants(obj["metadata"]["namespace"], uid_of(obj))
    for instance in (child for child in below if child["kind"] == "VirtualMachineInstance"):
        machine = ancestor(view, instance, "VirtualMachine")
        launchers = [pod for pod in below if pod["kind"] == "Pod" and uid_of(instance) in owner_uids(pod)]
        if machine is None or is_deleting(instance) or not launchers or not all(map(is_gated, launchers)):
            continue
        if _device_names(instance["spec"]) != _device_names(machine["spec"]["template"]["spec"]):
            version = instance["metadata"]["resourceVersion"]
            delete = Delete(ref_of(instance), uid_of(instance), version)
            chains.append(Chain(f"restart {ref_of(obj)}: its instance is of an earlier template", (delete,)))
    return chains


def _device_names(spec: Mapping[str, Any]) -> list[str]:
    devices = (spec.get("domain") or {}).get("devices") or {}
    return sorted(gpu.get("deviceName", "") for gpu in devices.get("gpus") or ())


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
        if is_revoked(view, grant):
            admitted = Condition("Admitted", False, grant.revoked, grant.revoked_message, True, warning=True)
        else:
            admitted = Condition("Admitted", True, "Admitted", granted_text(view, vm, grant), event=True)
            if has_notice(view, grant):
                admitted = Condition("Admitted", True, PREEMPTING, grant.revoked_message, True, warning=True)
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
        phase = "Stopped" if is_over(view, obj) else "Pending"
    else:
        # Decided in this very plan, or still letting go of what it held before.
        return []
    degraded = _degraded(view, grant, problem, seen.message if seen.failed else "")
    if problem is not None:
        phase, message = "Failed", str(problem)
    elif degraded.status:
        message = message or degraded.message
    ready = Condition("Ready", seen.ready and grant is not None, phase, message, event=seen.ready)
    more = {
        "queuePosition": position,
        "avoidedNodes": _avoided(view, obj, grant, phase),
        # One that its owner has stopped may start again with a new one.
        "lease": None if grant is None and vm.spec.run_strategy == "Halted" else status_of(view, obj),
    }
    conditions = [admitted, ready, degraded, *ending_conditions(view, obj)]
    return _status(view, obj, phase, message, grant, conditions, generation, more)


def _degraded(
    view: View, grant: Allocation | None, problem: VmtError | None = None, failure: str = ""
) -> Condition:
    trouble = trouble_of(view, grant) if grant else None
    if problem is not None:
        return Condition("Degraded", True, "CannotRender", str(problem), event=True, warning=True)
    if trouble is not None:
        return Condition("Degraded", True, *trouble, event=True, warning=True)
    if failure:
        return Condition("Degraded", True, "RuntimeFailed", failure, event=True, warning=True)
    return Condition("Degraded", False, "AsExpected")


def _avoided(view: View, obj: Object, grant: Allocation | None, phase: str) -> list[str]:
    """Nodes to place it on last: those that did not take its pod in time, until it runs."""
    if phase == "Running":
        return []
    nodes = list(avoided_nodes(obj))
    if grant is not None and grant.node not in nodes and overdue(view, grant):
        nodes.append(grant.node)
    return nodes[-MOST_AVOIDED:]


def _status(
    view: View,
    obj: Object,
    phase: str,
    message: str,
    grant: Allocation | None,
    conditions: list[Condition],
    generation: int,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> list[Chain]:
    allocation = None
    if grant is not None:
        devices = [device for g in grant.grants for device in g.devices]
        gpus = [{"class": g.class_, "count": g.count} for g in grant.grants]
        allocation = {"name": grant.name, "node": grant.node, "devices": devices, "gpus": gpus}
    fields = {"phase": phase, "allocation": allocation, "message": message[:1024], **more}
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
