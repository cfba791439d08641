import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from vmtenancy.kube.client import Client
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.faults import FaultProxy


@pytest.fixture
async def client(cluster: ControlPlane) -> AsyncIterator[Client]:
    async with await Client.connect(cluster.kubeconfig) as connected:
        yield connected


@pytest.fixture
def proxy(cluster: ControlPlane, tmp_path: Path) -> Iterator[FaultProxy]:
    with FaultProxy(cluster.kubeconfig, tmp_path) as running:
        yield running


@pytest.fixture
async def behind_proxy(proxy: FaultProxy) -> AsyncIterator[Client]:
    """A client that reaches the API server through `proxy`."""
    async with await Client.connect(proxy.kubeconfig) as connected:
        yield connected


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    async def wait(condition: Callable[[], bool], deadline_s: float = 30.0) -> None:
        async with asyncio.timeout(deadline_s):
            while not condition():  # noqa: ASYNC110 - the condition is no event
                await asyncio.sleep(0.02)

    return wait
