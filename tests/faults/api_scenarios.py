"""What people do to a small fleet, on the real API server; crash points are enumerated from the writes it takes.

Each scenario leaves nothing behind: its last act deletes what the others made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from arena import Arena
from lab import gpu_pod, gpu_vm, group, nodes, virtual_cluster
from points import Act
from surroundings import AT_ONCE

from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.testing.simulated import SimulatedCluster

HOME: Final = "vc-llm--lab"
"""The host namespace of the virtual cluster."""


def creating(*objects: Object) -> Act:
    return lambda arena: arena.create(*objects)


def deleting(kind: str, namespace: str, *names: str) -> Act:
    return lambda arena: arena.delete(*(Ref(kind, namespace, name) for name in names))


def editing(kind: str, namespace: str, name: str, **spec: Any) -> Act:
    return lambda arena: arena.patch(kind, namespace, name, {"spec": spec})


def pod(name: str, gpus: int = 1, namespace: str = "llm", group: str = "") -> Object:
    """A pod with GPUs that ends at once when it is told to."""
    made = gpu_pod(name, gpus, namespace=namespace, group=group)
    made["metadata"].setdefault("annotations", {}).update(AT_ONCE)
    made["spec"]["containers"][0]["image"] = "registry.example/cuda:12"
    return made


def inside(name: str, gpus: int = 1) -> Object:
    """The host's copy of a pod inside the virtual cluster, as the syncer makes it."""
    made = pod(SimulatedCluster.host_name(name, "default", "lab"), gpus, HOME)
    made["metadata"]["labels"] = {"vcluster.loft.sh/managed-by": "lab"}
    return made


async def _take_over(arena: Arena) -> None:
    arena.replace_controller()


async def _finish_inside(arena: Arena) -> None:
    ended = {"status": {"phase": "Succeeded"}}
    for namespace, name in list(arena.history.world.objects["Pod"]):
        if namespace == HOME and "-x-" in name:
            await arena.patch("Pod", namespace, name, ended, status=True)


async def _lose_node(arena: Arena) -> None:
    await arena.delete(Ref("Node", "", "machines"))


async def _node_returns(arena: Arena) -> None:
    await arena.add_node(next(node for node in nodes() if node["metadata"]["name"] == "machines"))


SCENARIOS: Final[dict[str, Sequence[Act]]] = {
    "create, take over, delete": [creating(gpu_vm("a", 2)), _take_over, deleting("GpuVM", "vision", "a")],
    "over quota": [
        creating(gpu_vm("a", 3), gpu_vm("b", 2)),
        deleting("GpuVM", "vision", "a"),
        deleting("GpuVM", "vision", "b"),
    ],
    "preempt": [
        editing("Tenant", "", "vision", preemption={"withinTenant": "LowerPriority"}),
        creating(gpu_vm("a", 3)),
        creating(gpu_vm("urgent", 3, priority=5)),
        deleting("GpuVM", "vision", "urgent"),
        deleting("GpuVM", "vision", "a"),
        editing("Tenant", "", "vision", preemption=None),
    ],
    "group": [
        creating(group("g", 2), gpu_vm("a", 2, group="g")),
        creating(pod("p", namespace="vision", group="g")),
        deleting("GpuVM", "vision", "a"),
        deleting("Pod", "vision", "p"),
        deleting("GpuGroup", "vision", "g"),
    ],
    "resize": [
        creating(gpu_vm("a")),
        editing("GpuVM", "vision", "a", runStrategy="Halted"),
        editing("GpuVM", "vision", "a", gpus=[{"class": "whole", "count": 2}]),
        editing("GpuVM", "vision", "a", runStrategy="Always"),
        deleting("GpuVM", "vision", "a"),
    ],
    "node loss": [
        creating(gpu_vm("a", 2), pod("p")),
        _lose_node,
        _node_returns,
        deleting("GpuVM", "vision", "a"),
        deleting("Pod", "llm", "p"),
    ],
    "a virtual cluster and its pods": [
        creating(virtual_cluster(guaranteed=1, most=2)),
        creating(inside("p"), inside("q")),
        _finish_inside,
        deleting("VirtualCluster", "llm", "lab"),
    ],
    "pods in a tenant's namespace": [
        creating(pod("p", 2), pod("q")),
        deleting("Pod", "llm", "p"),
        deleting("Pod", "llm", "q"),
    ],
}
