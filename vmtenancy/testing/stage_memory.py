"""The story in memory: the planner itself on a simulated cluster, on a machine that has nothing but Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.world import World
from vmtenancy.testing.simulated import SimulatedCluster
from vmtenancy.testing.story import PATIENCE, StoryError, gpu_node_facts


class MemoryStage:
    """A `Stage` on a `SimulatedCluster`: time moves only while something changes."""

    def __init__(self, templates: dict[str, str]) -> None:
        self.simulated = SimulatedCluster(templates)

    def describe(self) -> str:
        """What is real here."""
        return (
            "SIMULATED: the real planner, quota, placement and ledger run on a cluster in memory; Kubernetes, KubeVirt "
            "and vCluster are played"
        )

    def add_nodes(self, nodes: Sequence[Object]) -> None:
        """Nodes that are ready, with their facts."""
        for node in nodes:
            ready = {"conditions": [{"type": "Ready", "status": "True"}]}
            self.simulated.cluster.create({**node, "status": {**node["status"], **ready}})
            self.simulated.cluster.create(gpu_node_facts(node))

    def apply(self, obj: Object) -> None:
        """As `kubectl apply`."""
        self.simulated.cluster.apply(obj)

    def delete(self, ref: Ref) -> None:
        """As `kubectl delete`."""
        self.simulated.cluster.delete(ref)

    def apply_inside(self, cluster: Ref, obj: Object) -> None:
        """The pod as the syncer would create it on the host."""
        self.simulated.sync_pod(self._home(cluster), cluster.name, obj)

    def wait(self, what: str, ready: Callable[[World], bool], timeout: float = PATIENCE) -> World:
        """Let the cluster settle; what is not there then never comes."""
        self.simulated.settle()
        world = self.simulated.cluster.world
        if not ready(world):
            raise StoryError(f"waited for {what}: the simulated cluster is at rest without it")
        return world

    def _home(self, cluster: Ref) -> str:
        obj = self.simulated.cluster.world.find(cluster)
        if obj is None:
            raise StoryError(f"{cluster} does not exist")
        return str(obj["status"]["namespace"])
