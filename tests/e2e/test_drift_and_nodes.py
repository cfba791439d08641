"""What people, schedulers and nodes do to what runs: repaired, taken back or told, on the real programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from audit import violations, writes_at_rest

from vmtenancy.kube.client import path_of
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.status import is_true
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.world import World, uid_of
from vmtenancy.testing.cluster import Cluster, KubectlError
from vmtenancy.testing.controller import ControllerProcess
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.stage_cluster import ClusterStage
from vmtenancy.testing.story import PASSTHROUGH, leftovers, quickstart_nodes
from vmtenancy.testing.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.kubevirt]

GPUVM, MACHINE = Ref("GpuVM", "vision", "trainer"), Ref("VirtualMachine", "vision", "trainer")
LAB, QUOTA = Ref("VirtualCluster", "llm", "lab"), Ref("ResourceQuota", "vc-llm--lab", "vmtenancy-gpus")
MERGE = "application/merge-patch+json"
TENANCY = ("1-classes.yaml", "2-tenants.yaml")


def edit(cluster: Cluster, ref: Ref, patch: Object) -> None:
    """As `kubectl edit`: a person, who is known as another field manager."""
    path = path_of(KINDS[ref.kind], ref.namespace, ref.name)
    cluster.request("PATCH", f"{path}?fieldManager=kubectl-edit", patch, content_type=MERGE)


def events(cluster: Cluster, about: Ref, reason: str) -> list[str]:
    found = cluster.request("GET", f"/apis/events.k8s.io/v1/namespaces/{about.namespace}/events")["items"]
    return [
        event["note"]
        for event in found
        if (event["regarding"]["kind"], event["regarding"]["name"], event["reason"])
        == (about.kind, about.name, reason)
    ]


def ready(ref: Ref) -> Callable[[World], bool]:
    return lambda world: is_true(world.find(ref) or {}, "Ready")


def spec(ref: Ref, world: World) -> Any:
    return (world.find(ref) or {}).get("spec") or {}


def trainer(count: int = 2) -> Object:
    return {
        "apiVersion": "vmtenancy.io/v1alpha1",
        "kind": "GpuVM",
        "metadata": {"name": "trainer", "namespace": "vision"},
        "spec": {
            "gpus": [{"class": "h100-80gb", "count": count}],
            "cpu": {"cores": 2},
            "memory": "4Gi",
            "disks": [{"name": "root", "image": {"containerDisk": "registry.example/os:1"}}],
            "sshKeys": [{"publicKey": "ssh-ed25519 AAAA ada"}],
        },
    }


@pytest.fixture
def tenants(stage: ClusterStage, manifests: dict[str, list[Object]]) -> Iterator[None]:
    """The classes and tenants of the quick start; afterwards nothing of ours is left."""
    for name in TENANCY:
        for obj in manifests[name]:
            stage.apply(obj)
    stage.wait("the tenants", lambda world: sum(is_true(obj, "Ready") for obj in world.of("Tenant")) == 2)
    yield
    for ref in (GPUVM, LAB):
        stage.delete(ref)
    stage.wait("all to be gone", lambda world: not world.find(GPUVM) and not world.find(LAB))
    for name in reversed(TENANCY):
        for obj in manifests[name]:
            stage.delete(Ref(obj["kind"], "", obj["metadata"]["name"]))
    stage.wait("nothing of ours to be left", lambda world: leftovers(world) == [])


def test_what_is_changed_by_hand_is_set_again_once(
    virtualization: Cluster, controller: ControllerProcess, stage: ClusterStage, tenants: None
) -> None:
    stage.add_nodes(quickstart_nodes())
    stage.apply(trainer())
    lab = {"gpus": [{"class": "h100-80gb", "guaranteed": 1, "max": 2}]}
    meta = {"name": "lab", "namespace": "llm"}
    stage.apply(
        {"apiVersion": "vmtenancy.io/v1alpha1", "kind": "VirtualCluster", "metadata": meta, "spec": lab}
    )
    stage.wait("both to be ready", lambda world: ready(GPUVM)(world) and ready(LAB)(world))
    assert writes_at_rest(virtualization) == [], "I7: what the real programs store is ours as we applied it"
    assert not events(virtualization, GPUVM, "DriftRepaired")

    quota = spec(QUOTA, stage.world())
    edit(virtualization, QUOTA, {"spec": {"hard": {next(iter(quota["hard"])): "99"}}})
    stage.wait("the quota to be set again", lambda world: spec(QUOTA, world) == quota)
    labels = {"app.kubernetes.io/managed-by": None, "theirs": "kept"}
    edit(virtualization, MACHINE, {"metadata": {"labels": labels}})

    def labelled(world: World) -> bool:
        shown = (world.find(MACHINE) or {})["metadata"]["labels"]
        return bool(
            shown.get("app.kubernetes.io/managed-by") == "vmtenancy" and shown.get("theirs") == "kept"
        )

    stage.wait("the label to come back", labelled)
    grants = {uid_of(obj) for obj in stage.world().of("GpuAllocation")}
    edit(virtualization, MACHINE, {"spec": {"runStrategy": "Halted"}})
    stage.wait("the machine to be told to run", lambda world: spec(MACHINE, world)["runStrategy"] == "Always")
    stage.wait("the machine to run", ready(GPUVM))
    instance = Ref("VirtualMachineInstance", "vision", MACHINE.name)
    stop = f"/apis/subresources.kubevirt.io/v1/namespaces/vision/virtualmachines/{MACHINE.name}/stop"

    def stop_by_hand() -> str:
        """As `virtctl stop`; KubeVirt may still be at what was changed before, and refuse it."""
        running = uid_of(stage.world().find(instance) or {"metadata": {}})
        try:
            virtualization.kubectl("replace", "--raw", stop, "-f", "/dev/stdin", stdin="{}")
        except KubectlError as error:
            if "VM is not running" in str(error):
                return ""
            raise
        return running

    stopped = eventually("the machine to be stopped by hand", stop_by_hand)

    def runs_anew(world: World) -> bool:
        found = world.find(instance)
        return found is not None and uid_of(found) != stopped and ready(GPUVM)(world)

    stage.wait("the machine to run anew", runs_anew)
    assert writes_at_rest(virtualization) == [], "I7"
    assert {uid_of(obj) for obj in stage.world().of("GpuAllocation")} == grants
    assert len(events(virtualization, LAB, "DriftRepaired")) == 1
    told = events(virtualization, GPUVM, "DriftRepaired")
    assert len(told) == 3, told
    assert sum("spec.runStrategy" in note for note in told) == 2
    assert violations(stage) == []


@pytest.fixture
def impatient(virtualization: Cluster, tmp_path: Path) -> Iterator[ControllerProcess]:
    with ControllerProcess(virtualization.kubeconfig, tmp_path, bind_deadline_s=5.0) as running:
        yield running


def test_a_machine_that_the_scheduler_can_not_bind_goes_to_another_node(
    virtualization: Cluster, impatient: ControllerProcess, stage: ClusterStage, tenants: None
) -> None:
    """The granted node has the GPUs, but no /dev/kvm to give: only the scheduler looks at that."""
    small = gpu_node("no-kvm", mode="vm-passthrough", gpus=2, resources={PASSTHROUGH: 2})
    for facts in (small["status"]["allocatable"], small["status"]["capacity"]):
        facts["devices.kubevirt.io/kvm"] = "0"
    stage.add_nodes([small, gpu_node("large", mode="vm-passthrough", gpus=4, resources={PASSTHROUGH: 4})])
    stage.apply(trainer())
    world = stage.wait("the best fit to be granted", lambda world: bool(granted(world)))
    assert granted(world) == "no-kvm"
    world = stage.wait("the machine to run", ready(GPUVM))
    assert granted(world) == "large"
    (told,) = events(virtualization, GPUVM, "NotBound")
    assert "Insufficient devices.kubevirt.io/kvm" in told
    assert "avoidedNodes" not in (world.find(GPUVM) or {})["status"]
    assert writes_at_rest(virtualization) == [], "I7"
    assert violations(stage) == []


@pytest.mark.nightly
def test_a_machine_leaves_a_node_that_is_gone(
    virtualization: Cluster, controller: ControllerProcess, stage: ClusterStage, tenants: None
) -> None:
    stage.add_nodes(
        [
            gpu_node("first", mode="vm-passthrough", gpus=2, resources={PASSTHROUGH: 2}),
            gpu_node("second", mode="vm-passthrough", gpus=4, resources={PASSTHROUGH: 4}),
        ]
    )
    stage.apply(trainer())
    world = stage.wait("the machine to run", ready(GPUVM))
    assert granted(world) == "first"
    stage.delete(Ref("Node", "", "first"))
    stage.wait(
        "the machine to run on the other node", lambda w: granted(w) == "second" and ready(GPUVM)(w), 240.0
    )
    assert events(virtualization, GPUVM, "NodeGone")
    assert writes_at_rest(virtualization) == [], "I7"
    assert violations(stage) == []


def granted(world: World) -> str:
    """The node of the machine's grant."""
    return str(((world.find(GPUVM) or {}).get("status") or {}).get("allocation", {}).get("node", ""))
