"""The way to kind, as far as it goes without Docker: the real kind and pytest-kind on a stand-in for `docker`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from docker_stand_in import Docker

ROOT = Path(__file__).parents[2]


def pytest_on_kind(*options: str) -> str:
    """What `pytest -m kind` prints."""
    line = [sys.executable, "-m", "pytest", "-m", "kind", "-p", "no:cacheprovider", "-rs", *options]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_every_end_to_end_module_is_run_on_kind() -> None:
    here = {path.stem for path in (ROOT / "tests/e2e").glob("test_*.py")}
    there = {path.stem.removesuffix("_on_kind") for path in (ROOT / "tests/e2e/kind").glob("test_*.py")}
    assert there == here


@pytest.mark.cluster
def test_without_docker_they_say_why_they_are_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    said = pytest_on_kind("tests/e2e")
    assert "Docker is not running: Cannot connect to the Docker daemon" in said
    assert " passed" not in said
    assert " failed" not in said


@pytest.mark.nightly
@pytest.mark.cluster
@pytest.mark.kubevirt
@pytest.mark.vcluster
def test_an_end_to_end_test_runs_on_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    with Docker(monkeypatch) as docker:
        said = pytest_on_kind("tests/e2e", "-k", "unknown_names")
        assert "1 passed" in said, said
        assert not docker.run, "the container is removed at the end"
        flags = {
            f["name"]: f["value"] for f in docker.kubeadm["ClusterConfiguration"]["apiServer"]["extraArgs"]
        }
        assert flags["runtime-config"] == "resource.k8s.io/v1beta1=true"
        assert docker.kubeadm["InitConfiguration"]["skipPhases"] == [
            "preflight",
            "addon/kube-proxy",
            "addon/coredns",
        ]
