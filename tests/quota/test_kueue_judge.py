"""`core.quota.kueue` decides as Kueue does, and vmtenancy itself is never worse, judged by Kueue's own preemptor.

`kueue_answers.json` holds what it answered for random cases of each suite; that it still does is asked of the real one,
which is built from its pinned module, in the tests that are marked so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmtenancy.core.quota import kueue
from vmtenancy.testing import kueue_judge
from vmtenancy.testing.quota_case_format import QuotaCase
from vmtenancy.testing.quota_cases import parse

ANSWERS: dict[str, list[list[str]]] = json.loads((Path(__file__).parent / "kueue_answers.json").read_text())
SUITES: dict[str, dict[str, bool]] = {
    "all-policies": {},
    "fair-sharing": {"fair": True},
    "policies-of-both": {"ours": True},
}
RECORDED_SEED, SEED, COUNT = 101, 1, 2000


@pytest.mark.parametrize("suite", SUITES)
def test_the_same_victims_as_recorded_of_kueue(suite: str) -> None:
    recorded = ANSWERS[suite]
    cases = kueue_judge.random_cases(RECORDED_SEED, len(recorded), **SUITES[suite])
    assert [sorted(kueue_judge.compatible(case)) for case in cases] == recorded
    assert sum(map(bool, recorded)) > len(cases) / 3


@pytest.mark.cluster
@pytest.mark.parametrize("suite", SUITES)
def test_the_same_victims_as_the_real_kueue(suite: str) -> None:
    recorded = ANSWERS[suite]
    cases = kueue_judge.random_cases(RECORDED_SEED, len(recorded), **SUITES[suite])
    assert [sorted(victims) for victims in kueue_judge.judge(cases)] == recorded
    ours = suite == "policies-of-both"
    report = kueue_judge.compare(kueue_judge.random_cases(SEED, COUNT, **SUITES[suite]), ours=ours)
    assert report.different == []
    assert report.rooms["kueue"] > COUNT / 3, "cases in which somebody has to go"
    if ours:
        assert report.worse_off == []
        assert report.both["vmtenancy"] <= report.both["kueue"]
        assert report.victims["vmtenancy"] <= report.victims["kueue"]
        assert report.gpus["vmtenancy"] <= report.gpus["kueue"]


def workload(name: str, queue: str, gpus: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "queue": queue, "gpus": {"h100": gpus}, **more}


def hand_made(running: list[dict[str, Any]], incoming: dict[str, Any], **preemption: Any) -> QuotaCase:
    """Of queues a and d (nominal 2), b (0) in one cohort, e (nominal 2, of which it lends 1) in another with f (1),
    and c (0) at the root above both; the policy is that of all.
    """
    queues = [("a", "left", 2), ("b", "left", 0), ("c", "root", 0), ("d", "left", 2), ("f", "right", 1)]
    lender = {"pool": "h100", "nominal": 2, "lendingLimit": 1}
    (case,) = parse(
        {
            "name": "hand-made",
            "shows": "What the text of the test says.",
            "cohorts": [
                {"name": "root"},
                {"name": "left", "parent": "root"},
                {"name": "right", "parent": "root"},
            ],
            "queues": [
                *(
                    {
                        "name": name,
                        "cohort": cohort,
                        "quota": [{"pool": "h100", "nominal": nominal}],
                        "preemption": preemption,
                    }
                    for name, cohort, nominal in queues
                ),
                {"name": "e", "cohort": "right", "quota": [lender], "preemption": preemption},
            ],
            "running": running,
            "incoming": [incoming],
            "expected": {},
        }
    )
    return case


TWO = [workload("old", "a", 2, age=5), workload("young", "a", 2, age=1), workload("rest", "c", 2)]
BORROWED = [
    workload("low", "b", 2, priority=-1),
    workload("mid", "b", 2, priority=1),
    workload("rest", "c", 2, priority=9),
]
BORROW = {"policy": "LowerPriority"}
THRESHOLD = {**BORROW, "maxPriorityThreshold": 0}
HAND_MADE: dict[str, tuple[QuotaCase, set[str]]] = {
    "newer-of-equal-priority": (
        hand_made(TWO, workload("new", "a", 2, age=3), withinClusterQueue="LowerOrNewerEqualPriority"),
        {"young"},
    ),
    "lower-priority-spares-equal": (
        hand_made(TWO, workload("new", "a", 2, age=3), withinClusterQueue="LowerPriority"),
        set(),
    ),
    "newer-than-all": (
        hand_made(TWO, workload("new", "a", 2), withinClusterQueue="LowerOrNewerEqualPriority"),
        set(),
    ),
    "would-borrow": (
        hand_made(BORROWED, workload("new", "a", 3, priority=2), reclaimWithinCohort="LowerPriority"),
        set(),
    ),
    "may-borrow": (
        hand_made(
            BORROWED,
            workload("new", "a", 3, priority=2),
            reclaimWithinCohort="LowerPriority",
            borrowWithinCohort=BORROW,
        ),
        {"low", "mid"},
    ),
    "above-the-threshold": (
        hand_made(
            BORROWED,
            workload("new", "a", 3, priority=2),
            reclaimWithinCohort="LowerPriority",
            borrowWithinCohort=THRESHOLD,
        ),
        set(),
    ),
    "below-the-threshold": (
        hand_made(
            BORROWED,
            workload("new", "a", 2, priority=2),
            reclaimWithinCohort="LowerPriority",
            borrowWithinCohort=THRESHOLD,
        ),
        {"low"},
    ),
    "what-the-own-cohort-lent-outside": (
        hand_made(
            [workload("out", "c", 4, priority=9), workload("near", "f", 2)],
            workload("new", "a", 4),
            reclaimWithinCohort="Any",
        ),
        {"out"},
    ),
    "what-it-keeps-is-not-asked-of-the-cohort": (
        hand_made(
            [workload("own", "d", 4), workload("out", "c", 2)],
            workload("new", "e", 3),
            reclaimWithinCohort="Any",
        ),
        {"out"},
    ),
    "who-ends-already-goes-first": (
        hand_made(
            [
                workload("ends", "a", 2, priority=1, ending=True),
                workload("low", "a", 2, priority=-1),
                workload("rest", "c", 2, priority=9),
            ],
            workload("new", "a", 2, priority=2),
            withinClusterQueue="LowerPriority",
        ),
        {"ends"},
    ),
}


def fair(
    queues: dict[str, tuple[str, int]], running: list[dict[str, Any]], incoming: dict[str, Any]
) -> QuotaCase:
    """With fair sharing: queues by name, of a cohort with a nominal quota; the cohort `right` is below `root`."""
    (case,) = parse(
        {
            "name": "hand-made",
            "shows": "What the text of the test says.",
            "fairSharing": True,
            "cohorts": [
                {"name": "root", "quota": [{"pool": "h100", "nominal": 2}]},
                {"name": "right", "parent": "root"},
            ],
            "queues": [
                {
                    "name": name,
                    "cohort": cohort,
                    "quota": [{"pool": "h100", "nominal": nominal}],
                    "preemption": {"reclaimWithinCohort": "LowerPriority"},
                }
                for name, (cohort, nominal) in queues.items()
            ],
            "running": running,
            "incoming": [incoming],
            "expected": {},
        }
    )
    return case


HAND_MADE |= {
    "fair-who-borrows-no-more-is-spared-though-its-cohort-does": (
        fair(
            {"a": ("root", 2), "b": ("right", 1), "x": ("right", 0)},
            [workload("w1", "b", 1), workload("w2", "b", 1), workload("high", "x", 3, priority=9)],
            workload("new", "a", 2, priority=5),
        ),
        set(),
    ),
    "fair-of-equal-shares-the-lowest-priority": (
        fair(
            {"a": ("root", 2), "b": ("root", 0), "c": ("root", 0)},
            [
                workload("b0", "b", 1, priority=0),
                workload("b5", "b", 1, priority=5),
                workload("c1", "c", 1, priority=1),
                workload("c2", "c", 1, priority=2),
            ],
            workload("new", "a", 1, priority=9),
        ),
        {"b0"},
    ),
    "fair-shares-are-evened-out": (
        fair(
            {"a": ("root", 0), "b": ("root", 0)},
            [workload("b1", "b", 1, age=2), workload("b2", "b", 1, age=1)],
            workload("new", "a", 1, priority=1),
        ),
        {"b2"},
    ),
    "fair-shares-are-not-turned-over": (
        fair(
            {"a": ("root", 0), "b": ("root", 0)},
            [workload("b1", "b", 1, age=2), workload("a1", "a", 1)],
            workload("new", "a", 1, priority=1),
        ),
        set(),
    ),
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made(name: str) -> None:
    case, expected = HAND_MADE[name]
    assert kueue_judge.compatible(case) == expected


@pytest.mark.cluster
def test_hand_made_by_the_real_kueue() -> None:
    cases, expected = zip(*HAND_MADE.values(), strict=True)
    assert dict(zip(HAND_MADE, kueue_judge.judge(cases), strict=True)) == dict(
        zip(HAND_MADE, expected, strict=True)
    )


def test_the_tree_is_as_it_was() -> None:
    (case,) = kueue_judge.random_cases(3, 1)
    quota = kueue_judge.charged(case)
    before = {(q.name, pool): quota.usage(q.name, pool) for q in case.queues for pool in quota.columns}
    incoming = kueue.Workload("new", case.queues[0].name, {quota.columns[0]: 1 << 20}, 9)
    running = [kueue.Workload(w.name, w.queue, {}, w.priority) for w in case.running]
    assert kueue.victims(quota, running, incoming, kueue.Preemption(kueue.Policy.LOWER_PRIORITY)) == ()
    assert before == {
        (q.name, pool): quota.usage(q.name, pool) for q in case.queues for pool in quota.columns
    }
