from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml


def vmtenancy(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmtenancy", *args]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": "", "HOME": "/nowhere", **env},
    )


def test_help_names_every_command() -> None:
    result = vmtenancy("--help")
    assert result.returncode == 0
    for command in (
        "install",
        "uninstall",
        "controller",
        "agent",
        "get",
        "explain",
        "export",
        "import",
        "dev",
        "demo",
    ):
        assert command in result.stdout


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, vmtenancy.cli.main; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"kubernetes", "kopf", "aiohttp", "numpy", "pydantic", "vmtenancy.kube.client"} & set(loaded)


def test_no_kubeconfig_is_one_line_and_status_3() -> None:
    result = vmtenancy("get")
    assert result.returncode == 3
    [line] = result.stderr.splitlines()
    assert line.startswith("vmtenancy: VMT-K001: no usable kubeconfig")


def test_no_cluster_is_one_line_and_status_3(tmp_path: Path) -> None:
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {}}],
    }
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))
    for command in (["get"], ["explain", "gpuvm/x"], ["install"], ["uninstall"], ["export"]):
        result = vmtenancy(*command, KUBECONFIG=str(path))
        assert result.returncode == 3
        [line] = result.stderr.splitlines()
        assert "VMT-K001" in line
        assert "127.0.0.1:1" in line


@pytest.mark.parametrize("args", [["nothing"], ["get", "--nothing"], ["explain"]])
def test_wrong_usage_is_status_2(args: list[str]) -> None:
    result = vmtenancy(*args)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
