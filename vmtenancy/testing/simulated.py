"""Plays everything around the controller on a `MemoryCluster`: scheduler, kubelets, KubeVirt, vCluster.

Each rule is the outcome seen on the real programs, without their steps in between: it serves the demo on a machine
without a cluster, what-if questions and property tests, never as evidence about Kubernetes. Deterministic: objects
are visited in the order of their names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from vmtenancy.api.names import GPU_RESOURCE_PREFIXES
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.memory import MemoryCluster
from vmtenancy.reconcile.node_fit import fits_node
from vmtenancy.reconcile.planner import plan
from vmtenancy.reconcile.pods import gpu_requests, is_finished
from vmtenancy.reconcile.status import is_true
from vmtenancy.reconcile.steps import Object, Ref, RenderChart
from vmtenancy.reconcile.view import by_name
from vmtenancy.reconcile.world import annotations_of, is_deleting, labels_of, owner_uids, ref_of, uid_of


class NotSettledError(Exception):
    """Controller and surroundings still change something after many rounds: a loop."""


class SimulatedCluster:
    """A `MemoryCluster` with its surroundings; `settle` lets controller and surroundings act until all is quiet."""

    def __init__(
        self, templates: dict[str, str], *, identity: str = "simulated", now: float = 1_800_000_000.0
    ) -> None:
        self.cluster = MemoryCluster(now=now, renderer=simulated_chart)
        self.cluster.world.identity = identity
        self.cluster.world.templates = templates
        self.refusing: frozenset[str] = frozenset()
        """Nodes that the scheduler binds nothing to, for a reason that the planner does not see: a volume, a port."""

    def settle(self, rounds: int = 60) -> int:
        """Let controller and surroundings act in turn, one second apart, until neither has anything to do.

        Returns the number of rounds. Raises `NotSettledError` after `rounds`.
        """
        for done in range(rounds):
            before = self.cluster.writes
            planned = self.reconcile()
            self.surroundings()
            if not planned and self.cluster.writes == before:
                return done
            self.cluster.now += 1
        raise NotSettledError(f"still changing after {rounds} rounds")

    def reconcile(self) -> bool:
        """One plan, run. Whether there was anything in it."""
        planned = plan(self.cluster.world, self.cluster.now)
        self.cluster.run(planned)
        return bool(planned.chains)

    def surroundings(self) -> None:
        """One turn of everything that is not ours."""
        for _, move in self.moves():
            move()

    def moves(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Each rule for each object by itself, with its name, in the order of a turn.

        Objects are looked up when their rule's turn comes: a turn runs each move before it takes the next one.
        """
        rules: Sequence[tuple[str, str, Callable[[Object], None]]] = (
            *(("collect garbage", kind, self._collect) for kind in KINDS),
            ("evict from a lost node", "Pod", self._evict_lost),
            ("run vCluster", "StatefulSet", self._run_vcluster),
            ("run machine", "VirtualMachine", self._run_machine),
            ("run instance", "VirtualMachineInstance", self._run_instance),
            ("schedule", "Pod", self._schedule),
            ("run pod", "Pod", self._run_pod),
        )
        for what, kind, rule in rules:
            for obj in by_name(self.cluster.world.of(kind)):
                yield f"{what}: {ref_of(obj)}", partial(rule, obj)

    # -- garbage collection -----------------------------------------------------------------------------------

    def _collect(self, obj: Object) -> None:
        """What was made for an owner that is gone by now goes."""
        owners = set(owner_uids(obj))
        if owners:
            objects = self.cluster.world.objects.values()
            if not any(uid_of(other) in owners for of_kind in objects for other in of_kind.values()):
                self.cluster.delete(ref_of(obj), uid=uid_of(obj))

    def _evict_lost(self, pod: Object) -> None:
        """What ran on a node that is gone has ended."""
        node = pod["spec"].get("nodeName")
        if node and self.cluster.world.get("Node", "", node) is None:
            self._set_status(pod, {**(pod.get("status") or {}), "phase": "Failed"})
            self.cluster.delete(ref_of(pod))

    # -- KubeVirt ---------------------------------------------------------------------------------------------

    def _run_machine(self, vm: Object) -> None:
        world = self.cluster.world
        of_vm = Ref("VirtualMachineInstance", vm["metadata"]["namespace"], vm["metadata"]["name"])
        instance = world.find(of_vm)
        if instance is None and is_deleting(vm):
            self._set_finalizers(vm)
            return
        runs = vm["spec"].get("runStrategy") != "Halted" and not is_deleting(vm)
        if instance is None and runs:
            # With it the machine outlives its instance.
            self._set_finalizers(vm, "kubevirt.io/virtualMachineControllerFinalize")
            self.cluster.create(_instance_of(vm))
        elif instance is not None and not is_deleting(instance) and (not runs or is_finished(instance)):
            self.cluster.delete(of_vm)
        instance = world.find(of_vm)
        phase = instance["status"]["phase"] if instance else ""
        printable = {"Running": "Running", "": "Starting" if runs else "Stopped"}.get(phase, "Scheduling")
        self._set_status(
            vm, {"created": bool(instance), "ready": phase == "Running", "printableStatus": printable}
        )

    def _run_instance(self, instance: Object) -> None:
        pods = self._launchers(instance)
        if is_deleting(instance):
            for pod in pods:
                self.cluster.delete(ref_of(pod))
            if not self._launchers(instance):
                self._set_finalizers(instance)
            return
        if is_finished(instance):
            return
        started = instance["status"]["phase"] == "Running"
        if not pods and not started:
            self.cluster.create(_launcher_of(instance))
            return
        if not pods or is_finished(pods[0]):
            self._set_status(instance, {"phase": "Failed"})
            return
        pod = pods[0]
        running = (pod.get("status") or {}).get("phase") == "Running"
        status: dict[str, Any] = {"phase": "Running" if running else "Scheduling"}
        if running:
            status["nodeName"] = pod["spec"]["nodeName"]
            status["conditions"] = [{"type": "Ready", "status": "True"}]
        self._set_status(instance, status)

    def _launchers(self, instance: Object) -> list[Object]:
        uid, namespace = uid_of(instance), instance["metadata"]["namespace"]
        return [
            pod
            for pod in self.cluster.world.of("Pod")
            if labels_of(pod).get("kubevirt.io") == "virt-launcher"
            and pod["metadata"]["namespace"] == namespace
            and uid in owner_uids(pod)
        ]

    # -- scheduler and kubelets -------------------------------------------------------------------------------

    def _schedule(self, pod: Object) -> None:
        if pod["spec"].get("nodeName") or pod["spec"].get("schedulingGates") or is_deleting(pod):
            return
        free = self._free_resources()
        wanted = gpu_requests(pod)
        for node in by_name(self.cluster.world.of("Node")):
            left = free[node["metadata"]["name"]]
            has_room = all(left.get(name, 0) >= count for name, count in wanted.items())
            refuses = node["metadata"]["name"] in self.refusing
            if is_true(node, "Ready") and fits_node(pod, node) and has_room and not refuses:
                bound = copy.deepcopy(pod)
                bound["spec"]["nodeName"] = node["metadata"]["name"]
                self.cluster.replace(bound)
                return

    def _free_resources(self) -> dict[str, dict[str, int]]:
        free: dict[str, dict[str, int]] = {}
        for node in self.cluster.world.of("Node"):
            allocatable = (node.get("status") or {}).get("allocatable") or {}
            free[node["metadata"]["name"]] = {
                name: int(count)
                for name, count in allocatable.items()
                if name.startswith(GPU_RESOURCE_PREFIXES)
            }
        for pod in self.cluster.world.of("Pod"):
            name = pod["spec"].get("nodeName")
            if name in free and not is_finished(pod):
                for resource, count in gpu_requests(pod).items():
                    free[name][resource] = free[name].get(resource, 0) - count
        return free

    def _run_pod(self, pod: Object) -> None:
        node = self.cluster.world.get("Node", "", pod["spec"].get("nodeName", ""))
        if node is not None and is_true(node, "Ready") and not is_finished(pod):
            phase = "Succeeded" if is_deleting(pod) else "Running"
            self._set_status(pod, {**(pod.get("status") or {}), "phase": phase})

    # -- vCluster ---------------------------------------------------------------------------------------------

    def _run_vcluster(self, stateful: Object) -> None:
        if labels_of(stateful).get("app") != "vcluster" or is_deleting(stateful):
            return
        self._set_status(stateful, {"replicas": 1, "readyReplicas": 1, "updatedReplicas": 1})
        meta = stateful["metadata"]
        name = f"vc-{meta['name']}"
        if self.cluster.world.get("Secret", meta["namespace"], name) is None:
            self.cluster.create(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": name, "namespace": meta["namespace"]},
                    "data": {"config": "c2ltdWxhdGVk"},
                }
            )

    @staticmethod
    def host_name(name: str, namespace: str, cluster: str) -> str:
        """The name that the syncer gives the host's copy of a pod."""
        return f"{name}-x-{namespace}-x-{cluster}"

    def sync_pod(self, host_namespace: str, cluster: str, pod: Object) -> Object:
        """A pod created inside a virtual cluster, as its syncer creates it on the host."""
        meta = pod["metadata"]
        copied = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.host_name(meta["name"], meta.get("namespace", "default"), cluster),
                "namespace": host_namespace,
                "labels": {**labels_of(pod), "vcluster.loft.sh/managed-by": cluster},
                "annotations": dict(annotations_of(pod)),
            },
            "spec": copy.deepcopy(pod["spec"]),
        }
        return self.cluster.create(copied)

    def _set_finalizers(self, obj: Object, *names: str) -> None:
        current = self.cluster.world.find(ref_of(obj))
        if current is not None:
            metadata = {**current["metadata"], "finalizers": list(names)}
            self.cluster.replace({**current, "metadata": metadata})

    def _set_status(self, obj: Object, status: dict[str, Any]) -> None:
        current = self.cluster.world.find(ref_of(obj))
        if current is not None and current.get("status") != status:
            self.cluster.replace({**current, "status": status}, status=True)


