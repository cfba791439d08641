"""`core.quota.kueue` decides as Kueue does, and vmtenancy itself is never worse, judged by Kueue's own preemptor.

`kueue_answers.json` holds what it answered for `random_cases(seed, count)`; the answers are compared with those of the
real one, which is built from its pinned module, in the test that is marked so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmtenancy.core.quota import kueue
from vmtenancy.testing import kueue_judge
from vmtenancy.testing.quota_cases import parse

ANSWERS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "kueue_answers.json").read_text())
SUITE = 2000


@pytest.mark.parametrize("recorded", ANSWERS, ids=lambda recorded: f"seed-{recorded['seed']}")
def test_the_same_victims_as_recorded_of_kueue(recorded: dict[str, Any]) -> None:
    cases = kueue_judge.random_cases(recorded["seed"], len(recorded["victims"]), ours=recorded["ours"])
    assert [sorted(kueue_judge.compatible(case)) for case in cases] == recorded["victims"]
    assert sum(map(bool, recorded["victims"])) > len(cases) / 3


@pytest.mark.cluster
@pytest.mark.parametrize("ours", [False, True], ids=["all-policies", "policies-of-both"])
def test_the_same_victims_as_the_real_kueue(ours: bool) -> None:
    for recorded in ANSWERS:
        if recorded["ours"] is ours:
            cases = kueue_judge.random_cases(recorded["seed"], len(recorded["victims"]), ours=ours)
            assert [sorted(victims) for victims in kueue_judge.judge(cases)] == recorded["victims"]
    report = kueue_judge.compare(kueue_judge.random_cases(1, SUITE, ours=ours), ours=ours)
    assert report.different == []
    assert report.rooms["kueue"] > SUITE / 3, "cases in which somebody has to go"
    if ours:
        assert report.worse_off == []
        assert report.both["vmtenancy"] <= report.both["kueue"]
        assert report.victims["vmtenancy"] <= report.victims["kueue"]


def victims(running: list[dict[str, Any]], incoming: dict[str, Any], **preemption: Any) -> set[str]:
    """Of queues a (nominal 2), b and c (0) and d (2) in cohorts; the policy is that of a."""

    def queue(name: str, cohort: str, nominal: int, **more: Any) -> dict[str, Any]:
        return {"name": name, "cohort": cohort, "quota": [{"pool": "h100", "nominal": nominal}], **more}

    (case,) = parse(
        {
            "name": "hand-made",
            "shows": "What the text of the test says.",
            "cohorts": [{"name": "root"}, {"name": "left", "parent": "root"}],
            "queues": [
                queue("a", "left", 2, preemption=preemption),
                queue("b", "left", 0),
                queue("c", "root", 0),
                queue("d", "left", 2),
            ],
            "running": running,
            "incoming": [{"name": "new", "queue": "a", **incoming}],
            "expected": {},
        }
    )
    return kueue_judge.compatible(case)


def test_newer_of_equal_priority() -> None:
    running = [{"name": f"w{age}", "queue": "a", "gpus": {"h100": 2}, "age": age} for age in (5, 1)]
    new: dict[str, Any] = {"gpus": {"h100": 2}, "age": 3}
    assert victims(running, new, withinClusterQueue="LowerOrNewerEqualPriority") == {"w1"}
    assert victims(running, new, withinClusterQueue="LowerPriority") == set()
    assert victims(running, {**new, "age": 0}, withinClusterQueue="LowerOrNewerEqualPriority") == set()


def test_borrow_within_cohort_and_its_threshold() -> None:
    running = [
        {"name": "low", "queue": "b", "gpus": {"h100": 2}, "priority": -1},
        {"name": "mid", "queue": "b", "gpus": {"h100": 2}, "priority": 1},
    ]
    new: dict[str, Any] = {"gpus": {"h100": 3}, "priority": 2}
    borrow = {"policy": "LowerPriority"}
    assert victims(running, new, reclaimWithinCohort="Any") == set(), "it would borrow"
    assert victims(running, new, reclaimWithinCohort="Any", borrowWithinCohort=borrow) == {"low", "mid"}
    below = {**borrow, "maxPriorityThreshold": 0}
    assert victims(running, new, reclaimWithinCohort="Any", borrowWithinCohort=below) == set()
    one: dict[str, Any] = {"gpus": {"h100": 2}, "priority": 2}
    assert victims(running, one, reclaimWithinCohort="Any", borrowWithinCohort=below) == {"low"}


def test_what_the_own_cohort_lent_outside_is_taken_back_while_borrowing() -> None:
    running = [{"name": "out", "queue": "c", "gpus": {"h100": 4}}]
    assert victims(running, {"gpus": {"h100": 4}}, reclaimWithinCohort="Any") == {"out"}
    inside = [{"name": "in", "queue": "b", "gpus": {"h100": 4}}]
    assert victims(inside, {"gpus": {"h100": 4}}, reclaimWithinCohort="Any") == set()


def test_who_ends_already_goes_first() -> None:
    running = [
        {"name": "ends", "queue": "a", "gpus": {"h100": 2}, "priority": 1, "ending": True},
        {"name": "low", "queue": "a", "gpus": {"h100": 2}, "priority": -1},
    ]
    new = {"gpus": {"h100": 2}, "priority": 2}
    assert victims(running, new, withinClusterQueue="LowerPriority") == {"ends"}


def test_the_tree_is_as_it_was() -> None:
    (case,) = kueue_judge.random_cases(3, 1, ours=False)
    quota = kueue_judge.charged(case)
    before = {(q.name, pool): quota.usage(q.name, pool) for q in case.queues for pool in quota.pools}
    incoming = kueue.Workload("new", case.queues[0].name, {quota.pools[0]: 1 << 20}, 9)
    running = [kueue.Workload(w.name, w.queue, {}, w.priority) for w in case.running]
    assert kueue.victims(quota, running, incoming, kueue.Preemption(kueue.Policy.LOWER_PRIORITY)) == ()
    assert before == {(q.name, pool): quota.usage(q.name, pool) for q in case.queues for pool in quota.pools}
