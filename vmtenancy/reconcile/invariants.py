"""The invariants as code: `check(world)` looks at one observed world and says what must never be so.

What can be seen in a single world is checked here (I1 to I5, I9, I12). I6 to I8, I10 and I11 are about what happens
over time or who may do what; their tests compare worlds and requests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from vmtenancy.api.gpuclass import PARTS_PER_GPU
from vmtenancy.api.names import DEGRADED_CONDITION, FINALIZER, MANAGED_BY, MANAGED_LABEL, OWNER_UID_LABEL
from vmtenancy.core.explain.shortage import counted, named
from vmtenancy.reconcile.charges import charges
from vmtenancy.reconcile.holders import owner_of, pods_holding
from vmtenancy.reconcile.node_trouble import NODE_REASONS, trouble_of
from vmtenancy.reconcile.pods import is_gated
from vmtenancy.reconcile.status import condition
from vmtenancy.reconcile.supply import quota_tree_of
from vmtenancy.reconcile.view import Allocation, View
from vmtenancy.reconcile.world import World, is_deleting, labels_of, ref_of, uid_of


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken invariant: its number (`"I1"`) and what was seen."""

    invariant: str
    message: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.message}"


def check(world: World, *, quota_just_decided: bool = True, at_rest: bool = True) -> list[Violation]:
    """Every violation that this world shows, in the order of the invariants.

    `quota_just_decided=False` leaves out I2: quota that was lowered after an admission is over-use, not a violation.
    `at_rest=False` leaves out what the controller has to see first: what is left of an owner that is gone (I9), and
    nodes that report otherwise than was granted (I5).
    """
    view = View(world, 0.0)
    found = [*_devices_have_one_owner(view)]
    if quota_just_decided:
        found += _quota_is_kept(view)
    found += _bound_pods_have_grants(view)
    found += _held_devices_are_granted(view)
    found += _ledger_agrees(view)
    if at_rest:
        found += _trouble_is_told(view)
        found += _grants_have_owners(view)
        found += _nothing_left_behind(view)
    found += _generation_is_honest(view)
    return found


