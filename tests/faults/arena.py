"""A real API server on which controllers run, are struck by faults and killed, and every state is judged.

Real are etcd, kube-apiserver, kube-scheduler, kube-controller-manager and KWOK; what `surroundings` plays is not. One
arena serves many runs: a scenario that ends with the deletion of what it made leaves the arena as it was.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import run
from typing import Final, TypeVar

from in_process import InProcessController, render
from lab import described, nodes
from surroundings import surroundings

from vmtenancy.kube.cache import Cache
from vmtenancy.kube.client import Client, path_of
from vmtenancy.kube.errors import AlreadyExistsError, NotFoundError
from vmtenancy.kube.executor import Executor
from vmtenancy.kube.reflector import Reflectors
from vmtenancy.reconcile import World, check
from vmtenancy.reconcile.kinds import KINDS, KindInfo
from vmtenancy.reconcile.pods import is_finished, is_gated
from vmtenancy.reconcile.status import is_true
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.world import is_deleting, owner_uids, ref_of, uid_of
from vmtenancy.testing import build
from vmtenancy.testing.cluster import Cluster
from vmtenancy.testing.controller import install_into
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.faults import FaultProxy
from vmtenancy.testing.informer import allowing
from vmtenancy.testing.story import gpu_node_facts

#: From the end of a fault to the right state, on two busy cores.
REST_S: Final = 60.0
_MERGE: Final = "application/merge-patch+json"
Version = tuple[Ref, str]
_KUBEVIRT: Final = ("virtualmachines.kubevirt.io", "virtualmachineinstances.kubevirt.io")


A = TypeVar("A", bound="Arena")


class NotAtRestError(AssertionError):
    """Something still waits or changes; says what."""


class Arena:
    """`async with arena(cluster, folder)` makes one, with a small fleet and its tenants at rest.

    `controller` is the one that runs now, behind `proxy`. `client` is an administrator who passes by the proxy.
    """

    def __init__(self, client: Client, proxy: FaultProxy) -> None:
        self.client, self.proxy = client, proxy
        self.history = History(self._wake)
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._replacing = threading.Lock()
        self._emptied: set[str] = set()
        self._finalized: set[str] = set()
        self._executor = Executor(
            client, self.history, render=render, may_write=lambda: True, instance="surroundings"
        )
        self.controller = self._new_controller()

    # -- the controller ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the controller."""
        self.controller.start()

    def stop(self) -> None:
        """End it."""
        self.controller.kill()

    def replace_controller(self) -> None:
        """Kill it and start another one. Callable from any thread, returns once the old one is gone."""
        with (
            self._replacing
        ):  # two faults may strike at once, and nobody would ever kill what one of them started
            self.controller.kill()
            self.controller = self._new_controller()
            self.controller.start()

    def _new_controller(self) -> InProcessController:
        return InProcessController(self.proxy.kubeconfig, lambda: self._loop.call_soon_threadsafe(self._wake))

    # -- people ------------------------------------------------------------------------------------------------

    async def create(self, *objects: Object) -> None:
        """As `kubectl create`; seen by the next look at the world."""
        for obj in objects:
            self.history.wrote(await self.client.create(obj))

    async def patch(
        self, kind: str, namespace: str, name: str, body: Object, *, status: bool = False
    ) -> None:
        """As `kubectl patch --type=merge`."""
        path = path_of(KINDS[kind], namespace, name) + ("/status" if status else "")
        self.history.wrote(await self.client.request("PATCH", path, body=body, content_type=_MERGE))

    async def delete(self, *refs: Ref) -> None:
        """As `kubectl delete --wait=false --ignore-not-found`."""
        for ref in refs:
            with suppress(NotFoundError):
                left = await self.client.delete(KINDS[ref.kind], ref)
                if left is not None:
                    self.history.wrote(left)
                elif (found := self.history.world.find(ref)) is not None:
                    self.history.gone(ref, uid_of(found))

    async def add_node(self, node: Object) -> None:
        """A node, with the facts that its agent publishes."""
        facts = gpu_node_facts(node)
        await self.create(node)
        with suppress(AlreadyExistsError):
            await self.create(facts)
        await self.patch("GpuNode", "", facts["metadata"]["name"], {"status": facts["status"]}, status=True)

    # -- rest --------------------------------------------------------------------------------------------------

    async def rest(self, within_s: float = REST_S) -> World:
        """Let everything act until nothing is left to do by anybody; the world as it is then.

        Raises `NotAtRestError` after `within_s` seconds, and the error of a controller that died.
        """
        why = ["nothing was seen"]
        try:
            async with asyncio.timeout(within_s):
                while True:
                    self._changed.clear()
                    if self.controller.died_of is not None:
                        raise self.controller.died_of
                    world = self.history.snapshot()
                    if await self._act(world):
                        continue
                    why = list(self._unrest(world))
                    if not why:
                        return world
                    await self._changed.wait()
        except TimeoutError:
            raise NotAtRestError(f"not at rest after {within_s:g} s: {'; '.join(why[:5])}") from None

    async def something_changed(self) -> None:
        """Returns once something was observed, or planned, since the last look of `rest`."""
        await self._changed.wait()

    async def _act(self, world: World) -> bool:
        """One turn of what is played. Whether there was anything to do."""
        due = surroundings(world, time.time())
        outcomes = await self._executor.execute(due)
        if any(outcome.error for outcome in outcomes):
            await asyncio.sleep(0.05)  # what is observed is behind: the next turn looks again
        emptied = [await self._empty(ns, world) for ns in world.of("Namespace") if is_deleting(ns)]
        return bool(due.chains) or any(emptied)

    async def _empty(self, namespace: Object, world: World) -> bool:
        """The namespace controller's work. Whether anything was due."""
        name, uid = namespace["metadata"]["name"], uid_of(namespace)
        inside = [obj for objs in world.objects.values() for key, obj in objs.items() if key[0] == name]
        due = [ref_of(obj) for obj in inside if not is_deleting(obj)]
        if uid not in self._emptied:
            self._emptied.add(uid)
            for info in KINDS.values():
                if info.namespaced:
                    await self.client.request("DELETE", path_of(info, name))
        elif due:  # made while it was emptied
            await self.delete(*due)
        elif inside or uid in self._finalized:
            return False
        else:
            self._finalized.add(uid)
            path = path_of(KINDS["Namespace"], "", name) + "/finalize"
            await self.client.request("PUT", path, body={**namespace, "spec": {}})
        return True

    def _unrest(self, world: World) -> Iterator[str]:
        """What still waits for somebody, in words."""
        yield from _unfinished(world)
        if self.controller.last is None:
            yield "the controller has made no plan yet"
            return
        seen, planned = self.controller.last
        yield from (f"{self.controller.identity} plans: {chain.why}" for chain in planned.chains)
        if differs := _versions(seen).symmetric_difference(_versions(world)):
            yield f"the controller has not seen {sorted(map(str, differs))[:3]}"
        if differs := self.history.seen.symmetric_difference(_versions(world)):
            yield f"no event has come of {sorted(map(str, differs))[:3]}"

    def _wake(self) -> None:
        self._changed.set()


