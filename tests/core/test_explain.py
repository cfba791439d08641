"""Explanations: amounts in words, and the smallest change, verified by the engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from described import BY_NAME, GPU, fleet, node, node_lists
from hypothesis import given, settings
from test_admission import HOLD, MIXED, build, queues, quotas, trees, vm

from vmtenancy.core.admission import decide
from vmtenancy.core.explain.change import explain
from vmtenancy.core.explain.shortage import counted, gpus, held_by
from vmtenancy.core.fleet.model import Mode, NodeFacts, Runtime
from vmtenancy.core.quota.tree import TenantQuota
from vmtenancy.core.requests import Admit, Demand, Wait


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (0, "0"),
        (GPU, "1"),
        (GPU // 4, "0.25"),
        (GPU * 13 // 4, "3.25"),
        (GPU // 8, "0.125"),
        (3 * GPU // 7, "3/7"),
        (GPU + GPU // 3, "4/3"),
        (1000 * GPU, "1000"),
        (10 * GPU, "10"),
        (1234567 * GPU + GPU // 2, "1234567.5"),
    ],
)
def test_gpus(parts: int, text: str) -> None:
    assert gpus(parts) == text


def test_words() -> None:
    assert [counted(parts) for parts in (0, GPU // 2, GPU, 2 * GPU)] == [
        "0 GPUs",
        "0.5 GPUs",
        "1 GPU",
        "2 GPUs",
    ]
    assert held_by([]) == ""
    assert held_by([(f"vm{i}", GPU) for i in range(6)]) == "; held by vm0 1, vm1 1, vm2 1, vm3 1 and 2 more"


def test_the_smallest_change_is_found() -> None:
    demands = [vm("first", "a", 5), vm("second", "a", 6, created=1)]
    explanation = explain(fleet(*MIXED), quotas(a=8), [], demands, "second")
    assert explanation is not None
    assert explanation.smaller == (("whole", 3),)
    assert str(explanation) == (
        "pool h100: needs 6 GPUs, 3 free of 8 in cohort team; held by first 5; "
        "starts once others make room, nobody knows when; would be admitted now with 3 x whole; "
        "would be admitted now with 6 x half; would be admitted now with priority 1"
    )


def test_the_least_is_taken_away_and_a_class_may_go() -> None:
    one = fleet(node("v", Mode.VGPU, 1))
    both = Demand("x", "a", Runtime.VM, (("half", 2), ("quarter", 1)))
    explanation = explain(one, quotas(a=8), [], [both], "x")
    assert explanation is not None
    assert explanation.smaller == (("half", 2),)


def test_no_smaller_count_helps() -> None:
    explanation = explain(fleet(*MIXED), quotas(a=0), [], [vm("x", "a", 3)], "x")
    assert explanation is not None
    assert explanation.smaller is None
    assert explanation.changes == ()
    assert str(explanation) == explanation.wait.message


def test_what_is_admitted_needs_no_explanation_and_what_is_not_asked_has_none() -> None:
    assert explain(fleet(*MIXED), quotas(a=1), [], [vm("x", "a")], "x") is None
    with pytest.raises(KeyError):
        explain(fleet(*MIXED), quotas(a=1), [], [vm("x", "a")], "y")


@settings(max_examples=25)
@given(nodes=node_lists(), tenants=trees(), queue=queues())
def test_the_change_is_admitted_and_nothing_larger_is(
    nodes: list[NodeFacts], tenants: list[TenantQuota], queue: list[Demand]
) -> None:
    supply, tree = build(nodes, tenants)
    for decision in decide(supply, tree, [], queue):
        key = decision.demand.key
        explanation = explain(supply, tree, [], queue, key)
        if isinstance(decision, Admit):
            assert explanation is None
            continue
        assert explanation is not None
        assert explanation.wait == decision
        old = decision.demand
        asked = sum(BY_NAME[name].parts * count for name, count in old.requests)

        def admitted(requests: tuple[tuple[str, int], ...], old: Demand = old) -> bool:
            changed = [replace(d, requests=requests) if d.key == old.key else d for d in queue]
            return isinstance(
                next(d for d in decide(supply, tree, [], changed) if d.demand.key == old.key), Admit
            )

        least = (
            asked
            if explanation.smaller is None
            else asked - sum(BY_NAME[name].parts * count for name, count in explanation.smaller)
        )
        if explanation.smaller is not None:
            assert admitted(explanation.smaller)
        for i, (name, count) in enumerate(old.requests):
            for cut in range(1, count + 1):
                left = tuple(
                    (n, c - cut * (i == j)) for j, (n, c) in enumerate(old.requests) if c > cut * (i == j)
                )
                if left and cut * BY_NAME[name].parts < least:
                    assert not admitted(left)


def test_a_hold_is_told_how_much_could_be_guaranteed() -> None:
    lab = Demand("lab", "a", HOLD, (("whole", 5),), maximum=(("whole", 8),))
    explanation = explain(fleet(node("c", Mode.CONTAINER, 4)), quotas(a=8), [], [lab], "lab")
    assert explanation is not None
    assert isinstance(explanation.wait, Wait)
    assert explanation.smaller == (("whole", 4),)
