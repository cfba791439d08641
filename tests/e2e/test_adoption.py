"""What ran before vmtenancy is taken in: real KubeVirt and the command line, nothing is restarted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from audit import violations, writes_at_rest

from vmtenancy.reconcile.status import condition, is_true
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.world import World, owner_uids, uid_of
from vmtenancy.testing.cluster import Cluster
from vmtenancy.testing.controller import ControllerProcess
from vmtenancy.testing.stage_cluster import ClusterStage
from vmtenancy.testing.story import PASSTHROUGH, leftovers, quickstart_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.kubevirt]

LEGACY, SCRIPT = Ref("VirtualMachine", "vision", "legacy"), Ref("Pod", "llm", "script")


def legacy() -> Object:
    """A machine as somebody made it by hand: names, sockets and disks are not as vmtenancy would choose them."""
    devices = {
        "disks": [
            {"name": "cloud", "disk": {"bus": "virtio"}},
            {"name": "root", "disk": {"bus": "sata"}},
        ],
        "interfaces": [{"name": "net", "masquerade": {}, "model": "e1000"}],
        "gpus": [{"name": "left", "deviceName": PASSTHROUGH}, {"name": "right", "deviceName": PASSTHROUGH}],
    }
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "legacy", "namespace": "vision", "labels": {"team": "a"}},
        "spec": {
            "running": True,
            "template": {
                "metadata": {"labels": {"app": "legacy"}},
                "spec": {
                    "domain": {
                        "cpu": {"sockets": 2, "cores": 2},
                        "memory": {"guest": "4Gi"},
                        "devices": devices,
                    },
                    "networks": [{"name": "net", "pod": {}}],
                    "volumes": [
                        {"name": "cloud", "cloudInitNoCloud": {"userData": "#cloud-config"}},
                        {"name": "root", "containerDisk": {"image": "registry.example/os:1"}},
                    ],
                },
            },
        },
    }


def script() -> Object:
    gpus = {"limits": {"nvidia.com/gpu": "1"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "script", "namespace": "llm"},
        "spec": {"containers": [{"name": "main", "image": "registry.example/train:1", "resources": gpus}]},
    }


def vmtenancy(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "vmtenancy", *arguments, "--kubeconfig", str(cluster.kubeconfig)]
    return subprocess.run(line, check=False, capture_output=True, text=True, timeout=120)


def phase(ref: Ref, wanted: str) -> Callable[[World], bool]:
    return lambda world: ((world.find(ref) or {}).get("status") or {}).get("phase") == wanted


def running(world: World) -> dict[str, Any]:
    """Uids of what runs, with the node of each pod."""
    return {
        uid_of(obj): obj["spec"].get("nodeName")
        for kind in ("Pod", "VirtualMachineInstance", "VirtualMachine")
        for obj in world.of(kind)
        if obj["metadata"]["namespace"] in ("vision", "llm")
    }


def told_pod(allocation: Object) -> list[Ref]:
    """The pod that a grant was given to and that it names."""
    owner = allocation["spec"]["owner"]
    told = (allocation.get("status") or {}).get("podUIDs")
    return [Ref(owner["kind"], owner["namespace"], owner["name"])] if told == [owner["uid"]] else []


def test_what_ran_before_is_taken_in_without_a_restart(
    virtualization: Cluster,
    controller: ControllerProcess,
    stage: ClusterStage,
    manifests: dict[str, list[Object]],
) -> None:
    stage.add_nodes(quickstart_nodes())
    for name in ("vision", "llm"):
        stage.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    stage.apply(legacy())
    stage.wait("the machine to run", phase(Ref("VirtualMachineInstance", "vision", "legacy"), "Running"))
    stage.apply(script())
    world = stage.wait("the pod to run", phase(SCRIPT, "Running"))
    before, template = running(world), (world.find(LEGACY) or {})["spec"]["template"]
    for name in ("1-classes.yaml", "2-tenants.yaml"):
        for obj in manifests[name]:
            stage.apply(obj)
    stage.wait(
        "the tenants to be ready",
        lambda world: sum(is_true(obj, "Ready") for obj in world.of("Tenant")) == 2,
    )

    told = vmtenancy(virtualization, "doctor", "-o", "json")
    assert told.returncode == 1, told.stderr
    found = {(f["code"], f["about"].partition("-legacy")[0]): f["remedy"] for f in json.loads(told.stdout)}
    assert found["VMT-X101", "Pod llm/script"] == "`vmtenancy adopt pod/script -n llm`"
    assert found["VMT-X101", "Pod vision/virt-launcher"] == "`vmtenancy adopt vm/legacy -n vision`"

    shown = vmtenancy(virtualization, "adopt", "vm/legacy", "-n", "vision", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "GpuVM vision/legacy would get a grant of 2 x h100-80gb" in shown.stdout
    assert not list(stage.world().of("GpuVM")), "a dry run writes nothing"
    done = vmtenancy(virtualization, "adopt", "vm/legacy", "-n", "vision")
    assert done.returncode == 0, done.stderr
    assert "is taken in" in done.stdout
    done = vmtenancy(virtualization, "doctor", "--fix", "--yes")
    assert done.returncode == 0, done.stderr
    assert "adopt Pod llm/script: done" in done.stderr
    stage.wait(
        "the pod's grant", lambda world: any(told_pod(obj) == [SCRIPT] for obj in world.of("GpuAllocation"))
    )

    gpuvm = Ref("GpuVM", "vision", "legacy")
    world = stage.wait("the GpuVM to be ready", lambda world: is_true(world.find(gpuvm) or {}, "Ready"))
    assert writes_at_rest(virtualization) == [], "I7"
    world = stage.world()
    assert running(world) == before
    machine = world.find(LEGACY)
    assert machine is not None
    assert machine["spec"]["template"]["spec"] == template["spec"]
    assert list(owner_uids(machine)) == [uid_of(world.find(gpuvm) or {})]
    restart = condition(machine, "RestartRequired")
    assert restart is None or restart["status"] == "False", restart
    assert violations(stage) == []
    told = vmtenancy(virtualization, "doctor")
    assert (told.returncode, told.stdout) == (0, "nothing is wrong\n"), told.stdout
    assert vmtenancy(virtualization, "adopt", "pod/script", "-n", "llm").returncode == 1

    for ref in (gpuvm, SCRIPT):
        stage.delete(ref)
    stage.wait("all to be gone", lambda world: not running(world) and not list(world.of("GpuAllocation")))
    for name in ("2-tenants.yaml", "1-classes.yaml"):
        for obj in manifests[name]:
            stage.delete(Ref(obj["kind"], "", obj["metadata"]["name"]))
    stage.wait("nothing of ours to be left", lambda world: leftovers(world) == [])
