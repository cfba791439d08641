"""What the ledger charges to whom. A virtual cluster's pods draw on its hold first: nothing is charged twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vmtenancy.api.gpuclass import PARTS_PER_GPU
from vmtenancy.core.quota.resources import Resource
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.reconcile import volumes
from vmtenancy.reconcile.supply import limits
from vmtenancy.reconcile.view import Allocation, View
from vmtenancy.reconcile.world import uid_of


def charges(view: View) -> dict[tuple[str, str], int]:
    """Parts by (tenant, pool) of all live grants. Of a hold and the pods below it, the larger counts.

    By (tenant, `Resource`) also what grants and volumes take of the resources that a tenant is limited in.
    """
    total: dict[tuple[str, str], int] = defaultdict(int)
    holds: dict[tuple[str, str], int] = {}
    drawn: dict[tuple[str, str], int] = defaultdict(int)
    tenants: dict[str, str] = {}
    for grant in view.live:
        parent = _hold_of(view, grant)
        for part in grant.grants:
            if grant.owner_kind in ("VirtualCluster", "GpuReservation"):
                holds[(grant.name, part.pool)] = holds.get((grant.name, part.pool), 0) + part.parts
                tenants[grant.name] = grant.tenant
            elif parent:
                drawn[(parent, part.pool)] += part.parts
                tenants[parent] = grant.tenant
            else:
                total[(grant.tenant, part.pool)] += part.parts
    for hold, pool in {*holds, *drawn}:
        total[(tenants[hold], pool)] += max(holds.get((hold, pool), 0), drawn.get((hold, pool), 0))
    return dict(total) | _resources(view)


def _resources(view: View) -> dict[tuple[str, str], int]:
    limited = limits(view)
    total: dict[tuple[str, str], int] = defaultdict(int)
    for grant in view.live:
        for resource, taken in ((Resource.CPU, grant.cpu), (Resource.MEMORY, grant.memory)):
            if taken and resource in limited.get(grant.tenant, ()):
                total[(grant.tenant, resource)] += taken
    for there in volumes.charged(view, frozenset()):
        total[(there.demand.tenant, Resource.STORAGE)] += there.demand.storage
    return total


def _hold_of(view: View, grant: Allocation) -> str:
    """The hold that a pod's grant draws on: the one of its time, or one that its virtual cluster got since."""
    if grant.parent or grant.owner_kind != "Pod":
        return grant.parent
    cluster = view.cluster_of(grant.owner_namespace)
    hold = view.live_by_owner.get(uid_of(cluster)) if cluster else None
    return hold.name if hold and hold.tenant == grant.tenant else ""


def pool_sums(by_tenant: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Parts by pool, over all tenants."""
    total: dict[str, int] = defaultdict(int)
    for (_, pool), parts in by_tenant.items():
        total[pool] += parts
    return dict(total)


@contextmanager
def with_charges(tree: QuotaTree, by_tenant: Mapping[tuple[str, str], int]) -> Iterator[None]:
    """A tree on which nothing was charged, with all of it inside."""
    with tree.what_if():
        for (tenant, pool), parts in by_tenant.items():
            tree.charge(tenant, pool, parts, tenant)
        yield


def fair_shares(tree: QuotaTree, by_tenant: Mapping[tuple[str, str], int]) -> dict[str, float]:
    """The dominant share by its weight of each tenant that is charged something, on the tree `with_charges`."""
    return {tenant: tree.share(tenant) for tenant, _ in by_tenant}


def over_use(
    tree: QuotaTree, by_tenant: Mapping[tuple[str, str], int]
) -> dict[str, list[tuple[str, int, str]]]:
    """By tenant (pool, parts, `cohort research`): what it has borrowed and may not borrow any more, since quota was
    lowered, or something ran before it was known; on the tree `with_charges`.
    """
    found: dict[str, list[tuple[str, int, str]]] = defaultdict(list)
    for (tenant, pool), parts in sorted(by_tenant.items()):
        borrowed = parts - tree.nominal(tenant, pool)
        if borrowed <= 0 or not tree.is_open(tenant, pool):
            continue
        debt, binding = tree.debt(tenant, pool)
        if debt:
            found[tenant].append((pool, min(debt, borrowed), binding))
    return found


def share_text(share: float) -> str:
    """A share for people, at most four decimals, no trailing zeros: `"0.25"`."""
    return f"{share:.4f}".rstrip("0").rstrip(".")


def gpus_text(parts: int) -> str:
    """Parts as GPUs for people, at most two decimals, no trailing zeros: `"2"`, `"0.25"`."""
    hundredths = round(parts * 100 / PARTS_PER_GPU)
    return f"{hundredths / 100:.2f}".rstrip("0").rstrip(".")
