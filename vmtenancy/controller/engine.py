"""What watches, plans and writes: a controller without its process and its leadership."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from vmtenancy.api.quantity import parse_quantity
from vmtenancy.controller.allocator import Allocator, Planner
from vmtenancy.controller.metrics import Metrics, ResourceUse
from vmtenancy.kube.cache import Cache
from vmtenancy.kube.client import Client
from vmtenancy.kube.executor import Executor, Render
from vmtenancy.kube.reflector import Reflectors
from vmtenancy.kube.snapshot import read_again
from vmtenancy.reconcile.planner import plan
from vmtenancy.reconcile.world import World

#: Chains in hand get this long to end when it is told to stop.
GRACE_S: Final = 3.0


class Engine:
    """Keeps `world` current and does what a planner says: `async with Engine(...)` starts and stops it."""

    def __init__(
        self,
        client: Client,
        world: World,
        *,
        render: Render,
        leads: Callable[[], bool],
        planner: Planner = plan,
        metrics: Metrics | None = None,
    ) -> None:
        """`leads` is asked before every plan and every step; tell `allocator.leadership` when it changes."""
        metrics = metrics or Metrics()
        self.cache = Cache(world, self._changed)
        executor = Executor(
            client,
            self.cache,
            render=render,
            may_write=leads,
            instance=world.identity,
            on_step=metrics.step,
            on_event=metrics.event,
        )
        self.allocator = Allocator(
            self.cache,
            executor,
            planner,
            leads=leads,
            metrics=metrics,
            read_again=partial(read_again, client, self.cache),
        )
        self.cache.on_rewind.append(self.allocator.rewound)
        metrics.observe(
            is_leader=leads,
            chains_waiting=lambda: executor.waiting,
            fair_shares=self._fair_shares,
            resources=self._resources,
        )
        self._reflectors = Reflectors(client, self.cache, metrics.watch_restart)
        self._parts: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Engine:
        await self._reflectors.__aenter__()
        self._parts = [
            asyncio.create_task(self._reflectors.failed()),
            asyncio.create_task(self.allocator.run()),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.allocator.stop()
        await asyncio.wait(self._parts[1:], timeout=GRACE_S)
        for part in self._parts:
            part.cancel()
        await asyncio.gather(*self._parts, return_exceptions=True)
        await self._reflectors.__aexit__()

    def _fair_shares(self) -> dict[str, float]:
        """As the statuses of the tenants say; asked from Prometheus' thread, so of a copy."""
        tenants = list(self.cache.world.objects["Tenant"].values())
        shares = {obj["metadata"]["name"]: obj.get("status", {}).get("fairShare") for obj in tenants}
        return {name: float(share) for name, share in shares.items() if share is not None}

    def _resources(self) -> list[ResourceUse]:
        """As the statuses of the tenants say."""
        return [
            ResourceUse(
                obj["metadata"]["name"],
                row["name"],
                float(parse_quantity(row["used"])),
                float(parse_quantity(row["nominal"])),
            )
            for obj in list(self.cache.world.objects["Tenant"].values())
            for row in obj.get("status", {}).get("resources", ())
        ]

    def _changed(self) -> None:
        self.allocator.poke()

    async def failed(self) -> None:
        """Returns when it is stopped. Raises what a part died of (a bug), so that the process can end."""
        ended, _ = await asyncio.wait(self._parts, return_when=asyncio.FIRST_COMPLETED)
        for part in ended:
            part.result()
