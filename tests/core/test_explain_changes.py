"""What would admit a demand now, each change tried by the engine, and with a bounded number of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, log2

import pytest
from described import GPU, OFFERINGS, POOLS, fleet, node, node_lists
from hypothesis import given, settings
from hypothesis import strategies as st
from test_admission import build, queues, quotas, trees
from test_calendar import ask as until
from test_calendar import window
from test_preemption import ANY, LOWER, ONE, ask, running, tree

from vmtenancy.core.admission import decide
from vmtenancy.core.explain import change, start
from vmtenancy.core.explain.change import MOST_CLASSES, Explanation, Raised, explain
from vmtenancy.core.explain.refusal import Reason
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import Mode, NodeFacts, Offering, Runtime
from vmtenancy.core.quota.policy import PreemptionPolicy
from vmtenancy.core.quota.tree import PoolQuota, QuotaTree, TenantQuota
from vmtenancy.core.requests import Admit, Decision, Demand

SLICED = (node("through", Mode.PASSTHROUGH, 2), node("vgpu", Mode.VGPU, 2))


def why(*args: object, **more: object) -> Explanation:
    found = explain(*args, **more)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_another_class_the_nearest_in_size_that_the_runtime_gets() -> None:
    live = running(fleet(*SLICED), quotas(a=8), ask("runs", "a", 2))
    told = why(fleet(*SLICED), quotas(a=8), live, [ask("x", "a", 3)], "x")
    assert (told.smaller, told.other_class) == (None, (("half", 3),))
    assert told.changes == ("would be admitted now with 3 x half",)
    none = why(fleet(*SLICED), quotas(a=8), live, [ask("x", "a", 1, Runtime.POD)], "x")
    assert none.other_class is None, "vGPUs are not for pods"


def test_only_classes_of_pools_with_quota_and_of_what_a_virtual_cluster_may_use() -> None:
    other = Offering("a-other", "a100", GPU, OFFERINGS[0].resources)
    pools = (*POOLS, replace(POOLS[0], name="a100", products=frozenset({"A100"})))
    whole = {"nvidia.com/gpu": 4}
    nodes = (
        node("c", Mode.CONTAINER, 1, capacity=whole),
        node("a", Mode.CONTAINER, 4, product="A100", capacity=whole),
    )
    supply = Fleet.build(nodes, pools, (*OFFERINGS, other))

    def told(*quota: str, maximum: tuple[str, ...] = ()) -> Explanation:
        rules = QuotaTree.build([TenantQuota("a", None, tuple(PoolQuota(pool, 4) for pool in quota))])
        lab = Demand("lab", "a", Runtime.HOLD, (), maximum=tuple((name, 4) for name in maximum))
        pod = ask("x", "a", 2, Runtime.POD, parent="lab" if maximum else None)
        return why(supply, rules, [Admit(lab, None)] if maximum else [], [pod], "x")

    assert told("h100").other_class is None
    assert told("h100", "a100").other_class == (("a-other", 2),)
    assert told("h100", "a100", maximum=("whole",)).other_class is None
    assert told("h100", "a100", maximum=("whole", "a-other")).other_class == (("a-other", 2),)


def test_a_class_that_does_not_exist_may_have_been_meant_to_be_another() -> None:
    told = why(fleet(*ONE), quotas(a=8), [], [Demand("x", "a", Runtime.VM, (("wholes", 2),))], "x")
    assert told.wait.reason is Reason.UNKNOWN_CLASS
    assert (told.start, told.positions, told.other_class) == (None, {}, (("whole", 2),))


def test_no_more_than_the_nearest_classes_are_tried() -> None:
    many = [Offering(f"c{i}", "h100", GPU // 10, {Mode.VGPU: f"nvidia.com/c{i}"}) for i in range(30)]
    supply = Fleet.build((node("t", Mode.PASSTHROUGH, 1),), POOLS, (*OFFERINGS, *many))
    few = Fleet.build((node("t", Mode.PASSTHROUGH, 1),), POOLS, OFFERINGS[:1])
    demands = [ask("x", "a", 2)]
    more = why(supply, quotas(a=8), [], demands, "x").runs - why(few, quotas(a=8), [], demands, "x").runs
    assert more == MOST_CLASSES


@pytest.mark.parametrize(
    ("pool", "mode"), [("h100", Mode.CONTAINER), ("a100", Mode.PASSTHROUGH), ("none", Mode.PASSTHROUGH)]
)
def test_classes_that_nobody_would_get_are_no_tries(pool: str, mode: Mode) -> None:
    """Not delivered to machines, of a pool without quota, of one that does not exist."""
    many = [Offering(f"c{i}", pool, GPU, {mode: "nvidia.com/gpu"}) for i in range(MOST_CLASSES)]
    other = replace(POOLS[0], name="a100", products=frozenset({"A100"}))
    supply = Fleet.build(SLICED, (*POOLS, other), (*OFFERINGS, *many))
    live = running(supply, quotas(a=8), ask("runs", "a", 2))
    assert why(supply, quotas(a=8), live, [ask("x", "a", 3)], "x").other_class == (("half", 3),)


def test_classes_that_a_virtual_cluster_may_not_use_are_no_tries() -> None:
    way = {Mode.CONTAINER: "nvidia.com/half"}
    many = [
        Offering(name, "h100", GPU // 2, way) for name in (*(f"c{i}" for i in range(MOST_CLASSES)), "own")
    ]
    half = node("c", Mode.CONTAINER, 2, capacity={"nvidia.com/half": 4})
    supply = Fleet.build((half,), POOLS, (*OFFERINGS, *many))
    lab = Demand("lab", "a", Runtime.HOLD, (), maximum=(("whole", 2), ("own", 2)))
    told = why(supply, quotas(a=8), [Admit(lab, None)], [ask("x", "a", 2, Runtime.POD, parent="lab")], "x")
    assert told.other_class == (("own", 2),)


def test_the_least_priority_that_admits_it_now() -> None:
    demands = [ask("first", "a", 6, priority=7), ask("x", "a", 4, priority=2), ask("low", "a", 2)]
    told = why(fleet(*ONE), quotas(a=8), [], demands, "x")
    assert told.priority == Raised(8), "with 7 the older one still goes first, by its key"
    assert str(told.priority) == "would be admitted now with priority 8"
    older = [replace(demands[0], created=1.0), *demands[1:]]
    assert why(fleet(*ONE), quotas(a=8), [], older, "x").priority == Raised(7)
    held = running(fleet(*ONE), quotas(a=8), ask("runs", "a", 8))
    assert why(fleet(*ONE), quotas(a=8), held, [ask("x", "a", 1)], "x").priority is None, "nobody is stopped"
    most = [ask("first", "a", 6, priority=1000), ask("x", "a", 4, priority=2, created=1.0)]
    assert why(fleet(*ONE), quotas(a=8), [], most, "x").priority is None, "there is no higher one"


def test_the_least_priority_that_would_be_nominated_and_whom_it_would_stop() -> None:
    rules = tree(within=LOWER, a=8)
    live = running(fleet(*ONE), rules, ask("low", "a", 4, priority=1), ask("high", "a", 4, priority=5))
    told = why(fleet(*ONE), rules, live, [ask("x", "a", 2)], "x")
    assert told.priority == Raised(2, nominated=True, victims=("low",))
    assert str(told.priority) == ("would have a place with priority 2, once low has been stopped for it")
    more = why(fleet(*ONE), rules, live, [ask("x", "a", 5)], "x")
    assert more.priority == Raised(6, nominated=True, victims=("low", "high"))
    assert str(more.priority).endswith("once low, high have been stopped for it")
    now = why(fleet(*ONE), rules, live, [ask("x", "a", 2, priority=2)], "x")
    assert (now.wait.reason, now.wait.victims, now.priority) == (Reason.NOMINATED, ("low",), None)


def test_priority_and_lease_are_of_a_whole_group_and_of_a_virtual_cluster() -> None:
    together = [ask(f"x{i}", "a", 3, group="g", created=float(i)) for i in range(2)]
    told = why(fleet(*ONE), quotas(a=8), [], [ask("first", "a", 6, priority=3, created=9.0), *together], "x0")
    assert told.priority == Raised(3)
    assert told.smaller is None, "the other 3 would still be too many"
    less = why(fleet(*ONE), quotas(a=8), [], [ask("first", "a", 3, priority=3), *together], "x0")
    assert less.smaller == (("whole", 2),), "with the other member, not alone"

    nodes, rules = (node("c", Mode.CONTAINER, 4),), tree(within=LOWER, a=4)
    lab = Demand("lab", "a", Runtime.HOLD, (), maximum=(("whole", 4),))
    mine = ask("mine", "a", 2, Runtime.POD, parent="lab")
    held = [Admit(lab, None), *running(fleet(*nodes), rules, ask("other", "a", 2, Runtime.POD))]
    held += [a for a in decide(fleet(*nodes), rules, held, [mine]) if isinstance(a, Admit)]
    told = why(fleet(*nodes), rules, held, [ask("x", "a", 2, Runtime.POD, parent="lab")], "x")
    assert told.priority == Raised(1, nominated=True, victims=("other",)), "not its own sibling"
    alone = why(fleet(*nodes), rules, held, [ask("x", "a", 2, Runtime.POD)], "x")
    assert alone.priority is None, "a pod outside of a virtual cluster has no priority of its own"


def test_the_longest_lease_that_keeps_clear_of_what_is_reserved() -> None:
    windows = [window("v", 2, 100.0, 400.0), window("w", 3, 200.0, 300.0)]
    runs = fleet(*ONE), tree(a=8)
    told = why(*runs, [], [until("x", 4)], "x", reserved=windows)
    assert (told.wait.reason, told.ends) == (Reason.RESERVED, 200.0)
    assert "would be admitted now with a lease that ends by 1970-01-01T00:03:20Z" in told.changes
    assert why(*runs, [], [until("x", 7)], "x", reserved=windows).ends == 100.0
    assert why(*runs, [], [until("x", 4, 250.0)], "x", reserved=windows).ends == 200.0
    pod = Demand("x", "a", Runtime.POD, (("whole", 4),))
    on = fleet(node("c", Mode.CONTAINER, 8)), tree(a=8)
    told = why(*on, [], [pod], "x", reserved=windows)
    assert (told.wait.reason, told.ends) == (Reason.RESERVED, None), "it has no lease"
    over = why(*runs, [], [until("x", 9)], "x", reserved=windows)
    assert over.ends is None, "it is too much without a window, too"


def test_positions_are_those_of_the_conditions() -> None:
    rules = QuotaTree.build(
        [TenantQuota("a", None, (PoolQuota("h100", 2),)), TenantQuota("b", None, (PoolQuota("h100", 0),))]
    )
    demands = [ask(f"w{i}", tenant, 3, created=float(i)) for i, tenant in enumerate("abab")]
    for decision in decide(fleet(*ONE), rules, [], demands):
        assert not isinstance(decision, Admit)
        told = why(fleet(*ONE), rules, [], demands, decision.demand.key)
        assert told.positions == {"h100": decision.position}


def most_runs(found: Explanation, demands: Sequence[Demand], live: Sequence[Admit], windows: int) -> int:
    """The bound that docs/explain.md gives."""

    def search(choices: int) -> int:
        return 1 + ceil(log2(choices)) if choices else 0

    ours = found.wait.demand
    levels = 2 * len(demands) + len(live)
    moments = 1 + len(live) + 2 * windows
    return (
        1
        + sum(search(count) for _, count in ours.requests)
        + MOST_CLASSES
        + search(windows)
        + search(levels)
        + search(levels)
        + search(moments)
        + start.MOST_RUNS
        + start.MOST_RUNS_ALONE
    )


LASTING = st.sampled_from([None, 50.0, 100.0, 150.0])


@settings(max_examples=25)
@given(
    nodes=node_lists(),
    tenants=trees(),
    first=queues(),
    second=queues(),
    ends=st.lists(LASTING, min_size=16, max_size=16),
    kept=st.lists(st.tuples(st.integers(1, 2), st.sampled_from([60.0, 90.0])), max_size=2),
    preempts=st.booleans(),
)
def test_each_change_is_true_and_the_engine_is_asked_a_bounded_number_of_times(
    nodes: list[NodeFacts],
    tenants: list[TenantQuota],
    first: list[Demand],
    second: list[Demand],
    ends: list[float | None],
    kept: list[tuple[int, float]],
    preempts: bool,
) -> None:
    policy = PreemptionPolicy(LOWER, ANY) if preempts else PreemptionPolicy()
    supply, rules = build(nodes, [replace(tenant, preemption=policy) for tenant in tenants])
    lasting = [replace(demand, ends=ends[i]) for i, demand in enumerate(first)]
    live = [a for a in decide(supply, rules, [], lasting) if isinstance(a, Admit)]
    windows = [window(f"v{i}", count, at, at + 30.0, tenant="t0") for i, (count, at) in enumerate(kept)]
    queue = [
        replace(d, key=f"n{d.key}", parent=d.parent and f"n{d.parent}", ends=ends[8 + i])
        for i, d in enumerate(second)
    ]
    asked = 0

    def counted(*args: object, **more: object) -> list[Decision]:
        nonlocal asked
        asked += 1
        return decide(*args, **more)  # type: ignore[arg-type]

    def decided(changed: dict[str, Demand]) -> Decision:
        demands = [changed.get(d.key, d) for d in queue]
        holds = [replace(a, demand=changed.get(a.demand.key, a.demand)) for a in live]
        answers = decide(supply, rules, holds, demands, reserved=windows)
        return next(d for d in answers if d.demand.key == key)

    for demand in queue:
        key, asked = demand.key, 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(change, "decide", counted)
            found = explain(supply, rules, live, queue, key, reserved=windows)
        if found is None:
            continue
        assert asked == found.runs <= most_runs(found, queue, live, len(windows))
        for requests in (found.smaller, found.other_class):
            if requests is not None:
                assert isinstance(decided({key: replace(demand, requests=requests)}), Admit)
        owners = [demand, *(d for d in queue if d.parent == key)]
        if demand.runtime is Runtime.POD:
            everything = (*queue, *(a.demand for a in live))
            owners = [d for d in everything if demand.parent and demand.parent in (d.key, d.parent)]
        if found.ends is not None:
            sooner = {
                d.key: replace(d, ends=min(found.ends, found.ends if d.ends is None else d.ends))
                for d in owners
            }
            assert isinstance(decided(sooner), Admit)
            later = [w.start for w in windows if w.start > found.ends]
            for end in later if demand.ends is None else ():
                assert not isinstance(decided({d.key: replace(d, ends=end) for d in owners}), Admit)
        if found.priority is None:
            assert not any(isinstance(d := decided(_at(owners, p)), Admit) for p in range(4)), d
        else:
            told = decided(_at(owners, found.priority.priority))
            if found.priority.nominated:
                assert not isinstance(told, Admit)
                assert (told.reason, told.victims) == (Reason.NOMINATED, found.priority.victims)
            else:
                assert isinstance(told, Admit)
            least = decided(_at(owners, found.priority.priority - 1))
            assert not isinstance(least, Admit), "a lower one would do"


def _at(owners: Sequence[Demand], level: int) -> dict[str, Demand]:
    return {d.key: replace(d, priority=max(level, d.priority)) for d in owners}
