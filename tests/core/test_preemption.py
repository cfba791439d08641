"""Who makes room for whom: by policy, the fewest, for quota and devices at once, and never back and forth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from described import GPU, fleet, node
from hypothesis import given, settings
from hypothesis import strategies as st

from vmtenancy.core.admission import decide
from vmtenancy.core.explain.refusal import Reason
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import Mode, Runtime
from vmtenancy.core.quota.policy import BorrowWithinCohort, PreemptionPolicy, Preempts
from vmtenancy.core.quota.tree import CohortQuota, PoolQuota, QuotaTree, TenantQuota
from vmtenancy.core.requests import Admit, Decision, Demand, Wait

NEVER, LOWER, ANY = Preempts.NEVER, Preempts.LOWER_PRIORITY, Preempts.ANY


def tree(
    within: Preempts = NEVER,
    reclaim: Preempts = NEVER,
    borrow: BorrowWithinCohort | None = None,
    **nominal: int,
) -> QuotaTree:
    policy = PreemptionPolicy(within, reclaim, borrow)
    tenants = [TenantQuota(n, "team", (PoolQuota("h100", gpus),), policy) for n, gpus in nominal.items()]
    return QuotaTree.build(tenants, [CohortQuota("team")])


def ask(key: str, tenant: str, count: int = 1, runtime: Runtime = Runtime.VM, **more: object) -> Demand:
    return Demand(key, tenant, runtime, (("whole", count),), **more)  # type: ignore[arg-type]


def admitted(decisions: Iterable[Decision]) -> list[Admit]:
    return [decision for decision in decisions if isinstance(decision, Admit)]


def running(on: Fleet, rules: QuotaTree, *demands: Demand) -> list[Admit]:
    found = admitted(decide(on, rules, [], demands))
    assert len(found) == len(demands)
    return found


def only(decisions: list[Decision]) -> Wait:
    (wait,) = decisions
    assert isinstance(wait, Wait)
    return wait


ONE = (node("through", Mode.PASSTHROUGH),)


def test_nobody_is_stopped_without_a_policy() -> None:
    rules = tree(a=8)
    live = running(fleet(*ONE), rules, ask("low", "a", 8))
    wait = only(decide(fleet(*ONE), rules, live, [ask("high", "a", 8, priority=9)]))
    assert (wait.reason, wait.victims) == (Reason.QUOTA_EXCEEDED, ())


def test_lower_priority_of_the_same_tenant_makes_room_and_no_more_than_needed() -> None:
    rules = tree(within=LOWER, a=8)
    demands = [ask("x", "a", 4, priority=1), ask("y", "a", 2), ask("z", "a", 2, created=5)]
    live = running(fleet(*ONE), rules, *demands)
    wait = only(decide(fleet(*ONE), rules, live, [ask("high", "a", 2, priority=2)]))
    assert (wait.reason, wait.victims) == (Reason.NOMINATED, ("z",)), "the youngest of the lowest"
    assert wait.message == "has a place once z ends, stopped for it"
    assert only(decide(fleet(*ONE), rules, live, [ask("equal", "a", 2, priority=0)])).victims == ()
    big = only(decide(fleet(*ONE), rules, live, [ask("big", "a", 4, priority=2)]))
    assert set(big.victims) == {"y", "z"}, "two of priority 0 rather than one of priority 1"
    sizes = running(fleet(*ONE), rules, ask("x", "a", 2), ask("y", "a", 2), ask("z", "a", 4))
    assert only(decide(fleet(*ONE), rules, sizes, [ask("high", "a", 4, priority=1)])).victims == ("z",), (
        "the fewest"
    )
    assert only(decide(fleet(*ONE), rules, sizes, [ask("high", "a", 1, priority=1)])).victims == ("x",), (
        "the smallest"
    )


def test_what_a_tenant_lends_it_takes_back_and_only_within_its_own() -> None:
    rules = tree(reclaim=ANY, a=4, b=4)
    live = running(
        fleet(*ONE), rules, ask("b1", "b", 4, priority=9), ask("b2", "b", 2, priority=9), ask("a1", "a", 2)
    )
    assert only(decide(fleet(*ONE), rules, live, [ask("a2", "a", 2)])).victims == ("b2",)
    assert only(decide(fleet(*ONE), rules, live, [ask("a3", "a", 3)])).victims == (), "a would borrow itself"
    assert only(decide(fleet(*ONE), rules, live, [ask("b3", "b", 2, priority=99)])).victims == (), (
        "a has not borrowed"
    )
    lower = tree(reclaim=LOWER, a=4, b=4)
    assert only(decide(fleet(*ONE), lower, live, [ask("a2", "a", 2, priority=9)])).victims == ()
    assert only(decide(fleet(*ONE), lower, live, [ask("a2", "a", 2, priority=10)])).victims == ("b2",)


def test_to_borrow_what_others_borrowed_takes_a_lower_priority_below_the_threshold() -> None:
    live = running(fleet(*ONE), tree(a=4, b=2, c=2), ask("b1", "b", 4, priority=3), ask("a1", "a", 4))

    def victims(rules: QuotaTree, priority: int, count: int = 1) -> tuple[str, ...]:
        return only(decide(fleet(*ONE), rules, live, [ask("a2", "a", count, priority=priority)])).victims

    assert victims(tree(reclaim=ANY, a=4, b=2, c=2), 9) == (), "a would borrow itself"
    assert victims(tree(reclaim=ANY, borrow=BorrowWithinCohort(), a=4, b=2, c=2), 4) == ("b1",)
    assert victims(tree(reclaim=ANY, borrow=BorrowWithinCohort(), a=4, b=2, c=2), 3) == ()
    assert victims(tree(reclaim=ANY, borrow=BorrowWithinCohort(3), a=4, b=2, c=2), 9) == ("b1",)
    assert victims(tree(reclaim=ANY, borrow=BorrowWithinCohort(2), a=4, b=2, c=2), 9) == ()
    assert victims(tree(reclaim=LOWER, borrow=BorrowWithinCohort(), a=4, b=2, c=2), 9) == ("b1",)
    assert victims(tree(reclaim=ANY, borrow=BorrowWithinCohort(), a=4, b=4, c=0), 9) == (), (
        "b has not borrowed"
    )
    own = tree(reclaim=ANY, borrow=BorrowWithinCohort(2), a=5, b=2, c=1)
    assert victims(own, 0) == ("b1",), "the threshold is not for what a takes back"


def test_what_is_taken_back_and_what_is_borrowed_are_not_mixed() -> None:
    rules = tree(reclaim=ANY, borrow=BorrowWithinCohort(), a=2, b=0, c=6)
    on = fleet(*ONE)
    live = running(on, rules, ask("high", "b", 4, priority=9), ask("low", "b", 4, priority=1))
    assert only(decide(on, rules, live, [ask("a2", "a", 2)])).victims == ("low",), "its own"
    assert only(decide(on, rules, live, [ask("a4", "a", 4, priority=5)])).victims == ("low",), "borrows 2"
    assert only(decide(on, rules, live, [ask("a5", "a", 5, priority=5)])).victims == (), (
        "may not take high for it"
    )


def test_victims_free_the_devices_of_one_node_as_well() -> None:
    nodes = (node("n1", Mode.PASSTHROUGH, 4), node("n2", Mode.PASSTHROUGH, 4))
    rules = tree(within=LOWER, a=8)
    demands = [ask("b1", "a", 2, created=1), ask("s1", "a", 2, created=2), ask("s2", "a", 4, created=3)]
    live = running(fleet(*nodes), rules, *demands)
    on = {admit.demand.key: admit.placement.node for admit in live if admit.placement}
    assert on["b1"] == on["s1"] != on["s2"]
    wait = only(decide(fleet(*nodes), rules, live, [ask("high", "a", 4, priority=1)]))
    assert wait.victims == ("s2",), "one on one node, not two on the other"
    nowhere = frozenset({on["b1"]})
    wait = only(decide(fleet(*nodes), rules, live, [ask("high", "a", 4, priority=1, allowed_nodes=nowhere)]))
    assert set(wait.victims) == {"b1", "s1"}
    wait = only(decide(fleet(*nodes), rules, live, [ask("high", "a", 5, priority=1)]))
    assert wait.victims == (), "nobody is stopped for what could not be placed"


def test_nobody_gives_back_more_than_was_borrowed() -> None:
    rules = tree(reclaim=ANY, a=4, b=2, c=2)
    demands = [ask(f"{of}{i}", of, 2, created=i + 2 * (of == "b")) for of in "cb" for i in range(2)]
    live = running(fleet(*ONE), rules, *demands)
    wait = only(decide(fleet(*ONE), rules, live, [ask("back", "a", 4)]))
    assert set(wait.victims) == {"b1", "c1"}, "b0 is younger than c1, and all that b has left is its own"


def test_of_one_node_more_may_go_if_the_smallest_goes_first() -> None:
    """Each victim's tenant holds more than its share when it goes: with the largest first the rest would be safe."""
    on = fleet(node("n1", Mode.PASSTHROUGH, 3), node("n2", Mode.PASSTHROUGH, 2))
    rules = tree(reclaim=ANY, a=3, b=2)
    n1, n2 = frozenset({"n1"}), frozenset({"n2"})
    live = running(
        on,
        rules,
        ask("b0", "b", 1, allowed_nodes=n2),
        ask("b1", "b", 1, created=1, allowed_nodes=n1),
        ask("b2", "b", 2, created=2, allowed_nodes=n1),
    )
    assert set(only(decide(on, rules, live, [ask("a3", "a", 3)])).victims) == {"b1", "b2"}


