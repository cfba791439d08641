"""Plays everything around the controller on a `MemoryCluster`: scheduler, kubelets, KubeVirt, vCluster.

Each rule is the outcome seen on the real programs, without their steps in between: it serves the demo on a machine
without a cluster, what-if questions and property tests, never as evidence about Kubernetes. Deterministic: objects
are visited in the order of their names.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from vmtenancy.api.names import GPU_RESOURCE_PREFIXES
from vmtenancy.reconcile.memory import MemoryCluster
from vmtenancy.reconcile.node_fit import fits_node
from vmtenancy.reconcile.planner import plan
from vmtenancy.reconcile.pods import gpu_requests, is_finished
from vmtenancy.reconcile.status import is_true
from vmtenancy.reconcile.steps import Object, Ref, RenderChart
from vmtenancy.reconcile.view import by_name
from vmtenancy.reconcile.world import is_deleting, labels_of, owner_uids, ref_of, uid_of


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
        self._garbage_collector()
        self._vclusters()
        self._virt_controller()
        self._scheduler()
        self._kubelets()

    # -- garbage collection -----------------------------------------------------------------------------------

    def _garbage_collector(self) -> None:
        """What was made for an owner that is gone by then goes, and so does what ran on a node that is gone."""
        world = self.cluster.world
        everything = [obj for objects in world.objects.values() for obj in objects.values()]
        known = {uid_of(obj) for obj in everything}
        for obj in everything:
            owners = set(owner_uids(obj))
            if owners and not owners & known:
                self.cluster.delete(ref_of(obj))
        for pod in by_name(world.of("Pod")):
            node = pod["spec"].get("nodeName")
            if node and world.get("Node", "", node) is None:
                self._set_status(pod, {**(pod.get("status") or {}), "phase": "Failed"})
                self.cluster.delete(ref_of(pod))

    # -- KubeVirt ---------------------------------------------------------------------------------------------

    def _virt_controller(self) -> None:
        world = self.cluster.world
        for vm in by_name(world.of("VirtualMachine")):
            of_vm = Ref("VirtualMachineInstance", vm["metadata"]["namespace"], vm["metadata"]["name"])
            instance = world.find(of_vm)
            if instance is None and is_deleting(vm):
                self._set_finalizers(vm)
                continue
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
        for instance in by_name(world.of("VirtualMachineInstance")):
            self._run_instance(instance)

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

    def _scheduler(self) -> None:
        free = self._free_resources()
        for pod in by_name(self.cluster.world.of("Pod")):
            if pod["spec"].get("nodeName") or pod["spec"].get("schedulingGates") or is_deleting(pod):
                continue
            wanted = gpu_requests(pod)
            for node in by_name(self.cluster.world.of("Node")):
                if not is_true(node, "Ready"):
                    continue
                left = free[node["metadata"]["name"]]
                if fits_node(pod, node) and all(left.get(name, 0) >= count for name, count in wanted.items()):
                    bound = copy.deepcopy(pod)
                    bound["spec"]["nodeName"] = node["metadata"]["name"]
                    self.cluster.replace(bound)
                    for name, count in wanted.items():
                        left[name] -= count
                    break

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

    def _kubelets(self) -> None:
        for pod in by_name(self.cluster.world.of("Pod")):
            node = self.cluster.world.get("Node", "", pod["spec"].get("nodeName", ""))
            if node is None or not is_true(node, "Ready") or is_finished(pod):
                continue
            phase = "Succeeded" if is_deleting(pod) else "Running"
            self._set_status(pod, {**(pod.get("status") or {}), "phase": phase})

    # -- vCluster ---------------------------------------------------------------------------------------------

    def _vclusters(self) -> None:
        for stateful in by_name(self.cluster.world.of("StatefulSet")):
            if labels_of(stateful).get("app") != "vcluster" or is_deleting(stateful):
                continue
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
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}},
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
        "spec": {"containers": [{"name": "compute", "resources": {"limits": limits, "requests": limits}}]},
    }
