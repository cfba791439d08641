import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import yaml
from faults import Proxy

from vmtenancy.kube.client import Client
from vmtenancy.testing.controlplane import ControlPlane


@pytest.fixture
async def client(cluster: ControlPlane) -> AsyncIterator[Client]:
    async with await Client.connect(cluster.kubeconfig) as connected:
        yield connected


@pytest.fixture
async def proxy(cluster: ControlPlane) -> AsyncIterator[Proxy]:
    async with Proxy(cluster.port) as running:
        yield running


@pytest.fixture
async def behind_proxy(cluster: ControlPlane, proxy: Proxy, tmp_path: Path) -> AsyncIterator[Client]:
    """A client that reaches the API server through `proxy`."""
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{proxy.port}"
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    async with await Client.connect(path) as connected:
        yield connected


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    async def wait(condition: Callable[[], bool], deadline_s: float = 30.0) -> None:
        async with asyncio.timeout(deadline_s):
            while not condition():  # noqa: ASYNC110 - the condition is no event
                await asyncio.sleep(0.02)

    return wait
