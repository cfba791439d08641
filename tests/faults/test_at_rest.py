"""At rest nothing but Leases is written (I7): counted at the proxies before a leader and its standby."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from api_scenarios import pod
from arena import arena
from lab import gpu_vm, virtual_cluster
from pair import Pair

from vmtenancy.reconcile import World
from vmtenancy.reconcile.steps import Object
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.faults import Call
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.vcluster import NODE_LABEL

pytestmark = pytest.mark.cluster

#: Nothing was written for so long: rest has come.
_QUIET_S: Final = 3.0
_OURS: Final = (
    "GpuPool",
    "GpuClass",
    "GpuNode",
    "Cohort",
    "Tenant",
    "GpuVM",
    "VirtualCluster",
    "GpuAllocation",
)


def asked(count: int) -> list[Object]:
    """What people ask for: a little that fits, some that is stopped, and the rest waits in a queue."""
    machines = [gpu_vm(f"m{number}", 1 + number % 2) for number in range(count)]
    for number in range(0, count, 7):
        machines[number]["spec"]["runStrategy"] = "Halted"
    clusters = [virtual_cluster(f"c{number}", number, 1) for number in range(2)]
    return [*machines, *clusters, pod("p"), pod("q", 2)]


def volume(name: str) -> Object:
    """What an administrator provides for the data of a virtual cluster."""
    return {
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "5Gi"},
            "csi": {"driver": "imaginary.example", "volumeHandle": name},
        },
    }


async def writes_at_rest(
    cluster: ControlPlane, folder: Path, count: int, for_s: float
) -> tuple[World, list[Call], int]:
    """The world at rest, what was written in `for_s` seconds of it, and how often a Lease was renewed then."""
    for name in ("one", "two"):
        cluster.request("POST", "/api/v1/persistentvolumes", volume(name))
    make = partial(Pair, kubeconfig=cluster.kubeconfig, folder=folder)
    async with arena(cluster, folder, make) as pair:
        await pair.add_node(gpu_node("control-planes", gpus=1, labels={NODE_LABEL: "true"}))
        await pair.create(*asked(count))
        before = await _quiet(pair)
        await asyncio.sleep(for_s)
        world, writes = pair.history.snapshot(), pair.writes()[len(before) :]
        return world, [call for call in writes if call.resource != "leases"], len(writes)


async def _quiet(pair: Pair, patience_s: float = 600.0) -> list[Call]:
    """Let everything act until all is as it will stay and nobody writes any more; what was written so far."""
    end = time.monotonic() + patience_s
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < _QUIET_S:
        assert time.monotonic() < end, "it does not come to rest"
        acted = await pair.act()
        writes = sum(call.resource != "leases" for call in pair.writes())
        if acted or writes != seen or not _is_settled(pair.history.world):
            seen, since = writes, time.monotonic()
        await asyncio.sleep(0.05)
    return pair.writes()


def _phases(world: World, kind: str) -> Counter[str]:
    return Counter(str((obj.get("status") or {}).get("phase")) for obj in world.of(kind))


def _is_settled(world: World) -> bool:
    """Whether everything asked for has come to where it stays; a plan over many objects takes a while."""
    machines, clusters = _phases(world, "GpuVM"), _phases(world, "VirtualCluster")
    return set(machines) == {"Running", "Stopped", "Pending"} and set(clusters) == {"Ready"}


def judge(world: World, writes: list[Call], renewals: int, objects: int, for_s: float) -> None:
    phases = _phases(world, "GpuVM")
    count = sum(len(world.objects[kind]) for kind in _OURS)
    print(
        f"{count} objects at rest for {for_s:g} s: {len(writes)} writes, {renewals} of Leases; {dict(phases)}"
    )
    assert writes == []
    assert count >= objects
    assert renewals >= for_s / 3, "the Lease was not renewed: nobody was there to write"
    assert _is_settled(world)


def test_fifty_objects_at_rest(cluster: ControlPlane, tmp_path: Path) -> None:
    world, writes, renewals = asyncio.run(writes_at_rest(cluster, tmp_path, 40, 60.0))
    judge(world, writes, renewals, 50, 60.0)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_thousand_objects_at_rest(cluster: ControlPlane, tmp_path: Path) -> None:
    world, writes, renewals = asyncio.run(writes_at_rest(cluster, tmp_path, 990, 600.0))
    judge(world, writes, renewals, 1000, 600.0)
