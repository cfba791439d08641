"""Every case under `cases/` holds, and those who write cases of their own are told what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmtenancy.core.requests import Admit, Wait
from vmtenancy.errors import Code, VmtError
from vmtenancy.testing import quota_cases
from vmtenancy.testing.quota_case_format import QuotaCase

FILES = sorted((Path(__file__).parent / "cases").glob("*.yaml"))
CASES = {f"{path.stem}/{case.name}": case for path in FILES for case in quota_cases.load(path)}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    assert [str(difference) for difference in quota_cases.run(CASES[name])] == [], CASES[name].shows


def test_each_shows_something_of_its_own() -> None:
    assert len(CASES) >= 150
    assert len({case.shows for case in CASES.values()}) == len(CASES)
    assert len({case.name for case in CASES.values()}) == len(CASES)


def test_nobody_is_stopped_in_vain() -> None:
    """Once the victims, and those that end anyway, are gone, all who were nominated are admitted."""
    nominated = 0
    for name, case in CASES.items():
        waits = [decision for decision in quota_cases.decide(case) if isinstance(decision, Wait)]
        waiting = {wait.demand.key for wait in waits if wait.reason.value == "Nominated"}
        gone = {victim for wait in waits for victim in wait.victims}
        admits = [incoming for incoming in case.incoming if incoming.name in case.expected.admitted]
        runs = [
            {"gpus": case.expected.granted[w.name]} if w.name in case.expected.granted else {} for w in admits
        ]
        after = case.to_dict() | {
            "running": [
                *(w.to_dict() for w in case.running if not w.ending and w.name not in gone),
                *(
                    {
                        key: v
                        for key, v in w.to_dict().items()
                        if key not in ("promised", "alternatives", "min")
                    }
                    | gets
                    for w, gets in zip(admits, runs, strict=True)
                ),
            ],
            "incoming": [
                w.to_dict() | {"promised": w.name in waiting} for w in case.incoming if w not in admits
            ],
            "expected": {},
        }
        if waiting:
            (then,) = quota_cases.parse(after)
            got = {d.demand.key for d in quota_cases.decide(then) if isinstance(d, Admit)}
            assert waiting <= got, name
            nominated += 1
    assert nominated > 30


GOOD: dict[str, Any] = {
    "name": "good",
    "shows": "A request within the quota is admitted.",
    "queues": [{"name": "a", "quota": [{"pool": "h100", "nominal": 2}]}],
    "running": [{"name": "r", "queue": "a", "gpus": {"h100": 1}}],
    "incoming": [{"name": "w", "queue": "a", "gpus": {"h100": 1}}],
    "expected": {"admitted": ["w"]},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    case = json.loads(json.dumps(GOOD))
    *above, last = path.split(".")
    at: Any = case
    for key in above:
        at = at[int(key)] if key.isdigit() else at[key]
    at[last] = value
    return case


ANY_WITHIN = {"withinClusterQueue": "Any"}
TRY_ANY = {"whenCanBorrow": "Any"}
FUNGIBLE = "queues[0].flavorFungibility"
POLICY = "queues[0].preemption"
ELEVENTH = [{"name": "c", "pool": "h100", "share": "1/11"}]
TWICE = [{"name": "w", "queue": "a", "gpus": {"h100": 1}}]
BAD: list[tuple[Any, Code, str, str]] = [
    (changed("color", 1), Code.UNKNOWN_FIELD, "color", "running"),
    (changed("queues.0.weights", 1), Code.UNKNOWN_FIELD, "queues[0].weights", "preemption"),
    (changed("queues.0.weight", 0), Code.INVALID_FIELD, "queues[0].weight", "1"),
    (changed("incoming.0.gpu", {}), Code.UNKNOWN_FIELD, "incoming[0].gpu", "gpus"),
    (changed("expected.victim", []), Code.UNKNOWN_FIELD, "expected.victim", "victims"),
    (changed("queues.0.quota.0.nominal", -1), Code.INVALID_FIELD, "queues[0].quota[0].nominal", "0"),
    (changed("queues.0.quota.0.nominal", "2"), Code.INVALID_FIELD, "queues[0].quota[0].nominal", "integer"),
    (changed("queues.0.quota.0.lendingLimit", 3), Code.INVALID_FIELD, "queues[0].quota[0].lendingLimit", "nominal"),
    (changed("queues.0.preemption", ANY_WITHIN), Code.INVALID_FIELD, f"{POLICY}.withinClusterQueue", "Never"),
    (changed("queues", []), Code.INVALID_FIELD, "queues", "1 to"),
    (changed("incoming", [*TWICE, *TWICE]), Code.INVALID_FIELD, "incoming[1]", "name"),
    (changed("shows", "x"), Code.INVALID_FIELD, "shows", "sentence"),
    (changed("running.0.queue", "b"), Code.UNKNOWN_REFERENCE, "running", "a"),
    (changed("running.0.node", "n"), Code.UNKNOWN_REFERENCE, "running", "none"),
    (changed("running.0.name", "w"), Code.INVALID_FIELD, "incoming[0].name", "own"),
    (changed("expected.admitted", ["x"]), Code.UNKNOWN_REFERENCE, "expected.admitted", "w"),
    (changed("expected.victims", ["x"]), Code.UNKNOWN_REFERENCE, "expected.victims", "r"),
    (changed("expected.reasons", {"w": "NoQuota"}), Code.UNKNOWN_REFERENCE, "expected.reasons", "none"),
    (changed("expected.reasons", {"w": "Because"}), Code.INVALID_FIELD, "expected.reasons.w", "QuotaExceeded"),
    (changed("expected.borrowed", {"w": {"h100": 1}}), Code.INVALID_FIELD, "expected.borrowed.w.h100", "string"),
    (changed("classes", ELEVENTH), Code.INVALID_FIELD, "classes[0].share", "share"),
    (changed("incoming.0.alternatives", {"a100": ["l4"]}), Code.UNKNOWN_REFERENCE, "incoming[0].alternatives", "gpus"),
    (changed("incoming.0.alternatives", {"h100": ["h100"]}), Code.INVALID_FIELD, "incoming[0].alternatives", "once"),
    (changed("incoming.0.min", {"a100": 1}), Code.UNKNOWN_REFERENCE, "incoming[0].min", "gpus"),
    (changed("incoming.0.min", {"h100": 2}), Code.INVALID_FIELD, "incoming[0].min.h100", "less"),
    (changed("queues.0.flavorFungibility", TRY_ANY), Code.INVALID_FIELD, f"{FUNGIBLE}.whenCanBorrow", "TryNextFlavor"),
    (changed("expected.granted", {"x": {"h100": 1}}), Code.UNKNOWN_REFERENCE, "expected.granted", "w"),
    (changed("incoming.0.max", {"h100": 1}), Code.INVALID_FIELD, "incoming[0].max", "VirtualCluster"),
    (changed("incoming.0.parent", "lab"), Code.INVALID_FIELD, "incoming[0].parent", "Pod"),
    ("text", Code.INVALID_FIELD, "", "dictionary"),
    ([], Code.INVALID_FIELD, "", "at least one"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "code", "path", "expected"), BAD)
def test_a_bad_case_is_refused_with_its_place(content: Any, code: Code, path: str, expected: str) -> None:
    with pytest.raises(VmtError) as caught:
        quota_cases.parse(content)
    (problem,) = caught.value.problems
    assert (problem.code, problem.path) == (code, path)
    assert expected in problem.expected


def test_all_problems_of_a_file_are_told_with_the_case_they_are_in() -> None:
    with pytest.raises(VmtError) as caught:
        quota_cases.parse([GOOD, changed("color", 1), changed("queues.0.color", 1)])
    assert [problem.path for problem in caught.value.problems] == ["[1].color", "[2].queues[0].color"]
    with pytest.raises(VmtError) as twice:
        quota_cases.parse([GOOD, GOOD])
    assert "unique" in str(twice.value)


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("running.0.gpus", {"h200": 1}, "running[0].gpus"),
        ("nodes", [{"name": "n", "pool": "h100", "gpus": 0}], "running[0].gpus"),
    ],
)  # fmt: skip
def test_what_the_engine_can_not_run_is_told(path: str, value: Any, where: str) -> None:
    (case,) = quota_cases.parse(changed(path, value))
    with pytest.raises(VmtError) as caught:
        quota_cases.run(case)
    assert where in caught.value.problems[0].path


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, many, bad, none = (tmp_path / name for name in ("one.json", "many.yaml", "bad.yaml", "none.yaml"))
    one.write_text(json.dumps(GOOD))
    many.write_text(json.dumps([GOOD, changed("incoming.0.gpus.h100", 2) | {"name": "wrong"}]))
    bad.write_text("name: [")
    assert quota_cases.main([str(one)]) == 0
    assert capsys.readouterr().out == "1 passed, 0 failed\n"
    assert quota_cases.main([str(one), str(many)]) == 1
    out = capsys.readouterr().out
    assert f"FAILED {many}: wrong: admitted: expected w, found nobody" in out
    assert "reasons: expected nothing, found w: QuotaExceeded" in out
    assert out.endswith("2 passed, 1 failed\n")
    assert quota_cases.main([str(bad), str(none), str(one)]) == 2
    told = capsys.readouterr()
    assert f"{bad}: VMT-A001: is neither YAML nor JSON" in told.err
    assert f"{none}: VMT-A001: the file can not be read: No such file" in told.err
    assert told.out == "1 passed, 0 failed\n"


def test_borrowed_amounts_are_compared_as_numbers() -> None:
    two = [{"name": "b", "cohort": "t", "quota": [{"pool": "h100", "nominal": 1}]}]
    queues = [{"name": "a", "cohort": "t", "quota": [{"pool": "h100", "nominal": 1}]}, *two]
    for amount, good in {"1": True, "1.0": True, "2/2": True, "2": False}.items():
        case = changed("queues", queues) | {"cohorts": [{"name": "t"}]}
        case["expected"] = {"admitted": ["w"], "borrowed": {"w": {"h100": amount}}}
        (parsed,) = quota_cases.parse(case)
        assert isinstance(parsed, QuotaCase)
        assert (not quota_cases.run(parsed)) is good
