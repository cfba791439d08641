"""Small worlds for the model: one or two nodes of few GPUs, two or three workloads, and what people and nodes do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lab import TEMPLATES, Lab, add_node, gpu_class, gpu_pod, gpu_vm, manifest, tenant, virtual_cluster
from model_moves import Act, Model, begin
from model_state import Budget
from model_store import ModelServer, SharedWorld

from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.simulated import SimulatedCluster, simulated_chart
from vmtenancy.testing.story import PASSTHROUGH

Script = Sequence[tuple[str, Act]]

#: Kinds by which it is decided who has what. The others do not change here, or nobody decides by them.
DECIDING = ("GpuAllocation", "GpuLedger", "GpuVM", "Node", "Pod", "VirtualMachine", "VirtualMachineInstance")


@dataclass(frozen=True, slots=True)
class Small:
    """A fleet and what happens on it."""

    nodes: Sequence[Object]
    script: Script

    def model(
        self, budget: Budget, *, laggards: Sequence[str] = DECIDING, standby_laggards: Sequence[str] = ()
    ) -> Model:
        """From a controller that leads and has nothing to do."""
        lab = Lab()
        lab.cluster = ModelServer(
            world=SharedWorld(identity=lab.cluster.world.identity, templates=TEMPLATES),
            now=lab.cluster.now,
            renderer=simulated_chart,
        )
        for node in self.nodes:
            add_node(lab, node)
        lab.apply(
            manifest("GpuPool", "h100", {"selector": {}}),
            gpu_class("whole", container="nvidia.com/gpu", passthrough=PASSTHROUGH),
            manifest("Cohort", "research", {}),
            tenant("vision", 4),
        )
        lab.settle()
        return Model(begin(lab.cluster, budget), self.script, laggards, standby_laggards)


def for_machines(name: str, gpus: int = 1) -> Object:
    return gpu_node(name, mode="vm-passthrough", gpus=gpus, resources={PASSTHROUGH: gpus})


def for_pods(name: str, gpus: int = 1) -> Object:
    return gpu_node(name, gpus=gpus)


# -- what happens -----------------------------------------------------------------------------------------------------


def creates(*objects: Object) -> tuple[str, Act]:
    def act(around: SimulatedCluster) -> None:
        for obj in objects:
            around.cluster.apply(obj)

    return f"people create {_names(objects)}", act


def deletes(kind: str, name: str, namespace: str = "vision") -> tuple[str, Act]:
    ref = Ref(kind, namespace, name)
    return f"people delete {ref}", lambda around: around.cluster.delete(ref)


def edits(name: str, **spec: object) -> tuple[str, Act]:
    def act(around: SimulatedCluster) -> None:
        obj = around.cluster.world.get("GpuVM", "vision", name)
        assert obj is not None
        around.cluster.replace({**obj, "spec": {**obj["spec"], **spec}})

    return f"people set {spec} of GpuVM {name}", act


def loses(name: str) -> tuple[str, Act]:
    return f"node {name} vanishes", lambda around: around.cluster.delete(Ref("Node", "", name))


def comes_back(node: Object) -> tuple[str, Act]:
    def act(around: SimulatedCluster) -> None:
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        around.cluster.create({**node, "status": {**node["status"], **ready}})

    return f"node {node['metadata']['name']} comes back", act


def _names(objects: Sequence[Object]) -> str:
    return ", ".join(f"{obj['kind']} {obj['metadata']['name']}" for obj in objects)


def pod(name: str, count: int = 1, **spec: object) -> Object:
    return gpu_pod(name, count, namespace="vision", **spec)


ONE, TWO = for_pods("one"), for_pods("two")

WORLDS: dict[str, Small] = {
    "a machine comes and goes": Small([for_machines("one")], [creates(gpu_vm("a")), deletes("GpuVM", "a")]),
    "two machines want one GPU": Small(
        [for_machines("one")], [creates(gpu_vm("a")), creates(gpu_vm("b")), deletes("GpuVM", "a")]
    ),
    "two pods want one GPU": Small([ONE], [creates(pod("p")), creates(pod("q")), deletes("Pod", "p")]),
    "a pod's node vanishes": Small([ONE, TWO], [creates(pod("p")), loses("one")]),
    "a pod's node vanishes and comes back": Small(
        [ONE, TWO], [creates(pod("p")), loses("one"), creates(pod("q")), comes_back(ONE)]
    ),
    "a machine's node vanishes": Small(
        [for_machines("one"), for_machines("two")], [creates(gpu_vm("a")), loses("one"), creates(gpu_vm("b"))]
    ),
    "stop and start beside a waiting machine": Small(
        [for_machines("one")],
        [
            creates(gpu_vm("a")),
            edits("a", runStrategy="Halted"),
            creates(gpu_vm("b")),
            edits("a", runStrategy="Always"),
            deletes("GpuVM", "b"),
        ],
    ),
    "a machine is resized": Small(
        [for_machines("one", 2), for_machines("two")],
        [
            creates(gpu_vm("a")),
            edits("a", gpus=[{"class": "whole", "count": 2}]),
            creates(gpu_vm("b")),
            deletes("GpuVM", "a"),
        ],
    ),
    "a virtual cluster and a pod beside it": Small(
        [for_pods("one", 2)],
        [
            creates(virtual_cluster(guaranteed=1, most=1, namespace="vision")),
            creates(pod("p", 2)),
            deletes("VirtualCluster", "lab"),
        ],
    ),
    "three machines on two nodes": Small(
        [for_machines("one"), for_machines("two")],
        [creates(gpu_vm("a"), gpu_vm("b"), gpu_vm("c")), deletes("GpuVM", "a")],
    ),
}
