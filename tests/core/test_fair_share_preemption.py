"""Who has borrowed more than its fair share makes room for who has less, and never back and forth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from described import fleet, node
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import Rounds
from test_preemption import ask, only, running

from vmtenancy.core.admission import decide
from vmtenancy.core.books import Books
from vmtenancy.core.explain.refusal import Reason
from vmtenancy.core.fleet.model import Mode, Runtime
from vmtenancy.core.levels import levels
from vmtenancy.core.quota.policy import BorrowWithinCohort, PreemptionPolicy, Preempts
from vmtenancy.core.quota.tree import CohortQuota, PoolQuota, QuotaTree, TenantQuota
from vmtenancy.core.requests import Admit, Demand, Tenure, Wait

NEVER, LOWER, ANY = Preempts.NEVER, Preempts.LOWER_PRIORITY, Preempts.ANY
NEWER, EQUAL = Preempts.LOWER_OR_NEWER_EQUAL_PRIORITY, Preempts.LOWER_OR_EQUAL_PRIORITY
FAIR = PreemptionPolicy(fair_share_within_cohort=EQUAL)
LARGE = node("large", Mode.PASSTHROUGH, 40)


def tree(shared: int, *tenants: str, weight: int = 1, policy: PreemptionPolicy = FAIR) -> QuotaTree:
    """Tenants with nothing of their own, the first with a weight, that share so many GPUs."""
    quota = (PoolQuota("h100", 0),)
    return QuotaTree.build(
        [TenantQuota(t, "team", quota, policy, weight if t == tenants[0] else 1) for t in tenants],
        [CohortQuota("team", None, (PoolQuota("h100", shared),))],
    )


def granted(rules: QuotaTree, *demands: Demand) -> list[Admit]:
    """What runs, granted in that order."""
    admits = running(fleet(LARGE), rules, *demands)
    order = {demand.key: float(i) for i, demand in enumerate(demands)}
    return [replace(admit, tenure=Tenure(order[admit.demand.key])) for admit in admits]


def stopped(rules: QuotaTree, live: Sequence[Admit], demand: Demand) -> tuple[str, ...]:
    return only(decide(fleet(LARGE), rules, live, [demand])).victims


def test_what_was_granted_last_goes_though_it_was_asked_for_first() -> None:
    rules = tree(4, "a", "b")
    live = granted(rules, ask("late", "b", 2, created=9), ask("early", "b", 2, created=1))
    assert stopped(rules, live, ask("w", "a", 2)) == ("early",), "late stands at no more than w gets"
    assert stopped(rules, live, ask("w", "a", 1)) == ("late",), "both stand above it: the youngest"


def test_a_share_is_by_weight() -> None:
    rules = tree(4, "b", "a", weight=3)
    live = granted(rules, *(ask(f"b{i}", "b") for i in range(4)))
    assert stopped(rules, live, ask("w", "a")) == ("b3",), "4/3 for b, 1 for a"
    both = granted(rules, *(ask(f"b{i}", "b") for i in range(3)), ask("a0", "a"))
    assert stopped(rules, both, ask("w", "a")) == (), "3/3 for b, 2 for a"


def test_a_request_of_its_own_tenant_stops_nobody_for_fairness() -> None:
    rules = tree(4, "a", "b")
    assert stopped(rules, granted(rules, ask("x", "a", 4)), ask("w", "a", 1)) == ()


def test_its_own_of_lower_priority_go_with_others() -> None:
    policy = replace(FAIR, within_tenant=LOWER)
    rules = tree(6, "a", "b", policy=policy)
    live = granted(rules, ask("low", "a", 1, priority=-1), ask("b0", "b", 3), ask("b1", "b", 2))
    assert set(stopped(rules, live, ask("w", "a", 3))) == {"low", "b1"}
    equal = granted(rules, ask("x", "a", 1, created=9), ask("b0", "b", 3), ask("b1", "b", 2))
    newer = tree(6, "a", "b", policy=replace(FAIR, within_tenant=NEWER))
    assert stopped(newer, equal, ask("w", "a", 3)) == (), "not one that is only newer"


def test_what_draws_on_a_guarantee_and_what_is_not_preemptible_stays() -> None:
    rules = QuotaTree.build(
        [TenantQuota(name, "team", (PoolQuota("h100", 2),), FAIR) for name in "ab"],
        [CohortQuota("team", None, (PoolQuota("h100", 2),))],
    )
    live = granted(rules, ask("firm", "b", 2, preemptible=False), ask("soft", "b", 2), ask("a0", "a", 2))
    assert stopped(rules, live, ask("w", "a", 1)) == ("soft",)
    assert stopped(rules, live, ask("w", "a", 2)) == (), "that is all that b has borrowed, and a would have"


def test_nobody_is_stopped_for_what_could_not_be_placed() -> None:
    nodes = (node("n1", Mode.PASSTHROUGH, 2), node("n2", Mode.PASSTHROUGH, 2))
    rules = tree(4, "a", "b")
    live = [
        replace(admit, tenure=Tenure(float(i)))
        for i, admit in enumerate(running(fleet(*nodes), rules, *(ask(f"b{i}", "b") for i in range(4))))
    ]
    wait = only(decide(fleet(*nodes), rules, live, [ask("w", "a", 3)]))
    assert (wait.victims, wait.reason) == ((), Reason.QUOTA_EXCEEDED)
    wait = only(decide(fleet(*nodes), rules, live, [ask("w", "a", 2)]))
    assert len(wait.victims) == 2
    assert len({a.placement.node for a in live if a.placement and a.demand.key in wait.victims}) == 1


def test_where_others_stand_falls_with_each_who_goes_in_one_round() -> None:
    rules = tree(4, "a", "b", "c")
    live = granted(rules, *(ask(f"b{i}", "b", 1) for i in range(4)))
    live = [
        live[0],
        *(replace(each, tenure=replace(each.tenure, work=9.0 * i)) for i, each in enumerate(live[1:])),
    ]
    first, second = decide(fleet(LARGE), rules, live, [ask("a0", "a"), ask("c0", "c", 2, created=1)])
    assert isinstance(first, Wait)
    assert isinstance(second, Wait)
    assert first.victims == ("b1",), "the cheapest of those that stand above it"
    assert second.victims == (), "b2 stands where c0 would now, and b3 alone is not enough"


def test_what_got_its_place_in_this_round_lets_nobody_stand_higher() -> None:
    rules = tree(4, "a", "b")
    live = granted(rules, ask("b0", "b", 2))
    first, second = decide(
        fleet(LARGE), rules, live, [ask("b1", "b"), ask("w", "a", 2)], promised=frozenset({"b1"})
    )
    assert isinstance(first, Admit)
    assert isinstance(second, Wait)
    assert second.victims == (), "b0 stands at 2/4, as w would"
    assert stopped(rules, granted(rules, ask("b0", "b", 2), ask("b1", "b")), ask("w", "a", 2)) == ("b1",)


def test_it_is_judged_with_those_who_go_and_nobody_else() -> None:
    rules = QuotaTree.build(
        [
            TenantQuota(t, c, (PoolQuota("h100", 0),), FAIR)
            for t, c in (("a", "c1"), ("x", "c1"), ("y", "c2"))
        ],
        [
            CohortQuota("team", None, (PoolQuota("h100", 8),)),
            CohortQuota("c1", "team"),
            CohortQuota("c2", "team"),
        ],
    )
    live = granted(rules, ask("x0", "x", 4), ask("y0", "y", 4, created=9))
    assert stopped(rules, live, ask("w", "a", 2)) == ("x0",), (
        "y0 is younger, but c1 would have 6 of 8 without it"
    )


def test_more_go_rather_than_that_one_has_less_than_its_share() -> None:
    rules = tree(8, "a", "b")
    live = granted(rules, ask("a0", "a"), ask("big", "b", 5), ask("b1", "b"), ask("b2", "b"))
    assert set(stopped(rules, live, ask("w", "a", 2))) == {"b1", "b2"}, "without big, b would have 2, and a 3"


def test_a_guarantee_takes_nothing_for_fairness() -> None:
    on, rules = fleet(node("pods", Mode.CONTAINER, 8)), tree(4, "a", "b")
    live = running(on, rules, *(ask(f"b{i}", "b", 1, Runtime.POD, created=i) for i in range(4)))
    live = [replace(each, tenure=Tenure(float(i))) for i, each in enumerate(live)]
    hold = Demand("lab", "a", Runtime.HOLD, (("whole", 1),), maximum=(("whole", 1),))
    assert only(decide(on, rules, live, [hold])).victims == ()
    assert only(decide(on, rules, live, [ask("w", "a", 1, Runtime.POD)])).victims == ("b3",)


def test_the_round_of_a_request_by_fair_share_is_kept_for_it() -> None:
    rules = tree(4, "a", "b", "c")
    live = granted(rules, ask("b0", "b", 4))
    wait, other = decide(fleet(LARGE), rules, live, [ask("a0", "a", 3), ask("c0", "c", 2, created=1)])
    assert isinstance(wait, Wait)
    assert (wait.demand.key, wait.victims) == ("c0", ("b0",)), "the smaller share goes first"
    assert isinstance(other, Wait)
    assert other.reason is Reason.QUOTA_EXCEEDED


def test_shares_come_to_be_even_and_stay_so() -> None:
    rules = tree(8, "a", "b", "c")
    world = Rounds(fleet(LARGE), rules, [ask(f"b{i}", "b", created=i) for i in range(9)])
    assert world.run(5)
    world.ask(ask(f"{name}{i}", name, created=20 + i) for name in "ac" for i in range(9))
    assert world.run(20)
    held = sorted(sum(admit.demand.tenant == name for admit in world.live.values()) for name in "abc")
    assert held == [2, 3, 3]


@pytest.mark.parametrize("group", ["", "g"])
def test_two_large_ones_do_not_take_turns(group: str) -> None:
    rules = tree(4, "a", "b")
    world = Rounds(fleet(LARGE), rules, [ask("b0", "b", 3, group=group)])
    assert world.run(3)
    world.ask([ask("a0", "a", 3, group=group)])
    assert world.run(3)
    assert world.stops == []
    world.ask([ask("a1", "a", 2, created=9, group=group and "h")])
    assert world.run(5)
    assert world.stops == [("a1", "b0")], "b0 would be the larger again"


# -- random worlds ----------------------------------------------------------------------------------------------------

COHORTS, TENANTS = ("c0", "c1", "c2"), ("t0", "t1", "t2", "t3")
NODES = (
    [LARGE],
    [node("n0", Mode.PASSTHROUGH, 4), node("n1", Mode.PASSTHROUGH, 4), node("n2", Mode.PASSTHROUGH, 2)],
)
#: Those of which the ADR proves that they do not oscillate, and all.
PROVEN = (NEVER, LOWER), (NEVER, LOWER)
ALL = (NEVER, LOWER, NEWER), (NEVER, LOWER, ANY)
Policies = tuple[Sequence[Preempts], Sequence[Preempts]]


def rules_of(source: Random, policies: Policies) -> QuotaTree:
    def limit() -> int | None:
        return source.choice((None, None, None, 2))

    cohorts = [CohortQuota("c0", None, (PoolQuota("h100", source.randint(2, 8)),))]
    for i, name in enumerate(COHORTS[1:], start=1):
        parent, weight = source.choice(COHORTS[:i]), source.choice((1, 2))
        cohorts.append(CohortQuota(name, parent, (PoolQuota("h100", 0, limit()),), weight))
    tenants = []
    for name in TENANTS:
        nominal = source.choice((0, 0, 0, 1, 3))
        quota = (PoolQuota("h100", nominal, limit(), source.choice((None, None, min(nominal, 1)))),)
        policy = PreemptionPolicy(
            source.choice(policies[0]),
            source.choice(policies[1]),
            source.choice((None, BorrowWithinCohort(), BorrowWithinCohort(0))),
            source.choice((EQUAL, EQUAL, EQUAL, LOWER)),
        )
        tenants.append(TenantQuota(name, source.choice(COHORTS), quota, policy, source.choice((1, 1, 2, 3))))
    return QuotaTree.build(tenants, cohorts)


def worlds(source: Random, policies: Policies) -> Iterator[Rounds]:
    """A random world after each time that somebody came: mostly one tenant after the other, so that the first takes
    all.
    """
    ends = {f"w{i}": source.randrange(3) for i in range(20)}
    world = Rounds(fleet(*source.choice(NODES)), rules_of(source, policies), [], ends)
    whose = [source.choice(TENANTS) for _ in ends]
    if source.random() < 0.8:
        whose.sort()
    for i, tenant in enumerate(whose):
        world.ask(
            [
                ask(
                    f"w{i}",
                    tenant,
                    source.choice((1, 1, 1, 2, 2, 3, 4, 6)),
                    priority=source.choice((0, 0, 0, 1)),
                    created=float(i),
                    preemptible=source.random() < 0.95,
                )
            ]
        )
        if source.random() < 0.5:
            yield world
    yield world


def potential(world: Rounds) -> list[Any]:
    """What each step makes less, by the ADR: of the higher priority first, the levels in ascending order."""
    live = list(world.live.values())
    with world.fleet.what_if():
        books = Books(world.fleet, world.rules.copy(), live)
        found = levels(books, [], live)
    by_priority = [
        [
            found[admit.demand.key].reach
            for admit in live
            if admit.demand.priority == priority and admit.demand.preemptible
        ]
        for priority in (1, 0)
    ]
    last = (float("inf"),)
    return [-sum(not admit.demand.preemptible for admit in live)] + [
        [*sorted(each), last] for each in by_priority
    ]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_each_step_makes_the_potential_less(seed: int) -> None:
    least: list[Any] = []
    keys: set[str] = set()
    moved, rounds = True, 0
    for world in worlds(Random(seed), PROVEN):
        moved, rounds = True, 0
        while moved:
            moved, rounds = world.step(), rounds + 1
            if set(world.live) != keys and not world.is_ending:
                now = potential(world)
                assert now < least or not least
                least, keys = now, set(world.live)
            assert rounds < 40, "requests stop each other in turn"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_it_comes_to_rest_with_all_policies_at_once(seed: int) -> None:
    firm = set[str]()
    for world in worlds(Random(seed), ALL):
        firm |= {demand.key for demand in world.waiting if not demand.preemptible}
        world.step()
    assert world.run(40), "requests stop each other in turn"
    assert not firm & {victim for _, victim in world.stops}, "what is not preemptible stays"
