"""A world read once, for commands that look and go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from vmtenancy.kube.cache import Cache
from vmtenancy.kube.client import Client
from vmtenancy.kube.errors import KubeError, NotFoundError
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.world import World, annotations_of

#: All that decides who gets what; no Secrets, which people who look may not read.
DECIDING: Final = (
    *("GpuPool", "GpuClass", "GpuNode", "Cohort", "Tenant", "GpuVM", "VirtualCluster", "GpuGroup"),
    "GpuReservation",
    *("GpuAllocation", "GpuLedger", "Node", "Namespace", "Pod"),
    *("VirtualMachine", "VirtualMachineInstance"),
)


async def read_world(client: Client, kinds: Sequence[str] = DECIDING) -> World:
    """List these kinds now. Raises `KubeError`; a missing kind that is not optional means no installation."""
    world = World()

    async def read(kind: str) -> None:
        info = KINDS[kind]
        try:
            items, _ = await client.list_all(info)
        except NotFoundError as error:
            if info.optional:
                return
            raise KubeError(f"the cluster has no {kind}: run `vmtenancy install` first") from error
        for item in items:
            world.put(item)

    await asyncio.gather(*map(read, kinds))
    return world


async def read_nodes(client: Client) -> dict[str, bool]:
    """The nodes by name, and whether KWOK plays them. Raises `KubeError`."""
    nodes, _ = await client.list_all(KINDS["Node"])
    return {node["metadata"]["name"]: "kwok.x-k8s.io/node" in annotations_of(node) for node in nodes}


async def read_again(client: Client, cache: Cache, kinds: Sequence[str]) -> None:
    """Bring kinds of a cache up to date by consistent lists, whatever its watches have shown. Raises `KubeError`."""
    for kind in kinds:
        info = KINDS[kind]
        begun_at = cache.newest(kind)
        try:
            items, version = await client.list_all(info)
        except NotFoundError:
            if info.optional:
                continue
            raise
        cache.relist(info, items, version, begun_at)
