"""Nodes that are lost, fall silent, come back, or report fewer devices than were granted on them (I4, I5, I6)."""

from __future__ import annotations

import pytest
from lab import READY, Lab, add_node, fork, gpu_pod, gpu_vm, virtual_cluster

from vmtenancy.api.names import DEGRADED_CONDITION
from vmtenancy.reconcile import admit, check
from vmtenancy.reconcile.memory import ConflictError
from vmtenancy.reconcile.pods import is_gated
from vmtenancy.reconcile.status import condition, is_true
from vmtenancy.reconcile.steps import Object, Replace
from vmtenancy.reconcile.world import uid_of
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.story import PASSTHROUGH

A = ("GpuVM", "vision", "a")
MORE = gpu_node("more", mode="vm-passthrough", gpus=4, resources={PASSTHROUGH: 4})
GPU = "nvidia.com/gpu"


def degraded(lab: Lab, obj: tuple[str, str, str] = A) -> str:
    """The reason for which it is Degraded, `""` if it is not."""
    kind = DEGRADED_CONDITION if obj[0] == "Pod" else "Degraded"
    found = condition(lab.get(*obj), kind)
    return str(found["reason"]) if found and found["status"] == "True" else ""


def ill(lab: Lab, node: str, device: int, healthy: bool = False) -> None:
    """What the agent says of one GPU."""
    obj = lab.get("GpuNode", "", node)
    gpus = [
        gpu | ({"healthy": healthy} if n == device else {}) for n, gpu in enumerate(obj["status"]["gpus"])
    ]
    lab.cluster.replace({**obj, "status": {**obj["status"], "gpus": gpus}}, status=True)


def test_a_machine_on_a_lost_node_is_placed_again(lab: Lab) -> None:
    add_node(lab, MORE)
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    lost = lab.node_of(*A)
    lab.lose(lost)
    lab.settle()
    assert lab.status(*A)["phase"] == "Running"
    assert lab.node_of(*A) == {"machines": "more", "more": "machines"}[lost]
    assert lab.pods("vision")[0]["spec"]["nodeName"] == lab.node_of(*A)
    assert degraded(lab) == ""
    assert "NodeGone" in lab.events(*A)
    assert len(list(lab.cluster.world.of("GpuAllocation"))) == 1


def test_without_another_node_it_waits_and_goes_on_when_one_comes(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    lab.lose("machines")
    lab.settle()
    assert not lab.live_grants()
    assert lab.status(*A)["phase"] == "Pending"
    assert lab.reason(*A, of="Admitted") == "NoCapacity"
    add_node(lab, MORE)
    lab.settle()
    assert lab.status(*A)["phase"] == "Running"


def test_i4_the_grant_stays_as_long_as_a_pod_is_on_the_lost_node(lab: Lab) -> None:
    add_node(lab, MORE)
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    before = lab.live_grants()
    lost = lab.node_of(*A)
    lab.lose(lost)
    for _ in range(4):  # nothing has collected the pod yet
        lab.reconcile()
        lab.judge()
    assert lab.live_grants() == before
    assert lab.pods("vision")
    assert lab.get("VirtualMachine", "vision", "a")["spec"]["runStrategy"] == "Always"
    assert degraded(lab) == "NodeGone"
    add_node(
        lab,
        MORE
        if lost == "more"
        else gpu_node("machines", mode="vm-passthrough", gpus=4, resources={PASSTHROUGH: 4}),
    )
    lab.settle()
    assert lab.live_grants() == before
    assert degraded(lab) == ""


def test_a_stopped_machine_that_holds_gives_up_what_is_gone(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2, whenStopped="Hold"))
    lab.settle()
    lab.edit(*A, runStrategy="Halted")
    lab.settle()
    assert lab.live_grants()
    lab.lose("machines")
    lab.settle()
    assert not lab.live_grants()
    assert lab.status(*A)["phase"] == "Stopped"


def test_a_silent_node_keeps_its_grants_and_owners_are_told(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2), virtual_cluster(guaranteed=1, most=2))
    lab.settle()
    pod = lab.inside("lab", gpu_pod("p"))
    lab.settle()
    host = ("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
    grants = lab.live_grants()
    nodes = (lab.node_of(*A), lab.node_of(*host))
    for node in nodes:
        lab.report(node, ready=False)
    lab.settle()
    assert lab.live_grants() == grants
    assert (degraded(lab), degraded(lab, host)) == ("NodeNotReady", "NodeNotReady")
    assert "KubeletSilent" in lab.status(*A)["message"]
    assert lab.events(*host)[-1] == "NodeNotReady"
    for node in nodes:
        lab.report(node)
    lab.settle()
    assert lab.live_grants() == grants
    assert (degraded(lab), degraded(lab, host)) == ("", "")
    assert lab.status(*A)["phase"] == "Running"
    assert "message" not in lab.status(*A)


def test_i6_a_device_plugin_that_reports_nothing_evicts_nobody(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2), gpu_pod("p", 2, namespace="llm"))
    lab.settle()
    pods = {uid_of(pod) for home in ("vision", "llm") for pod in lab.pods(home)}
    grants = lab.live_grants()
    lab.report("machines", **{PASSTHROUGH.rpartition("/")[2]: 0})
    lab.report(lab.node_of("Pod", "llm", "p"), gpu=1)
    lab.settle()
    assert {uid_of(pod) for home in ("vision", "llm") for pod in lab.pods(home)} == pods
    assert lab.live_grants() == grants
    assert degraded(lab) == "DevicesMissing"
    assert "reports 0 x" in lab.status(*A)["message"]
    assert degraded(lab, ("Pod", "llm", "p")) == "DevicesMissing"
    lab.report("machines")
    lab.report(lab.node_of("Pod", "llm", "p"))


