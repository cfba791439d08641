"""Which grants have ended: not wanted any more, and nothing that could use the devices is left (I4)."""

from __future__ import annotations

from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.node_fit import fits_node
from vmtenancy.reconcile.pods import is_finished, is_gated
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import Allocation, View
from vmtenancy.reconcile.world import is_deleting, uid_of


def owner_of(view: View, allocation: Allocation) -> Object | None:
    """The owner itself, or None once it is gone; one made anew under the same name is another."""
    found = view.world.get(allocation.owner_kind, allocation.owner_namespace, allocation.owner_name)
    return found if found is not None and uid_of(found) == allocation.owner_uid else None


def ended(view: View) -> list[Allocation]:
    """Live grants to release now."""
    parents = {allocation.parent for allocation in view.live if allocation.parent}
    judge = {"GpuVM": _vm_ended, "Pod": _pod_ended}
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


def is_as_asked(vm: GpuVM, allocation: Allocation) -> bool:
    """Whether a GpuVM was granted what it asks for now."""
    return allocation.wanted == {gpu.class_: gpu.count for gpu in vm.spec.gpus}


def vm_wants_devices(vm: GpuVM, allocation: Allocation | None) -> bool:
    """Whether a GpuVM is meant to have devices now, and those of `allocation`, if it has one.

    Other devices than it asks for are of no use to it. A stopped one keeps them only if it says so.
    """
    if allocation is not None and not is_as_asked(vm, allocation):
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


def _vm_ended(view: View, allocation: Allocation) -> bool:
    obj = owner_of(view, allocation)
    if obj is not None and not is_deleting(obj):
        vm = view.parsed(obj, GpuVM)
        if isinstance(vm, VmtError) or vm_wants_devices(vm, allocation):
            return False
    holding = vm_is_holding(view, allocation.owner_namespace, allocation.owner_uid)
    return not holding and not pods_holding(view, allocation)


def _pod_ended(view: View, allocation: Allocation) -> bool:
    pod = owner_of(view, allocation)
    if pod is None or is_finished(pod):
        return True
    # While gated it may still get node selectors that its grant does not meet; then the grant is given back.
    node = view.world.get("Node", "", allocation.node)
    return is_gated(pod) and (is_deleting(pod) or node is None or not fits_node(pod, node))


def _hold_ended(view: View, allocation: Allocation, parents: set[str]) -> bool:
    obj = owner_of(view, allocation)
    if obj is not None and not is_deleting(obj):
        return False
    return allocation.name not in parents and not view.labelled.get(allocation.owner_uid)
