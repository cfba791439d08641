"""A quota engine under random load, as a Hypothesis state machine: what holds after every step.

`World` plays the controller: who is admitted holds, who is stopped holds on for a while and then waits again. The rules
of the tree are reckoned anew here, by the words of KEP-79, to judge what the engine admits.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from described import GPU, fleet, node
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vmtenancy.core.admission import decide
from vmtenancy.core.explain.refusal import Reason
from vmtenancy.core.fleet.model import Mode, Runtime
from vmtenancy.core.quota.policy import BorrowWithinCohort, PreemptionPolicy, Preempts
from vmtenancy.core.quota.tree import CohortQuota, PoolQuota, QuotaTree, TenantQuota
from vmtenancy.core.requests import Admit, Decision, Demand, Wait

POOL, TENANTS = "h100", ("a", "b", "c")
NODES = (
    node("c1", Mode.CONTAINER, 3),
    node("t1", Mode.PASSTHROUGH, 3),
    node("t2", Mode.PASSTHROUGH, 2),
    node("t3", Mode.PASSTHROUGH, 2),
)
#: So many sets of victims are tried before the machine gives up to judge whether there is one.
MOST_SETS = 300

LOWER, ANY, NEVER = Preempts.LOWER_PRIORITY, Preempts.ANY, Preempts.NEVER
limits = st.sampled_from([None, None, None, None, 0, 1, 2])
policies = st.builds(
    PreemptionPolicy,
    st.sampled_from([NEVER, LOWER]),
    st.sampled_from([ANY, ANY, ANY, LOWER, NEVER]),
    st.sampled_from([None, None, BorrowWithinCohort(), BorrowWithinCohort(1)]),
)
tenant_rules = st.builds(
    lambda nominal, borrowing, lending, cohort, policy, weight: (
        PoolQuota(POOL, nominal, borrowing, lending),
        cohort,
        policy,
        weight,
    ),
    st.integers(0, 5),
    limits,
    limits,
    st.sampled_from(["team", "team", "team", "sub", "sub", None]),
    policies,
    st.integers(1, 3),
)
cohort_rules = st.builds(
    lambda nominal, borrowing, lending: (PoolQuota(POOL, nominal, borrowing, lending),),
    st.integers(0, 2),
    limits,
    limits,
)


class Arrival(NamedTuple):
    """What comes: machines or pods of one tenant, together where there are several."""

    tenant: str
    counts: list[int]
    runtime: Runtime
    priority: int
    preemptible: bool


arrivals = st.builds(
    Arrival,
    st.sampled_from(TENANTS),
    st.sampled_from([1, 1, 1, 1, 1, 2]).flatmap(
        lambda n: st.lists(st.integers(1, 3), min_size=n, max_size=n)
    ),
    st.sampled_from([Runtime.VM, Runtime.VM, Runtime.VM, Runtime.POD]),
    st.integers(0, 2),
    st.sampled_from([True, True, True, True, False]),
)


@dataclass
class World:
    """What runs and waits. `stopped_for` are the preemptors of those that are being stopped."""

    tenants: dict[str, TenantQuota]
    cohorts: dict[str, CohortQuota]
    live: dict[str, Admit] = field(default_factory=dict)
    waiting: dict[str, Demand] = field(default_factory=dict)
    stopped_for: dict[str, str] = field(default_factory=dict)
    born: int = 0

    @property
    def tree(self) -> QuotaTree:
        return QuotaTree.build(self.tenants.values(), self.cohorts.values())

    def key(self) -> str:
        self.born += 1
        return f"w{self.born:03}"

    def decide(self, live: Iterable[Admit], waiting: Iterable[Demand]) -> list[Decision]:
        ending, promised = frozenset(self.stopped_for), frozenset(self.stopped_for.values())
        return decide(fleet(*NODES), self.tree, live, waiting, ending, promised)

    def round(self, gone: Iterable[str]) -> bool:
        """One plan of the controller, with those of `gone` that are being stopped released. Whether it did anything."""
        released = [key for key in gone if key in self.stopped_for]
        back = [self.live.pop(key).demand for key in released]
        before = charges(self.live.values())
        decisions = self.decide(self.live.values(), self.waiting.values())
        assert self._shuffled() == decisions, "the answer hangs on the order of what is asked"
        for key in released:
            del self.stopped_for[key]
        victims = [
            (victim, wait.demand.key)
            for wait in decisions
            if isinstance(wait, Wait)
            for victim in wait.victims
        ]
        assert len({victim for victim, _ in victims}) == len(victims), "one is stopped for two"
        for victim, preemptor in victims:
            assert victim not in self.stopped_for, "one is stopped twice"
            assert self.live[victim].demand.preemptible
            assert self.live[victim].demand.runtime is not Runtime.HOLD
            self.stopped_for[victim] = preemptor
        admits = [decision for decision in decisions if isinstance(decision, Admit)]
        for admit in admits:
            del self.waiting[admit.demand.key]
            self.live[admit.demand.key] = admit
        self.waiting |= {demand.key: demand for demand in back}
        assert Rules(self).broken(before, charges(self.live.values())) == []
        return bool(admits or victims or released)

    def _shuffled(self) -> list[Decision]:
        mixed, live, waiting = random.Random(self.born), [*self.live.values()], [*self.waiting.values()]
        mixed.shuffle(live)
        mixed.shuffle(waiting)
        return self.decide(live, waiting)

    def settle(self) -> None:
        """Plans, with all that are stopped gone at once, until there is nothing to do: not for ever."""
        for _ in range(3 * (len(self.live) + len(self.waiting)) + 5):
            if not self.round(list(self.stopped_for)):
                return
        raise AssertionError("requests stop each other in turn")


def charges(live: Iterable[Admit]) -> Counter[str]:
    """Parts by tenant: of a virtual cluster the larger of its guarantee and what its pods have."""
    live = list(live)
    holds = {admit.demand.key: admit.demand for admit in live if admit.demand.runtime is Runtime.HOLD}
    drawn: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for admit in live:
        demand, parts = admit.demand, GPU * sum(count for _, count in admit.demand.requests)
        if demand.parent in holds:
            drawn[demand.parent] += parts
        elif demand.runtime is not Runtime.HOLD:
            total[demand.tenant] += parts
    for key, hold in holds.items():
        total[hold.tenant] += max(drawn[key], GPU * sum(count for _, count in hold.requests))
    return total


class Rules:
    """KEP-79 by its words, in parts: what each node may use."""

    def __init__(self, world: World) -> None:
        self._quota: dict[str, PoolQuota] = {}
        self._children: dict[str, list[str]] = defaultdict(list)
        self._roots: list[str] = []
        for owner in (*world.tenants.values(), *world.cohorts.values()):
            self._quota[owner.name] = owner.quota[0]
            above = owner.cohort if isinstance(owner, TenantQuota) else owner.parent
            (self._children[above] if above is not None else self._roots).append(owner.name)

    def share(self, name: str) -> int:
        """Its nominal quota, and what its children lend."""
        lent = sum(self.share(child) - self.kept(child) for child in self._children[name])
        return self._quota[name].nominal * GPU + lent

    def kept(self, name: str) -> int:
        """Of its share, what it never lends."""
        limit = self._quota[name].lending_limit
        return 0 if limit is None else max(0, self.share(name) - limit * GPU)

    def used(self, name: str, by_tenant: Counter[str]) -> int:
        """What it has of its own share and of what is above it."""
        below = self._children[name]
        if not below:
            return by_tenant[name]
        return sum(max(0, self.used(child, by_tenant) - self.kept(child)) for child in below)

    def broken(self, before: Counter[str], after: Counter[str]) -> list[str]:
        """I2: nodes that have more than they may, and more than before."""
        found = []
        for name, quota in self._quota.items():
            most = self.share(name)
            if name not in self._roots:
                if quota.borrowing_limit is None:
                    continue
                most += quota.borrowing_limit * GPU
            used = self.used(name, after)
            if used > most and used > self.used(name, before):
                found.append(f"{name} uses {used / GPU:g} of {most / GPU:g}")
        return found


def wronged(world: World) -> list[str]:
    """Who waits at rest though it is within nominal quota, and others that may be stopped hold what it needs."""
    found = []
    tree, usage = world.tree, charges(world.live.values())
    for demand in world.waiting.values():
        parts = GPU * sum(count for _, count in demand.requests)
        policy = tree.policy(demand.tenant)
        if (
            policy.reclaim_within_cohort is NEVER
            or demand.group
            or demand.parent
            or usage[demand.tenant] + parts > tree.nominal(demand.tenant, POOL)
        ):
            continue
        for taken in _may_be_taken(world, tree, demand, policy):
            left = [admit for key, admit in world.live.items() if key not in taken]
            (answer,) = decide(fleet(*NODES), tree, left, [demand])
            if isinstance(answer, Admit) and not answer.borrowed:
                found.append(f"{demand.key} of {demand.tenant} could have the place of {sorted(taken)}")
                break
    return found


def _may_be_taken(
    world: World, tree: QuotaTree, demand: Demand, policy: PreemptionPolicy
) -> Iterator[frozenset[str]]:
    """Sets of grants that can be taken one after the other, each while its tenant still has more than its share."""
    units: dict[str, frozenset[str]] = {}
    for key, admit in world.live.items():
        units[key] = frozenset([key])
        if group := admit.demand.group:
            units[key] = frozenset(k for k, other in world.live.items() if other.demand.group == group)

    def may(unit: frozenset[str]) -> bool:
        return all(
            (other := world.live[key].demand).tenant != demand.tenant
            and other.preemptible
            and other.runtime is not Runtime.HOLD
            and policy.reclaim_within_cohort.allows(demand.priority, other.priority)
            for key in unit
        )

    candidates = sorted({unit for unit in units.values() if may(unit)}, key=sorted)
    seen, front = {frozenset[str]()}, [frozenset[str]()]
    while front:
        taken = front.pop(0)
        yield taken
        left = [admit for key, admit in world.live.items() if key not in taken]
        by_tenant = charges(left)
        with tree.what_if():
            for tenant, parts in by_tenant.items():
                tree.charge(tenant, POOL, parts, tenant)
            for unit in candidates:
                owner = world.live[min(unit)].demand.tenant
                more = taken | unit
                without = charges(a for a in left if a.demand.key not in unit)
                if (
                    more not in seen
                    and len(seen) < MOST_SETS
                    and without[owner] < by_tenant[owner]
                    and tree.has_borrowed_from(demand.tenant, owner, POOL)
                ):
                    seen.add(more)
                    front.append(more)


class QuotaMachine(RuleBasedStateMachine):
    """Arrivals, departures, edits and rounds in any order."""

    @initialize(
        tenants=st.tuples(tenant_rules, tenant_rules, tenant_rules), team=cohort_rules, sub=cohort_rules
    )
    def begin(self, tenants: tuple[object, ...], team: object, sub: object) -> None:
        self.world = World({}, {})
        self.edit_cohort("team", team)
        self.edit_cohort("sub", sub)
        for name, rules in zip(TENANTS, tenants, strict=True):
            self.edit_tenant(name, rules)

    @rule(name=st.sampled_from(TENANTS), rules=tenant_rules)
    def edit_tenant(self, name: str, rules: tuple[PoolQuota, str | None, PreemptionPolicy, int]) -> None:
        quota, cohort, policy, weight = rules
        self.world.tenants[name] = TenantQuota(name, cohort, (quota,), policy, weight)

    @rule(name=st.sampled_from(["team", "sub"]), rules=cohort_rules)
    def edit_cohort(self, name: str, rules: tuple[PoolQuota, ...]) -> None:
        self.world.cohorts[name] = CohortQuota(name, "team" if name == "sub" else None, rules)

    @precondition(lambda self: self.world.live)
    @rule()
    def all_quota_is_lowered(self) -> None:
        """What runs is a debt then, and nobody is let in beside it: see what every round asserts."""
        for name, tenant in self.world.tenants.items():
            self.world.tenants[name] = replace(tenant, quota=(replace(tenant.quota[0], nominal=0),))
        self.world.round([])

    @rule(arrivals=st.lists(arrivals, min_size=1, max_size=5), settles=st.booleans())
    def arrive(self, arrivals: list[Arrival], settles: bool) -> None:
        """Some, each of them one or a group of two."""
        for each in arrivals:
            keys = [self.world.key() for _ in each.counts]
            group = f"g{keys[0]}" if len(keys) > 1 else ""
            for key, count in zip(keys, each.counts, strict=True):
                units, born = (("whole", count),), float(self.world.born)
                self.world.waiting[key] = Demand(
                    *(key, each.tenant, each.runtime, units, each.priority, born),
                    group=group,
                    preemptible=each.preemptible or bool(group),
                )
        if settles:
            self.comes_to_rest()

    @rule(
        tenant=st.sampled_from(TENANTS),
        guaranteed=st.integers(1, 2),
        pods=st.lists(st.integers(1, 2), max_size=3),
        priority=st.integers(0, 2),
    )
    def virtual_cluster_arrives(self, tenant: str, guaranteed: int, pods: list[int], priority: int) -> None:
        hold = self.world.key()
        maximum = (("whole", guaranteed + 2),)
        units = (("whole", guaranteed),)
        born = float(self.world.born)
        self.world.waiting[hold] = Demand(hold, tenant, Runtime.HOLD, units, priority, born, maximum=maximum)
        for count in pods:
            key = self.world.key()
            pod = (("whole", count),)
            self.world.waiting[key] = Demand(
                key, tenant, Runtime.POD, pod, priority, float(self.world.born), parent=hold
            )

    @precondition(lambda self: self.world.live or self.world.waiting)
    @rule(data=st.data())
    def departs(self, data: st.DataObject) -> None:
        """Of a virtual cluster its pods, too."""
        world = self.world
        key = data.draw(st.sampled_from(sorted({*world.live, *world.waiting})))
        for held in (world.live, world.waiting):
            for name in [n for n, of in held.items() if key in (n, _demand(of).parent)]:
                del held[name]
                world.stopped_for.pop(name, None)

    @precondition(lambda self: self.world.waiting)
    @rule(data=st.data(), priority=st.integers(0, 2))
    def priority_is_changed(self, data: st.DataObject, priority: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.world.waiting)))
        self.world.waiting[key] = replace(self.world.waiting[key], priority=priority)

    @rule(data=st.data())
    def round(self, data: st.DataObject) -> None:
        gone = sorted(self.world.stopped_for)
        self.world.round(data.draw(st.sets(st.sampled_from(gone))) if gone else ())

    @rule()
    def comes_to_rest(self) -> None:
        self.world.settle()
        decisions = self.world.decide(self.world.live.values(), self.world.waiting.values())
        assert all(isinstance(d, Wait) and d.reason is not Reason.NOMINATED for d in decisions)
        assert wronged(self.world) == []

    @invariant()
    def devices_are_not_shared(self) -> None:
        """I1."""
        on = fleet(*NODES)
        for admit in self.world.live.values():
            if admit.placement is not None:
                on.hold(admit.placement)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.comes_to_rest()


def _demand(of: Admit | Demand) -> Demand:
    return of.demand if isinstance(of, Admit) else of
