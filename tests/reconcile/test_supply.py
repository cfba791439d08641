"""What exists changes under what is granted: foreign pods, sick plugins, lost nodes, cordoned devices (I6)."""

from __future__ import annotations

import pytest
from lab import READY, Lab, add_node, gpu_pod, gpu_vm, manifest, namespace, virtual_cluster

from vmtenancy.reconcile import supply
from vmtenancy.reconcile.demands import held
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import uid_of
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.story import PASSTHROUGH

A = ("GpuVM", "vision", "a")
GPU = "nvidia.com/gpu"


def advertise(lab: Lab, node: str, resource: str, count: int | None) -> None:
    """Let the device plugin of a node report `count` devices, or nothing at all."""
    obj = lab.get("Node", "", node)
    left = {name: value for name, value in obj["status"]["allocatable"].items() if name != resource}
    offered = left if count is None else {**left, resource: str(count)}
    lab.cluster.replace({**obj, "status": {**obj["status"], "allocatable": offered}}, status=True)


def ready(lab: Lab, node: str, status: str) -> None:
    obj = lab.get("Node", "", node)
    conditions = [{"type": "Ready", "status": status}]
    lab.cluster.replace({**obj, "status": {**obj["status"], "conditions": conditions}}, status=True)


def facts(lab: Lab, node: str, *, cordoned: tuple[int, ...] = (), sick: tuple[int, ...] = ()) -> None:
    obj = lab.get("GpuNode", "", node)
    gpus = [{**gpu, "healthy": index not in sick} for index, gpu in enumerate(obj["status"]["gpus"])]
    addresses = [gpus[index]["pciAddress"] for index in cordoned]
    obj = lab.cluster.replace({**obj, "spec": {"cordonedDevices": addresses}})
    lab.cluster.replace({**obj, "status": {**obj["status"], "gpus": gpus}}, status=True)


def foreign(lab: Lab, name: str, node: str, count: int, resource: str = GPU) -> None:
    if lab.find("Namespace", "", "theirs") is None:
        lab.apply(namespace("theirs"))
    lab.cluster.create(gpu_pod(name, count, namespace="theirs", resource=resource, nodeName=node))


def test_foreign_pods_are_taken_off_what_there_is(lab: Lab) -> None:
    foreign(lab, "f", "pods-1", 2)
    foreign(lab, "g", "pods-2", 1)
    lab.settle()
    lab.apply(gpu_pod("p", 2, namespace="llm"), gpu_pod("q", 1, namespace="llm"))
    lab.settle()
    assert lab.reason("Pod", "llm", "p", of="vmtenancy.io/Admitted") == "NoCapacity"
    assert lab.get("Pod", "llm", "q")["spec"]["nodeName"] == "pods-2"
    lab.delete("Pod", "theirs", "f")
    lab.settle()
    assert lab.get("Pod", "llm", "p")["spec"]["nodeName"] == "pods-1"


def test_a_finished_foreign_pod_holds_nothing(lab: Lab) -> None:
    foreign(lab, "f", "machines", 4, PASSTHROUGH)
    lab.apply(gpu_vm("a"))
    lab.settle()
    assert lab.reason(*A, of="Admitted") == "NoCapacity"
    lab.cluster.replace({**lab.get("Pod", "theirs", "f"), "status": {"phase": "Succeeded"}}, status=True)
    lab.settle()
    assert lab.status(*A)["phase"] == "Running"


def test_foreign_pods_that_come_later_evict_nobody(lab: Lab) -> None:
    lab.apply(gpu_pod("p", 2, namespace="llm"))
    lab.settle()
    node = lab.node_of("Pod", "llm", "p")
    foreign(lab, "f", node, 2)
    lab.settle()
    assert lab.get("Pod", "llm", "p")["status"]["phase"] == "Running"


