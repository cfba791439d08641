"""What it costs to be stopped, who is left alone, and that all three policies can be replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from described import fleet, node
from test_preemption import ask, only, running

from vmtenancy.core.admission import decide
from vmtenancy.core.explain.change import explain
from vmtenancy.core.fleet.model import Mode, Runtime
from vmtenancy.core.policies import DEFAULT, AsTenantsSay, Policies, Way, WorkLost
from vmtenancy.core.quota.policy import BorrowWithinCohort, PreemptionPolicy, Preempts
from vmtenancy.core.quota.tree import CohortQuota, PoolQuota, QuotaTree, TenantQuota
from vmtenancy.core.requests import Admit, Demand, Tenure, Wait

LOWER, ANY, EQUAL = Preempts.LOWER_PRIORITY, Preempts.ANY, Preempts.LOWER_OR_EQUAL_PRIORITY
MACHINES = node("machines", Mode.PASSTHROUGH)
PODS = node("pods", Mode.CONTAINER)


def tree(policy: PreemptionPolicy, **nominal: int) -> QuotaTree:
    tenants = [TenantQuota(n, "team", (PoolQuota("h100", gpus),), policy) for n, gpus in nominal.items()]
    return QuotaTree.build(tenants, [CohortQuota("team")])


def live(rules: QuotaTree, *demands: Demand, **tenures: Tenure) -> list[Admit]:
    admits = running(fleet(MACHINES, PODS), rules, *demands)
    return [replace(admit, tenure=tenures.get(admit.demand.key, Tenure())) for admit in admits]


def test_the_cost_is_work_and_restart_of_each_gpu_and_waiting_where_no_other_place_is_free() -> None:
    rules = tree(PreemptionPolicy(), a=8)
    machine, pod = live(
        rules,
        ask("m", "a", 2),
        ask("p", "a", 1, Runtime.POD, created=1),
        m=Tenure(work=600),
        p=Tenure(work=60),
    )
    cost = WorkLost()
    assert cost.of(machine, moves=True) == 2 * (600 + 120)
    assert cost.of(machine, moves=False) == 2 * (600 + 120 + 3600)
    assert cost.of(pod, moves=True) == 60 + 30
    assert WorkLost({Runtime.POD: 5.0}, waiting=7.0).of(pod, moves=False) == 60 + 5 + 7


def test_of_equal_priority_and_number_the_cheapest_goes_whatever_its_age() -> None:
    rules = tree(PreemptionPolicy(LOWER), a=4)
    demands = [ask("x", "a", 2, created=1), ask("y", "a", 2, created=2)]
    for work in ({"x": 1.0, "y": 2.0}, {"x": 2.0, "y": 1.0}):
        found = live(rules, *demands, **{key: Tenure(work=seconds * 1000) for key, seconds in work.items()})
        for given in (found, found[::-1]):
            wait = only(decide(fleet(MACHINES), rules, given, [ask("w", "a", 2, priority=1)]))
            assert wait.victims == (min(work, key=lambda key: work[key]),)
    same = live(rules, *demands)
    assert only(decide(fleet(MACHINES), rules, same, [ask("w", "a", 2, priority=1)])).victims == ("y",)


def test_a_waiting_request_is_told_from_when_on_others_may_be_stopped() -> None:
    rules = tree(PreemptionPolicy(LOWER), a=4)
    young = live(rules, ask("x", "a", 4), x=Tenure(safe_within_tenant=1_700_000_000.0))
    wait = only(decide(fleet(MACHINES), rules, young, [ask("w", "a", 2, priority=1)]))
    assert (wait.victims, wait.stops_from) == ((), 1_700_000_000.0)
    assert wait.message.endswith("; from 2023-11-14T22:13:20Z on x may be stopped for it")
    for tenure in (Tenure(safe_within_cohort=1_700_000_000.0), Tenure()):
        now = only(
            decide(
                fleet(MACHINES),
                rules,
                live(rules, ask("x", "a", 4), x=tenure),
                [ask("w", "a", 2, priority=1)],
            )
        )
        assert (now.victims, now.stops_from) == (("x",), None)
    low = only(decide(fleet(MACHINES), rules, young, [ask("w", "a", 2)]))
    assert (low.victims, low.stops_from) == ((), None), "x is never stopped for it"
    large = only(decide(fleet(MACHINES), rules, young, [ask("w", "a", 5, priority=1)]))
    assert large.stops_from is None, "it would not fit even then"


def test_the_first_moment_at_which_enough_have_run_long_enough() -> None:
    rules = tree(PreemptionPolicy(LOWER), a=4)
    ends = {f"x{i}": Tenure(safe_within_tenant=1000.0 + i) for i in range(4)}
    young = live(rules, *(ask(key, "a", 1) for key in ends), **ends)
    for count in (1, 2, 3, 4):
        wait = only(decide(fleet(MACHINES), rules, young, [ask("w", "a", count, priority=1)]))
        assert wait.stops_from == 1000.0 + count - 1


def test_who_is_nominated_needs_nobody_else() -> None:
    rules = tree(PreemptionPolicy(LOWER), a=4)
    mixed = live(rules, ask("x", "a", 2), ask("y", "a", 2), x=Tenure(safe_within_tenant=1e9))
    wait = only(decide(fleet(MACHINES), rules, mixed, [ask("w", "a", 2, priority=1)]))
    assert (wait.victims, wait.stops_from) == (("y",), None)


@dataclass
class Recorded:
    """All that an own policy was asked, and its one answer."""

    answer: bool
    asked: list[tuple[Way, str, str]] = field(default_factory=list)

    def allows(self, way: Way, policy: PreemptionPolicy, demands: Sequence[Demand], victim: Demand) -> bool:
        self.asked.append((way, demands[0].key, victim.key))
        return self.answer


def test_an_own_policy_of_victims_decides_among_those_only_that_may_be_stopped_at_all() -> None:
    policy = PreemptionPolicy(LOWER, ANY, BorrowWithinCohort(), EQUAL)
    rules = tree(policy, a=2, b=2, c=2)
    lab = Demand("lab", "b", Runtime.HOLD, (("whole", 1),), maximum=(("whole", 1),))
    pod = ask("pod", "b", 1, Runtime.POD, parent="lab", created=1)
    found = live(
        rules,
        ask("mine", "a", 2),
        lab,
        pod,
        ask("over", "b", 1),
        ask("firm", "b", 1, preemptible=False),
        ask("own", "c", 1),
    )
    recorded = Recorded(answer=False)
    wait = only(
        decide(fleet(MACHINES, PODS), rules, found, [ask("w", "a", 1)], policies=Policies(victims=recorded))
    )
    assert wait.victims == ()
    outside = {(way, "w", key) for way in set(Way) - {Way.WITHIN_TENANT} for key in ("over", "pod", "own")}
    assert set(recorded.asked) == {(Way.WITHIN_TENANT, "w", "mine"), *outside}
    anybody = Policies(victims=Recorded(answer=True))
    wait = only(decide(fleet(MACHINES, PODS), rules, found, [ask("w", "a", 1)], policies=anybody))
    assert wait.victims == ("over",), "b holds 3 of 2, c 1 of 2"
    assert DEFAULT.victims == AsTenantsSay()


def test_an_own_policy_can_not_take_what_is_guaranteed_or_too_young() -> None:
    rules = tree(PreemptionPolicy(LOWER), a=4)
    firm = live(
        rules,
        ask("firm", "a", 2, preemptible=False),
        ask("young", "a", 2),
        young=Tenure(safe_within_tenant=1e9),
    )
    mine = Policies(victims=Recorded(answer=True))
    wait = only(decide(fleet(MACHINES), rules, firm, [ask("w", "a", 2)], policies=mine))
    assert (wait.victims, wait.stops_from) == ((), 1e9)


class Reversed:
    """The youngest first, in three levels by the length of the name; no fair share."""

    fair_share = False

    def rank(self, demand: Demand) -> tuple[int, float]:
        return (len(demand.key), -demand.created)


def test_an_own_order() -> None:
    rules = tree(PreemptionPolicy(), a=3, b=1)  # b2 borrows, and by fair share a1 would go before it
    demands = [
        ask("b2", "b", created=2),
        ask("a1", "a", created=1),
        ask("a33", "a", priority=9),
        ask("b4", "b", created=4),
    ]
    mine = Policies(ordering=Reversed())
    order = [decision.demand.key for decision in decide(fleet(MACHINES), rules, [], demands, policies=mine)]
    assert order == ["b4", "b2", "a1", "a33"]
    promised = decide(fleet(MACHINES), rules, [], demands, promised=frozenset({"a33"}), policies=mine)
    assert promised[0].demand.key == "a33", "a promise comes before all"


@pytest.mark.parametrize(("cost", "victim"), [(1, "x"), (-1, "y")])
def test_an_own_cost_decides_and_explain_is_by_the_same(cost: int, victim: str) -> None:
    class Own:
        def of(self, victim: Admit, *, moves: bool) -> float:
            return 100.0 + cost * victim.demand.created

    rules = tree(PreemptionPolicy(LOWER), a=4)
    found = live(rules, ask("x", "a", 2, created=1), ask("y", "a", 2, created=2))
    demands, mine = [ask("w", "a", 2, priority=1)], Policies(cost=Own())
    wait = only(decide(fleet(MACHINES), rules, found, demands, policies=mine))
    assert wait.victims == (victim,)
    told = explain(fleet(MACHINES), rules, found, demands, "w", policies=mine)
    assert told is not None
    assert isinstance(told.wait, Wait)
    assert told.wait.victims == (victim,)
