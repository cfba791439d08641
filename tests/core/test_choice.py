"""Requests that would do with other classes, or fewer units: which of the ways is taken, by policy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from vmtenancy.api.gpuclass import PARTS_PER_GPU as GPU
from vmtenancy.core.admission import decide
from vmtenancy.core.calendar import Reserved
from vmtenancy.core.explain.change import explain
from vmtenancy.core.explain.refusal import Reason
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import DeviceFacts, Mode, NodeFacts, Offering, Pool, Runtime
from vmtenancy.core.options import most_lacking, ways
from vmtenancy.core.quota.policy import BorrowWithinCohort, Fungibility, PreemptionPolicy, Preempts
from vmtenancy.core.quota.resources import Resource
from vmtenancy.core.quota.tree import CohortQuota, PoolQuota, QuotaTree, ResourceQuota, TenantQuota
from vmtenancy.core.requests import Admit, Decision, Demand, Tenure, Wait
from vmtenancy.errors import VmtError

POOLS = ("h100", "a100", "l40s")
OFFERINGS = [Offering(pool, pool, GPU, {Mode.PASSTHROUGH: f"nvidia.com/{pool}"}) for pool in POOLS]
OFFERINGS.append(Offering("half", "h100", GPU // 2, {Mode.VGPU: "nvidia.com/half"}))
ANY, LOWER, NEVER = Preempts.ANY, Preempts.LOWER_PRIORITY, Preempts.NEVER


def fleet(gpus: int = 6) -> Fleet:
    """A node of each pool."""
    nodes = [
        NodeFacts(
            pool,
            Mode.PASSTHROUGH,
            product=pool,
            devices=tuple(DeviceFacts(f"gpu-{i}") for i in range(gpus)),
            capacity={f"nvidia.com/{pool}": gpus},
        )
        for pool in POOLS
    ]
    return Fleet.build(nodes, [Pool(pool, frozenset({pool})) for pool in POOLS], OFFERINGS)


def tenant(
    name: str,
    cohort: str | None = "team",
    policy: PreemptionPolicy | None = None,
    fungibility: Fungibility | None = None,
    **nominal: int,
) -> TenantQuota:
    return TenantQuota(
        name,
        cohort,
        tuple(PoolQuota(pool, gpus) for pool, gpus in nominal.items()),
        policy or PreemptionPolicy(),
        fungibility=fungibility or Fungibility(),
    )


def tree(*tenants: TenantQuota) -> QuotaTree:
    return QuotaTree.build(tenants, [CohortQuota("team")])


def ask(key: str, count: int, *others: str, least: int | None = None, **more: object) -> Demand:
    return Demand(
        key,
        "a",
        Runtime.VM,
        (("h100", count),),
        alternatives=(("h100", others),) if others else (),
        minimum=((("h100", least),) if least is not None else ()),
        **more,  # type: ignore[arg-type]
    )


def got(decisions: Iterable[Decision]) -> dict[str, dict[str, int]]:
    return {d.demand.key: dict(d.demand.requests) for d in decisions if isinstance(d, Admit)}


def test_ways_come_in_order_the_last_request_changes_first_and_counts_fall_in_step() -> None:
    demand = Demand(
        "w",
        "a",
        Runtime.VM,
        (("h100", 4), ("l40s", 2)),
        alternatives=(("h100", ("a100",)), ("l40s", ("half",))),
        minimum=(("h100", 1),),
    )
    assert [dict(way.requests) for (way,) in ways([demand])] == [
        {"h100": 4, "l40s": 2},
        {"h100": 4, "half": 2},
        {"a100": 4, "l40s": 2},
        {"a100": 4, "half": 2},
    ]
    assert most_lacking([demand]) == 3
    assert next(dict(way.requests) for (way,) in ways([demand], 2)) == {"h100": 2, "l40s": 2}
    other = Demand("x", "a", Runtime.VM, (("h100", 8),), minimum=(("h100", 2),))
    first, *rest = ways([demand, other], 4)
    assert [dict(each.requests) for each in first] == [{"h100": 3, "l40s": 2}, {"h100": 6}]
    assert [dict(last.requests) for _, last in rest] == [{"h100": 6}] * 3, (
        "who has no more ways stays with its last"
    )
    for less, more in pairwise(range(10)):
        counts = [
            [n for each in next(ways([demand, other], k)) for _, n in each.requests] for k in (less, more)
        ]
        assert all(before >= after for before, after in zip(*counts, strict=True))
    assert [dict(each.requests)["h100"] for each in next(ways([demand, other], 9))] == [1, 2]


@pytest.mark.parametrize(
    "more",
    [
        {"alternatives": (("a100", ("h100",)),)},
        {"alternatives": (("h100", ("h100",)),)},
        {"alternatives": (("h100", ("a100", "a100")),)},
        {"alternatives": (("h100", ("l40s",)),), "requests": (("h100", 1), ("l40s", 1))},
        {"minimum": (("h100", 0),)},
        {"minimum": (("h100", 3),)},
        {"minimum": (("a100", 1),)},
    ],
)
def test_bad_options_are_refused(more: dict[str, object]) -> None:
    with pytest.raises(VmtError):
        Demand(**{"key": "w", "tenant": "a", "runtime": Runtime.VM, "requests": (("h100", 2),)} | more)  # type: ignore[arg-type]


def test_the_refusal_is_that_of_the_first_class_and_names_the_others_in_short() -> None:
    rules = tree(tenant("a", None, h100=1, a100=2))
    (wait,) = decide(fleet(), rules, [], [ask("w", 4, "a100", "l40s", "h200", least=3)])
    assert isinstance(wait, Wait)
    assert wait.reason is Reason.QUOTA_EXCEEDED
    assert wait.demand == ask("w", 4, "a100", "l40s", "h200", least=3)
    assert wait.message == (
        "pool h100: needs 4 GPUs, 1 free of 1; nor with 4 x a100 (QuotaExceeded: 2 free of 2 in pool a100), 4 x l40s "
        "(NoQuota: tenant a has no quota in pool l40s), 4 x h200 (UnknownClass: class h200 does not exist); nor with "
        "fewer, down to 3 x h100"
    )
    assert wait.shortage
    assert wait.shortage.pool == "h100"
    assert wait.position == 1


def test_what_is_reserved_in_one_class_is_passed_over_and_in_all_is_told() -> None:
    rules = tree(tenant("a", None, h100=2, a100=1))
    hold = Demand(
        "r", "a", Runtime.HOLD, (("h100", 2),), maximum=(("h100", 2),), ends=200.0, quota_alone=True
    )
    window = [Reserved(hold, 100.0)]
    assert got(decide(fleet(), rules, [], [ask("w", 1, "a100")], reserved=window)) == {"w": {"a100": 1}}
    (wait,) = decide(fleet(), rules, [], [ask("w", 2, "a100", least=2)], reserved=window)
    assert isinstance(wait, Wait)
    assert (wait.reason, wait.victims) == (Reason.RESERVED, ())
    hold = Demand(
        "r", "a", Runtime.HOLD, (("h100", 1),), maximum=(("h100", 1),), ends=200.0, quota_alone=True
    )
    window = [Reserved(hold, 100.0)]
    assert got(decide(fleet(), rules, [], [ask("w", 2, least=1)], reserved=window)) == {"w": {"h100": 1}}


def test_nobody_is_stopped_for_a_way_that_is_reserved() -> None:
    rules = tree(tenant("a", None, PreemptionPolicy(LOWER), h100=2))
    live = got_all(decide(fleet(), rules, [], [Demand("low", "a", Runtime.VM, (("h100", 2),), ends=50.0)]))
    hold = Demand(
        "r", "a", Runtime.HOLD, (("h100", 2),), maximum=(("h100", 2),), ends=200.0, quota_alone=True
    )
    (wait,) = decide(
        fleet(), rules, live, [ask("w", 2, "a100", priority=1)], reserved=[Reserved(hold, 100.0)]
    )
    assert isinstance(wait, Wait)
    assert (wait.reason, wait.victims) == (Reason.RESERVED, ())


def test_a_smaller_change_keeps_the_alternatives_and_says_what_would_be_granted() -> None:
    rules = tree(tenant("a", None, h100=1, a100=3))
    demand = ask("w", 4, "a100")
    why = explain(fleet(), rules, [], [demand], "w")
    assert why
    assert why.smaller == (("a100", 3),)


def test_what_is_kept_for_a_nominated_alternative_nobody_behind_gets() -> None:
    policy = PreemptionPolicy(LOWER)
    rules = tree(tenant("a", None, policy, h100=1, a100=3))
    low = got_all(decide(fleet(), rules, [], [Demand("low", "a", Runtime.VM, (("a100", 2),))]))
    late = Demand("late", "a", Runtime.VM, (("a100", 1),))
    first, second = decide(fleet(), rules, low, [ask("w", 3, "a100", priority=1), late])
    assert isinstance(first, Wait)
    assert (first.reason, first.victims) == (Reason.NOMINATED, ("low",))
    assert first.message == "has a place with 3 x a100 once low ends, stopped for it"
    assert isinstance(second, Wait), "the free one is kept"
    assert second.position == 2, "both wait for the pool of the alternative"


def test_places_in_queues_are_by_what_each_waits_for() -> None:
    rules = tree(tenant("a", None, PreemptionPolicy(LOWER), h100=1, a100=3))
    low = got_all(decide(fleet(), rules, [], [Demand("low", "a", Runtime.VM, (("a100", 2),))]))
    late = Demand("late", "a", Runtime.VM, (("a100", 1),))
    all_of = [Demand(f"all-{p}", "a", Runtime.VM, ((p, n),)) for p, n in (("h100", 1), ("a100", 3))]
    both = got_all(decide(fleet(), rules, [], all_of))
    members = [Demand(p, "a", Runtime.VM, ((p, 1),), priority=1, group="g") for p in ("h100", "a100")]
    for live, asked, places in (
        (low, [ask("w", 3, "a100", priority=1), late], [{"a100": 1}, {"a100": 2}]),
        (both, members, [{"a100": 1, "h100": 1}, {"a100": 2, "h100": 2}]),
    ):
        waits = decide(fleet(), rules, live, asked)
        for wait, place in zip(waits, places, strict=True):
            found = explain(fleet(), rules, live, asked, wait.demand.key)
            assert found
            assert found.positions == place
            assert isinstance(wait, Wait)
            assert wait.position == max(place.values())


def got_all(decisions: Iterable[Decision]) -> list[Admit]:
    return [decision for decision in decisions if isinstance(decision, Admit)]


# -- whatever comes -------------------------------------------------------------------------------------------------

policies = st.builds(
    PreemptionPolicy,
    st.sampled_from([NEVER, LOWER]),
    st.sampled_from([NEVER, LOWER, ANY]),
    st.sampled_from([None, BorrowWithinCohort()]),
)


@st.composite
def trees(draw: st.DrawFn) -> QuotaTree:
    """Two tenants in a cohort, one of another cohort below the same root."""
    tenants = [
        tenant(
            name,
            draw(st.sampled_from(["team", "sub"])),
            draw(policies),
            Fungibility(draw(st.booleans()), draw(st.booleans())),
            **{pool: draw(st.integers(0, 3)) for pool in POOLS},
        )
        for name in "abc"
    ]
    return QuotaTree.build(tenants, [CohortQuota("team"), CohortQuota("sub", "team")])


@st.composite
def demands(draw: st.DrawFn, first: int, fewest: int, most: int, classes_least: int = 1) -> list[Demand]:
    """Machines of all tenants; half of them would do with other classes or fewer."""
    found = []
    for i in range(draw(st.integers(fewest, most))):
        classes = draw(st.permutations(POOLS))[: draw(st.integers(classes_least, 3))]
        count = draw(st.integers(1, 5))
        least = draw(st.integers(1, count)) if draw(st.booleans()) else count
        group = draw(st.sampled_from(["", "", "", "g"])) if most > 1 else ""
        found.append(
            Demand(
                f"w{first + i}",
                "a" if group else draw(st.sampled_from("abc")),
                Runtime.VM,
                ((classes[0], count),),
                priority=draw(st.integers(0, 2)),
                created=float(first + i),
                group=group and f"{group}{first}",
                alternatives=((classes[0], tuple(classes[1:])),) if classes[1:] else (),
                minimum=((classes[0], least),) if least < count else (),
            )
        )
    return found


def is_an_option(demand: Demand, granted: Demand) -> bool:
    ((name, most),) = demand.requests
    ((had, count),) = granted.requests
    fewest = dict(demand.minimum).get(name, most)
    return had in (name, *dict(demand.alternatives).get(name, ())) and fewest <= count <= most


@settings(max_examples=100)
@given(rules=trees(), old=demands(0, 1, 6), asked=demands(100, 1, 1, 2))
def test_no_better_way_was_open(rules: QuotaTree, old: list[Demand], asked: list[Demand]) -> None:
    """What is decided for one request is compared with what is decided for each of its ways alone."""
    on, (demand,) = fleet(), asked
    live = got_all(decide(on, rules, [], old))
    (answer,) = decide(on, rules, live, [demand])
    policy = rules.fungibility(demand.tenant)
    ((name, most),) = demand.requests
    classes = (name, *dict(demand.alternatives).get(name, ()))
    fewest = dict(demand.minimum).get(name, most)

    def alone(of: str, count: int) -> str:
        """How it would be served with just this: `own`, `borrows`, `nominated`, or not at all."""
        fixed = Demand(demand.key, demand.tenant, Runtime.VM, ((of, count),), demand.priority, demand.created)
        (decision,) = decide(on, rules, live, [fixed])
        if isinstance(decision, Admit):
            return "borrows" if decision.borrowed else "own"
        return "nominated" if decision.reason is Reason.NOMINATED else ""

    table = {count: [alone(of, count) for of in classes] for count in range(fewest, most + 1)}
    open_to_it = [count for count, found in table.items() if any(found)]
    if not open_to_it:
        assert isinstance(answer, Wait)
        assert answer.reason is not Reason.NOMINATED
        event("nothing")
        return
    best = max(open_to_it)
    found = table[best]
    if isinstance(answer, Wait):
        event("nominated")
        assert answer.reason is Reason.NOMINATED
        if policy.try_next_to_preempt:
            assert not {"own", "borrows"} & set(found), "what fits comes before what others are stopped for"
        else:
            assert "own" not in found[: found.index("nominated")]
        return
    assert is_an_option(demand, answer.demand)
    ((of, count),) = answer.demand.requests
    assert count == best, "as many as can be had"
    before = found[: classes.index(of)]
    how = found[classes.index(of)]
    event(f"{how}, fewer {best < most}, way {classes.index(of)}")
    assert how == ("borrows" if answer.borrowed else "own")
    assert "own" not in before, "an earlier class without borrowing comes first"
    if "borrows" in before:
        assert policy.try_next_to_borrow, "an earlier class that borrows is taken unless the next is tried"
    if "nominated" in before and how == "own":
        assert policy.try_next_to_preempt or policy.try_next_to_borrow, (
            "stopping others, or borrowing after it"
        )
    if how == "borrows" and policy.try_next_to_borrow and policy.try_next_to_preempt:
        assert "own" not in found


@settings(max_examples=60)
@given(rules=trees(), first=demands(0, 2, 6), later=demands(100, 1, 6))
def test_it_keeps_to_quota_and_comes_to_rest(
    rules: QuotaTree, first: list[Demand], later: list[Demand]
) -> None:
    """Round by round, with those that were stopped waiting again: only options are granted, and it ends (I2, I10)."""
    on = fleet()
    asked = {demand.key: demand for demand in (*first, *later)}
    waiting, live = dict(asked), dict[str, Admit]()
    for demand in later:
        del waiting[demand.key]
    promised: frozenset[str] = frozenset()
    promises: dict[str, tuple[tuple[str, int], ...]] = {}
    for turn in range(80):
        if turn == 1:
            waiting |= {demand.key: demand for demand in later}
        decisions = decide(on, rules, live.values(), waiting.values(), promised=promised, promises=promises)
        admits, waits = got_all(decisions), [d for d in decisions if isinstance(d, Wait)]
        assert {d.demand.key for d in decisions} == set(waiting)
        for admit in admits:
            assert is_an_option(asked[admit.demand.key], admit.demand)
            assert (admit.demand.alternatives, admit.demand.minimum) == ((), ())
            live[admit.demand.key] = admit
            del waiting[admit.demand.key]
        keep_to(rules, live.values())
        freed = {wait.demand.group or wait.demand.key for wait in waits if wait.victims}
        for_whom = [wait for wait in waits if (wait.demand.group or wait.demand.key) in freed]
        promised = frozenset(wait.demand.key for wait in for_whom)
        promises = {wait.demand.key: wait.nominated for wait in for_whom if wait.nominated}
        stopped = [victim for wait in waits for victim in wait.victims]
        for victim in stopped:
            del live[victim]
            waiting[victim] = asked[victim]
        if turn and not admits and not stopped:
            return
    raise AssertionError("it never comes to rest")


def keep_to(rules: QuotaTree, live: Iterable[Admit]) -> None:
    """No more is held of a pool than all have of their own (I2)."""
    held = dict.fromkeys(POOLS, 0)
    for admit in live:
        for pool, count in admit.demand.requests:
            held[pool] += count * GPU
    for pool in POOLS:
        assert held[pool] <= sum(rules.nominal(name, pool) for name in "abc")


def granted(rules: QuotaTree, demand: Demand) -> Admit:
    (answer,) = decide(fleet(), rules, [], [demand])
    assert isinstance(answer, Admit)
    return answer


def waiting(rules: QuotaTree, live: Iterable[Admit], demand: Demand) -> Wait:
    (answer,) = decide(fleet(), rules, live, [demand])
    assert isinstance(answer, Wait)
    return answer


@pytest.mark.parametrize("until", [100.0, float("inf")])
def test_the_least_run_time_of_what_holds_an_alternative_is_told(until: float) -> None:
    rules = tree(tenant("a", policy=PreemptionPolicy(LOWER), h100=1, a100=4))
    x = granted(rules, Demand("x", "a", Runtime.VM, (("a100", 4),)))
    w = ask("w", 2, "a100", priority=5)
    assert waiting(rules, [x], w).victims == ("x",)
    told = waiting(rules, [replace(x, tenure=Tenure(safe_within_tenant=until))], w)
    assert told.victims == ()
    assert told.stops_from == (None if until == float("inf") else until)


def test_nobody_has_to_go_once_the_full_count_is_free_and_ones_own() -> None:
    rules = tree(tenant("a", policy=PreemptionPolicy(LOWER), h100=4, a100=4))
    x = granted(rules, Demand("x", "a", Runtime.VM, (("a100", 4),)))
    w, promises = ask("w", 2, "a100", priority=5), {"w": (("a100", 2),)}
    (answer,) = decide(fleet(), rules, [x], [w], frozenset({"x"}), frozenset({"w"}), (), promises)
    assert isinstance(answer, Admit)
    assert answer.demand.requests == (("h100", 2),)


def test_a_promise_of_what_is_not_asked_for_any_more_is_none() -> None:
    rules = tree(tenant("a", h100=4, a100=4))
    w = ask("w", 2, "a100", least=2)
    for promised in (("l40s", 2), ("a100", 1), ("a100", 3)):
        promises = {"w": (promised,)}
        (answer,) = decide(fleet(), rules, [], [w], frozenset(), frozenset({"w"}), (), promises)
        assert isinstance(answer, Admit)
        assert answer.demand.requests == (("h100", 2),)


def test_what_is_short_of_an_alternative_is_told_in_its_own_unit() -> None:
    quota = (PoolQuota("h100", 4), PoolQuota("a100", 4))
    rules = QuotaTree.build([TenantQuota("a", quota=quota, resources=(ResourceQuota(Resource.CPU, 3000),))])
    assert (
        "nor with 1 x a100 (QuotaExceeded: 3 free of 3 of cpu)"
        in waiting(rules, [], ask("w", 1, "a100", cpu=4000)).message
    )
