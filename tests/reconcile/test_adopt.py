"""Adoption: what runs without a grant is taken in, and none of it is touched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from lab import Lab, add_node, gpu_pod, gpu_vm, tenant
from test_recovery import altered, bound, grants, unjudged, what_runs

from vmtenancy.api.names import ADOPT_ANNOTATION
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.adopt_request import propose_pod, propose_virtual_cluster, propose_vm
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import labels_of, owner_uids, uid_of
from vmtenancy.runtimes.vc_network import MANAGED_BY_VCLUSTER
from vmtenancy.runtimes.vm_adoption import taken_over
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.story import PASSTHROUGH, VGPU


def machine(name: str = "old", *, namespace: str = "vision", **vmi: Any) -> Object:
    """A KubeVirt machine that somebody made by hand, with two whole GPUs."""
    domain = {
        "cpu": {"cores": 2, "sockets": 2},
        "memory": {"guest": "8Gi"},
        "devices": {
            "disks": [{"name": "root", "disk": {"bus": "sata"}}],
            "interfaces": [{"name": "default", "bridge": {}}],
            "gpus": [{"name": name, "deviceName": PASSTHROUGH} for name in ("left", "right")],
        },
    }
    spec = {
        "domain": domain,
        "networks": [{"name": "default", "pod": {}}],
        "volumes": [{"name": "root", "containerDisk": {"image": "registry.example/os:1"}}],
        "terminationGracePeriodSeconds": 30,
    }
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": namespace, "labels": {"team": "a"}},
        "spec": {
            "running": True,
            "template": {
                "metadata": {"creationTimestamp": None, "labels": {"app": "old"}},
                "spec": {**spec, **vmi},
            },
        },
    }


def running(lab: Lab, vm: Object, node: str = "machines") -> Object:
    """As it ran before vmtenancy was installed: its launcher on a node, past the gate."""
    stored = lab.cluster.create(vm)
    lab.surroundings()
    [launcher] = [
        pod
        for pod in lab.pods(vm["metadata"]["namespace"])
        if vm["metadata"]["name"] in pod["metadata"]["name"]
    ]
    lab.cluster.world.put(bound(launcher, node))
    unjudged(lab)
    return stored


def foreign_pod(lab: Lab, count: int = 1) -> Object:
    pod = bound(lab.cluster.create(gpu_pod("foreign", count, namespace="llm")), "pods-1")
    lab.cluster.world.put(pod)
    unjudged(lab)
    return pod


def take_in(lab: Lab, write: Object) -> None:
    if write["kind"] == "Pod":
        lab.cluster.replace(write)
    else:
        lab.cluster.create(write)
    unjudged(lab)
    lab.settle()


def view(lab: Lab) -> View:
    return View(lab.cluster.world, lab.cluster.now)


def test_a_pod_keeps_running_and_has_a_grant(lab: Lab) -> None:
    foreign_pod(lab)
    before = what_runs(lab)
    proposal = propose_pod(view(lab), "llm", "foreign")
    assert proposal.grant
    assert proposal.grant.placement
    assert proposal.grant.placement.node == "pods-1"
    assert not proposal.over_use
    assert grants(lab) == {}, "a proposal writes nothing"
    take_in(lab, proposal.write)
    [devices] = [part.devices for part in proposal.grant.placement.grants]
    assert grants(lab) == {"Pod foreign": ("pods-1", list(devices))}
    assert what_runs(lab) == before
    lab.delete("Pod", "llm", "foreign")
    lab.settle()
    assert grants(lab) == {}


def test_over_quota_it_is_adopted_and_told(lab: Lab) -> None:
    lab.quota_just_decided = False
    lab.edit("Tenant", "", "llm", quota=[{"pool": "h100", "nominal": 1, "borrowingLimit": 0}])
    foreign_pod(lab, 2)
    proposal = propose_pod(view(lab), "llm", "foreign")
    assert proposal.over_use == ("tenant llm then holds 2 GPUs of pool h100, more than it may",)
    take_in(lab, proposal.write)
    assert lab.status("Tenant", "", "llm")["usage"][0]["allocated"] == "2"


def test_all_pods_of_a_vcluster_are_taken_in_at_once(lab: Lab) -> None:
    """Those of others stay as they are; what is too much is told of all together."""
    lab.quota_just_decided = False
    lab.edit("Tenant", "", "llm", quota=[{"pool": "h100", "nominal": 2, "borrowingLimit": 0}])
    for name, of, node in (
        ("a", "lab", "pods-1"),
        ("b", "lab", "pods-1"),
        ("c", "lab", "pods-2"),
        ("d", "", "pods-2"),
    ):
        pod = gpu_pod(name, namespace="llm")
        pod["metadata"]["labels"] = {MANAGED_BY_VCLUSTER: of} if of else {}
        lab.cluster.world.put(bound(lab.cluster.create(pod), node))
    waits = gpu_pod("waits", namespace="llm")
    waits["metadata"]["labels"] = {MANAGED_BY_VCLUSTER: "lab"}
    lab.cluster.create(waits)
    unjudged(lab)
    proposals = propose_virtual_cluster(view(lab), "llm", "lab")
    assert [proposal.write["metadata"]["name"] for proposal in proposals] == ["a", "b", "c"]
    assert [proposal.over_use for proposal in proposals] == [
        (),
        (),
        ("tenant llm then holds 3 GPUs of pool h100, more than it may",),
    ]
    before = what_runs(lab)
    for proposal in proposals:
        lab.cluster.replace(proposal.write)
    unjudged(lab)
    for _ in range(20):
        lab.execute(lab.plan())
    assert {name: node for name, (node, _) in grants(lab).items()} == {
        "Pod a": "pods-1",
        "Pod b": "pods-1",
        "Pod c": "pods-2",
    }
    assert what_runs(lab) == before
    with pytest.raises(VmtError, match="nothing of this vCluster is to be taken in"):
        propose_virtual_cluster(view(lab), "llm", "lab")


def test_a_machine_becomes_a_gpuvm_and_nothing_of_it_changes(lab: Lab) -> None:
    vm = running(lab, machine())
    before = what_runs(lab)
    spec = copy.deepcopy(lab.get("VirtualMachine", "vision", "old")["spec"]["template"]["spec"])
    proposal = propose_vm(view(lab), "vision", "old")
    assert proposal.write["spec"] | {"vm": None} == {
        "template": {"name": "bare"},
        "gpus": [{"class": "whole", "count": 2}],
        "cpu": {"cores": 4},
        "memory": "8Gi",
        "networks": [{"name": "default"}],
        "runStrategy": "Always",
        "vm": None,
    }
    take_in(lab, proposal.write)
    assert what_runs(lab) == before
    after = lab.get("VirtualMachine", "vision", "old")
    assert uid_of(after) == uid_of(vm)
    assert after["spec"]["template"]["spec"] == spec, "the names of its GPUs too"
    assert after["spec"]["runStrategy"] == "Always"
    assert "running" not in after["spec"]
    assert labels_of(after)["team"] == "a"
    gpuvm = lab.get("GpuVM", "vision", "old")
    assert list(owner_uids(after)) == [uid_of(gpuvm)]
    assert gpuvm["status"]["phase"] == "Running"
    grant = lab.grant("GpuVM", "vision", "old")
    assert grant
    assert grant["status"]["podUIDs"] == [uid_of(lab.pods("vision")[0])]
    lab.delete("GpuVM", "vision", "old")
    lab.settle()
    assert what_runs(lab) == {}
    assert grants(lab) == {}


def test_an_adopted_machine_lives_on_as_any_other(lab: Lab) -> None:
    running(lab, machine())
    take_in(lab, propose_vm(view(lab), "vision", "old").write)
    lab.edit("GpuVM", "vision", "old", runStrategy="Halted")
    lab.settle()
    assert grants(lab) == {}
    lab.edit("GpuVM", "vision", "old", runStrategy="Always")
    lab.settle()
    assert lab.status("GpuVM", "vision", "old")["phase"] == "Running"


def test_a_stopped_machine_is_taken_over_and_asks_when_it_starts(lab: Lab) -> None:
    halted = machine()
    halted["spec"]["running"] = False
    lab.cluster.create(halted)
    lab.settle()
    proposal = propose_vm(view(lab), "vision", "old")
    assert proposal.grant is None
    take_in(lab, proposal.write)
    assert lab.status("GpuVM", "vision", "old")["phase"] == "Stopped"
    lab.edit("GpuVM", "vision", "old", runStrategy="Always")
    lab.settle()
    assert lab.status("GpuVM", "vision", "old")["phase"] == "Running"


def test_a_machine_that_waits_at_the_gate_gets_devices_in_its_turn(lab: Lab) -> None:
    """A launcher that was never let through holds nothing, so nothing is recorded: the GpuVM queues."""
    lab.cluster.create(machine())
    unjudged(lab)
    assert grants(lab) == {}
    take_in(lab, propose_vm(view(lab), "vision", "old").write)
    assert lab.status("GpuVM", "vision", "old")["phase"] == "Running"
    assert grants(lab)["GpuVM old"][0] == "machines"


@pytest.mark.parametrize("killed", range(14))
def test_killed_at_any_step_of_an_adoption(lab: Lab, killed: int) -> None:
    running(lab, machine())
    before = what_runs(lab)
    lab.cluster.create(propose_vm(view(lab), "vision", "old").write)
    for number in range(killed):
        plan = lab.plan()
        if not plan.chains:
            break
        done = 0
        for chain in plan.chains:
            for step in chain.steps:
                if done < 1 + number % 2:
                    lab.cluster.run_step(step)
                    done += 1
        lab.restart()
        lab.surroundings()
        assert what_runs(lab) == before
    unjudged(lab)
    lab.settle()
    assert what_runs(lab) == before
    assert grants(lab)["GpuVM old"][0] == "machines"
    assert lab.status("GpuVM", "vision", "old")["phase"] == "Running"


def test_the_annotation_names_one_machine(lab: Lab) -> None:
    """A GpuVM that adopts takes only the machine that it names, not the next one of that name."""
    running(lab, machine())
    write = propose_vm(view(lab), "vision", "old").write
    write["metadata"]["annotations"] = {ADOPT_ANNOTATION: "another"}
    lab.cluster.create(write)
    unjudged(lab)
    assert not list(owner_uids(lab.get("VirtualMachine", "vision", "old")))
    assert lab.reason("GpuVM", "vision", "old", of="Degraded") == "CannotRender"


def test_what_can_not_be_adopted_goes_on_running_and_is_told(lab: Lab) -> None:
    """Nor is it granted other devices than those that it runs with."""
    running(lab, machine())
    before, write = what_runs(lab), propose_vm(view(lab), "vision", "old").write
    facts = lab.get("GpuNode", "", "machines")
    altered(lab, {**facts, "status": {**facts["status"], "gpus": facts["status"]["gpus"][:1]}})
    lab.apply(tenant("vision", 6, 1))
    add_node(lab, gpu_node("more", mode="vm-passthrough", gpus=4, resources={PASSTHROUGH: 4}))
    lab.cluster.create(write)
    unjudged(lab)
    assert what_runs(lab) == before
    assert grants(lab) == {}
    assert lab.reason("GpuVM", "vision", "old", of="Admitted") == "CannotAdopt"
    lab.delete("GpuVM", "vision", "old")
    unjudged(lab)
    with pytest.raises(VmtError, match="fewer GPUs that no grant names"):
        propose_vm(view(lab), "vision", "old")
    assert what_runs(lab) == before, "a GpuVM that took nothing over takes nothing along"


def test_the_old_way_to_say_that_it_runs_gives_way_to_the_new() -> None:
    """KubeVirt refuses both at once, and server-side apply can not take away what somebody else wrote."""
    wanted = {"metadata": {"labels": {}, "ownerReferences": [{"uid": "ours"}]}}
    taken = taken_over(machine(), wanted)
    assert taken["spec"].keys() == {"template", "runStrategy"}
    assert taken["spec"]["runStrategy"] == "Always"
    assert machine()["spec"]["running"] is True


def edited(**changes: Any) -> Object:
    vm = machine()
    vm["spec"] |= changes
    return vm


@pytest.mark.parametrize(
    ("vm", "complaint"),
    [
        (machine(nodeSelector={"zone": "a"}), "nodeSelector: is set by vmtenancy"),
        (machine(affinity={}), "affinity: is set by vmtenancy"),
        (edited(running=None, runStrategy="Manual"), "runStrategy: has no equivalent (found Manual)"),
        (edited(instancetype={"name": "u1.small"}), "spec.instancetype: is not allowed"),
        (machine(domain={"devices": {"gpus": []}, "memory": {"guest": "1Gi"}}), "gpus: is empty"),
        (
            machine(domain={"devices": {"gpus": [{"name": "g", "deviceName": "nvidia.com/OTHER"}]}}),
            "deviceName: is no device that a GpuClass",
        ),
        (machine(domain={"devices": {"gpus": [{"name": "g", "deviceName": VGPU}]}}), "guest: is missing"),
    ],
)
def test_what_a_gpuvm_can_not_say_is_refused(lab: Lab, vm: Object, complaint: str) -> None:
    lab.cluster.create(vm)
    lab.surroundings()
    with pytest.raises(VmtError) as error:
        propose_vm(view(lab), "vision", "old")
    assert complaint in str(error.value)


def test_what_would_change_is_refused(lab: Lab) -> None:
    """A disk without a target gets one from us: that is another machine."""
    vm = machine()
    vm["spec"]["template"]["spec"]["domain"]["devices"]["disks"] = [{"name": "root"}]
    lab.cluster.create(vm)
    with pytest.raises(VmtError, match=r"would change.*devices\.disks"):
        propose_vm(view(lab), "vision", "old")


def test_other_refusals(lab: Lab) -> None:
    lab.apply(gpu_vm("a"), gpu_pod("granted", namespace="llm"))
    lab.settle()
    lab.cluster.create(gpu_pod("waits", 2, namespace="llm", nodeSelector={"nowhere": "true"}))
    running(lab, machine())
    launcher = next(pod["metadata"]["name"] for pod in lab.pods("vision") if "old" in pod["metadata"]["name"])
    for attempt, complaint in (
        (lambda: propose_pod(view(lab), "llm", "granted"), "has a grant already"),
        (lambda: propose_pod(view(lab), "llm", "waits"), "not bound"),
        (lambda: propose_pod(view(lab), "llm", "nobody"), "there is no Pod llm/nobody"),
        (lambda: propose_pod(view(lab), "vision", launcher), "expected vm/old"),
        (lambda: propose_vm(view(lab), "vision", "a"), "GpuVM a"),
        (lambda: propose_vm(view(lab), "vision", "old", "nothing"), "no such GpuClass"),
        (lambda: propose_vm(view(lab), "vision", "old", "quarter"), "is no device that a GpuClass"),
    ):
        with pytest.raises(VmtError) as error:
            attempt()
        assert complaint in str(error.value)
