"""When a demand that waits may start: from what ends by itself, and honest where nobody knows."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from described import fleet, node
from hypothesis import given, settings
from hypothesis import strategies as st
from test_calendar import window
from test_preemption import ANY, LOWER, ONE, ask, running, tree

from vmtenancy.core.admission import decide
from vmtenancy.core.calendar import Reserved
from vmtenancy.core.explain import start as start_module
from vmtenancy.core.explain.change import explain
from vmtenancy.core.explain.start import Start
from vmtenancy.core.fleet.model import Mode, Runtime
from vmtenancy.core.quota.policy import PreemptionPolicy
from vmtenancy.core.quota.tree import CohortQuota, PoolQuota, QuotaTree, TenantQuota
from vmtenancy.core.requests import Admit, Demand, Tenure

NOW = 1000.0


def start(
    rules: QuotaTree,
    live: list[Admit],
    *demands: Demand,
    key: str = "x",
    ending: frozenset[str] = frozenset(),
    reserved: list[Reserved] | None = None,
) -> tuple[float, float | None] | None:
    found = explain(fleet(*ONE), rules, live, demands, key, ending, reserved=reserved or [], now=NOW)
    assert found is not None
    if found.start is None:
        return None
    assert found.start.now == NOW
    return found.start.earliest - NOW, None if found.start.latest is None else found.start.latest - NOW


def lives(rules: QuotaTree, **leases: tuple[int, float | None]) -> list[Admit]:
    """Machines of `a` that run, by count and rest of their lease."""
    asked = [ask(key, "a", n, ends=None if rest is None else NOW + rest) for key, (n, rest) in leases.items()]
    return running(fleet(*ONE), rules, *asked)


def test_it_starts_when_enough_leases_have_ended() -> None:
    rules = tree(a=8)
    live = lives(rules, one=(2, 60.0), two=(2, 30.0), three=(4, None))
    assert start(rules, live, ask("x", "a", 2)) == (30.0, 30.0)
    assert start(rules, live, ask("x", "a", 4)) == (60.0, 60.0)
    assert start(rules, live, ask("x", "a", 5)) is None, "the rest has no end"


def test_those_ahead_make_it_later_for_as_long_as_their_leases() -> None:
    rules = tree(a=8)
    live = lives(rules, all=(8, 60.0))
    ahead = ask("ahead", "a", 6, priority=1, ends=NOW + 100.0)
    assert start(rules, live, ahead, ask("x", "a", 4)) == (60.0, 160.0), "its lease begins when it does"
    assert start(rules, live, replace(ahead, ends=None), ask("x", "a", 4)) == (60.0, None)
    assert start(rules, live, replace(ahead, ends=None), ask("x", "a", 2)) == (60.0, 60.0)


def test_who_is_behind_may_pass_and_is_waited_for() -> None:
    rules = tree(a=8)
    live = lives(rules, one=(4, 30.0), two=(4, 60.0))
    behind = ask("behind", "a", 4, created=1.0)
    assert start(rules, live, ask("x", "a", 8), behind) == (60.0, None), "it takes the first four, for ever"
    assert start(rules, live, ask("x", "a", 8), replace(behind, ends=NOW + 50.0)) == (60.0, 80.0)


def test_what_is_being_stopped_is_soon_gone() -> None:
    rules = tree(within=LOWER, a=8)
    live = lives(rules, low=(8, None))
    assert start(rules, live, ask("x", "a", 8)) is None
    assert start(rules, live, ask("x", "a", 8), ending=frozenset({"low"})) == (0.0, 0.0)
    assert start(rules, live, ask("x", "a", 8, priority=1)) == (0.0, 0.0), "it stops low itself"
    found = explain(fleet(*ONE), rules, live, [ask("x", "a", 8, priority=1)], "x", now=NOW)
    assert found is not None
    assert str(found.start) == "starts when what is being stopped has ended"


def test_who_is_stopped_for_another_waits_again() -> None:
    rules = tree(within=LOWER, reclaim=ANY, a=4, b=4)
    live = running(fleet(*ONE), rules, ask("lent", "a", 8, priority=9))
    taking = ask("taking", "b", 4, ends=NOW + 10.0)
    assert start(rules, live, taking, ask("x", "a", 2)) == (0.0, 0.0), "eight are stopped for four"
    assert start(rules, live, taking, ask("x", "a", 6)) == (0.0, None), "when taking ends, lent goes first"
    live = running(
        fleet(*ONE),
        rules,
        ask("keeps", "a", 4, ends=NOW + 40.0),
        ask("lent", "a", 4, created=1.0, ends=NOW + 90.0),
    )
    assert start(rules, live, taking, ask("x", "a", 6, created=2.0)) == (40.0, None), (
        "lent has its place again after 10, and nobody knows for how long"
    )


def test_windows_begin_and_end() -> None:
    rules = tree(a=8)
    windows = [window("w", 6, NOW + 50.0, NOW + 90.0)]
    assert start(rules, [], ask("x", "a", 4), reserved=windows) == (90.0, 90.0)
    assert start(rules, [], ask("x", "a", 4, ends=NOW + 60.0), reserved=windows) == (90.0, 90.0)
    live = lives(rules, runs=(6, 20.0))
    short = ask("x", "a", 4, ends=NOW + 30.0)
    assert start(rules, live, short, reserved=windows) == (20.0, 20.0), "from 20 to 50"
    assert start(rules, live, replace(short, ends=NOW + 31.0), reserved=windows) == (90.0, 90.0)


def young(live: list[Admit], **until: float) -> list[Admit]:
    """What runs; those named are left alone by their own tenant until so many seconds from now."""
    return [
        replace(a, tenure=Tenure(safe_within_tenant=NOW + until[key]))
        if (key := a.demand.key) in until
        else a
        for a in live
    ]


def test_who_has_run_for_the_least_time_may_be_stopped_then() -> None:
    rules, x = tree(within=LOWER, a=8), ask("x", "a", 8, priority=1)
    assert start(rules, young(lives(rules, low=(8, None)), low=50.0), x) == (50.0, 50.0)
    assert start(rules, young(lives(rules, low=(8, None)), low=inf), x) is None
    assert start(rules, young(lives(rules, low=(8, 30.0)), low=50.0), x) == (30.0, 30.0), (
        "its lease ends before"
    )
    two = young(lives(rules, low=(4, None), lower=(4, None)), low=50.0, lower=70.0)
    assert start(rules, two, x) == (70.0, 70.0)
    ahead = ask("ahead", "a", 8, priority=2, ends=NOW + 20.0)
    assert start(rules, young(lives(rules, low=(8, None)), low=50.0), ahead, x) == (50.0, 70.0)
    equal = ask("x", "a", 8)
    assert start(rules, young(lives(rules, low=(8, None)), low=50.0), equal) is None, "x never stops low"
    lent = young(lives(rules, low=(8, 200.0)), low=50.0)
    assert start(
        rules, lent, replace(ahead, requests=(("whole", 4),)), replace(equal, requests=(("whole", 2),))
    ) == (
        50.0,
        50.0,
    ), "eight are stopped for four"


def test_between_windows_the_least_run_time_counts_too() -> None:
    rules = tree(within=LOWER, a=8)
    live = young(lives(rules, one=(3, None), two=(3, None)), one=10.0, two=70.0)
    windows = [window("w", 2, NOW + 20.0, NOW + 100.0)]
    assert start(rules, live, ask("x", "a", 4, priority=1)) == (10.0, 10.0)
    assert start(rules, live, ask("x", "a", 4, priority=1), reserved=windows) == (70.0, 70.0)
    ahead = ask("ahead", "a", 6, priority=2)
    assert start(rules, live, ahead, ask("x", "a", 4, priority=1), reserved=windows) == (70.0, None)


def test_who_is_promised_fewer_takes_no_more() -> None:
    quota = (PoolQuota("h100", 2),)
    mine, theirs = PreemptionPolicy(reclaim_within_cohort=ANY), PreemptionPolicy()
    rules = QuotaTree.build(
        [TenantQuota("a", "team", quota, mine), TenantQuota("b", "team", quota, theirs)],
        [CohortQuota("team")],
    )
    live = running(fleet(*ONE), rules, ask("theirs", "b", 4))
    taking, x = ask("taking", "a", 3, minimum=(("whole", 1),)), ask("x", "b", 2, created=1.0)
    assert start(rules, live, taking, x) == (0.0, 0.0), "two are left"
    assert start(rules, live, replace(taking, minimum=()), x) is None, "nobody is stopped for three"


def test_a_machine_and_its_group_are_looked_at_together() -> None:
    rules = tree(a=8)
    live = lives(rules, one=(4, 30.0), two=(4, 60.0))
    members = [ask(name, "a", 3, group="g") for name in ("x", "y")]
    assert start(rules, live, *members) == (60.0, 60.0)


def test_a_pod_waits_for_its_virtual_cluster() -> None:
    on, rules = fleet(node("c", Mode.CONTAINER, 4)), tree(a=4)
    live = running(on, rules, ask("runs", "a", 4, Runtime.POD, ends=NOW + 30.0))
    lab = Demand("lab", "a", Runtime.HOLD, (("whole", 2),), maximum=(("whole", 4),), ends=NOW + 40.0)
    pod = ask("x", "a", 3, Runtime.POD, parent="lab", ends=NOW + 40.0)
    found = explain(on, rules, live, [lab, pod], "x", now=NOW)
    assert found is not None
    assert found.start == Start(NOW + 30.0, NOW + 30.0, NOW)


def test_a_pod_ends_with_its_virtual_cluster() -> None:
    on, rules = fleet(node("c", Mode.CONTAINER, 4)), tree(a=4)
    lab = Demand("lab", "a", Runtime.HOLD, (), maximum=(("whole", 4),), ends=NOW + 40.0)
    live = [*running(on, rules, ask("runs", "a", 4, Runtime.POD, ends=NOW + 30.0)), Admit(lab, None)]
    pod = ask("x", "a", 3, Runtime.POD, parent="lab", ends=NOW + 40.0)
    later = [window("w", 4, NOW + 50.0, NOW + 60.0)]
    found = explain(on, rules, live, [pod], "x", reserved=later, now=NOW)
    assert found is not None
    assert found.start == Start(NOW + 30.0, NOW + 30.0, NOW), "it is gone before the window begins"
    none = explain(on, rules, live, [replace(pod, requests=(("whole", 5),))], "x", now=NOW)
    assert none is not None
    assert none.start is None


def test_words() -> None:
    assert [str(Start(*times, 0.0)) for times in ((60.0, 60.0), (60.0, 3600.0), (60.0, None))] == [
        "starts at 1970-01-01T00:01:00Z",
        "starts not before 1970-01-01T00:01:00Z, at 1970-01-01T01:00:00Z at the latest",
        "starts not before 1970-01-01T00:01:00Z, nobody knows when",
    ]
    assert str(Start(0.0, 60.0, 0.0)) == "starts at 1970-01-01T00:01:00Z at the latest"
    assert str(Start(0.0, None, 0.0)) == "starts once others make room, nobody knows when"


def test_of_very_many_ends_the_first_are_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = tree(a=8)
    live = lives(rules, **{f"r{i}": (1, 10.0 + i) for i in range(8)})
    assert start(rules, live, ask("x", "a", 8)) == (17.0, 17.0)
    monkeypatch.setattr(start_module, "MOST_RUNS", 8)
    assert start(rules, live, ask("x", "a", 8)) == (17.0, None), "now is the first of nine moments"
    monkeypatch.setattr(start_module, "MOST_RUNS", 9)
    assert start(rules, live, ask("x", "a", 8)) == (17.0, 17.0)
    monkeypatch.setattr(start_module, "ENOUGH", 0)
    assert start(rules, live, ask("x", "a", 7)) == (16.0, 16.0), "eight moments are always looked at"
    assert start(rules, live, ask("x", "a", 8)) == (17.0, None)
    late = [window(f"w{i}", 8, NOW + 20.0 + 10 * i, NOW + 30.0 + 10 * i) for i in range(3)]
    assert start(rules, live, ask("x", "a", 8), reserved=late) == (50.0, None)
    monkeypatch.setattr(start_module, "MOST_RUNS_ALONE", 2)
    assert start(rules, live, ask("x", "a", 8), reserved=late) == (17.0, None), (
        "not before, as far as is known"
    )


TENANTS = ("a", "b")


@settings(max_examples=25)
@given(
    nominal=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    runs=st.lists(
        st.tuples(st.sampled_from(TENANTS), st.integers(1, 4), st.sampled_from([None, 10.0, 20.0, 30.0])),
        max_size=6,
    ),
    waits=st.lists(
        st.tuples(st.sampled_from(TENANTS), st.integers(1, 4), st.sampled_from([None, 5.0, 15.0])),
        min_size=1,
        max_size=4,
    ),
)
def test_it_is_what_happens_if_nobody_does_anything(
    nominal: tuple[int, int],
    runs: list[tuple[str, int, float | None]],
    waits: list[tuple[str, int, float | None]],
) -> None:
    """Time goes on step by step: at `latest` it is admitted, and before `earliest` not even alone."""
    tenants = [TenantQuota(t, "team", (PoolQuota("h100", n),)) for t, n in zip(TENANTS, nominal, strict=True)]
    rules, on = QuotaTree.build(tenants, [CohortQuota("team")]), fleet(*ONE)
    demands = [ask(f"r{i}", t, n, ends=rest, created=float(i)) for i, (t, n, rest) in enumerate(runs)]
    live = [a for a in decide(on, rules, [], demands) if isinstance(a, Admit)]
    queue = [ask(f"w{i}", t, n, ends=lease, created=float(i)) for i, (t, n, lease) in enumerate(waits)]
    admitted_at: dict[str, float] = {}
    alone_at: dict[str, float] = {}
    holds = list(live)
    for second in range(0, 100, 5):
        holds = [a for a in holds if a.demand.ends is None or a.demand.ends > second]
        left = [replace(d, ends=d.ends and d.ends + second) for d in queue if d.key not in admitted_at]
        for answer in decide(on, rules, holds, left):
            if isinstance(answer, Admit):
                admitted_at[answer.demand.key] = second
                holds.append(answer)
        staying = [a for a in live if a.demand.ends is None or a.demand.ends > second]
        for demand in queue if second <= 30 else ():
            (answer,) = decide(on, rules, staying, [demand])
            if isinstance(answer, Admit):
                alone_at.setdefault(demand.key, second)
    for demand in queue:
        found = explain(on, rules, live, queue, demand.key)
        if found is None:
            assert admitted_at[demand.key] == 0
        elif found.start is None:
            assert demand.key not in alone_at
        else:
            assert found.start.earliest == alone_at[demand.key]
            assert found.start.latest == admitted_at.get(demand.key)


def test_a_window_that_is_over_before_there_is_room_never_starts() -> None:
    rules = tree(a=8)
    live = lives(rules, all=(8, 60.0))
    over = Demand("x", "a", Runtime.HOLD, (("whole", 2),), quota_alone=True, ends=NOW + 50.0)
    assert start(rules, live, over) is None
    assert start(rules, lives(rules, one=(4, 30.0), two=(4, 60.0)), over) == (30.0, 30.0), "it begins late"