@pytest.mark.parametrize("device", [0, 3])
def test_an_unhealthy_device_is_told_to_whom_it_concerns(lab: Lab, device: int) -> None:
    lab.apply(gpu_vm("a", 2), gpu_vm("b", 1))
    lab.settle()
    ill(lab, "machines", device)
    lab.settle()
    address = lab.get("GpuNode", "", "machines")["status"]["gpus"][device]["pciAddress"]
    for name in ("a", "b"):
        holds = address in lab.status("GpuVM", "vision", name)["allocation"]["devices"]
        assert degraded(lab, ("GpuVM", "vision", name)) == ("DeviceUnhealthy" if holds else "")
    assert (device == 0) is any(degraded(lab, ("GpuVM", "vision", name)) for name in ("a", "b"))
    ill(lab, "machines", device, healthy=True)
    lab.settle()
    assert degraded(lab) == ""


def test_why_a_device_is_unhealthy_is_told(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 1))
    lab.settle()
    obj = lab.get("GpuNode", "", "machines")
    sick = {"healthy": False, "reasons": [{"reason": "XidError", "message": "XID 79"}]}
    gpus = [gpu | sick for gpu in obj["status"]["gpus"]]
    lab.cluster.replace({**obj, "status": {**obj["status"], "gpus": gpus}}, status=True)
    lab.settle()
    (device,) = lab.status("GpuVM", "vision", "a")["allocation"]["devices"]
    told = condition(lab.get("GpuVM", "vision", "a"), "Degraded")
    assert told is not None
    assert told["message"] == f"node machines calls {device} (XidError) unhealthy"


def test_i5_an_owner_that_is_not_told_is_a_violation(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2), gpu_pod("p", namespace="llm"))
    lab.settle()
    lab.report("machines", ready=False)
    lab.report(lab.node_of("Pod", "llm", "p"), ready=False)
    assert [v.invariant for v in check(lab.cluster.world)] == ["I5", "I5"]
    assert not check(lab.cluster.world, at_rest=False)
    lab.settle()
    lab.report("machines")
    found = check(lab.cluster.world)
    assert ["GpuVM vision/a is Degraded (NodeNotReady)" in str(violation) for violation in found] == [True]


def held_back(lab: Lab) -> Object:
    """The lift of a paused controller that has recorded the pod already."""
    lab.apply(gpu_pod("p", namespace="llm"))
    for _ in range(5):
        for chain in lab.plan().chains:
            if chain.why.startswith("let Pod llm/p"):
                *before, lift = chain.steps
                assert lab.run_chain(chain, 0, len(before))
                assert isinstance(lift, Replace)
                return lift.object
            lab.run_chain(chain)
    pytest.fail("the gate was never lifted")


def test_a_late_lift_of_a_grant_that_was_taken_back_is_refused(lab: Lab) -> None:
    """Recorded, paused; the node vanishes and another controller gives the devices on; then the first one wakes up.

    Whenever that is: from the moment at which the grant has ended.
    """
    lifted = held_back(lab)
    lab.lose(lab.node_of("Pod", "llm", "p"))
    (grant,) = lab.live_grants()
    lab.restart()
    ended = 0
    for _ in range(6):
        for chain in lab.plan().chains:
            for number in range(len(chain.steps)):
                lab.run_chain(chain, number, number + 1)
                if grant not in lab.live_grants():
                    ended += 1
                    with pytest.raises(ConflictError):
                        fork(lab).cluster.replace(lifted)
    assert ended
    lab.settle()
    assert lab.get("Pod", "llm", "p")["spec"]["nodeName"] == lab.node_of("Pod", "llm", "p")


def test_what_was_told_to_be_taken_back_is_never_used_again(lab: Lab) -> None:
    """Even if the node is back before the grant is released."""
    held_back(lab)
    node = lab.get("Node", "", lab.node_of("Pod", "llm", "p"))
    (grant,) = lab.live_grants()
    lab.lose(node["metadata"]["name"])
    lab.reconcile()
    assert lab.reason("Pod", "llm", "p", of="vmtenancy.io/Admitted") == "TakenBack"
    lab.cluster.create({**node, "status": {**node["status"], **READY}})
    lab.settle()
    assert lab.live_grants().isdisjoint({grant})
    assert lab.get("Pod", "llm", "p")["spec"]["nodeName"]
    assert is_true(lab.get("Pod", "llm", "p"), "vmtenancy.io/Admitted")


def test_nor_while_the_ledger_has_no_room_for_its_release(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    held_back(lab)
    node = lab.get("Node", "", lab.node_of("Pod", "llm", "p"))
    lab.lose(node["metadata"]["name"])
    lab.reconcile()
    lab.cluster.create({**node, "status": {**node["status"], **READY}})
    monkeypatch.setattr(admit, "batch_room", lambda view: 0)
    for _ in range(3):
        lab.reconcile()
        lab.surroundings()
    assert is_gated(lab.get("Pod", "llm", "p"))
