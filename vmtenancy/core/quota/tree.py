"""The quota tree: tenants below cohorts that nest to any depth, with Kueue's hierarchical semantics.

Per node and column, which is a pool or a `Resource` (KEP-79 of Kueue, `pkg/cache/scheduler/resource_node.go`):

- *subtree quota*: its nominal quota plus what its children do not keep for themselves;
- *guaranteed*: what it never lends, `max(0, subtree quota - lending limit)`; 0 without a lending limit;
- *usage*: of a tenant, what it is charged; of a cohort, the sum of its children's usage above their
  guaranteed;
- *available*: at the root, subtree quota - usage; below, what is left of the guaranteed part plus what the
  parent has available, of which at most `borrowing limit` above the node's own share in the parent.

So no admission that fits brings a tenant above nominal plus what it may borrow then, nor a root above the sum
of its nominal quotas (I2). What is charged is a fact and is never refused here: quota that was lowered later
is a debt that its cohort shares until it is paid. All amounts are integers: parts of a GPU (quota is given in
whole GPUs), millicores, bytes. Wherever a pool is named below, a resource may be.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmtenancy.core.explain.shortage import Shortage
from vmtenancy.core.quota.holders import Holders
from vmtenancy.core.quota.limits import limits_of, nodes_of, rows
from vmtenancy.core.quota.policy import DEFAULT_FUNGIBILITY, NOBODY, Fungibility, PreemptionPolicy
from vmtenancy.core.quota.resources import Resource
from vmtenancy.core.quota.rules import CohortQuota, PoolQuota, ResourceQuota, TenantQuota
from vmtenancy.errors import Code, Problem, VmtError

__all__ = ["CohortQuota", "PoolQuota", "QuotaTree", "ResourceQuota", "TenantQuota"]

_NO_UNITS: Mapping[str, int] = {}


class _Charge(NamedTuple):
    tenant: str
    pool: str
    parts: int
    holder: str
    units: Mapping[str, int]
    firm: bool


class QuotaTree:
    """Rules as arrays [nodes, columns] int64, with usage on top. Queries and charges cost O(depth).

    `cohort_problems` and `tenant_problems` say, by name, what is contradictory: a cohort on a cycle or with a
    missing parent is a root of its own, a tenant with a missing cohort stands alone. Nothing else is
    affected.
    """

    def __init__(self, tenants: Iterable[TenantQuota], cohorts: Iterable[CohortQuota]) -> None:
        cohorts = sorted(cohorts, key=lambda cohort: cohort.name)
        tenants = sorted(tenants, key=lambda tenant: tenant.name)
        owners: list[CohortQuota | TenantQuota] = [*cohorts, *tenants]
        nodes = nodes_of(tenants, cohorts)
        self.cohort_problems, self.tenant_problems = nodes.cohort_problems, nodes.tenant_problems
        self._labels, self._paths = nodes.labels, nodes.paths
        self._tenant = {tenant.name: len(cohorts) + i for i, tenant in enumerate(tenants)}
        pools = sorted({quota.pool for owner in owners for quota in owner.quota})
        limited = {quota.resource for owner in owners for quota in owner.resources}
        #: Pools and resources.
        self.columns: list[str] = [*pools, *sorted(limited)]
        self._pool = {name: p for p, name in enumerate(self.columns)}
        limits = limits_of(owners, self._paths, self._pool)
        self._nominal, self._subtree, self._guaranteed = limits.nominal, limits.subtree, limits.guaranteed
        self._potential = limits.potential
        self._usage: NDArray[np.int64] = np.zeros_like(limits.nominal)
        self._open: set[tuple[str, str]] = {
            (tenant.name, quota.column) for tenant in tenants for quota in rows(tenant)
        }
        self._limited = {
            tenant.name: tuple(quota.resource for quota in tenant.resources)
            for tenant in tenants
            if tenant.resources
        }
        self._policies = {tenant.name: tenant.preemption for tenant in tenants}
        self._fungibility = {tenant.name: tenant.fungibility for tenant in tenants}
        self._caps = {
            (t.name, name): cap for t in tenants for quota in t.quota for name, cap in quota.classes.items()
        }
        # As lists: numbers one by one are read from them in a third of the time.
        self._kept: list[list[int]] = self._guaranteed.tolist()
        #: The most that a node's usage above its guaranteed may be.
        self._ceilings: list[list[int]] = (limits.subtree - limits.guaranteed + limits.borrowing).tolist()
        #: To find the dominant pool; 0 where there is nothing.
        self._per_potential = np.where(self._potential > 0, 1 / np.maximum(1, self._potential), 0.0)
        self._weights = [owner.weight for owner in owners]
        self._units: Counter[tuple[str, str]] = Counter()
        self._firm: Counter[tuple[str, str]] = Counter()
        self._holders = Holders()
        self._below: dict[int, list[str]] = defaultdict(list)
        for tenant in tenants:
            for node in self._paths[self._tenant[tenant.name]]:
                self._below[node].append(tenant.name)
        self._journal: list[tuple[int, _Charge]] | None = None
        #: What is charged by tenant and pool and has not walked up the tree yet; None: it walks at once.
        self._sums: Counter[tuple[str, str]] | None = None

    @classmethod
    def build(cls, tenants: Iterable[TenantQuota], cohorts: Iterable[CohortQuota] = ()) -> QuotaTree:
        """A tree with nothing charged. Raises VmtError where a name or a pool of one owner is given twice."""
        return cls(tenants, cohorts)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All that is contradictory; each degrades its own part of the tree alone."""
        return (*self.cohort_problems.values(), *self.tenant_problems.values())

    def knows(self, tenant: str) -> bool:
        """Whether there is such a tenant."""
        return tenant in self._tenant

    def is_open(self, tenant: str, pool: str) -> bool:
        """Whether the tenant's quota names the pool (nominal 0 is enough: it may borrow)."""
        return (tenant, pool) in self._open

    def limited(self, tenant: str) -> tuple[Resource, ...]:
        """The resources that the tenant is limited in, and charged for."""
        return self._limited.get(tenant, ())

    def nominal(self, tenant: str, pool: str) -> int:
        """The tenant's own nominal quota, in parts."""
        return int(self._nominal[self._tenant[tenant], self._pool[pool]]) if self.is_open(tenant, pool) else 0

    def usage(self, tenant: str, pool: str) -> int:
        """What the tenant is charged, in parts."""
        node, p = self._tenant.get(tenant), self._pool.get(pool)
        return 0 if node is None or p is None else int(self._usage[node, p])

    def available(self, tenant: str, pool: str) -> int:
        """Parts that the tenant could be charged now, borrowing included; never below 0. 0 where it has no
        quota.
        """
        if not self.is_open(tenant, pool):
            return 0
        return max(0, self._walk(tenant, pool)[0])

    def fits(self, tenant: str, pool: str, parts: int) -> bool:
        """Whether charging `parts` now keeps every limit (I2). Nothing always fits, also in debt."""
        return parts == 0 or parts <= self.available(tenant, pool)

    def debt(self, tenant: str, pool: str) -> tuple[int, str]:
        """Parts above all limits, which only quota that was lowered leaves, and which node of `path` they are above."""
        free, binding = self._walk(tenant, pool)
        return max(0, -free), self._labels[binding]

    def policy(self, tenant: str) -> PreemptionPolicy:
        """Whom the tenant's requests may stop; nobody for a tenant that does not exist."""
        return self._policies.get(tenant, NOBODY)

    def fungibility(self, tenant: str) -> Fungibility:
        """Which of several classes the tenant's requests get."""
        return self._fungibility.get(tenant, DEFAULT_FUNGIBILITY)

    def reach(self, tenant: str, pool: str, parts: int) -> int:
        """How far up `path` a charge of `parts` that fits would borrow: 0 if it stays within the tenant's own share, 1
        if within that of the cohort right above it, and so on.

        Kueue's `FindHeightOfLowestSubtreeThatFits`, counted along one path.
        """
        p, path = self._pool[pool], self._paths[self._tenant[tenant]]
        for level, node in enumerate(path):
            used = self._usage.item(node, p)
            if used + parts <= self._subtree.item(node, p):
                return level
            parts -= max(0, self._kept[node][p] - used)
        return len(path) - 1

    def path(self, tenant: str) -> tuple[str, ...]:
        """From the tenant to its root, as `tenant vision`, `cohort research`; alone where it does not exist."""
        if tenant not in self._tenant:
            return (f"tenant {tenant}",)
        return tuple(self._labels[node] for node in self._paths[self._tenant[tenant]])

    def share(self, tenant: str, more: Mapping[str, int] = _NO_UNITS, level: int = 0) -> float:
        """The dominant share of node `level` of `path`, if the tenant were charged `more` (parts by pool) than it is.

        It is what the node has borrowed of a pool, over all that the node above could hold of it, in the pool where
        that is the most, by the node's weight (KEP-1714 of Kueue, `pkg/cache/scheduler/fair_sharing.go`, with one
        resource per pool). A root borrows from nobody: 0. Shares that are equal are equal as floats, too: each is one
        division of integers.
        """
        path = self._paths[self._tenant[tenant]] if tenant in self._tenant else ()
        if level + 1 >= len(path) or not self.columns:
            return 0.0
        rise = {self._pool[pool]: parts for pool, parts in more.items() if pool in self._pool}
        for node in path[:level]:
            rise = {
                p: _rise_above(self._usage.item(node, p), parts, self._kept[node][p])
                for p, parts in rise.items()
            }
        node, above = path[level], path[level + 1]
        over = self._usage[node] - self._subtree[node]
        for p, parts in rise.items():
            over[p] += parts
        p = int((over * self._per_potential[above]).argmax())
        borrowed, potential = int(over[p]), int(self._potential[above, p])
        return borrowed / (potential * self._weights[node]) if borrowed > 0 and potential > 0 else 0.0

    def extent(self, tenant: str, level: int) -> float:
        """As `share`, but of all that the root could hold, by the weights of the node and of all cohorts above it: one
        measure for all nodes below a root.
        """
        path = self._paths[self._tenant[tenant]]
        over = self._usage[path[level]] - self._subtree[path[level]]
        weight = prod(self._weights[node] for node in path[level:-1])
        return max(0.0, float((over * self._per_potential[path[-1]]).max())) / weight

    def has_borrowed_from(self, lender: str, tenant: str, pool: str) -> bool:
        """Whether what `tenant` holds of the pool is, in part, what `lender` could use.

        It is where both are below one node of the tree, and `tenant` and every cohort between it and that node hold
        more than their own share.
        """
        if lender not in self._tenant or tenant not in self._tenant or pool not in self._pool:
            return False
        shared = set(self._paths[self._tenant[lender]])
        below = [node for node in self._paths[self._tenant[tenant]] if node not in shared]
        if lender == tenant or len(below) == len(self._paths[self._tenant[tenant]]):
            return False
        p = self._pool[pool]
        return all(self._usage[node, p] > self._subtree[node, p] for node in below)

    def nodes(self, tenant: str) -> tuple[int, ...]:
        """The nodes of the tree from the tenant to its root, itself first."""
        return self._paths[self._tenant[tenant]]

    def spare(self, node: int, pool: str) -> int:
        """Parts of a node's own share that are unused; below 0 where it holds more, so has borrowed."""
        p = self._pool[pool]
        return int(self._subtree[node, p] - self._usage[node, p])

    def unlent(self, node: int, pool: str) -> int:
        """Unused parts that a node never lends: what it has before its parent is asked."""
        p = self._pool[pool]
        return max(0, int(self._guaranteed[node, p] - self._usage[node, p]))

    def potential(self, node: int, pool: str) -> int:
        """Parts that a node could hold if nobody else held anything, borrowing included."""
        return int(self._potential[node, self._pool[pool]])

    def class_room(self, tenant: str, name: str) -> int | None:
        """Units of the class that the tenant's cap leaves; None without a cap; below 0 where it was
        lowered.
        """
        cap = self._caps.get((tenant, name))
        return None if cap is None else cap - self._units[(tenant, name)]

    def own_room(self, tenant: str, pool: str) -> int:
        """Parts of its nominal quota that the tenant has not charged as firm; below 0 where it was lowered."""
        return self.nominal(tenant, pool) - self._firm[(tenant, pool)]

    def charge(
        self,
        tenant: str,
        pool: str,
        parts: int,
        holder: str,
        units: Mapping[str, int] = _NO_UNITS,
        *,
        firm: bool = False,
    ) -> None:
        """Add to the usage, for `holder` (shown in explanations), with units by class for the caps.

        What is `firm` is never given back for others. Never refused: ask `fits` before. A tenant or pool that the
        rules do not name is remembered as a holder only.
        """
        self._change(1, _Charge(tenant, pool, parts, holder, units, firm))

    def uncharge(
        self,
        tenant: str,
        pool: str,
        parts: int,
        holder: str,
        units: Mapping[str, int] = _NO_UNITS,
        *,
        firm: bool = False,
    ) -> None:
        """Take back a charge. Raises VmtError (LEDGER) where the holder is not charged as much."""
        if self._holders.of(pool, tenant, holder) < parts:
            raise VmtError(
                Problem(Code.LEDGER, "", f"{holder} of {tenant} gives back more of {pool} than it holds")
            )
        self._change(-1, _Charge(tenant, pool, parts, holder, units, firm))

    def copy(self) -> QuotaTree:
        """Another one with the same rules, on which others may charge."""
        twin = copy.copy(self)
        twin._usage, twin._units, twin._firm = self._usage.copy(), Counter(self._units), Counter(self._firm)
        twin._holders, twin._journal = self._holders.copy(), None
        return twin

    @contextmanager
    def all_at_once(self) -> Iterator[None]:
        """What is charged inside walks up the tree once per tenant and pool, at the end: nothing may be asked before.

        It comes to the same: of a node's usage the one above has what is above the guaranteed, in whatever steps it
        came about. What is inside must not be undone as a part (`what_if`).
        """
        self._sums = sums = Counter[tuple[str, str]]()
        try:
            yield
        finally:
            self._sums = None
            for (tenant, pool), delta in sums.items():
                self._walk_up(tenant, pool, delta)

    @contextmanager
    def what_if(self) -> Iterator[None]:
        """Whatever is charged or taken back inside is undone at the end, at a cost of the changes alone.
        Nests.
        """
        outer, self._journal = self._journal, []
        try:
            yield
        finally:
            journal, self._journal = self._journal, None
            for sign, charge in reversed(journal):
                self._change(-sign, charge)
            self._journal = outer

    def shortage(self, tenant: str, pool: str, parts: int) -> Shortage:
        """Why `parts` more do not fit: the node of the tree that binds, and who holds what it shares."""
        free, binding = self._walk(tenant, pool)
        total, _ = self._walk(tenant, pool, used=False)
        holders = self._holders.ranked(pool, binding, self._below[binding])
        return Shortage(pool, parts, max(0, free), total, self._labels[binding], holders)

    def holders(self, pool: str) -> tuple[tuple[str, int], ...]:
        """Who holds how many parts of the pool, over all tenants, the largest first."""
        return self._holders.ranked(pool)

    def _walk(self, tenant: str, pool: str, *, used: bool = True) -> tuple[int, int]:
        """What the tenant has available (below 0 in debt; `used` False: if nobody held anything), and which
        binds.
        """
        p = self._pool[pool]
        path = self._paths[self._tenant[tenant]]
        binding = path[-1]
        usage, kept, ceilings = self._usage, self._kept, self._ceilings
        free = self._subtree.item(binding, p) - (usage.item(binding, p) if used else 0)
        for node in reversed(path[:-1]):
            guaranteed, holds = kept[node][p], usage.item(node, p) if used else 0
            limit = ceilings[node][p] - max(0, holds - guaranteed)
            if limit < free:
                free, binding = limit, node
            free += max(0, guaranteed - holds)
        return free, binding

    def _change(self, sign: int, charge: _Charge) -> None:
        if self._journal is not None:
            self._journal.append((sign, charge))
        tenant, pool, parts, holder, units, firm = charge
        self._holders.add(pool, tenant, holder, sign * parts)
        if firm:
            self._firm[(tenant, pool)] += sign * parts
        for name, count in units.items():
            self._units[(tenant, name)] += sign * count
        if self._sums is not None:
            self._sums[(tenant, pool)] += sign * parts
        else:
            self._walk_up(tenant, pool, sign * parts)

    def _walk_up(self, tenant: str, pool: str, delta: int) -> None:
        p = self._pool.get(pool)
        if tenant not in self._tenant or p is None:
            return
        usage, kept = self._usage, self._kept
        for node in self._paths[self._tenant[tenant]]:
            used = usage.item(node, p)
            usage[node, p] = used + delta
            delta = _rise_above(used, delta, kept[node][p])
            if not delta:
                break


def _rise_above(used: int, more: int, guaranteed: int) -> int:
    """By how much the usage of the node above changes when that of a node does by `more`."""
    return max(0, used + more - guaranteed) - max(0, used - guaranteed)
