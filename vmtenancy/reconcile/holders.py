"""Which grants have ended: not wanted any more, and nothing that could use the devices is left (I4)."""

from __future__ import annotations

from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.names import ADMITTED_CONDITION
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.node_fit import fits_node
from vmtenancy.reconcile.pods import is_bound, is_finished, is_gated
from vmtenancy.reconcile.reservations import end_of
from vmtenancy.reconcile.status import condition
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.supply import vm_needs
from vmtenancy.reconcile.view import Allocation, View
from vmtenancy.reconcile.volumes import fit
from vmtenancy.reconcile.world import is_deleting, uid_of

PREEMPTING = "Preempting"
"""Reason of the condition by which an owner is told, some time before, that its grant is taken back."""
TAKEN_BACK = "TakenBack"
"""Reason of the condition by which a gated pod is told, before its grant ends, that it must not use it."""


def owner_of(view: View, allocation: Allocation) -> Object | None:
    """The owner itself, or None once it is gone; one made anew under the same name is another."""
    found = view.world.get(allocation.owner_kind, allocation.owner_namespace, allocation.owner_name)
    return found if found is not None and uid_of(found) == allocation.owner_uid else None


def ended(view: View) -> list[Allocation]:
    """Live grants to release now."""
    parents = {allocation.parent for allocation in view.live if allocation.parent}
    judge = {"GpuVM": _vm_ended, "GpuReservation": _reservation_ended, "Pod": _pod_ended}
    return [
        allocation
        for allocation in view.live
        if (
            _hold_ended(view, allocation, parents)
            if allocation.owner_kind == "VirtualCluster"
            else judge[allocation.owner_kind](view, allocation)
        )
    ]


def pods_holding(view: View, allocation: Allocation) -> list[Object]:
    """Pods that were let through with this grant and have not finished."""
    return [view.gpu_pods_by_uid[uid] for uid in allocation.pod_uids if uid in view.gpu_pods_by_uid]


def is_as_asked(view: View, vm: GpuVM, allocation: Allocation) -> bool:
    """Whether a GpuVM was granted what it asks for now; of cpu, memory and storage it may have been more.

    More than it was granted of these it can ask for only while it is stopped.
    """
    if not vm.spec.accepts(allocation.wanted):
        return False
    cpu, memory = vm_needs(vm)
    if allocation.cpu >= cpu and allocation.memory >= memory:
        obj = owner_of(view, allocation)
        if obj is None or fit(view, obj, vm, allocation.tenant, allocation):
            return True
    return vm_is_holding(view, allocation.owner_namespace, allocation.owner_uid)


def is_lost(view: View, allocation: Allocation) -> bool:
    """Whether a grant is of no use any more: it was taken back, or its node is gone and nothing runs on it."""
    return is_revoked(view, allocation) or (
        bool(allocation.node)
        and view.world.get("Node", "", allocation.node) is None
        and not any(map(is_bound, pods_holding(view, allocation)))
    )


def is_revoked(view: View, allocation: Allocation) -> bool:
    """Whether a grant was taken back. Not yet while notice runs, or a pod that would prevent it can still be bound."""
    if not allocation.revoked or has_notice(view, allocation):
        return False
    pod = view.gpu_pods_by_uid.get(allocation.unless_bound)
    return pod is None or (is_deleting(pod) and not is_bound(pod))


def has_notice(view: View, allocation: Allocation) -> bool:
    """Whether a grant will be taken back, and its owner may still save its work."""
    return allocation.revoked_since > view.now


def vm_wants_devices(view: View, vm: GpuVM, allocation: Allocation | None) -> bool:
    """Whether a GpuVM is meant to have devices now, and those of `allocation`, if it has one.

    Other devices than it asks for, or lost ones, are of no use to it. A stopped one keeps them only if it says so.
    """
    if allocation is not None and (not is_as_asked(view, vm, allocation) or is_lost(view, allocation)):
        return False
    return vm.spec.run_strategy != "Halted" or (vm.spec.when_stopped == "Hold" and allocation is not None)