class History(Cache):
    """A cache that keeps every event, and judges every state that the API server went through."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        super().__init__(World(), on_change)
        self._events: list[tuple[int, str, Object]] = []
        self._state = World()
        self.seen: set[Version] = set()
        """What the events so far lead to."""

    def relist(self, info: KindInfo, items: Iterable[Object], resource_version: str, begun_at: int) -> None:
        """The states begin anew: what was between is not known."""
        super().relist(info, items, resource_version, begun_at)
        self._events.clear()
        self._state = self.snapshot()
        self.seen = _versions(self._state)

    def observe(self, event_type: str, obj: Object) -> None:
        """As `Cache`."""
        ref = ref_of(obj)
        self.seen = {version for version in self.seen if version[0] != ref}
        if event_type != "DELETED":
            self.seen.add((ref, obj["metadata"]["resourceVersion"]))
        self._events.append((int(obj["metadata"]["resourceVersion"]), event_type, obj))
        super().observe(event_type, obj)
        self._on_change()

    def violations(self) -> list[str]:
        """What was wrong in any state since the last call, in the order of time; call it at rest."""
        found: dict[str, str] = {}
        for _, event_type, obj in sorted(self._events, key=lambda event: event[0]):
            if event_type == "DELETED":
                self._state.remove(obj["kind"], ref_of(obj).namespace, ref_of(obj).name)
            else:
                self._state.put(obj)
            for violation in check(self._state, at_rest=False):
                found.setdefault(str(violation), f"{event_type} {ref_of(obj)}")
        self._events.clear()
        return [f"{violation} (since {event})" for violation, event in found.items()]


def _versions(world: World) -> set[Version]:
    return {
        (ref_of(obj), obj["metadata"]["resourceVersion"])
        for objects in world.objects.values()
        for obj in objects.values()
    }


def _unfinished(world: World) -> Iterator[str]:
    """What the real programs, or those that are played, still have to do."""
    known = {uid_of(obj) for objects in world.objects.values() for obj in objects.values()}
    for objects in world.objects.values():
        for obj in objects.values():
            if is_deleting(obj):
                yield f"{ref_of(obj)} is going"
            elif any(owner not in known for owner in owner_uids(obj)):
                yield f"{ref_of(obj)} has lost its owner"
    for pod in world.of("Pod"):
        if not is_gated(pod) and not is_finished(pod) and pod["status"].get("phase") != "Running":
            yield f"{ref_of(pod)} is about to run"
    for stateful in world.of("StatefulSet"):
        if (stateful.get("status") or {}).get("readyReplicas", 0) != stateful["spec"]["replicas"]:
            yield f"{ref_of(stateful)} is not ready"
    for quota in world.of("ResourceQuota"):
        if (quota.get("status") or {}).get("hard") != quota["spec"].get("hard"):
            yield f"{ref_of(quota)} is not enforced"
    for node in world.of("Node"):
        if not is_true(node, "Ready") or node["spec"].get("taints"):
            yield f"{ref_of(node)} is not ready"


def arena_plane() -> ControlPlane:
    """A control plane for arenas, which do the namespace controller's work themselves.

    The real one begins 5 s after a deletion, and may go on with what it listed in a namespace made anew meanwhile.
    """
    return ControlPlane(without_controllers=["namespace-controller"])


@asynccontextmanager
async def arena(
    cluster: Cluster, folder: Path, make: Callable[[Client, FaultProxy], A] = Arena
) -> AsyncIterator[A]:
    """Install vmtenancy and KubeVirt's kinds, describe the fleet, start a controller and wait for rest."""
    _install_kubevirt_kinds(cluster)
    await asyncio.to_thread(install_into, cluster.kubeconfig)
    with FaultProxy(cluster.kubeconfig, folder) as proxy:
        async with await Client.connect(cluster.kubeconfig) as client:
            made = make(client, proxy)
            async with Reflectors(client, made.history):
                await asyncio.wait_for(made.history.synced.wait(), REST_S)
                for node in nodes():
                    await made.add_node(node)
                await made.create(*described())
                made.start()
                try:
                    await made.rest()
                    made.history.violations()
                    yield made
                finally:
                    made.stop()


def _install_kubevirt_kinds(cluster: Cluster) -> None:
    printed = run([build.resolve("kubevirt-manifests"), "kubevirt"], capture_output=True, check=True).stdout
    for obj in json.loads(printed)["items"]:
        if obj["metadata"]["name"] in _KUBEVIRT:
            # They stay when the cluster is cleaned up.
            allowing(
                409, cluster.request, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", obj
            )
