"""The gate: a pod with GPUs goes on when a committed grant names it, and to the granted node only (I3)."""

from __future__ import annotations

from vmtenancy.reconcile.holders import is_lost, is_taken_back, must_be_told, pods_holding
from vmtenancy.reconcile.ledger import write_status
from vmtenancy.reconcile.pods import released_to
from vmtenancy.reconcile.status import timestamp
from vmtenancy.reconcile.steps import Chain, Granted, Object, Ref, Replace
from vmtenancy.reconcile.view import LEDGER_NAME, Allocation, View
from vmtenancy.reconcile.world import owner_uids, ref_of, uid_of


def root_owner(view: View, pod: Object) -> str:
    """The uid of the GpuVM whose launcher `pod` is, by references that the API server keeps; `""` for other pods."""
    obj = pod
    for kind in ("VirtualMachineInstance", "VirtualMachine", "GpuVM"):
        owner = _owner(view, obj, kind)
        if owner is None:
            return ""
        obj = owner
    return uid_of(obj)


def grant_for(view: View, pod: Object) -> Allocation | None:
    """The live grant that `pod` may use: its own, or that of the GpuVM it runs."""
    own = view.live_by_owner.get(uid_of(pod))
    return own or view.live_by_owner.get(root_owner(view, pod))


def gate_chains(view: View, ending: frozenset[str]) -> list[Chain]:
    """Read that the grant stands, record the pod and the time in it, then narrow the pod to the node and lift the gate.

    Not before the grant is marked, nor with one of those `ending` in this plan or taken back, nor while another pod
    still has the devices, nor for a pod that asks for other GPUs than were granted.
    """
    chains = []
    for pod in view.gated_pods:
        grant = grant_for(view, pod)
        if grant is None or not grant.mark or not grant.node or grant.name in ending:
            continue
        if is_lost(view, grant) or is_taken_back(pod, grant) or must_be_told(view, pod):
            continue
        others = [other for other in pods_holding(view, grant) if uid_of(other) != uid_of(pod)]
        if others or view.gpus(pod) != grant.resources:
            continue
        granted = Granted(Ref("GpuLedger", "", LEDGER_NAME), view.head.epoch, grant.name)
        record = write_status(grant, podUIDs=[uid_of(pod)], letGoAt=timestamp(view.now))
        lift = Replace(released_to(pod, grant.node, grant.name))
        chains.append(Chain(f"let {ref_of(pod)} go to {grant.node}", (granted, record, lift)))
    return chains


def _owner(view: View, obj: Object, kind: str) -> Object | None:
    namespace = obj["metadata"].get("namespace", "")
    uids = set(owner_uids(obj))
    for reference in obj["metadata"].get("ownerReferences") or ():
        if reference["kind"] == kind:
            found = view.world.get(kind, namespace, reference["name"])
            if found is not None and uid_of(found) in uids:
                return found
    return None
