"""Quota for 1,000 tenants in 3 levels: a full cycle, and one new request, beside a plain recomputation in the same run.

Absolute figures are reported; what passes or fails are ratios within the run: a decision of a cycle against one that
adds up all charges anew, and a cycle of 1,000 tenants against one of 100 with as many workloads. The plain way also
checks the answers. Requests are those of virtual clusters, which quota alone decides: nothing is placed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from vmtenancy import PARTS_PER_GPU, DeviceFacts, Fleet, Mode, NodeFacts, Offering, Pool, Runtime
from vmtenancy.core.admission import decide
from vmtenancy.core.books import Books
from vmtenancy.core.quota.tree import CohortQuota, PoolQuota, QuotaTree, TenantQuota
from vmtenancy.core.requests import Admit, Demand

TENANTS, RUNNING, PENDING, POOLS = 1_000, 50_000, 10_000, 8
BY_HAND, NEW = 20, 2_000
LEAST_SPEEDUP, MOST_GROWTH = 50, 2.0
NAMES = [f"pool-{p}" for p in range(POOLS)]
OFFERINGS = [Offering(name, name, PARTS_PER_GPU, {Mode.CONTAINER: f"nvidia.com/{name}"}) for name in NAMES]


def described(tenants: int) -> tuple[list[TenantQuota], list[CohortQuota]]:
    """Tenants below teams below divisions; each has 60 GPUs of each pool for each 1,000 tenants that there are not."""
    divisions = [CohortQuota(f"division-{d}") for d in range(10)]
    teams = [
        CohortQuota(
            f"team-{t}",
            f"division-{t % 10}",
            tuple(PoolQuota(name, 0, borrowing_limit=2 * RUNNING // 100) for name in NAMES),
        )
        for t in range(100)
    ]
    own = RUNNING // (tenants * POOLS) + 1
    return [
        TenantQuota(
            f"tenant-{t}",
            f"team-{t % 100}",
            tuple(PoolQuota(name, own, borrowing_limit=own, lending_limit=own) for name in NAMES),
        )
        for t in range(tenants)
    ], [*divisions, *teams]


def workloads(tenants: int) -> tuple[list[Admit], list[Demand]]:
    """What runs and what waits: one GPU or a few of one pool each; the same on every run."""
    random = np.random.default_rng(1)
    count = RUNNING + PENDING
    whose, pool = random.integers(tenants, size=count), random.integers(POOLS, size=count)
    size, priority = random.choice([1, 1, 1, 2, 4], size=count), random.integers(3, size=count)
    demands = [
        Demand(
            f"VirtualCluster ns/{i}",
            f"tenant-{whose[i]}",
            Runtime.HOLD,
            ((NAMES[pool[i]], 1 if i < RUNNING else int(size[i])),),
            int(priority[i]),
            float(i),
        )
        for i in range(count)
    ]
    return [Admit(demand, None) for demand in demands[:RUNNING]], demands[RUNNING:]


def fleet() -> Fleet:
    """More than enough of everything: supply refuses nobody."""
    devices = tuple(DeviceFacts(f"gpu-{i}") for i in range(8))
    nodes = [
        NodeFacts(
            f"{name}-{n}", Mode.CONTAINER, product=name, devices=devices, capacity={f"nvidia.com/{name}": 8}
        )
        for name in NAMES
        for n in range(RUNNING // 8)
    ]
    return Fleet.build(nodes, [Pool(name, frozenset({name})) for name in NAMES], OFFERINGS)


class ByHand:
    """Quota as it is defined: usage of every node of the tree is added up again for each question."""

    def __init__(self, tenants: Sequence[TenantQuota], cohorts: Sequence[CohortQuota]) -> None:
        self.nodes = {node.name: node for node in [*cohorts, *tenants]}
        self.above = {cohort.name: cohort.parent for cohort in cohorts} | {t.name: t.cohort for t in tenants}
        self.children: dict[str | None, list[str]] = {}
        for name, parent in self.above.items():
            self.children.setdefault(parent, []).append(name)
        self.held: list[tuple[str, str, int]] = []

    def fits(self, tenant: str, pool: str, gpus: int) -> bool:
        """Whether the tenant may be charged that many more GPUs."""
        charged = Counter[str]()
        for name, of, count in self.held:
            if of == pool:
                charged[name] += count
        subtree: dict[str, int] = {}
        usage: dict[str, int] = {}

        def visit(name: str) -> None:
            quota = self._quota(name, pool)
            subtree[name], usage[name] = quota.nominal, charged[name]
            for child in self.children.get(name, ()):
                visit(child)
                kept = self._kept(child, pool, subtree[child])
                subtree[name] += subtree[child] - kept
                usage[name] += max(0, usage[child] - kept)

        for root in self.children[None]:
            visit(root)
        return gpus <= self._available(tenant, pool, subtree, usage)

    def _available(self, name: str, pool: str, subtree: dict[str, int], usage: dict[str, int]) -> int:
        parent = self.above[name]
        if parent is None:
            return subtree[name] - usage[name]
        kept = self._kept(name, pool, subtree[name])
        free = self._available(parent, pool, subtree, usage)
        limit = self._quota(name, pool).borrowing_limit
        if limit is not None:
            free = min(free, subtree[name] - kept - max(0, usage[name] - kept) + limit)
        return free + max(0, kept - usage[name])

    def _kept(self, name: str, pool: str, subtree: int) -> int:
        limit = self._quota(name, pool).lending_limit
        return 0 if limit is None else max(0, subtree - limit)

    def _quota(self, name: str, pool: str) -> PoolQuota:
        return next((quota for quota in self.nodes[name].quota if quota.pool == pool), PoolQuota(pool, 0))


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def cycle(tenants: int) -> float:
    """Seconds for a full cycle: everything that runs is entered, everything that waits is decided. The best of 3."""
    rules, supply = QuotaTree.build(*described(tenants)), fleet()
    running, pending = workloads(tenants)
    return min(seconds(lambda: decide(supply, rules, running, pending)) for _ in range(3))


def one_by_one() -> tuple[float, float]:
    """Median seconds that one new request takes, with all that runs entered: by the engine and by hand.

    The answers have to be equal.
    """
    rules, supply = QuotaTree.build(*described(TENANTS)), fleet()
    running, pending = workloads(TENANTS)
    hand = ByHand(*described(TENANTS))
    hand.held = [(admit.demand.tenant, *admit.demand.requests[0]) for admit in running]
    with supply.what_if(), rules.what_if():
        books = Books(supply, rules, running)
        engine = [seconds(lambda demand=demand: books.judge(demand)) for demand in pending[:NEW]]
        plain = []
        for demand in pending[:: PENDING // BY_HAND]:
            began = time.perf_counter()
            fits = hand.fits(demand.tenant, *demand.requests[0])
            plain.append(time.perf_counter() - began)
            if fits != isinstance(books.judge(demand), Admit):
                sys.exit(f"{demand.key}: by hand {fits}, the engine says otherwise")
    return statistics.median(engine), statistics.median(plain)


def main() -> None:
    """Run it; the exit status is 1 where a gate does not hold."""
    small, large = cycle(TENANTS // 10), cycle(TENANTS)
    new, plain = one_by_one()
    speedup, growth = plain / (large / PENDING), large / small
    print(f"{TENANTS} tenants, {RUNNING} running, {PENDING} pending, {POOLS} pools")
    print(f"a full cycle: {large:.2f} s, {large / PENDING * 1e6:.0f} us per pending workload (goal: 2 s)")
    print(f"one new workload: {new * 1e6:.0f} us median (goal: 1000 us)")
    print(
        f"a plain recomputation: {plain * 1e3:.2f} ms per decision, {speedup:.0f} times (gate: {LEAST_SPEEDUP})"
    )
    print(f"{TENANTS} tenants against {TENANTS // 10}: {growth:.2f} times (gate: {MOST_GROWTH})")
    if speedup < LEAST_SPEEDUP or growth > MOST_GROWTH:
        sys.exit("a gate does not hold")


if __name__ == "__main__":
    main()
