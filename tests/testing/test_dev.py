"""A control plane that outlives the command that started it, and is gone after the one that stops it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmtenancy.testing import build, dev
from vmtenancy.testing.waiting import eventually

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A state folder of its own, so that a developer's control plane is left alone; what is built is shared."""
    built = build.cache_dir() / "components"
    (tmp_path / "components").symlink_to(built)
    monkeypatch.setenv("VMTENANCY_CACHE", str(tmp_path))
    yield
    dev.down()


def test_up_status_down() -> None:
    assert dev.status() is None
    up = dev.up(kubevirt=False, vcluster=False)
    assert up.phase == "Ready"
    assert dev.up(kubevirt=False, vcluster=False).pid == up.pid  # already running: found, not started again
    kubectl = [build.resolve("kubectl"), f"--kubeconfig={up.kubeconfig}"]
    nodes = subprocess.run([*kubectl, "get", "nodes"], capture_output=True, text=True, check=True)
    assert "No resources found" in nodes.stderr

    state = eventually("programs are listed", lambda: (s := dev.status()) and s.programs and s)
    pids = {p.name: p.pid for p in state.programs}
    assert all(pid and Path(f"/proc/{pid}").exists() for pid in pids.values())
    scheduler = pids["kube-scheduler"]
    assert scheduler is not None
    os.kill(scheduler, signal.SIGKILL)
    eventually("status shows it down", lambda: {p.name for p in dev.status().programs if p.pid is None})

    assert dev.down()
    assert dev.status() is None
    assert not dev.state_dir().exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
    assert not dev.down()


def test_killed_supervisor_takes_everything_along() -> None:
    up = dev.up(kubevirt=False, vcluster=False)
    state = eventually("programs are listed", lambda: (s := dev.status()) and s.programs and s)
    os.kill(up.pid, signal.SIGKILL)
    eventually("programs are gone", lambda: not any(Path(f"/proc/{p.pid}").exists() for p in state.programs))
    assert dev.status() is None