def test_a_guarantee_and_what_draws_on_it_is_never_taken() -> None:
    nodes = (node("c", Mode.CONTAINER, 4),)
    rules = tree(within=LOWER, reclaim=ANY, a=4, b=4)
    lab = Demand("lab", "b", Runtime.HOLD, (("whole", 2),), maximum=(("whole", 4),))
    pods = [ask(f"p{i}", "b", 1, Runtime.POD, parent="lab", created=float(i)) for i in range(4)]
    live = running(fleet(*nodes), rules, lab, *pods)
    others = tree(within=LOWER, reclaim=ANY, a=4, b=2)
    assert len(only(decide(fleet(*nodes), others, live, [ask("a2", "a", 2, Runtime.POD)])).victims) == 2
    assert only(decide(fleet(*nodes), others, live, [ask("a3", "a", 3, Runtime.POD)])).victims == ()


def test_what_is_not_preemptible_is_never_stopped_and_stays_within_what_is_its_tenants_own() -> None:
    rules = tree(within=LOWER, reclaim=ANY, a=4, b=4)
    on = fleet(*ONE)
    live = running(on, rules, ask("soft", "a", 3, priority=-1), ask("firm", "a", 3, preemptible=False))
    wait = only(decide(on, rules, live, [ask("more", "a", 2, preemptible=False)]))
    assert (wait.reason, wait.victims) == (Reason.OWN_QUOTA_EXCEEDED, ())
    assert wait.message == (
        "pool h100: is not preemptible and needs 2 GPUs of the nominal quota of tenant a, 1 of 4 are not taken by "
        "guarantees and what is not preemptible"
    )
    assert wait.shortage is not None
    assert (wait.shortage.free, wait.shortage.total, wait.shortage.binds) == (GPU, 4 * GPU, "tenant a")
    (one,) = decide(on, rules, live, [ask("one", "a", preemptible=False)])
    assert isinstance(one, Admit), "what may be stopped borrows beside it"
    assert only(decide(on, rules, live, [ask("b4", "b", 4)])).victims == ("soft",)
    urgent = [ask("own", "a", 3, priority=9), ask("own2", "a", 3, priority=8)]
    first, second = decide(on, rules, live, urgent)
    assert isinstance(first, Wait)
    assert isinstance(second, Wait)
    assert (first.victims, second.victims) == (("soft",), ()), "nothing else of a may be stopped"


