"""The story on a real API server: what is asked is a user's request, what is seen comes from watches."""

from __future__ import annotations

import asyncio
import base64
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from vmtenancy.kube.client import Client, path_of
from vmtenancy.kube.errors import NotFoundError
from vmtenancy.kube.live import LiveWorld
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.status import condition
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.world import World
from vmtenancy.testing.story import PATIENCE, StoryError, gpu_node_facts


class ClusterStage:
    """A `Stage` on the cluster of a kubeconfig: `with ClusterStage(kubeconfig, "what is real") as stage`."""

    def __init__(self, kubeconfig: Path, description: str) -> None:
        self._description = description
        self._live = LiveWorld(kubeconfig)
        self._folder = tempfile.TemporaryDirectory(prefix="vmtenancy-story-")
        self._nodes: list[str] = []

    def __enter__(self) -> ClusterStage:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for name in self._nodes:
                for kind_ in ("GpuNode", "Node"):
                    self.delete(Ref(kind_, "", name))
        finally:
            self._live.__exit__(kind, error, trace)
            self._folder.cleanup()

    def describe(self) -> str:
        """What is real here."""
        return self._description

    def world(self) -> World:
        """What is observed now."""
        return self._live.world()

    def add_nodes(self, nodes: Sequence[Object]) -> None:
        """KWOK nodes, with the facts that the agent of each would publish."""
        for node in nodes:
            self._nodes.append(node["metadata"]["name"])
            facts = gpu_node_facts(node)
            self._live.call(partial(_publish, node, facts))
        names = [node["metadata"]["name"] for node in nodes]
        self.wait("the nodes to be ready", lambda world: all(_is_ready(world, name) for name in names))

    def apply(self, obj: Object) -> None:
        """As `kubectl create`, by an administrator; a namespace that is on its way is waited for."""
        namespace = obj["metadata"].get("namespace", "")
        if namespace:
            self.wait(
                f"namespace {namespace}", lambda world: world.get("Namespace", "", namespace) is not None
            )
        self._live.call(lambda client: client.create(obj))

    def delete(self, ref: Ref) -> None:
        """As `kubectl delete --wait=false --ignore-not-found`."""

        async def gone(client: Client) -> None:
            try:
                await client.delete(KINDS[ref.kind], ref)
            except NotFoundError:
                return

        self._live.call(gone)

    def apply_inside(self, cluster: Ref, obj: Object) -> None:
        """With the kubeconfig that the VirtualCluster hands out."""
        self._inside(cluster, lambda client: client.create(obj))

    def get_inside(self, cluster: Ref, ref: Ref) -> Object:
        """One object inside a virtual cluster. Raises `NotFoundError`."""
        path = path_of(KINDS[ref.kind], ref.namespace, ref.name)
        found: Object = self._inside(cluster, lambda client: client.request("GET", path))
        return found

    def wait(self, what: str, ready: Callable[[World], bool], timeout: float = PATIENCE) -> World:
        """Wait for it to be observed; what is said in conditions instead is part of the error."""
        world = self._live.wait(ready, timeout)
        if world is None:
            raise StoryError(f"waited {timeout:g} s for {what}; {_complaints(self._live.world())}")
        return world

    def _inside(self, cluster: Ref, work: Callable[[Client], Awaitable[Any]]) -> Any:
        def secret_in(world: World) -> Object | None:
            name = ((world.find(cluster) or {}).get("status") or {}).get("kubeconfigSecret")
            return world.get("Secret", cluster.namespace, name) if name else None

        # Watches of different kinds are not in step: the Secret may be seen after the status that names it.
        world = self.wait(f"the kubeconfig of {cluster}", lambda world: secret_in(world) is not None)
        secret = secret_in(world) or {}
        path = Path(self._folder.name, f"{cluster.name}.kubeconfig")
        path.touch(mode=0o600)
        path.write_bytes(base64.b64decode(secret["data"]["config"]))

        async def run() -> Any:
            async with await Client.connect(path) as client:
                return await work(client)

        return asyncio.run(run())


async def _publish(node: Object, facts: Object, client: Client) -> None:
    await client.create(node)
    stored = await client.create(facts)
    await client.replace({**stored, "status": facts["status"]}, status=True)


def _is_ready(world: World, name: str) -> bool:
    node = world.get("Node", "", name)
    found = condition(node, "Ready") if node else None
    return found is not None and found["status"] == "True" and not (node or {})["spec"].get("taints")


def _complaints(world: World) -> str:
    """What objects of ours say is not as it should be."""
    lines = []
    for kind in ("Tenant", "GpuPool", "GpuClass", "GpuVM", "VirtualCluster"):
        for obj in world.of(kind):
            status = obj.get("status") or {}
            for found in status.get("conditions") or ():
                if found["status"] == "False" and found.get("message"):
                    lines.append(f"{kind} {obj['metadata']['name']}: {found['reason']}: {found['message']}")
            if not status:
                lines.append(f"{kind} {obj['metadata']['name']} has no status yet")
    return "; ".join(lines) or "nothing complains"
