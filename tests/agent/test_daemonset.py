"""The DaemonSet: its nodes, and its commands as they would run in the container."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from vmtenancy.agent.daemonset import daemonset
from vmtenancy.cli.main import app

HEARTBEAT = "/run/nvml/heartbeat"


def terms(obj: dict[str, Any]) -> list[tuple[str, list[str]]]:
    affinity = obj["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    found = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return [(one["key"], one["values"]) for term in found for one in term["matchExpressions"]]


def test_nodes_of_the_daemonset() -> None:
    assert terms(daemonset("a")) == [
        ("feature.node.kubernetes.io/pci-10de.present", ["true"]),
        ("nvidia.com/gpu.present", ["true"]),
    ]
    assert terms(daemonset("a", [("gpu", "yes")])) == [("gpu", ["yes"])]


def test_its_script_finds_a_driver_that_comes_later(library: Path, tmp_path: Path) -> None:
    """The container's command, on a folder that plays its root: no library at first, then a driver container's."""
    (container,) = daemonset("a")["spec"]["template"]["spec"]["containers"]
    path = container["env"][1]["value"].replace("/run/nvml", f"{tmp_path}/run/nvml")
    script = (
        container["command"][2]
        .replace("/run/nvml", f"{tmp_path}/run/nvml")
        .replace("/host", f"{tmp_path}/host")
    )
    program = tmp_path / "bin" / "vmtenancy"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", script],
        capture_output=True,
        text=True,
        env={"PATH": f"{program.parent}:/usr/bin:/bin"},
        check=True,
    )
    heartbeat = f"{tmp_path}/run/nvml/heartbeat"
    assert done.stdout.split() == ["agent", "--sysfs-root", f"{tmp_path}/host/sys", "--heartbeat", heartbeat]
    load = [sys.executable, "-c", "import ctypes; ctypes.CDLL('libnvidia-ml.so.1')"]
    environment = {"LD_LIBRARY_PATH": path}
    assert subprocess.run(load, env=environment, capture_output=True, check=False).returncode == 1
    there = tmp_path / "host/run/nvidia/driver/usr/lib/x86_64-linux-gnu"
    there.mkdir(parents=True)
    (there / "libnvidia-ml.so.1").symlink_to(library / "libnvidia-ml.so.1")
    assert subprocess.run(load, env=environment, check=False).returncode == 0


def test_a_selector_needs_an_image_and_a_value() -> None:
    for arguments in (["--agent-selector=a=b"], ["--agent-image=a", "--agent-selector=a"]):
        assert CliRunner().invoke(app, ["install", *arguments]).exit_code == 2


def test_it_is_restarted_when_it_does_not_come_round(tmp_path: Path) -> None:
    (container,) = daemonset("a")["spec"]["template"]["spec"]["containers"]
    command = container["livenessProbe"]["exec"]["command"]
    assert f"--heartbeat {HEARTBEAT}" in container["command"][2]
    file = tmp_path / "heartbeat"
    probe = [*command[:2], command[2].replace(HEARTBEAT, str(file))]

    def alive() -> bool:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0

    assert not alive()
    file.touch()
    assert alive()
    now = time.time()
    os.utime(file, (now, now - 1100))
    assert alive(), "16 GPUs that hang, one after the other, and an API server that does not answer"
    os.utime(file, (now, now - 1300))
    assert not alive()
