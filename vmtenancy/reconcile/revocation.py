"""Grants that are taken back: revoked ones, and those whose pod no node takes (the bind deadline, I10).

The scheduler may know what the planner does not: a volume in another zone, a taken port, a plugin of its own. After
the deadline the pod is deleted, but only as it was seen, unbound: binding it changes its resourceVersion, so one of
the two wins. A pod's own grant ends with it. A GpuVM gets new launchers for as long as it runs, so its grant is
revoked before, which stands once the pod is gone; then it is stopped and placed again, elsewhere if it fits there.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmtenancy.reconcile.holders import is_revoked, owner_of, pods_holding
from vmtenancy.reconcile.ledger import revoke, write_status
from vmtenancy.reconcile.pods import is_bound, is_finished, is_gated
from vmtenancy.reconcile.status import condition, timestamp
from vmtenancy.reconcile.steps import Chain, Delete, Emit, Object, Step
from vmtenancy.reconcile.view import Allocation, View
from vmtenancy.reconcile.world import is_deleting, ref_of, uid_of

NOT_BOUND = "NotBound"


def overdue(view: View, grant: Allocation) -> Object | None:
    """The pod that was let through with this grant and should have been bound by now."""
    return next((pod for pod, due in _awaited(view, grant) if due <= view.now), None)


def next_deadline(view: View) -> float | None:
    """When the next awaited pod will be overdue, or the next notice over, in seconds."""
    dues = [due for grant in view.live for _, due in _awaited(view, grant)]
    dues += [grant.revoked_since for grant in view.live]
    return min((due for due in dues if due > view.now), default=None)


def avoided_nodes(vm: Object) -> tuple[str, ...]:
    """Nodes on which a GpuVM did not start, as its status remembers them."""
    return tuple((vm.get("status") or {}).get("avoidedNodes") or ())


def revocation_chains(view: View) -> list[Chain]:
    """Delete pods whose grant is revoked or that are overdue; undo it for one that was bound after all."""
    chains = []
    for grant in view.live:
        steps: tuple[Step, ...] = ()
        if is_revoked(view, grant):
            steps = _end_pod(view, grant)
        elif pod := overdue(view, grant):
            steps = _give_up(view, grant, pod)
        elif (pod := view.gpu_pods_by_uid.get(grant.unless_bound)) and is_bound(pod):
            chains.append(Chain(f"leave {grant.name} as it is", (write_status(grant, revoked=None),)))
        if steps:
            chains.append(Chain(f"take {grant.name} back", steps))
    return chains


def _awaited(view: View, grant: Allocation) -> Iterator[tuple[Object, float]]:
    if grant.let_go_at is not None:
        for pod in pods_holding(view, grant):
            if not is_bound(pod) and not is_gated(pod) and not is_deleting(pod):
                yield pod, grant.let_go_at + view.world.bind_deadline


def _end_pod(view: View, grant: Allocation) -> tuple[Step, ...]:
    """A pod's own grant lasts as long as the pod. A GpuVM's launcher ends with its machine, which is stopped."""
    pod = owner_of(view, grant)
    if grant.owner_kind != "Pod" or pod is None or is_deleting(pod) or is_finished(pod):
        return ()
    told = Emit(pod, grant.revoked, grant.revoked_message, warning=True)
    return (Delete(ref_of(pod), uid_of(pod)), told)


def _give_up(view: View, grant: Allocation, pod: Object) -> tuple[Step, ...]:
    owner = owner_of(view, grant)
    if owner is None or is_deleting(owner):
        return ()  # the pod goes with it
    delete = Delete(ref_of(pod), uid_of(pod), pod["metadata"]["resourceVersion"])
    said = condition(pod, "PodScheduled") or {}
    message = (
        f"{ref_of(pod)} was let go to node {grant.node} at {timestamp(grant.let_go_at or 0.0)} and is not bound: "
        f"{said.get('message') or 'the scheduler said nothing'}"
    )
    if grant.owner_kind == "Pod":
        return (delete, Emit(pod, NOT_BOUND, message, warning=True))
    # Its status has to remember the node first, else it could be placed there again.
    if grant.node not in avoided_nodes(owner):
        return ()
    if grant.unless_bound == uid_of(pod):
        return (delete,)
    return (revoke(grant, NOT_BOUND, message, view.now, unless_bound=uid_of(pod)), delete)
