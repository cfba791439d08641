"""Whose machine a pod runs: launcher pod → VirtualMachineInstance → VirtualMachine → GpuVM, by references that hold."""

from __future__ import annotations

from vmtenancy.api.names import ADOPT_ANNOTATION, ALLOCATION_ANNOTATION
from vmtenancy.reconcile.pods import is_finished
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import annotations_of, owner_uids, uid_of


def ancestor(view: View, obj: Object, *kinds: str) -> Object | None:
    """Follow owner references up through `kinds`; None where one does not name an object that exists.

    A reference counts by kind, name and uid, and only within the namespace.
    """
    namespace = obj["metadata"].get("namespace", "")
    for kind in kinds:
        uids = set(owner_uids(obj))
        names = [ref["name"] for ref in obj["metadata"].get("ownerReferences") or () if ref["kind"] == kind]
        found = (view.world.get(kind, namespace, name) for name in names)
        owner = next((owner for owner in found if owner is not None and uid_of(owner) in uids), None)
        if owner is None:
            return None
        obj = owner
    return obj


def gpuvm_of(view: View, pod: Object) -> Object | None:
    """The GpuVM whose launcher `pod` is, or the one that adopts the machine which it runs."""
    machine = ancestor(view, pod, "VirtualMachineInstance", "VirtualMachine")
    if machine is None:
        return None
    owner = ancestor(view, machine, "GpuVM")
    if owner is not None:
        return owner
    meta = machine["metadata"]
    adopter = view.world.get("GpuVM", meta["namespace"], meta["name"])
    return adopter if adopter is not None and machine_to_adopt(view, adopter) is machine else None


def machine_to_adopt(view: View, gpuvm: Object) -> Object | None:
    """The VirtualMachine that a GpuVM adopts and does not own yet: of its name, and of the uid that it names.

    One that something else controls is not for us to take.
    """
    wanted = annotations_of(gpuvm).get(ADOPT_ANNOTATION)
    meta = gpuvm["metadata"]
    machine = view.world.get("VirtualMachine", meta["namespace"], meta["name"]) if wanted else None
    if machine is None or uid_of(machine) != wanted:
        return None
    references = machine["metadata"].get("ownerReferences") or ()
    return None if any(reference.get("controller") for reference in references) else machine


def running_launchers(view: View, gpuvm: Object) -> list[Object]:
    """Bound, unfinished launchers of a GpuVM that went through its gate, or of the machine that it adopts."""
    namespace, uid = gpuvm["metadata"]["namespace"], uid_of(gpuvm)
    machine = machine_to_adopt(view, gpuvm)
    below = [
        *view.descendants(namespace, uid),
        *(view.descendants(namespace, uid_of(machine)) if machine else ()),
    ]
    return [
        pod
        for pod in below
        if pod["kind"] == "Pod"
        and pod["spec"].get("nodeName")
        and not is_finished(pod)
        and is_claimed(view, pod)
    ]


def is_claimed(view: View, pod: Object) -> bool:
    """Whether a pod that runs without a grant should have one: we let it through, or an administrator adopts it.

    Only the controller may set the one annotation, only administrators the other (admission policy).
    """
    marks = annotations_of(pod)
    if ALLOCATION_ANNOTATION in marks or ADOPT_ANNOTATION in marks:
        return True
    gpuvm = gpuvm_of(view, pod)
    return gpuvm is not None and ADOPT_ANNOTATION in annotations_of(gpuvm)
