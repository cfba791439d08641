"""Leases and windows on a real API server: they begin and end on time by the controller alone, warned, and renewed.

virt-controller and vCluster's control plane are played; the clock is real, so the leases are short.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from api_scenarios import inside
from arena import Arena, arena
from lab import gpu_vm, reservation, virtual_cluster
from typer.testing import CliRunner

from vmtenancy.cli.main import app
from vmtenancy.reconcile import World
from vmtenancy.reconcile.status import condition, seconds, timestamp
from vmtenancy.reconcile.steps import Ref
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import uid_of
from vmtenancy.testing.controlplane import ControlPlane

pytestmark = pytest.mark.cluster

VM, CLUSTER = Ref("GpuVM", "vision", "a"), Ref("VirtualCluster", "llm", "lab")
WINDOW, LATE = Ref("GpuReservation", "vision", "r"), Ref("GpuVM", "vision", "late")
LEASE: Final = {"duration": "40s", "warnBefore": ["20s", "10s"]}
#: Longer than a lease, on two busy cores.
PATIENCE_S: Final = 120.0


@pytest.fixture
async def running(cluster: ControlPlane, tmp_path: Path) -> AsyncIterator[Arena]:
    async with arena(cluster, tmp_path) as made:
        yield made
        await made.delete(VM, CLUSTER, WINDOW, LATE)
        await made.rest()


async def until(made: Arena, holds: Callable[[World], bool]) -> World:
    """The world at rest in which it holds; nothing but time and the controller's own wake-ups lead there."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds(world := await made.rest()):
            await made.something_changed()
    return world


def reason(world: World, ref: Ref) -> str:
    found = condition(world.find(ref) or {}, "Admitted")
    return str(found["reason"]) if found else ""


def granted(world: World) -> set[str]:
    return {grant.owner_name for grant in View(world, 0.0).live}


def vmtenancy(control_plane: ControlPlane, *arguments: str) -> str:
    """What the command line prints."""
    result = CliRunner().invoke(app, [*arguments, "--kubeconfig", str(control_plane.kubeconfig)])
    assert result.exit_code == 0, result.output
    return result.stdout


def renew(control_plane: ControlPlane, target: str, namespace: str) -> str:
    return vmtenancy(control_plane, "renew", target, "-n", namespace)


async def explained(control_plane: ControlPlane, name: str) -> dict[str, Any]:
    command = ("explain", f"gpuvm/{name}", "-n", "vision", "-o", "json")
    found: dict[str, Any] = json.loads(await asyncio.to_thread(vmtenancy, control_plane, *command))
    return found


async def events(made: Arena, about: Ref) -> list[tuple[str, str]]:
    found = await made.client.request("GET", f"/apis/events.k8s.io/v1/namespaces/{about.namespace}/events")
    uid = uid_of(made.history.world.find(about) or {"metadata": {}})
    told = [event for event in found["items"] if event["regarding"].get("uid") == uid]
    return [(event["reason"], event["type"]) for event in told]


async def test_machine_and_virtual_cluster_end_on_time_and_start_again_when_renewed(
    control_plane: ControlPlane, running: Arena
) -> None:
    await running.create(gpu_vm("a", 2, lease=LEASE), virtual_cluster(guaranteed=1, most=2, lease=LEASE))
    await running.rest()
    await running.create(inside("p"), gpu_vm("late", 3))
    world = await running.rest()
    assert {"a", "lab", "p"} <= {name.removesuffix("-x-default-x-lab") for name in granted(world)}
    ends = {ref: seconds((world.find(ref) or {})["status"]["lease"]["expiresAt"]) for ref in (VM, CLUSTER)}
    told = await explained(control_plane, "late")
    assert (told["reason"], told["queue"]) == ("QuotaExceeded", [{"pool": "h100", "position": 1}])
    assert told["start"] == {"earliest": timestamp(ends[VM]), "latest": timestamp(ends[VM])}

    def both_are_over(world: World) -> bool:
        return reason(world, VM) == reason(world, CLUSTER) == "LeaseExpired" and granted(world) == {"late"}

    world = await until(running, both_are_over)
    for ref, end in ends.items():
        told = condition(world.find(ref) or {}, "Admitted") or {}
        assert 0 <= seconds(told["lastTransitionTime"]) - end < 30, "it was taken back when it was due"
        assert sorted(await events(running, ref)).count(("LeaseEnding", "Warning")) == 2
        assert ("LeaseExpired", "Warning") in await events(running, ref)
    machine = world.get("VirtualMachine", "vision", "a") or {}
    assert machine["spec"]["runStrategy"] == "Halted"
    assert not [
        pod
        for pod in world.of("Pod")
        if pod["metadata"]["namespace"] == "vc-llm--lab"
        and pod["spec"].get("nodeName")
        and View(world, 0.0).gpus(pod)
    ]

    assert (await explained(control_plane, "a"))["reason"] == "LeaseExpired"
    assert (await explained(control_plane, "late"))["state"] == "Holds", "it started when it was said to"
    await running.delete(LATE)
    told = await asyncio.to_thread(renew, control_plane, "gpuvm/a", "vision")
    assert told.startswith("the lease of GpuVM vision/a counts from 20")
    assert told.endswith(f"Z; it was to end at {timestamp(ends[VM])}\n")
    await asyncio.to_thread(renew, control_plane, "vcl/lab", "llm")
    await running.create(gpu_vm("new", lease=LEASE, runStrategy="Halted"))
    told = await asyncio.to_thread(renew, control_plane, "gvm/new", "vision")
    assert told.endswith("Z; none has begun so far\n")
    world = await until(running, lambda world: {"a", "lab"} <= granted(world))
    assert reason(world, VM) == reason(world, CLUSTER) == "Admitted"
    assert seconds((world.find(VM) or {})["status"]["lease"]["startedAt"]) >= ends[VM]
    assert running.history.violations() == []


async def test_a_reservation_is_kept_clear_begins_and_ends_on_time(
    control_plane: ControlPlane, running: Arena
) -> None:
    start = int(time.time()) + 30
    await running.create(
        reservation("r", 2, start, start + 15), gpu_vm("a", reservation="r"), gpu_vm("late", 3)
    )
    world = await running.rest()
    assert [reason(world, ref) for ref in (WINDOW, VM, LATE)] == [
        "Scheduled",
        "ReservationPending",
        "Reserved",
    ]
    told = await explained(control_plane, "late")
    assert (told["reason"], told["changes"]["leaseUntil"]) == ("Reserved", timestamp(start))
    over = timestamp(start + 15)
    assert told["start"] == {"earliest": over, "latest": over}
    world = await until(running, lambda world: {"r", "a"} <= granted(world))
    assert reason(world, WINDOW) == "Admitted"
    told = await explained(control_plane, "late")
    assert (told["reason"], told["start"]) == ("QuotaExceeded", {"earliest": over, "latest": over})
    assert reason(world, LATE) == "QuotaExceeded"
    world = await until(running, lambda world: granted(world) == {"late"})
    assert [reason(world, ref) for ref in (WINDOW, VM)] == ["Ended", "ReservationEnded"]
    told = await events(running, WINDOW)
    assert {("Scheduled", "Normal"), ("Admitted", "Normal"), ("Ended", "Normal")} <= set(told)
    assert running.history.violations() == []