def _devices_have_one_owner(view: View) -> Iterator[Violation]:
    holders: dict[tuple[str, str], list[tuple[Allocation, int, str]]] = defaultdict(list)
    for grant in view.live:
        for part in grant.grants:
            for device in part.devices:
                holders[(grant.node, device)].append((grant, part.parts // part.count, part.resource))
    for (node, device), users in sorted(holders.items()):
        names = ", ".join(sorted({grant.name for grant, _, _ in users}))
        if sum(parts for _, parts, _ in users) > PARTS_PER_GPU:
            yield Violation("I1", f"{device} on {node} is granted beyond one GPU: {names}")
        elif len({resource for _, _, resource in users}) > 1:
            yield Violation("I1", f"{device} on {node} is granted in two ways at once: {names}")


def _quota_is_kept(view: View) -> Iterator[Violation]:
    tree = quota_tree_of(view)
    usage = charges(view)
    for (tenant, pool), parts in usage.items():
        tree.charge(tenant, pool, parts, tenant)
    for (tenant, pool), parts in sorted(usage.items()):
        if not tree.knows(tenant):
            continue  # a tenant that was deleted: what it still holds is over-use of nobody's quota
        with tree.what_if():
            tree.uncharge(tenant, pool, parts, tenant)
            fits = tree.fits(tenant, pool, parts)
        if not fits:
            held = f"{counted(parts, pool)} of {named(pool)}"
            yield Violation("I2", f"{tenant} holds {held}, more than it may")


def _bound_pods_have_grants(view: View) -> Iterator[Violation]:
    for pod in view.gpu_pods:
        node = pod["spec"].get("nodeName")
        if not node:
            continue
        grant = view.live_by_pod.get(uid_of(pod))
        if is_gated(pod):
            yield Violation("I3", f"{ref_of(pod)} is gated and bound to {node}")
        elif grant is not None and grant.node != node:
            yield Violation("I3", f"{ref_of(pod)} is on {node}, {grant.name} grants {grant.node}")
        elif grant is None and view.tenant_of(pod["metadata"]["namespace"]):
            yield Violation("I3", f"{ref_of(pod)} is bound to {node} without a live grant")


def _held_devices_are_granted(view: View) -> Iterator[Violation]:
    for grant in view.allocations:
        # A pod that is still gated has nothing yet.
        if not grant.live and not all(map(is_gated, pods_holding(view, grant))):
            yield Violation("I4", f"{grant.name} is released or void, but a pod still has its devices")


def _ledger_agrees(view: View) -> Iterator[Violation]:
    names = {grant.name for grant in view.allocations}
    for name in sorted(set(view.head.committed) - names):
        yield Violation("I5", f"the head committed {name}, which does not exist")
    owners: dict[str, str] = {}
    for grant in view.live:
        logged = view.head.committed.get(grant.name, grant.mark)
        if grant.mark and logged != grant.mark:
            yield Violation("I5", f"{grant.name} is marked {grant.mark}, the head says {logged}")
        if grant.mark > view.head.sequence or grant.epoch > view.head.epoch:
            yield Violation("I5", f"{grant.name} is of a later commit or epoch than the head")
        if grant.owner_uid in owners:
            yield Violation("I5", f"{grant.name} and {owners[grant.owner_uid]} have the same owner")
        owners[grant.owner_uid] = grant.name


def _trouble_is_told(view: View) -> Iterator[Violation]:
    for grant in view.live:
        owner = owner_of(view, grant)
        # One that goes tells nothing any more, and a gated pod has nothing yet.
        if owner is None or is_deleting(owner) or (owner["kind"] == "Pod" and is_gated(owner)):
            continue
        trouble = trouble_of(view, grant)
        kind = DEGRADED_CONDITION if owner["kind"] == "Pod" else "Degraded"
        told = condition(owner, kind) or {"status": "False", "reason": ""}
        if trouble and told["status"] != "True":
            yield Violation("I5", f"{ref_of(owner)} is not Degraded: {trouble[1]}")
        elif not trouble and told["status"] == "True" and told["reason"] in NODE_REASONS:
            yield Violation(
                "I5", f"{ref_of(owner)} is Degraded ({told['reason']}), but its node is as granted"
            )


def _grants_have_owners(view: View) -> Iterator[Violation]:
    for grant in view.allocations:
        # The last pod may outlive its owner: until it is gone, the grant has to stay (I4).
        if owner_of(view, grant) is None and not pods_holding(view, grant):
            yield Violation("I9", f"{grant.name} is left of {grant.owner_kind} {grant.owner_name}")


def _nothing_left_behind(view: View) -> Iterator[Violation]:
    uids = {uid_of(obj) for kind in ("GpuVM", "VirtualCluster") for obj in view.world.of(kind)}
    for objects in view.world.objects.values():
        for obj in objects.values():
            labels = labels_of(obj)
            # Anyone may put the uid on an object; what we made says so as well.
            uid = labels.get(OWNER_UID_LABEL) if labels.get(MANAGED_LABEL) == MANAGED_BY else None
            if uid and uid not in uids and FINALIZER not in (obj["metadata"].get("finalizers") or ()):
                yield Violation("I9", f"{ref_of(obj)} is left of an owner that is gone")


def _generation_is_honest(view: View) -> Iterator[Violation]:
    for kind in (
        "GpuVM",
        "VirtualCluster",
        "GpuGroup",
        "GpuReservation",
        "Tenant",
        "GpuPool",
        "GpuClass",
        "Cohort",
    ):
        for obj in view.world.of(kind):
            seen = int((obj.get("status") or {}).get("observedGeneration") or 0)
            if seen > int(obj["metadata"].get("generation") or 0):
                yield Violation("I12", f"{ref_of(obj)}: observedGeneration {seen} is ahead of its spec")
