"""Leader election on a `coordination.k8s.io/v1` Lease, with the algorithm of client-go.

`kubernetes.aio.leaderelection` is not used: it compares wall clocks, writes local time as UTC, dies of a
refused connection, has no timeout per request (a hanging renewal leaves two leaders) and never gives the
Lease back.

Clocks of machines are never compared: a holder counts as gone when the Lease did not change for its duration
by our own monotonic clock. A holder stops earlier than that (`deadline`), so there is at most one, as far as
clocks run at the same speed. What even a paused process can not break is the ledger's epoch.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Final, NoReturn

from vmtenancy.kube import errors
from vmtenancy.kube.client import Client, micro_time
from vmtenancy.reconcile.kinds import KindInfo
from vmtenancy.reconcile.steps import Object

log = logging.getLogger(__name__)

LEASES: Final = KindInfo("Lease", "coordination.k8s.io/v1", "leases")
DURATION_S: Final = 10.0


class Lease:
    """One candidate for one Lease."""

    def __init__(
        self,
        client: Client,
        *,
        namespace: str,
        name: str,
        identity: str,
        duration_s: float = DURATION_S,
        on_change: Callable[[bool], None] = lambda held: None,
        on_rewind: Callable[[], None] = lambda: None,
    ) -> None:
        """`identity` must be new for every process. `on_change` is called with whether we hold it now.

        `on_rewind` is called when the Lease is older than it was: the server's data was restored from a backup.
        `duration_s` is at least 1: the Lease stores whole seconds.
        """
        self.identity = identity
        self._client = client
        self._namespace, self._name = namespace, name
        self._duration_s = duration_s
        self._retry_s = duration_s / 5
        self._deadline_s = duration_s * 2 / 3
        self._on_change, self._on_rewind = on_change, on_rewind
        self._newest = 0  # resourceVersion: it only rises, but for a restored backup
        self._announced = False
        self._renewed_at: float | None = None  # when the request of the last successful renewal was sent
        self._seen = ""  # resourceVersion of the Lease as last observed, and since when it is that one
        self._seen_at = 0.0

    def held(self) -> bool:
        """Whether we hold it at this moment: true only within the deadline since the last renewal."""
        return self._left_s() > 0

    def _left_s(self) -> float:
        if self._renewed_at is None:
            return 0.0
        return max(0.0, self._renewed_at + self._deadline_s - time.monotonic())

    async def run(self) -> NoReturn:
        """Acquire, renew, and acquire again after a loss, until cancelled."""
        while True:
            started = time.monotonic()
            try:
                # A request that hangs must not outlive the deadline: the loss is announced in time.
                async with asyncio.timeout(self._left_s() or self._deadline_s):
                    if await self._try():
                        self._renewed_at = started
            except (errors.KubeError, TimeoutError) as error:
                log.warning("lease %s: %s", self._name, str(error) or "no answer in time")
            self._announce()
            await self._pause()

    async def release(self) -> None:
        """Give it back, so that another can take it at once.

        Call it after `run` was cancelled. Raises nothing.
        """
        mine = self.held()
        self._renewed_at = None
        self._announce()
        if not mine:
            return
        try:
            async with asyncio.timeout(self._retry_s):
                lease = await self._client.get(LEASES, self._namespace, self._name)
                if lease["spec"].get("holderIdentity") == self.identity:
                    lease["spec"] |= {
                        "holderIdentity": "",
                        "leaseDurationSeconds": 1,
                        "renewTime": micro_time(),
                    }
                    await self._client.replace(lease)
        except (errors.KubeError, TimeoutError) as error:
            log.warning("lease %s not given back, it expires by itself: %s", self._name, error)

    async def _try(self) -> bool:
        try:
            lease = await self._client.get(LEASES, self._namespace, self._name)
        except errors.NotFoundError:
            self._saw(await self._client.create(self._taken({})))
            return True
        self._saw(lease)
        version = lease["metadata"]["resourceVersion"]
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        now = time.monotonic()
        if version != self._seen:
            self._seen, self._seen_at = version, now
        if holder not in ("", self.identity) and now < self._seen_at + spec.get("leaseDurationSeconds", 0):
            return False
        self._saw(await self._client.replace(self._taken(lease)))
        return True

    def _saw(self, lease: Object) -> None:
        """Give up what is held by a history that is no more."""
        version = int(lease["metadata"]["resourceVersion"])
        if version < self._newest:
            log.error("lease %s went back from resourceVersion %d to %d", self._name, self._newest, version)
            self._renewed_at = None
            self._announce()
            self._on_rewind()
        self._newest = version

    def _taken(self, lease: Object) -> Object:
        """The Lease with us as its holder, to be written under its resourceVersion."""
        spec = dict(lease.get("spec") or {})
        if spec.get("holderIdentity") != self.identity:
            spec["leaseTransitions"] = spec.get("leaseTransitions", -1) + 1
            spec["acquireTime"] = micro_time()
        spec |= {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._duration_s)),
            "renewTime": micro_time(),
        }
        meta = lease.get("metadata") or {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": meta, "spec": spec}

    def _announce(self) -> None:
        if self.held() != self._announced:
            self._announced = not self._announced
            log.info("lease %s %s by %s", self._name, "taken" if self._announced else "lost", self.identity)
            self._on_change(self._announced)

    async def _pause(self) -> None:
        """Sleep until the next attempt; a loss that falls into that time is announced when it happens."""
        delay = self._retry_s * random.uniform(0.8, 1.0)  # noqa: S311 - spreads load, guards nothing
        left = self._left_s()
        if self._announced and left < delay:
            await asyncio.sleep(left)
            self._announce()
            delay -= left
        await asyncio.sleep(delay)
