from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gpunode_server
import nvml_library
import pytest
import yaml
from gpunode_server import GpuNodeServer
from nvml_library import StandIn

from vmtenancy.agent.agent import Agent


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml_library.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(library: Path, tmp_path: Path) -> Iterator[StandIn]:
    with nvml_library.using(library, tmp_path) as stand_in:
        yield stand_in


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GpuNodeServer]:
    with gpunode_server.serving(tmp_path / "pki") as server:
        yield server


@pytest.fixture
def kubeconfig(server: GpuNodeServer, tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("first\n")
    path = tmp_path / "kubeconfig"
    config = {
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "current-context": "c",
        "clusters": [
            {"name": "k", "cluster": {"server": server.url, "certificate-authority": str(server.authority)}}
        ],
        "users": [{"name": "u", "user": {"tokenFile": "token"}}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(sysfs_root=tmp_path / "no-sys", boot_id="one")
    yield agent
    agent.nvml.close()
