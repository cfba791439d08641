"""The seeded bugs still apply, and the runner tells a caught bug from one that survived."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
from mutant import ROOT, Mutant, PatchError, load, load_all
from run_mutants import run

CODE = "def half(n):\n    return n // 2\n\n\ndef double(n):\n    return n * 2\n"
PROFILE = "from hypothesis import settings\nsettings.register_profile('first-failure')\n"
TESTS = """from code_under_test import double, half

def test_half():
    assert half(4) == 2

def test_double():
    double(1)
"""


@pytest.mark.parametrize("mutant", load_all(), ids=lambda mutant: mutant.name)
def test_every_patch_applies_and_names_a_test_that_exists(mutant: Mutant) -> None:
    for text in mutant.applied(ROOT).values():
        compile(text, mutant.name, "exec")
    path, _, function = mutant.test.partition("::")
    assert f"def {function.partition('[')[0]}(" in (ROOT / path).read_text()


def test_there_are_enough() -> None:
    assert len(load_all()) >= 25


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "patches").mkdir(parents=True)
    (root / "code_under_test.py").write_text(CODE)
    (root / "test_code.py").write_text(TESTS)
    (root / "conftest.py").write_text(PROFILE)
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    return root


def seed(root: Path, name: str, old: str, new: str, test: str) -> Path:
    diff = difflib.unified_diff(
        CODE.splitlines(keepends=True),
        CODE.replace(old, new).splitlines(keepends=True),
        "a/code_under_test.py",
        "b/code_under_test.py",
    )
    path = root / "patches" / f"{name}.patch"
    path.write_text(f"Bug: {name}\nCaught by: test_code.py::{test}\n\n{''.join(diff)}")
    return path


@pytest.mark.slow
def test_caught_survived_and_no_verdict(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed(project, "wrong-half", "n // 2", "n // 3", "test_half")
    seed(project, "wrong-double", "n * 2", "n * 3", "test_double")
    seed(project, "no-import", "def half", "def other", "test_half")
    assert not run(load_all(project / "patches"), project)
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1].strip()]
    assert [line[:14].strip() for line in lines] == ["NO VERDICT", "SURVIVED", "caught", "caught 1/3"]


@pytest.mark.slow
def test_a_test_that_fails_anyway_catches_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed(project, "wrong-half", "n // 2", "n // 3", "test_half")
    (project / "test_code.py").write_text("def test_half():\n    assert False\n")
    assert not run(load_all(project / "patches"), project)
    assert "do not pass without any bug" in capsys.readouterr().out


def test_a_patch_applies_where_its_lines_are_once_wherever_that_is(project: Path) -> None:
    mutant = load(seed(project, "wrong-half", "n // 2", "n // 3", "test_half"))
    code = project / "code_under_test.py"
    code.write_text("# moved\n" * 50 + CODE)
    assert mutant.applied(project) == {code: "# moved\n" * 50 + CODE.replace("n // 2", "n // 3")}
    for text, why in ((CODE + CODE, "2 times"), (CODE.replace("n // 2", "n >> 1"), "0 times")):
        code.write_text(text)
        with pytest.raises(PatchError, match=why):
            mutant.applied(project)
    code.unlink()
    with pytest.raises(PatchError, match="there is no code"):
        mutant.applied(project)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Caught by: t.py::t\n\n--- a/x\n+++ b/x\n@@\n-a\n", "no line 'Bug"),
        ("Bug: b\n\n--- a/x\n+++ b/x\n@@\n-a\n", "no line 'Caught by"),
        ("Bug: b\nCaught by: t.py::t\nNeeds: luck\n\n--- a/x\n+++ b/x\n@@\n-a\n", "luck"),
        ("Bug: b\nCaught by: t.py::t\n\n--- a/x\n+++ b/x\n@@\n a\n", "changes nothing"),
        ("Bug: b\nCaught by: t.py::t\n\n--- a/x\n+++ b/x\n@@\n+a\n", "shows no line"),
        ("Bug: b\nCaught by: t.py::t\n\n--- a/x\n+++ b/x\n@@\n-a\nwhat\n", "no line of a unified diff"),
    ],
)
def test_what_is_no_patch_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "bad.patch"
    path.write_text(text)
    with pytest.raises(PatchError, match=why):
        load(path)
