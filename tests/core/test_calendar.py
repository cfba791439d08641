"""Windows to come: who would be in their way waits, who ends before does not, and what fits beside them neither."""

from __future__ import annotations

from dataclasses import replace

from described import GPU, devices, fleet, node
from hypothesis import given
from hypothesis import strategies as st

from vmtenancy.core.admission import decide
from vmtenancy.core.calendar import Reserved
from vmtenancy.core.explain.change import explain
from vmtenancy.core.explain.refusal import Reason
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import Mode, NodeFacts, Offering, Pool, Runtime
from vmtenancy.core.quota.policy import PreemptionPolicy, Preempts
from vmtenancy.core.quota.resources import Resource
from vmtenancy.core.quota.tree import CohortQuota, PoolQuota, QuotaTree, ResourceQuota, TenantQuota
from vmtenancy.core.requests import Admit, Demand, Wait

FLEET = (node("through", Mode.PASSTHROUGH, gpus=8),)


def tree(**nominal: int) -> QuotaTree:
    tenants = [TenantQuota(n, "team", (PoolQuota("h100", gpus),)) for n, gpus in nominal.items()]
    return QuotaTree.build(tenants, [CohortQuota("team")])


def ask(
    key: str, count: int, ends: float | None = None, *, tenant: str = "a", created: float = 0.0
) -> Demand:
    return Demand(key, tenant, Runtime.VM, (("whole", count),), created=created, ends=ends)


def window(key: str, count: int, start: float, end: float, *, tenant: str = "a") -> Reserved:
    units = (("whole", count),)
    return Reserved(
        Demand(key, tenant, Runtime.HOLD, units, maximum=units, ends=end, quota_alone=True), start
    )


def admitted(reserved: list[Reserved], *demands: Demand, live: list[Admit] | None = None) -> set[str]:
    decisions = decide(fleet(*FLEET), tree(a=4, b=4), live or [], demands, reserved=reserved)
    return {decision.demand.key for decision in decisions if isinstance(decision, Admit)}


def test_who_is_still_there_at_the_start_needs_room_beside_the_window() -> None:
    soon = [window("w", 3, 100.0, 200.0)]
    assert admitted(soon, ask("x", 6)) == set(), "it may borrow 4, but not what is reserved"
    assert admitted(soon, ask("x", 6, 100.0)) == {"x"}
    assert admitted(soon, ask("x", 6, 101.0)) == set()
    assert admitted(soon, ask("x", 5)) == {"x"}
    assert admitted(soon, ask("x", 5), ask("y", 1, created=1.0)) == {"x"}, "each of them would fit alone"


def test_another_tenant_does_not_borrow_it() -> None:
    assert admitted([window("w", 3, 100.0, 200.0)], ask("x", 6, tenant="b")) == set()
    assert admitted([window("w", 3, 100.0, 200.0)], ask("x", 5, tenant="b")) == {"x"}


def test_windows_that_meet_add_up_and_others_do_not() -> None:
    apart = [window("v", 4, 100.0, 200.0), window("w", 4, 200.0, 300.0, tenant="b")]
    assert admitted(apart, ask("x", 4)) == {"x"}
    meeting = [window("v", 4, 100.0, 201.0), window("w", 4, 200.0, 300.0, tenant="b")]
    assert admitted(meeting, ask("x", 1)) == set()
    assert admitted(meeting, ask("x", 4, 200.0)) == {"x"}


def test_what_runs_and_has_no_end_makes_a_window_impossible_and_that_keeps_nobody_out() -> None:
    [live] = decide(fleet(*FLEET), tree(a=4, b=4), [], [ask("runs", 6)])
    assert isinstance(live, Admit)
    assert admitted([window("w", 3, 100.0, 200.0)], ask("x", 2), live=[live]) == {"x"}
    [ends] = decide(fleet(*FLEET), tree(a=4, b=4), [], [ask("runs", 6, 50.0)])
    assert isinstance(ends, Admit)
    assert admitted([window("w", 7, 100.0, 200.0)], ask("x", 2), live=[ends]) == set()


LOWER = PreemptionPolicy(Preempts.LOWER_PRIORITY)


def test_a_window_has_no_part_in_a_shortage_of_cpu() -> None:
    cpu = (ResourceQuota(Resource.CPU, 1_000),)
    rules = QuotaTree.build([TenantQuota("a", None, (PoolQuota("h100", 4),), LOWER, resources=cpu)], [])
    (live,) = decide(fleet(*FLEET), rules, [], [replace(ask("low", 1), cpu=1_000)])
    assert isinstance(live, Admit)
    for count, reason, victims in ((1, Reason.NOMINATED, ("low",)), (3, Reason.RESERVED, ())):
        high = replace(ask("high", count), priority=1, cpu=1_000)
        (wait,) = decide(fleet(*FLEET), rules, [live], [high], reserved=[window("w", 2, 100.0, 200.0)])
        assert isinstance(wait, Wait)
        assert (wait.reason, wait.victims) == (reason, victims)