def test_a_guarantee_takes_of_what_is_for_the_not_preemptible() -> None:
    on, rules = fleet(node("c", Mode.CONTAINER), node("t", Mode.PASSTHROUGH)), tree(a=4, b=4)
    lab = Demand("lab", "a", Runtime.HOLD, (("whole", 3),), maximum=(("whole", 5),))
    pods = [ask(f"p{i}", "a", 1, Runtime.POD, parent="lab") for i in range(4)]
    live = running(on, rules, lab, *pods)
    (one,) = decide(on, rules, live, [ask("one", "a", preemptible=False)])
    assert isinstance(one, Admit), "what a pod has beyond the guarantee may be stopped"
    assert only(decide(on, rules, live, [ask("two", "a", 2, preemptible=False)])).reason is (
        Reason.OWN_QUOTA_EXCEEDED
    )


@settings(max_examples=60)
@given(
    drawn=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.integers(0, 2), st.booleans()), max_size=14
    ),
    nominal=st.tuples(*(st.integers(0, 4) for _ in range(3))),
    asked=st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.booleans()),
)
def test_what_is_a_tenants_own_it_gets(
    drawn: list[tuple[str, int, int, bool]], nominal: tuple[int, ...], asked: tuple[str, int, bool]
) -> None:
    """Whoever stays within nominal is admitted or nominated, whatever others hold, if there is room on the nodes."""
    rules = tree(LOWER, ANY, BorrowWithinCohort(), **dict(zip("abc", nominal, strict=True)))
    on = fleet(*(node(f"n{i}", Mode.PASSTHROUGH) for i in range(4)))
    demands = [
        ask(f"w{i}", tenant, count, priority=priority, created=float(i), preemptible=preemptible)
        for i, (tenant, count, priority, preemptible) in enumerate(drawn)
    ]
    live = admitted(decide(on, rules, [], demands))
    held, firm = Counter[str](), Counter[str]()
    for admit in live:
        ((_, count),) = admit.demand.requests
        held[admit.demand.tenant] += count
        firm[admit.demand.tenant] += 0 if admit.demand.preemptible else count
    own = dict(zip("abc", nominal, strict=True))
    assert all(firm[name] <= own[name] for name in own)
    assert held.total() <= sum(nominal)
    tenant, count, preemptible = asked
    if held[tenant] + count <= own[tenant]:
        (decision,) = decide(on, rules, live, [ask("new", tenant, count, preemptible=preemptible)])
        assert isinstance(decision, Admit) or decision.reason is Reason.NOMINATED
        stopped = decision.victims if isinstance(decision, Wait) else ()
        assert all(admit.demand.preemptible for admit in live if admit.demand.key in stopped)