def simulated_chart(step: RenderChart) -> Iterable[Object]:
    """What matters of vCluster's chart to the controller: one StatefulSet, ready when its control plane is."""
    labels = {"app": "vcluster", "release": step.release}
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": step.release, "namespace": step.namespace, "labels": labels},
            "spec": {
                "replicas": 1,
                "serviceName": f"{step.release}-headless",
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "syncer", "image": "registry.example/vcluster:0"}]},
                },
            },
        }
    ]


def _owner(obj: Object) -> list[Object]:
    return [
        {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "name": obj["metadata"]["name"],
            "uid": uid_of(obj),
            "controller": True,
        }
    ]


def _instance_of(vm: Object) -> Object:
    template = vm["spec"]["template"]
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {
            "name": vm["metadata"]["name"],
            "namespace": vm["metadata"]["namespace"],
            "labels": dict(template.get("metadata", {}).get("labels") or {}),
            "ownerReferences": _owner(vm),
            "finalizers": ["foregroundDeleteVirtualMachine"],
        },
        "spec": copy.deepcopy(template["spec"]),
        "status": {"phase": "Pending"},
    }


def _launcher_of(instance: Object) -> Object:
    domain = instance["spec"]["domain"]
    gpus: dict[str, int] = {}
    for gpu in domain["devices"].get("gpus") or ():
        gpus[gpu["deviceName"]] = gpus.get(gpu["deviceName"], 0) + 1
    limits = {name: str(count) for name, count in gpus.items()}
    meta = instance["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"virt-launcher-{meta['name']}-{uid_of(instance)[-6:]}",
            "namespace": meta["namespace"],
            "labels": {**labels_of(instance), "kubevirt.io": "virt-launcher"},
            "ownerReferences": _owner(instance),
        },
        "spec": {
            "containers": [
                {
                    "name": "compute",
                    "image": "registry.example/virt-launcher:0",
                    "resources": {"limits": limits, "requests": limits},
                }
            ]
        },
    }
