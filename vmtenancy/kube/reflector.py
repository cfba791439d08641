"""List and watch, with the repairs that the protocol needs; never a poll.

A watch that breaks goes on from its last resourceVersion. One that is too old (410) lists again, and what
vanished in the gap is removed. So does one that is too new: the API server says nothing to it until its data, restored
from a backup, has come as far again. A kind whose CRD is missing counts as an empty list until the watch of CRDs
names it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Final, NoReturn, Protocol

from vmtenancy.kube import errors
from vmtenancy.kube.backoff import Backoff
from vmtenancy.kube.cache import Cache
from vmtenancy.kube.client import JSON, METADATA, METADATA_LIST, Client
from vmtenancy.reconcile.kinds import KINDS, KindInfo
from vmtenancy.reconcile.steps import Object

log = logging.getLogger(__name__)

CRDS: Final = KindInfo(
    "CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False
)

#: An API server that comes back is noticed this soon.
LONGEST_DELAY_S: Final = 5.0


class Sink(Protocol):
    """Where a reflector delivers to."""

    def newest(self, kind: str) -> int:
        """The highest resourceVersion held, before a list is asked for."""

    def relist(self, info: KindInfo, items: Iterable[Object], resource_version: str, begun_at: int) -> None:
        """A full list."""

    def observe(self, event_type: str, obj: Object) -> None:
        """One event."""


class InstalledKinds:
    """Sink of the watch of CRDs: their names, and who waits for one of them."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._changed = asyncio.Event()

    async def has(self, info: KindInfo) -> None:
        """Wait until the CRD of a kind is there. It is served a moment later."""
        name = f"{info.plural}.{info.api_version.partition('/')[0]}"
        while name not in self._names:
            await self._changed.wait()

    def newest(self, kind: str) -> int:
        """As `Sink`: an older list is as good."""
        return 0

    def relist(self, info: KindInfo, items: Iterable[Object], resource_version: str, begun_at: int) -> None:
        """As `Sink`."""
        self._names = {item["metadata"]["name"] for item in items}
        self._wake()

    def observe(self, event_type: str, obj: Object) -> None:
        """As `Sink`."""
        change = self._names.discard if event_type == "DELETED" else self._names.add
        change(obj["metadata"]["name"])
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Reflector:
    """Keeps a sink current with one kind."""

    def __init__(
        self,
        client: Client,
        info: KindInfo,
        sink: Sink,
        installed: InstalledKinds | None = None,
        *,
        metadata_only: bool = False,
        on_restart: Callable[[str, str], None] = lambda kind, reason: None,
    ) -> None:
        """`installed` tells when a kind that is missing appears.

        `on_restart` gets kind and reason (a class name).
        """
        self._client, self._info, self._sink, self._installed = client, info, sink, installed
        self._accept = (METADATA_LIST, METADATA) if metadata_only else (JSON, JSON)
        self._on_restart = on_restart
        self._backoff = Backoff(longest_s=LONGEST_DELAY_S)
        self._version = ""
        self._listing: asyncio.Task[NoReturn] | None = None

    def again(self) -> None:
        """List again, whatever was seen since the last list."""
        if self._listing:
            self._listing.cancel()

    async def run(self) -> NoReturn:
        """Until cancelled."""
        while True:
            self._listing = asyncio.create_task(self._list_and_watch())
            try:
                await self._listing
            except asyncio.CancelledError:
                if (current := asyncio.current_task()) and current.cancelling():
                    raise
                continue
            except errors.ExpiredError as error:
                self._restarted(error)
            except errors.NotFoundError as error:
                if self._installed is None:
                    self._restarted(error)
                else:
                    await self._wait_until_installed(self._installed)
            except errors.KubeError as error:
                self._restarted(error)
            await asyncio.sleep(self._backoff.next_s())

    async def _list_and_watch(self) -> NoReturn:
        begun_at = max(self._sink.newest(self._info.kind), int(self._version or 0))
        items, version = await self._client.list_all(self._info, accept=self._accept[0])
        self._version = version
        self._sink.relist(self._info, items, version, begun_at)
        known = True
        while True:
            try:
                if not known:
                    await self._check_history()
                known = False
                if await self._watch():
                    continue
            except (errors.UnavailableError, errors.ForbiddenError) as error:
                # The history is still there: go on where it broke, once the server answers.
                self._restarted(error)
            await asyncio.sleep(self._backoff.next_s())

    async def _check_history(self) -> None:
        """Raises `ExpiredError` where the server's data is older than what we have seen."""
        async with aclosing(self._client.pages(self._info, accept=self._accept[0], limit=1)) as pages:
            _, now = await anext(pages)
        if int(now) < int(self._version):
            raise errors.ExpiredError(f"the server went back from resourceVersion {self._version} to {now}")

    async def _watch(self) -> bool:
        """One watch, until the server ends it in good order; whether it said anything."""
        spoke = False
        async with aclosing(self._client.watch(self._info, self._version, accept=self._accept[1])) as events:
            async for event in events:
                spoke = True
                self._backoff.reset()
                self._version = event.object["metadata"]["resourceVersion"]
                if event.type != "BOOKMARK":
                    self._sink.observe(event.type, event.object)
        return spoke

    async def _wait_until_installed(self, installed: InstalledKinds) -> None:
        if self._info.optional:  # not there is an answer: nothing of it exists
            newest = self._sink.newest(self._info.kind)
            self._sink.relist(self._info, (), str(newest), newest)
        else:
            log.warning("the cluster has no %s: waiting for `vmtenancy install`", self._info.kind)
        await installed.has(self._info)

    def _restarted(self, error: errors.KubeError) -> None:
        log.info("watch of %s starts again: %s", self._info.kind, error)
        self._on_restart(self._info.kind, type(error).__name__)


class Reflectors:
    """One reflector per kind of the world, and one for the CRDs. `async with` runs them."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        on_restart: Callable[[str, str], None] = lambda kind, reason: None,
    ) -> None:
        installed = InstalledKinds()
        crds = Reflector(client, CRDS, installed, metadata_only=True, on_restart=on_restart)
        kinds = [Reflector(client, info, cache, installed, on_restart=on_restart) for info in KINDS.values()]
        self._reflectors = [crds, *kinds]
        self._tasks: list[asyncio.Task[NoReturn]] = []
        cache.on_rewind.append(self._again)

    async def __aenter__(self) -> Reflectors:
        self._tasks = [asyncio.create_task(reflector.run()) for reflector in self._reflectors]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _again(self) -> None:
        for reflector in self._reflectors:
            reflector.again()

    async def failed(self) -> None:
        """Returns never in good order.

        Raises what a reflector died of (a bug), so that the process can end.
        """
        await asyncio.gather(*self._tasks)
