"""Looks at a cluster and at what is installed in it, for `vmtenancy doctor`. All that it tries is a dry run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from vmtenancy.api.names import CONTROLLER_ACCOUNT, SYSTEM_NAMESPACE, TENANT_LABEL
from vmtenancy.kube import errors
from vmtenancy.kube.client import Client
from vmtenancy.kube.install import State, gates_pods, state_of
from vmtenancy.kube.lease import LEASES
from vmtenancy.reconcile.doctor import Installation
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.world import World, is_deleting, labels_of

#: A Lease that was not renewed for its duration and this long has no holder; clocks of machines differ.
_SKEW_S: Final = 30.0


async def read_all(client: Client) -> World:
    """Everything but Secrets; a kind that the cluster lacks is empty. Raises `KubeError`."""
    world = World()

    async def read(kind: str) -> None:
        try:
            items, _ = await client.list_all(KINDS[kind])
        except errors.NotFoundError:
            return
        for item in items:
            world.put(item)

    await asyncio.gather(*(read(kind) for kind in KINDS if kind != "Secret"))
    return world


async def inspect(client: Client, world: World, objects: Iterable[Object]) -> Installation:
    """How `objects`, which `install` applies, are installed; whether the gate holds; who leads. Raises `KubeError`."""
    wanted = list(objects)
    states = await asyncio.gather(*(state_of(client, obj) for obj in wanted))
    found = list(zip(wanted, states, strict=True))
    homes = [ns for ns in world.of("Namespace") if TENANT_LABEL in labels_of(ns) and not is_deleting(ns)]
    return Installation(
        missing=tuple(obj for obj, state in found if state is State.MISSING),
        changed=tuple(obj for obj, state in found if state is State.CHANGED),
        gate_holds=await gates_pods(client, homes[0]["metadata"]["name"]) if homes else None,
        leader=await _leader(client),
    )


async def _leader(client: Client) -> str:
    try:
        spec = (await client.get(LEASES, SYSTEM_NAMESPACE, CONTROLLER_ACCOUNT)).get("spec") or {}
    except errors.NotFoundError:
        return ""
    renewed = datetime.fromisoformat(spec.get("renewTime") or "1970-01-01T00:00:00Z").timestamp()
    expired = time.time() > renewed + spec.get("leaseDurationSeconds", 0) + _SKEW_S
    return "" if expired else str(spec.get("holderIdentity") or "")