@pytest.mark.parametrize("count", [0, None])
def test_i6_a_device_plugin_that_reports_nothing_evicts_nobody(lab: Lab, count: int | None) -> None:
    lab.apply(gpu_vm("a", 2), gpu_pod("p", 2, namespace="llm"), virtual_cluster())
    lab.settle()
    before = {uid_of(obj) for kind in ("Pod", "GpuAllocation") for obj in lab.cluster.world.of(kind)}
    for node, resource in (("machines", PASSTHROUGH), ("pods-1", GPU), ("pods-2", GPU)):
        advertise(lab, node, resource, count)
    lab.settle()
    lab.apply(gpu_vm("b"))
    lab.settle()
    assert {uid_of(obj) for kind in ("Pod", "GpuAllocation") for obj in lab.cluster.world.of(kind)} == before
    assert lab.status(*A)["phase"] == "Running"
    assert lab.reason("GpuVM", "vision", "b", of="Admitted") == "NoCapacity"
    advertise(lab, "machines", PASSTHROUGH, 4)
    lab.settle()
    assert lab.status("GpuVM", "vision", "b")["phase"] == "Running"
    devices = [lab.status("GpuVM", "vision", name)["allocation"]["devices"] for name in "ab"]
    assert len({device for found in devices for device in found}) == 3


def test_a_node_that_is_not_ready_gets_nothing_and_loses_nothing(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    ready(lab, "machines", "Unknown")
    lab.apply(gpu_vm("b"))
    lab.settle()
    assert lab.live_grants() == {lab.grant(*A)["metadata"]["name"]}  # type: ignore[index]
    assert lab.reason("GpuVM", "vision", "b", of="Admitted") == "NoCapacity"
    ready(lab, "machines", "True")
    lab.settle()
    assert lab.status("GpuVM", "vision", "b")["phase"] == "Running"


def test_i4_a_deleted_machine_on_a_silent_node_is_charged_until_the_node_speaks(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    ready(lab, "machines", "Unknown")
    lab.delete(*A)
    lab.settle()
    assert lab.live_grants()
    assert lab.status(*A)["phase"] == "Deleting"
    ready(lab, "machines", "True")
    lab.settle()
    assert not lab.live_grants()
    assert lab.find(*A) is None


def test_a_node_that_vanishes_and_returns_serves_whoever_waits(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2), gpu_pod("p", 2, namespace="llm"))
    lab.settle()
    lost = {name: lab.get("Node", "", name) for name in ("machines", lab.node_of("Pod", "llm", "p"))}
    for name in lost:
        lab.lose(name)
    lab.settle()
    assert lab.find("Pod", "llm", "p") is None  # pods of a lost node are gone, and with them what they held
    assert not lab.live_grants()
    lab.apply(gpu_vm("b", 2))
    lab.settle()
    for name in "ab":
        assert lab.status("GpuVM", "vision", name)["phase"] == "Pending"
    for node in lost.values():
        metadata = {key: node["metadata"][key] for key in ("name", "labels")}
        add_node(lab, {**node, "metadata": metadata, "status": {**node["status"], **READY}})
    lab.settle()
    for name in "ab":
        assert lab.status("GpuVM", "vision", name)["phase"] == "Running"


def test_a_pod_that_waits_for_a_lost_node_goes_to_another(lab: Lab) -> None:
    lab.apply(gpu_pod("p", namespace="llm"))
    while not lab.live_grants():
        lab.reconcile()
    first = lab.node_of("Pod", "llm", "p")
    lab.delete("Node", "", first)
    lab.settle()
    pod = lab.get("Pod", "llm", "p")
    assert pod["spec"]["nodeName"] not in ("", first)


def test_cordoned_devices_get_nothing_new_and_lose_nothing(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 1))
    lab.settle()
    used = lab.status(*A)["allocation"]["devices"]
    facts(lab, "machines", cordoned=(0, 1, 2))
    lab.settle()
    assert lab.status("GpuPool", "", "h100")["allocatable"] == 6
    lab.apply(gpu_vm("b", 2), gpu_vm("c", 1))
    lab.settle()
    assert lab.status(*A)["allocation"]["devices"] == used
    assert lab.status(*A)["phase"] == "Running"
    assert lab.reason("GpuVM", "vision", "b", of="Admitted") == "NoCapacity"
    free = lab.get("GpuNode", "", "machines")["status"]["gpus"][3]["pciAddress"]
    assert lab.status("GpuVM", "vision", "c")["allocation"]["devices"] == [free]
    facts(lab, "machines")
    lab.settle()
    assert lab.status("GpuVM", "vision", "b")["phase"] == "Running"


def test_a_sick_device_gets_nothing(lab: Lab) -> None:
    facts(lab, "slices", sick=(0,))
    lab.apply(gpu_vm("a", of="quarter"))
    lab.settle()
    assert lab.reason(*A, of="Admitted") == "NoCapacity"
    facts(lab, "slices")
    lab.settle()
    assert lab.status(*A)["phase"] == "Running"