def test_what_is_kept_for_a_nominated_request_nobody_behind_it_gets() -> None:
    rules = tree(within=LOWER, a=8)
    live = running(fleet(*ONE), rules, ask("low", "a", 6))
    demands = [ask("high", "a", 4, priority=2), ask("small", "a", 2, priority=1), ask("tiny", "a", 1)]
    high, small, tiny = decide(fleet(*ONE), rules, live, demands)
    assert isinstance(high, Wait)
    assert high.victims == ("low",)
    assert isinstance(small, Wait), "its two GPUs are kept for high until low has ended"
    assert (small.reason, small.victims) == (Reason.NOMINATED, ())
    assert isinstance(tiny, Wait)
    again = decide(fleet(*ONE), rules, live, demands, frozenset({"low"}))
    assert [d.victims for d in again if isinstance(d, Wait)] == [(), (), ()], (
        "nobody else is stopped meanwhile"
    )
    after = decide(fleet(*ONE), rules, [], demands)
    assert all(isinstance(decision, Admit) for decision in after)


def test_a_guarantee_to_come_takes_back_too() -> None:
    nodes = (node("c", Mode.CONTAINER, 4),)
    rules = tree(reclaim=ANY, a=2, b=2)
    live = running(
        fleet(*nodes), rules, *(ask(f"p{i}", "b", 1, Runtime.POD, created=float(i)) for i in range(4))
    )
    lab = Demand("lab", "a", Runtime.HOLD, (("whole", 2),), maximum=(("whole", 2),))
    wait, pod = decide(fleet(*nodes), rules, live, [lab, ask("late", "b", 1, Runtime.POD, created=9)])
    assert isinstance(wait, Wait)
    assert wait.victims == ("p3", "p2")
    assert isinstance(pod, Wait)


TENANTS = ("a", "b", "c")
POLICIES = st.builds(
    PreemptionPolicy,
    st.sampled_from([NEVER, LOWER]),
    st.sampled_from([NEVER, LOWER, ANY]),
    st.sampled_from([None, BorrowWithinCohort(), BorrowWithinCohort(0)]),
)


@st.composite
def rules_of(draw: st.DrawFn) -> QuotaTree:
    tenants = [
        TenantQuota(
            name,
            draw(st.sampled_from(["team", "sub", None])),
            (PoolQuota("h100", draw(st.integers(0, 5)), draw(st.sampled_from([None, None, 1]))),),
            draw(POLICIES),
            draw(st.integers(1, 3)),
        )
        for name in TENANTS
    ]
    return QuotaTree.build(
        tenants, [CohortQuota("team"), CohortQuota("sub", "team", (PoolQuota("h100", 1),))]
    )


