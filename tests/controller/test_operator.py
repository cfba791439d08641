from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vmtenancy import resources
from vmtenancy.kube import errors
from vmtenancy.kube.client import Client
from vmtenancy.kube.lease import LEASES
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.process import free_port

pytestmark = pytest.mark.cluster
SCRIPT = Path(__file__).with_name("trivial.py")
HOME = "controller-home"


@dataclass(frozen=True, slots=True)
class Running:
    process: asyncio.subprocess.Process
    health: int
    metrics: int
    log: Path


@pytest.fixture
async def client(cluster: ControlPlane) -> AsyncIterator[Client]:
    async with await Client.connect(cluster.kubeconfig) as connected:
        # A missing kind of ours is no empty list: the controller waits until it is installed.
        for crd in resources.objects(resources.folder("crds")):
            await connected.apply(crd)
        await connected.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME}})
        yield connected


@pytest.fixture
async def start(cluster: ControlPlane, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as stack:

        @asynccontextmanager
        async def process(as_account: str) -> AsyncIterator[Running]:
            health, metrics = free_port(), free_port()
            log = tmp_path / f"controller-{health}.log"
            with log.open("wb") as output:
                running = await asyncio.create_subprocess_exec(
                    *(sys.executable, str(SCRIPT), str(cluster.kubeconfig), HOME),
                    *(str(health), str(metrics), as_account),
                    stdout=output,
                    stderr=output,
                )
            try:
                yield Running(running, health, metrics, log)
            finally:
                if running.returncode is None:
                    running.kill()
                await running.wait()

        async def begin(*, as_account: str = "no") -> Running:
            running: Running = await stack.enter_async_context(process(as_account))
            return running

        yield begin


async def filled(client: Client, name: str, deadline_s: float = 60.0) -> None:
    """Make a namespace for the controller to fill, and wait until it has."""
    labels = {"test": "1"}
    await client.create(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    )
    await is_filled(client, name, deadline_s)


async def is_filled(client: Client, name: str, deadline_s: float = 60.0) -> None:
    async with asyncio.timeout(deadline_s):
        while True:
            try:
                await client.get(KINDS["ConfigMap"], name, "cm-2")
                return
            except errors.NotFoundError:
                await asyncio.sleep(0.05)


async def holder(client: Client) -> str:
    spec = (await client.get(LEASES, HOME, "vmtenancy-controller"))["spec"]
    return str(spec["holderIdentity"])


async def ended(running: Running, limit_s: float) -> int:
    async with asyncio.timeout(limit_s):
        return await running.process.wait()


def fetched(port: int, path: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


async def test_acts_reports_and_stops_in_good_order(client: Client, start: Callable[..., Any]) -> None:
    running = await start()
    await filled(client, "first")
    await filled(client, "second", 5.0)
    assert json.loads(await asyncio.to_thread(fetched, running.health, "/healthz")) == {"allocator": "leader"}
    metrics = await asyncio.to_thread(fetched, running.metrics, "/metrics")
    assert "vmtenancy_is_leader 1.0" in metrics
    assert "# TYPE vmtenancy_tenant_fair_share gauge" in metrics
    assert 'vmtenancy_steps_total{kind="Apply",outcome="ok"} 6.0' in metrics
    before = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    assert await ended(running, 5.0) == 0, running.log.read_text()
    assert time.monotonic() - before < 5.0
    assert await holder(client) == "", "the lease was given back"


async def test_a_second_one_stands_by_and_takes_over_at_once(
    client: Client, start: Callable[..., Any]
) -> None:
    first = await start()
    await filled(client, "one")
    leader = await holder(client)
    second = await start()
    async with asyncio.timeout(60):
        while True:
            try:
                if json.loads(await asyncio.to_thread(fetched, second.health, "/healthz")):
                    break
            except OSError:
                await asyncio.sleep(0.1)
    assert await holder(client) == leader
    first.process.send_signal(signal.SIGTERM)
    await filled(client, "two", 10.0)
    assert await holder(client) not in ("", leader)
    assert await ended(first, 5.0) == 0


async def test_after_a_kill_a_new_one_goes_on(client: Client, start: Callable[..., Any]) -> None:
    first = await start()
    await filled(client, "one")
    first.process.kill()
    await first.process.wait()
    labels = {"test": "1"}
    await client.create(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "two", "labels": labels}}
    )
    await start()
    await is_filled(client, "two")


async def test_as_the_controllers_account(client: Client, start: Callable[..., Any]) -> None:
    meta = {"name": "vmtenancy-controller", "namespace": HOME}
    await client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
    await client.create(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "controller-test"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "cluster-admin",
            },
            "subjects": [{"kind": "ServiceAccount", **meta}],
        }
    )
    await start(as_account="yes")
    await filled(client, "one")


async def test_without_its_account_it_ends_with_the_reason(client: Client, start: Callable[..., Any]) -> None:
    running = await start(as_account="yes")
    assert await ended(running, 60) != 0
    assert "serviceaccounts" in running.log.read_text()