def boot(lab: Lab, kind: str, boot_id: str | None) -> None:
    """The node, or its agent, tells of a boot."""
    obj = lab.get(kind, "", "machines")
    said = {"bootId": boot_id} if kind == "GpuNode" else {"nodeInfo": {"bootID": boot_id}}
    lab.cluster.replace({**obj, "status": {**obj["status"], **said}}, status=True)


def test_what_was_seen_before_a_boot_gives_no_grants_and_takes_none(lab: Lab) -> None:
    boot(lab, "GpuNode", "one")  # the node says nothing of it: the agent is believed
    lab.apply(gpu_vm("a"))
    lab.settle()
    held = lab.grant(*A)
    boot(lab, "Node", "two")
    lab.apply(gpu_vm("b"))
    lab.settle()
    assert lab.reason("GpuVM", "vision", "b", of="Admitted") == "NoCapacity"
    assert (lab.status(*A)["phase"], lab.grant(*A)) == ("Running", held)
    boot(lab, "GpuNode", "two")
    lab.settle()
    assert lab.status("GpuVM", "vision", "b")["phase"] == "Running"
    boot(lab, "GpuNode", None)  # an agent that can not tell: believed, too
    boot(lab, "Node", "three")
    lab.apply(gpu_vm("c"))
    lab.settle()
    assert lab.status("GpuVM", "vision", "c")["phase"] == "Running"


@pytest.mark.parametrize("product", ["NVIDIA-GPU", "NVIDIA-H100-80GB-HBM3"])
def test_what_is_half_known_of_a_sick_gpu_decides_nothing(lab: Lab, product: str) -> None:
    """The first GPU of the node is sick, its product and memory are what could be told without it."""
    products = {"selector": {"products": ["NVIDIA-H100-80GB-HBM3"], "minMemory": "79Gi"}}
    lab.apply(manifest("GpuPool", "h100", products))
    obj = lab.get("GpuNode", "", "machines")
    first, *others = obj["status"]["gpus"]
    sick = {"pciAddress": first["pciAddress"], "product": product, "healthy": False}
    lab.cluster.replace({**obj, "status": {**obj["status"], "gpus": [sick, *others]}}, status=True)
    lab.settle()
    assert lab.status("GpuPool", "", "h100")["allocatable"] == 8
    lab.apply(gpu_vm("a", 3))
    lab.settle()
    assert first["pciAddress"] not in lab.status(*A)["allocation"]["devices"]
    assert lab.status(*A)["phase"] == "Running"


def test_a_gpu_of_another_product_than_its_node_is_not_granted(lab: Lab) -> None:
    obj = lab.get("GpuNode", "", "machines")
    first, *others = obj["status"]["gpus"]
    other = {**first, "product": "NVIDIA-A2"}
    lab.cluster.replace({**obj, "status": {**obj["status"], "gpus": [other, *others]}}, status=True)
    lab.apply(gpu_vm("b", 3))
    lab.settle()
    lab.apply(gpu_vm("a", 1))
    lab.settle()
    assert lab.reason(*A, of="Admitted") == "NoCapacity"
    assert first["pciAddress"] not in lab.status("GpuVM", "vision", "b")["allocation"]["devices"]


def test_gpus_whose_memory_nobody_knows(lab: Lab) -> None:
    obj = lab.get("GpuNode", "", "slices")
    gpus = [{name: value for name, value in gpu.items() if name != "memory"} for gpu in obj["status"]["gpus"]]
    lab.cluster.replace({**obj, "status": {**obj["status"], "gpus": gpus}}, status=True)
    lab.apply(gpu_vm("a", of="quarter"))
    lab.settle()
    assert lab.status(*A)["phase"] == "Running"
    lab.apply(manifest("GpuPool", "h100", {"selector": {"minMemory": "1Gi"}}), gpu_vm("b", of="quarter"))
    lab.settle()
    assert lab.reason("GpuVM", "vision", "b", of="Admitted") == "NoCapacity"


