"""A world that is kept current in the background, for programs that are not asynchronous themselves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from vmtenancy.kube.cache import Cache
from vmtenancy.kube.client import Client
from vmtenancy.kube.reflector import Reflectors
from vmtenancy.reconcile.world import World

T = TypeVar("T")

SYNC_TIMEOUT_S = 60.0


class LiveWorld:
    """Watches in a thread of its own: `with LiveWorld(kubeconfig) as live`.

    `wait` blocks on changes, never polls. `call` runs one request on the same connection.
    """

    def __init__(self, kubeconfig: Path | None = None, context: str | None = None) -> None:
        self._kubeconfig, self._context = kubeconfig, context
        self._changed = threading.Condition()
        self._version = 0
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="live-world", daemon=True)
        self._ready = threading.Event()
        self._stop = asyncio.Event()

    def __enter__(self) -> LiveWorld:
        self._thread.start()
        if not self._ready.wait(SYNC_TIMEOUT_S) or self._failure:
            self.__exit__(None, None, None)
            raise self._failure or TimeoutError(f"the cluster was not listed in {SYNC_TIMEOUT_S:g} s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10.0)

    def world(self) -> World:
        """The world as it is now; it does not change afterwards."""
        return self.call(lambda _: self._snapshot())

    def call(self, work: Callable[[Client], Awaitable[T]]) -> T:
        """Run `work` with the client in the background, and return its result."""

        async def run() -> T:
            return await work(self._client)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def wait(self, ready: Callable[[World], bool], timeout: float) -> World | None:
        """The first world for which `ready` is true, or None after `timeout` seconds."""
        end = time.monotonic() + timeout
        while True:
            with self._changed:
                seen = self._version
            world = self.world()
            if ready(world):
                return world
            with self._changed:
                while self._version == seen:
                    if not self._changed.wait(max(0.0, end - time.monotonic())):
                        return None

    async def _snapshot(self) -> World:
        return self._cache.snapshot()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._watch())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _watch(self) -> None:
        self._cache = Cache(World(), self._notify)
        async with (
            await Client.connect(self._kubeconfig, self._context) as self._client,
            Reflectors(self._client, self._cache) as reflectors,
        ):
            failing = asyncio.create_task(reflectors.failed())
            stopping = asyncio.create_task(self._stop.wait())
            synced = asyncio.create_task(self._cache.synced.wait())
            await asyncio.wait((failing, stopping, synced), return_when=asyncio.FIRST_COMPLETED)
            self._ready.set()
            await asyncio.wait((failing, stopping), return_when=asyncio.FIRST_COMPLETED)
            for task in (failing, stopping, synced):
                task.cancel()
            if failing.done() and not failing.cancelled():
                failing.result()

    def _notify(self) -> None:
        with self._changed:
            self._version += 1
            self._changed.notify_all()