def vm_is_holding(view: View, namespace: str, uid: str) -> bool:
    """Whether anything below a GpuVM has devices or could soon ask for them."""
    for child in view.descendants(namespace, uid):
        kind = child["kind"]
        if (
            kind == "VirtualMachine"
            and not is_deleting(child)
            and child["spec"].get("runStrategy") != "Halted"
        ):
            return True
        # A VirtualMachineInstance ends in the same phases as a pod.
        if kind in ("VirtualMachineInstance", "Pod") and not is_finished(child):
            return True
    return False


def taken_back_message(allocation: Allocation) -> str:
    """What a gated pod is told before its grant ends."""
    return f"the grant {allocation.name} of node {allocation.node} is taken back"


def is_taken_back(pod: Object, allocation: Allocation) -> bool:
    """Whether a gated pod was told that this grant ends.

    It must be, for as long as it could still be let through: a controller that was paused before it lifted the gate
    (its record may be written already) then meets another resourceVersion, and none lifts it with this grant later.
    """
    told = condition(pod, ADMITTED_CONDITION)
    return told is not None and (told["reason"], told["message"]) == (
        TAKEN_BACK,
        taken_back_message(allocation),
    )


def must_be_told(view: View, pod: Object) -> Allocation | None:
    """The grant of a gated pod that ends as soon as the pod was told so: its node is gone, or not for it any more.

    While gated a pod may still get node selectors that its grant does not meet.
    """
    allocation = view.live_by_owner.get(uid_of(pod))
    if allocation is None or is_taken_back(pod, allocation):
        return None
    node = view.world.get("Node", "", allocation.node)
    return allocation if node is None or not fits_node(pod, node) else None


def is_ending(view: View, allocation: Allocation) -> bool:
    """Whether a live grant will end soon, whatever is decided: it is taken back, or its owner wants it no more."""
    if allocation.owner_kind in ("VirtualCluster", "GpuReservation"):
        return False
    obj = owner_of(view, allocation)
    if obj is None or is_deleting(obj) or is_revoked(view, allocation) or has_notice(view, allocation):
        return True
    return allocation.owner_kind == "GpuVM" and not _is_wanted(view, obj, allocation)


def _is_wanted(view: View, obj: Object, allocation: Allocation) -> bool:
    """Whether a GpuVM wants this grant; of one that can not be read nobody knows."""
    vm = view.parsed(obj, GpuVM)
    return isinstance(vm, VmtError) or vm_wants_devices(view, vm, allocation)


def _vm_ended(view: View, allocation: Allocation) -> bool:
    obj = owner_of(view, allocation)
    if obj is not None and not is_deleting(obj) and _is_wanted(view, obj, allocation):
        return False
    holding = vm_is_holding(view, allocation.owner_namespace, allocation.owner_uid)
    return not holding and not pods_holding(view, allocation)


def _pod_ended(view: View, allocation: Allocation) -> bool:
    pod = owner_of(view, allocation)
    if pod is None or is_finished(pod):
        return True
    return is_gated(pod) and (is_deleting(pod) or is_taken_back(pod, allocation))


def _reservation_ended(view: View, allocation: Allocation) -> bool:
    """What draws on it still is charged by itself from then on."""
    obj = owner_of(view, allocation)
    if obj is None or is_deleting(obj):
        return True
    end = end_of(view, obj)
    return end is not None and end <= view.now


def _hold_ended(view: View, allocation: Allocation, parents: set[str]) -> bool:
    if allocation.name in parents:
        return False
    obj = owner_of(view, allocation)
    if obj is None or is_deleting(obj):
        return not view.labelled.get(allocation.owner_uid)
    # Its status has to say first that it holds nothing, else the hold would seem to be lost, and be given again.
    told = (obj.get("status") or {}).get("gpus") or ()
    return is_revoked(view, allocation) and not any(gpu["guaranteed"] for gpu in told)