def test_a_window_of_another_pool_keeps_nobody_out() -> None:
    """Before, whatever was short of anything waited as if it were in its way, and nobody was stopped for it."""
    pools = ("h100", "a100")
    offerings = [Offering(p, p, GPU, {Mode.PASSTHROUGH: f"nvidia.com/{p}"}) for p in pools]
    nodes = [
        NodeFacts(p, Mode.PASSTHROUGH, product=p, devices=devices(4), capacity={f"nvidia.com/{p}": 4})
        for p in pools
    ]
    two = Fleet.build(nodes, [Pool(p, frozenset({p})) for p in pools], offerings)
    rules = QuotaTree.build([TenantQuota("a", None, (PoolQuota("h100", 1), PoolQuota("a100", 4)), LOWER)], [])
    one = replace(ask("low", 1), requests=(("h100", 1),))
    (live,) = decide(two, rules, [], [one])
    assert isinstance(live, Admit)
    four = (("a100", 4),)
    hold = Demand("w", "a", Runtime.HOLD, four, maximum=four, ends=200.0, quota_alone=True)
    (wait,) = decide(
        two, rules, [live], [replace(one, key="high", priority=1)], reserved=[Reserved(hold, 100.0)]
    )
    assert isinstance(wait, Wait)
    assert (wait.reason, wait.victims) == (Reason.NOMINATED, ("low",))


def test_it_is_explained_with_what_would_be_admitted() -> None:
    soon = [window("GpuReservation a/w", 3, 100.0, 200.0)]
    why = explain(fleet(*FLEET), tree(a=4, b=4), [], [ask("x", 6)], "x", reserved=soon)
    assert why is not None
    assert why.wait.reason is Reason.RESERVED
    assert "from 1970-01-01T00:01:40Z on GpuReservation a/w needs it" in why.wait.message
    assert why.smaller == (("whole", 5),)


def test_a_hold_of_quota_alone_is_drawn_on_by_machines_and_charged_once() -> None:
    units = (("whole", 3),)
    hold = Demand("hold", "a", Runtime.HOLD, units, maximum=units, quota_alone=True)
    own = Demand("own", "a", Runtime.VM, (("whole", 2),), parent="hold", created=1.0)
    rest = Demand("rest", "a", Runtime.VM, (("whole", 5),), created=2.0)
    more = Demand("more", "a", Runtime.VM, (("whole", 2),), parent="hold", created=3.0)
    answers = {
        decision.demand.key: decision
        for decision in decide(fleet(*FLEET), tree(a=4, b=4), [], [hold, own, rest, more])
    }
    assert isinstance(answers["own"], Admit)
    assert not answers["own"].charged
    assert isinstance(answers["rest"], Admit), "3 and 5 are 8"
    assert isinstance(answers["more"], Wait)
    assert answers["more"].reason is Reason.MAX_REACHED


@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from([None, 50.0, 150.0])), max_size=5),
    st.lists(
        st.tuples(st.integers(1, 4), st.sampled_from([100.0, 120.0]), st.sampled_from("ab")), max_size=3
    ),
)
def test_what_would_have_fitted_at_its_start_still_does(
    asked: list[tuple[int, float | None]], kept: list[tuple[int, float, str]]
) -> None:
    """No admission takes the room of a window: quota for all that stood stays free of what lasts until then."""
    windows = [window(f"w{i}", n, start, 200.0, tenant=whose) for i, (n, start, whose) in enumerate(kept)]
    demands = [ask(f"d{i}", n, ends, created=float(i)) for i, (n, ends) in enumerate(asked)]
    decisions = decide(fleet(*FLEET), tree(a=4, b=4), [], demands, reserved=windows)
    stay = [d for d in decisions if isinstance(d, Admit)]
    for start in (100.0, 120.0):
        then = [w for w in windows if w.start <= start]
        last = [d for d in stay if d.demand.ends is None or d.demand.ends > start]

        def fit(live: list[Admit], then: list[Reserved] = then) -> set[str]:
            wanted = [w.demand for w in then]
            in_order = frozenset(demand.key for demand in wanted)  # else fair share has a say
            answers = decide(fleet(*FLEET), tree(a=4, b=4), live, wanted, promised=in_order)
            return {answer.demand.key for answer in answers if isinstance(answer, Admit)}

        assert fit([]) == fit(last)