NODES = (node("c1", Mode.CONTAINER, 3), node("t1", Mode.PASSTHROUGH, 3), node("t2", Mode.PASSTHROUGH, 2))
demands_of = st.lists(
    st.builds(
        lambda tenant, count, priority, runtime: (tenant, count, priority, runtime),
        st.sampled_from(TENANTS),
        st.integers(1, 3),
        st.integers(0, 2),
        st.sampled_from([Runtime.VM, Runtime.VM, Runtime.POD]),
    ),
    max_size=9,
)


def _demands(drawn: list[tuple[str, int, int, Runtime]], first: int) -> list[Demand]:
    return [
        ask(f"w{first + i}", tenant, count, runtime, priority=priority, created=float(first + i))
        for i, (tenant, count, priority, runtime) in enumerate(drawn)
    ]


def borrows(rules: QuotaTree, live: Iterable[Admit], wait: Wait) -> bool:
    """Whether its tenant holds more than its nominal quota once its victims have made room for it."""
    tenant = wait.demand.tenant
    staying = [a.demand for a in live if a.demand.tenant == tenant and a.demand.key not in wait.victims]
    held = sum(count for demand in (*staying, wait.demand) for _, count in demand.requests)
    return held * GPU > rules.nominal(tenant, "h100")


@settings(max_examples=120)
@given(rules=rules_of(), old=demands_of, new=demands_of)
def test_all_who_are_stopped_are_allowed_to_be_are_needed_and_it_comes_to_rest(
    rules: QuotaTree, old: list[tuple[str, int, int, Runtime]], new: list[tuple[str, int, int, Runtime]]
) -> None:
    on = fleet(*NODES)
    waiting = _demands(old, 0)
    live = {admit.demand.key: admit for admit in admitted(decide(on, rules, [], waiting))}
    waiting = [demand for demand in waiting if demand.key not in live] + _demands(new, 100)
    promised: frozenset[str] = frozenset()
    for _ in range(60):
        decisions = decide(on, rules, live.values(), waiting, promised=promised)
        assert decisions == decide(on, rules, live.values(), waiting, promised=promised), (
            "the same asked twice"
        )
        waits = [decision for decision in decisions if isinstance(decision, Wait)]
        stopped = [victim for wait in waits for victim in wait.victims]
        promised = frozenset(wait.demand.key for wait in waits if wait.victims)
        assert len(stopped) == len(set(stopped)), "each is stopped for one"
        for wait in waits:
            if not wait.victims:
                continue
            policy = rules.policy(wait.demand.tenant)
            for key in wait.victims:
                victim = live[key].demand
                if victim.tenant == wait.demand.tenant:
                    assert policy.within_tenant is LOWER
                    assert victim.priority < wait.demand.priority
                else:
                    assert policy.reclaim_within_cohort.allows(wait.demand.priority, victim.priority)
                    if borrows(rules, live.values(), wait):
                        assert policy.borrow_within_cohort is not None
                        assert policy.borrow_within_cohort.allows(wait.demand.priority, victim.priority)
        for admit in admitted(decisions):
            live[admit.demand.key] = admit
        if not stopped and not admitted(decisions):
            return
        admitted_now = {admit.demand.key for admit in admitted(decisions)}
        waiting = [demand for demand in waiting if demand.key not in admitted_now]
        if stopped:
            before = decide(on, rules, live.values(), waiting, frozenset(stopped), promised)
            assert not any(isinstance(d, Wait) and set(d.victims) & set(stopped) for d in before)
            more = [d.demand.key for d in before if isinstance(d, Wait) and d.victims]
            assert not promised.intersection(more), "nobody else is stopped for the same while they end"
            waiting += [live.pop(key).demand for key in stopped]
    pytest.fail("requests stop each other in turn")


def test_a_stopped_one_is_charged_until_it_has_ended() -> None:
    rules = tree(within=LOWER, a=8)
    live = running(fleet(*ONE), rules, ask("low", "a", 8))
    wait = only(decide(fleet(*ONE), rules, live, [ask("high", "a", 8, priority=1)], frozenset({"low"})))
    assert wait.reason is Reason.NOMINATED
    assert wait.message == "has a place once others end"
    assert rules.usage("a", "h100") == 0
    assert GPU > 0
