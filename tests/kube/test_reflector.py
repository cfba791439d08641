from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from vmtenancy.kube import errors
from vmtenancy.kube.backoff import Backoff
from vmtenancy.kube.cache import Cache
from vmtenancy.kube.client import Client
from vmtenancy.kube.reflector import CRDS, InstalledKinds, Reflector
from vmtenancy.reconcile.kinds import KINDS, KindInfo
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.world import ref_of
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.faults import FaultProxy

Until = Callable[..., Awaitable[None]]
CONFIG_MAPS = KINDS["ConfigMap"]
WIDGETS = KindInfo("Widget", "test.example/v1", "widgets", optional=True)


def config_map(name: str) -> Object:
    labels = {"app.kubernetes.io/managed-by": "vmtenancy"}
    meta = {"name": name, "namespace": "default", "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}


def widget_crd() -> Object:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.test.example"},
        "spec": {
            "group": "test.example",
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget", "listKind": "WidgetList"},
            "scope": "Namespaced",
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
            ],
        },
    }


class Seen:
    """A sink that keeps the names there are, and what it was told."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.lists = 0
        self.events: list[str] = []

    def newest(self, kind: str) -> int:
        return 0

    def relist(self, info: KindInfo, items: list[Object], resource_version: str, begun_at: int) -> None:
        self.lists += 1
        self.names = {item["metadata"]["name"] for item in items}

    def observe(self, event_type: str, obj: Object) -> None:
        self.events.append(event_type)
        change = self.names.discard if event_type == "DELETED" else self.names.add
        change(obj["metadata"]["name"])


@asynccontextmanager
async def running(*reflectors: Reflector) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(reflector.run()) for reflector in reflectors]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(end, asyncio.CancelledError), end


async def remove(client: Client, info: KindInfo, obj: Object) -> None:
    await client.delete(info, ref_of(obj))


def restart_api_server(cluster: ControlPlane) -> None:
    """What a new API server remembers of the past starts now: older watches get 410."""
    cluster.restart("kube-apiserver")


@pytest.mark.cluster
async def test_lists_then_follows(client: Client, until: Until) -> None:
    await client.create(config_map("before"))
    seen = Seen()
    async with running(Reflector(client, CONFIG_MAPS, seen)):
        await until(lambda: seen.names == {"before"})
        await client.create(config_map("after"))
        await remove(client, CONFIG_MAPS, config_map("before"))
        await until(lambda: seen.names == {"after"})
    assert seen.lists == 1


@pytest.mark.cluster
async def test_a_broken_watch_goes_on_where_it_was(
    behind_proxy: Client, proxy: FaultProxy, client: Client, until: Until
) -> None:
    seen, restarts = Seen(), []
    reflector = Reflector(behind_proxy, CONFIG_MAPS, seen, on_restart=lambda *what: restarts.append(what))
    async with running(reflector):
        await until(lambda: seen.lists == 1)
        await client.create(config_map("a"))
        await until(lambda: seen.names == {"a"})
        with proxy.refusing():
            await client.create(config_map("b"))
            await remove(client, CONFIG_MAPS, config_map("a"))
            await until(lambda: len(restarts) >= 2)
            assert seen.names == {"a"}
        await until(lambda: seen.names == {"b"})
    assert seen.lists == 1, "the gap was filled from the history, without a new list"
    assert seen.events == ["ADDED", "ADDED", "DELETED"]
    assert {reason for _, reason in restarts} == {"UnavailableError"}


@pytest.mark.cluster
async def test_what_was_deleted_in_a_gap_that_nobody_remembers_is_gone(
    cluster: ControlPlane, behind_proxy: Client, proxy: FaultProxy, client: Client, until: Until
) -> None:
    """410: the API server that comes back does not know the resourceVersion any more."""
    await client.create(config_map("stays"))
    await client.create(config_map("goes"))
    cache, restarts = Cache(), []
    reflector = Reflector(behind_proxy, CONFIG_MAPS, cache, on_restart=lambda *what: restarts.append(what))
    held = cache.world.objects["ConfigMap"]
    async with running(reflector):
        await until(lambda: len(held) == 2)
        with proxy.refusing():
            await remove(client, CONFIG_MAPS, config_map("goes"))
            await client.create(config_map("new"))
            await asyncio.to_thread(restart_api_server, cluster)
            assert {name for _, name in held} == {"stays", "goes"}
        await until(lambda: {name for _, name in held} == {"stays", "new"}, 60)
    assert ("ConfigMap", "ExpiredError") in restarts


@pytest.mark.cluster
async def test_survives_a_restart_of_the_api_server(
    cluster: ControlPlane, client: Client, behind_proxy: Client, until: Until
) -> None:
    """Also behind the proxy, which passes the break on."""
    near, far = Seen(), Seen()
    async with running(Reflector(client, CONFIG_MAPS, near), Reflector(behind_proxy, CONFIG_MAPS, far)):
        await until(lambda: near.lists == far.lists == 1)
        await asyncio.to_thread(restart_api_server, cluster)
        with suppress(errors.UnavailableError):
            await client.request("GET", "/version")  # the first one may meet the old connection
        await client.create(config_map("later"))
        await until(lambda: near.names == far.names == {"later"}, 60)


@pytest.mark.cluster
async def test_a_kind_is_followed_once_its_crd_appears_and_empty_after_it_went(
    client: Client, until: Until
) -> None:
    with suppress(errors.NotFoundError):
        await client.delete(CRDS, Ref("CustomResourceDefinition", "", "widgets.test.example"))
    seen, installed = Seen(), InstalledKinds()
    crds = Reflector(client, CRDS, installed, metadata_only=True)
    async with running(crds, Reflector(client, WIDGETS, seen, installed)):
        await until(lambda: seen.lists > 0)
        asked = seen.lists
        await client.create(widget_crd())
        await until(lambda: seen.lists > asked)
        widget = {"apiVersion": "test.example/v1", "kind": "Widget"}
        await client.create({**widget, "metadata": {"name": "w", "namespace": "default"}})
        await until(lambda: seen.names == {"w"})
        await client.delete(CRDS, Ref("CustomResourceDefinition", "", "widgets.test.example"))
        await until(lambda: seen.names == set())


@pytest.mark.cluster
async def test_a_kind_that_is_missing_is_not_asked_for_again_and_again(client: Client, until: Until) -> None:
    asked = 0

    class Counting(Client):
        async def list_all(self, info: KindInfo, *, accept: str = "") -> tuple[list[Object], str]:
            nonlocal asked
            asked += 1
            return await super().list_all(info, accept=accept)

    counting = Counting(client.configuration)
    seen, installed, other = Seen(), InstalledKinds(), Seen()
    missing = KindInfo("Nothing", "missing.example/v1", "nothings", optional=True)
    async with (
        counting,
        running(
            Reflector(client, CRDS, installed, metadata_only=True),
            Reflector(counting, missing, seen, installed),
            Reflector(client, CONFIG_MAPS, other),
        ),
    ):
        await until(lambda: seen.lists == 1)
        for number in range(20):
            await client.create(config_map(f"cm-{number}"))
        await until(lambda: len(other.names) == 20)
    assert asked == 1


def test_backoff_grows_to_a_limit_and_starts_anew() -> None:
    backoff = Backoff(0.2, 30.0)
    delays = [backoff.next_s() for _ in range(40)]
    assert 0.1 <= delays[0] <= 0.2
    assert all(15.0 <= delay <= 30.0 for delay in delays[10:])
    backoff.reset()
    assert backoff.next_s() <= 0.2


class Rewound:
    """An API server whose data went from resourceVersion 500 back to 200: watches from 500 stay silent."""

    def __init__(self) -> None:
        self.now = 500
        self.watched: list[str] = []
        self.broken = asyncio.Event()

    async def list_all(self, info: KindInfo, *, accept: str = "") -> tuple[list[Object], str]:
        return [], str(self.now)

    async def pages(self, info: KindInfo, **_: object) -> AsyncIterator[tuple[list[Object], str]]:
        yield [], str(self.now)

    async def watch(self, info: KindInfo, resource_version: str, **_: object) -> AsyncIterator[object]:
        self.watched.append(resource_version)
        await self.broken.wait()
        self.broken.clear()
        raise errors.UnavailableError("the connection broke")
        yield


async def test_a_watch_from_a_future_that_never_was_lists_again(until: Until) -> None:
    server, restarts = Rewound(), []
    begun: list[int] = []

    class Sink(Seen):
        def relist(self, info: KindInfo, items: list[Object], resource_version: str, begun_at: int) -> None:
            begun.append(begun_at)
            super().relist(info, items, resource_version, begun_at)

    seen = Sink()
    reflector = Reflector(
        server,  # type: ignore[arg-type]
        CONFIG_MAPS,
        seen,
        on_restart=lambda *what: restarts.append(what),
    )
    async with running(reflector):
        await until(lambda: server.watched == ["500"])
        server.broken.set()
        await until(lambda: server.watched == ["500", "500"])
        assert seen.lists == 1, "the history is as it was: it goes on where it broke"
        server.now = 200
        server.broken.set()
        await until(lambda: server.watched == ["500", "500", "200"])
        assert ("ConfigMap", "ExpiredError") in restarts
        assert begun == [0, 500], "the list can be seen to be of an older time"
        reflector.again()
        await until(lambda: seen.lists == 3)
