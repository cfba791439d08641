"""Groups: all or nothing, in quota and in placement, and stopped together."""

from __future__ import annotations

from described import fleet, node
from hypothesis import given, settings
from hypothesis import strategies as st
from test_preemption import LOWER, NEVER, admitted, ask, running, tree

from vmtenancy.core.admission import decide
from vmtenancy.core.explain.refusal import Reason
from vmtenancy.core.fleet.model import Mode, Runtime
from vmtenancy.core.requests import Admit, Wait

TWO = (node("n1", Mode.PASSTHROUGH, 4), node("n2", Mode.PASSTHROUGH, 4))


def test_a_group_is_admitted_whole_or_not_at_all() -> None:
    demands = [ask(name, "a", 3, group="g") for name in "xyz"]
    alone = [ask("small", "a", 1, created=9)]
    decisions = decide(fleet(*TWO), tree(a=10), [], [*demands, *alone])
    assert [admit.demand.key for admit in admitted(decisions)] == ["small"], (
        "three do not fit, so no one holds"
    )
    waits = [decision for decision in decisions if isinstance(decision, Wait)]
    assert {wait.reason for wait in waits} == {Reason.NO_CAPACITY}
    assert waits[0].message.startswith("the group g waits as a whole: pool h100: needs 3 GPUs")
    both = decide(fleet(*TWO), tree(a=9), [], demands[:2])
    assert {a.placement.node for a in admitted(both) if a.placement} == {"n1", "n2"}


def test_quota_counts_the_whole_group() -> None:
    demands = [ask(name, "a", 2, group="g") for name in "xy"]
    decisions = decide(fleet(*TWO), tree(a=3), [], demands)
    assert admitted(decisions) == []
    assert all("needs 2 GPUs, 1 free of 3" in d.message for d in decisions if isinstance(d, Wait))
    assert len(admitted(decide(fleet(*TWO), tree(a=4), [], demands))) == 2


def test_a_group_has_the_place_of_its_last_member_in_the_queue() -> None:
    demands = [
        ask("x", "a", 1, group="g", priority=9),
        ask("y", "a", 1, group="g"),
        ask("z", "a", 2, priority=1),
    ]
    decisions = decide(fleet(*TWO), tree(a=3), [], demands)
    assert [admit.demand.key for admit in admitted(decisions)] == ["z"]


def test_a_group_makes_others_stop_for_all_of_it_or_for_nothing() -> None:
    rules = tree(within=LOWER, a=8)
    live = running(fleet(*TWO), rules, ask("low1", "a", 4), ask("low2", "a", 4, priority=1))
    group = [ask(name, "a", 3, priority=2, group="g") for name in "xy"]
    decisions = decide(fleet(*TWO), rules, live, group)
    assert all(isinstance(decision, Wait) and decision.reason is Reason.NOMINATED for decision in decisions)
    assert sorted(v for d in decisions if isinstance(d, Wait) for v in d.victims) == ["low1", "low2"]
    less = [ask(name, "a", 3, priority=1, group="g") for name in "xy"]
    assert not any(d.victims for d in decide(fleet(*TWO), rules, live, less) if isinstance(d, Wait))


def test_a_group_is_stopped_as_a_whole() -> None:
    rules = tree(within=LOWER, a=8)
    live = running(fleet(*TWO), rules, *(ask(name, "a", 2, group="g") for name in "xy"), ask("alone", "a", 4))
    (wait,) = decide(fleet(*TWO), rules, live, [ask("high", "a", 2, priority=1)])
    assert isinstance(wait, Wait)
    assert wait.victims == ("alone",), "one rather than two"
    mixed = running(
        fleet(*TWO), rules, *(ask(name, "a", 2, group="g") for name in "xy"), ask("b", "a", 4, priority=1)
    )
    (wait,) = decide(fleet(*TWO), rules, mixed, [ask("high", "a", 2, priority=1)])
    assert isinstance(wait, Wait)
    assert sorted(wait.victims) == ["x", "y"], "half a group is of no use"


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.integers(1, 3), st.integers(0, 2), st.sampled_from(["", "g", "h"])
        ),
        max_size=8,
    ),
    st.sampled_from([NEVER, LOWER]),
)
def test_no_group_is_ever_split(drawn: list[tuple[str, int, int, str]], within: object) -> None:
    nodes = (*TWO, node("c", Mode.CONTAINER, 3))
    demands = [
        ask(
            f"w{i}",
            tenant,
            count,
            Runtime.VM,
            priority=priority,
            created=float(i),
            group=group and tenant + group,
        )
        for i, (tenant, count, priority, group) in enumerate(drawn)
    ]
    rules = tree(within=within, a=4, b=4)  # type: ignore[arg-type]
    decisions = decide(fleet(*nodes), rules, [], demands)
    assert len(decisions) == len(demands)
    by_group: dict[str, set[bool]] = {}
    for decision in decisions:
        if decision.demand.group:
            by_group.setdefault(decision.demand.group, set()).add(isinstance(decision, Admit))
    assert all(len(outcomes) == 1 for outcomes in by_group.values())
    again = decide(fleet(*nodes), rules, admitted(decisions), [])
    assert again == []


def test_a_group_that_is_stopped_is_named_in_one_order() -> None:
    """Else the message of who waits for it changes with the order of what was read, and is written again and again."""
    rules = tree(within=LOWER, a=8)
    live = running(fleet(*TWO), rules, *(ask(name, "a", 4, group="g") for name in "xy"))
    high = ask("high", "a", 2, priority=1)
    for order in (live, live[::-1]):
        (wait,) = decide(fleet(*TWO), rules, order, [high])
        assert isinstance(wait, Wait)
        assert wait.victims == ("x", "y")