def test_taints_and_cordoned_nodes_are_avoided(lab: Lab) -> None:
    node = lab.get("Node", "", "pods-1")
    taints = [{"key": "team", "value": "red", "effect": "NoSchedule"}]
    lab.cluster.replace({**node, "spec": {"taints": taints}})
    node = lab.get("Node", "", "pods-2")
    lab.cluster.replace({**node, "spec": {"unschedulable": True}})
    tolerant = {"tolerations": [{"key": "team", "operator": "Equal", "value": "red"}]}
    lab.apply(gpu_pod("p", namespace="llm"), gpu_pod("q", namespace="llm", **tolerant))
    lab.settle()
    assert lab.reason("Pod", "llm", "p", of="vmtenancy.io/Admitted") == "NoCapacity"
    assert lab.get("Pod", "llm", "q")["spec"]["nodeName"] == "pods-1"


def test_a_node_that_turns_to_another_mode_keeps_what_runs(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    obj = lab.get("GpuNode", "", "machines")
    lab.cluster.replace({**obj, "status": {**obj["status"], "mode": "container"}}, status=True)
    lab.settle()
    assert lab.status(*A)["phase"] == "Running"
    assert lab.live_grants()


def test_a_new_node_admits_who_waits(lab: Lab) -> None:
    lab.delete("Node", "", "machines")
    lab.apply(gpu_vm("a", 4))
    lab.settle()
    assert lab.reason(*A, of="Admitted") == "NoCapacity"
    node: Object = gpu_node("more", mode="vm-passthrough", gpus=4, resources={PASSTHROUGH: 4})
    add_node(lab, node)
    lab.settle()
    assert lab.node_of(*A) == "more"


def test_a_grant_keeps_the_cpu_and_memory_that_it_was_given(lab: Lab) -> None:
    """What a stopped machine asks for now is not what its devices' node has set aside for it."""
    lab.apply(gpu_vm("a", 2, whenStopped="Hold", cpu={"cores": 6}, memory="8Gi"))
    lab.settle()
    grant = lab.grant(*A)
    assert grant is not None
    assert (grant["spec"]["cpu"], grant["spec"]["memory"]) == ("6", "10Gi")
    lab.edit(*A, runStrategy="Halted")
    lab.settle()
    lab.edit(*A, cpu={"cores": 2})
    lab.settle()
    assert lab.grant(*A) == lab.get("GpuAllocation", "", grant["metadata"]["name"])
    view = View(lab.cluster.world, 0.0)
    (held_by_a,) = (admit for admit in held(view, frozenset()) if admit.demand.key == "GpuVM vision/a")
    assert held_by_a.placement
    assert (held_by_a.placement.cpu, held_by_a.placement.memory) == (6000, 10 << 30)


def test_more_than_it_was_granted_is_asked_for_anew(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2, whenStopped="Hold"))
    lab.settle()
    before = lab.grant(*A)
    lab.edit(*A, runStrategy="Halted")
    lab.settle()
    lab.edit(*A, memory="64Gi", runStrategy="Always")
    lab.settle()
    after = lab.grant(*A)
    assert before
    assert after
    assert uid_of(before) != uid_of(after)
    assert after["spec"]["memory"] == "66Gi"
    assert lab.status(*A)["phase"] == "Running"


def test_a_running_machine_is_not_stopped_because_we_count_otherwise_now(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade with another estimate of a launcher's own memory."""
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    monkeypatch.setattr(supply, "LAUNCHER_MEMORY", 3 << 30)
    before = lab.cluster.writes
    lab.settle()
    assert lab.cluster.writes == before
    lab.delete("VirtualMachineInstance", "vision", "a")
    lab.settle()
    assert lab.status(*A)["phase"] == "Running"


def test_a_pod_grant_says_what_the_pod_asks_of_the_node(lab: Lab) -> None:
    pod = gpu_pod("p", namespace="llm")
    pod["spec"]["containers"][0]["resources"]["requests"] = {"cpu": "1500m", "memory": "1000000"}
    lab.apply(pod)
    lab.settle()
    grant = lab.grant("Pod", "llm", "p")
    assert grant
    assert (grant["spec"]["cpu"], grant["spec"]["memory"]) == ("1500m", "1000000")


def test_an_agent_that_sees_no_gpus_is_believed(lab: Lab) -> None:
    obj = lab.get("GpuNode", "", "machines")
    seen = {
        "type": "NvmlAnswers",
        "status": "True",
        "reason": "Answers",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    lab.cluster.replace({**obj, "status": {**obj["status"], "gpus": [], "conditions": [seen]}}, status=True)
    lab.apply(gpu_vm("a", 1))
    lab.settle()
    assert lab.reason(*A, of="Admitted") == "NoCapacity"
