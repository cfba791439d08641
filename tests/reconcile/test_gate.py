"""The gate: which pods go on, where to, and which never do (I3)."""

from __future__ import annotations

import copy

import pytest
from lab import Lab, gpu_pod, gpu_vm, namespace

from vmtenancy.api.names import ALLOCATION_ANNOTATION, CLASS_ANNOTATION, GATE
from vmtenancy.reconcile.pods import gpu_requests, is_gated, released_to
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import LEDGER_NAME
from vmtenancy.reconcile.world import uid_of
from vmtenancy.testing.story import PASSTHROUGH

ADMITTED = "vmtenancy.io/Admitted"


def pod(lab: Lab, name: str, home: str = "llm") -> Object:
    return lab.get("Pod", home, name)


def edited(lab: Lab, name: str, **spec: object) -> None:
    """What the owner of a gated pod may still change."""
    old = pod(lab, name)
    lab.cluster.replace({**old, "spec": {**old["spec"], **spec}})


def controlled_by(kind: str, obj: Object) -> list[Object]:
    reference = {"apiVersion": obj["apiVersion"], "kind": kind, "name": obj["metadata"]["name"]}
    return [{**reference, "uid": uid_of(obj), "controller": True}]


def test_a_pod_goes_to_the_node_that_its_grant_names(lab: Lab) -> None:
    lab.apply(gpu_pod("p", 2, namespace="llm"))
    assert is_gated(pod(lab, "p"))
    lab.settle()
    grant = lab.grant("Pod", "llm", "p")
    assert grant is not None
    assert pod(lab, "p")["spec"]["nodeName"] == grant["spec"]["node"]
    assert grant["status"]["podUIDs"] == [uid_of(pod(lab, "p"))]
    assert pod(lab, "p")["metadata"]["annotations"][ALLOCATION_ANNOTATION] == grant["metadata"]["name"]


def test_it_is_recorded_before_it_is_let_through(lab: Lab) -> None:
    lab.apply(gpu_pod("p", namespace="llm"))
    for _ in range(5):
        for chain in lab.plan().chains:
            for step in chain.steps:
                lab.cluster.run_step(step)
                grant = lab.grant("Pod", "llm", "p")
                recorded = grant and (grant.get("status") or {}).get("podUIDs")
                assert is_gated(pod(lab, "p")) or recorded
    assert not is_gated(pod(lab, "p"))


@pytest.mark.parametrize("meanwhile", ["another takes over", "its grant is released"])
def test_who_was_replaced_and_does_not_know_it_lets_no_pod_go(lab: Lab, meanwhile: str) -> None:
    """What it sees is of the past, and each object that it would write is still as it was then."""
    lab.apply(gpu_pod("p", namespace="llm"))
    for _ in range(5):
        for chain in lab.plan().chains:
            if chain.why.startswith("let Pod llm/p"):
                head = lab.get("GpuLedger", "", LEDGER_NAME)
                grant = lab.grant("Pod", "llm", "p")
                assert grant is not None
                late = {
                    "another takes over": {"epoch": head["spec"]["epoch"] + 1},
                    "its grant is released": {"released": [grant["metadata"]["name"]]},
                }[meanwhile]
                lab.cluster.replace({**head, "spec": {**head["spec"], **late}})
                before = len(lab.steps)
                assert not lab.run_chain(chain)
                assert len(lab.steps) == before
                assert is_gated(pod(lab, "p"))
                return
            lab.run_chain(chain)
    pytest.fail("the gate was never to be lifted")


def test_other_gates_stay(lab: Lab) -> None:
    lab.apply(gpu_pod("p", namespace="llm", schedulingGates=[{"name": "example.com/theirs"}]))
    lab.settle()
    assert pod(lab, "p")["spec"]["schedulingGates"] == [{"name": "example.com/theirs"}]
    assert not pod(lab, "p")["spec"].get("nodeName")


def test_every_term_of_its_affinity_is_narrowed_and_none_is_added() -> None:
    terms = [
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1", "n2"]}]},
        {},
    ]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    gated = gpu_pod("p", schedulingGates=[{"name": GATE}], affinity={"nodeAffinity": required})
    before = copy.deepcopy(gated)
    lifted = released_to(gated, "n1", "grant")
    here = {"key": "metadata.name", "operator": "In", "values": ["n1"]}
    found = lifted["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [term.get("matchFields") for term in found["nodeSelectorTerms"]] == [
        [here],
        [*terms[1]["matchFields"], here],
        None,
    ]
    assert "schedulingGates" not in lifted["spec"]
    assert gated == before


def test_a_pod_with_a_node_selector_gets_a_node_that_it_wants(lab: Lab) -> None:
    lab.apply(gpu_pod("p", namespace="llm", nodeSelector={"kubernetes.io/hostname": "pods-2"}))
    lab.settle()
    assert pod(lab, "p")["spec"]["nodeName"] == "pods-2"


def test_a_node_selector_added_while_gated_gives_the_grant_back(lab: Lab) -> None:
    lab.apply(gpu_pod("p", namespace="llm"))
    while not lab.live_grants():
        lab.reconcile()
    first = lab.node_of("Pod", "llm", "p")
    other = {"pods-1": "pods-2", "pods-2": "pods-1"}[first]
    edited(lab, "p", nodeSelector={"kubernetes.io/hostname": other})
    lab.settle()
    assert pod(lab, "p")["spec"]["nodeName"] == other
    assert lab.node_of("Pod", "llm", "p") == other
    assert len(list(lab.cluster.world.of("GpuAllocation"))) == 1


def test_a_node_selector_added_between_record_and_lift_is_seen(lab: Lab) -> None:
    """The record is written, the controller is killed, the owner adds a selector: the old node must not be used."""
    lab.apply(gpu_pod("p", namespace="llm"))
    for _ in range(5):
        for chain in lab.plan().chains:
            if chain.why.startswith("let Pod llm/p"):
                lift = len(chain.steps) - 1
                assert lab.run_chain(chain, 0, lift)
                other = {"pods-1": "pods-2", "pods-2": "pods-1"}[lab.node_of("Pod", "llm", "p")]
                edited(lab, "p", nodeSelector={"kubernetes.io/hostname": other})
                assert not lab.run_chain(chain, lift)  # the lift was decided on another version of the pod
                lab.restart()
                lab.settle()
                assert pod(lab, "p")["spec"]["nodeName"] == other
                return
            lab.run_chain(chain)
    pytest.fail("the gate was never lifted")


def test_a_selector_that_no_node_meets_leaves_it_waiting(lab: Lab) -> None:
    lab.apply(gpu_pod("p", namespace="llm"))
    while not lab.live_grants():
        lab.reconcile()
    edited(lab, "p", nodeSelector={"nowhere": "true"})
    lab.settle()
    assert is_gated(pod(lab, "p"))
    assert not lab.live_grants()
    assert lab.reason("Pod", "llm", "p", of=ADMITTED) == "NoCapacity"


def test_a_launcher_that_asks_for_other_gpus_than_granted_is_not_let_through(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    instance = lab.get("VirtualMachineInstance", "vision", "a")
    lab.delete("Pod", "vision", lab.pods("vision")[0]["metadata"]["name"])
    lab.surroundings()
    greedy = gpu_pod("greedy", 4, namespace="vision", resource=PASSTHROUGH)
    greedy["metadata"]["ownerReferences"] = controlled_by("VirtualMachineInstance", instance)
    lab.cluster.create(greedy)
    for _ in range(4):
        lab.reconcile()
    assert is_gated(pod(lab, "greedy", "vision"))
    assert lab.reason("Pod", "vision", "greedy", of=ADMITTED) == "GrantMismatch"
    assert "asks for 4" in lab.get("Pod", "vision", "greedy")["status"]["conditions"][0]["message"]
    assert lab.events("Pod", "vision", "greedy") == ["GrantMismatch"]


def test_a_forged_owner_gets_nothing(lab: Lab) -> None:
    """A reference counts only if the object of that kind, name and uid exists in the pod's own namespace."""
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    instance = lab.get("VirtualMachineInstance", "vision", "a")
    for name, home, owner in (
        ("elsewhere", "llm", controlled_by("VirtualMachineInstance", instance)),
        ("made-up", "vision", [{**controlled_by("GpuVM", instance)[0], "name": "nobody"}]),
        (
            "uid-alone",
            "vision",
            [{**controlled_by("VirtualMachineInstance", instance)[0], "uid": "uid-000000"}],
        ),
    ):
        forged = gpu_pod(name, 2, namespace=home, resource=PASSTHROUGH)
        forged["metadata"]["ownerReferences"] = owner
        lab.cluster.create(forged)
    for _ in range(4):
        lab.reconcile()
    for name, home in (("elsewhere", "llm"), ("made-up", "vision"), ("uid-alone", "vision")):
        assert is_gated(pod(lab, name, home))
        assert lab.reason("Pod", home, name, of=ADMITTED) == "NotDeliverable"


def test_i11_a_forged_owner_in_another_namespace_holds_up_nobody(lab: Lab) -> None:
    """Else a tenant could keep another one's machine from ever being released, by the uid of its GpuVM."""
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    forged = gpu_pod("forged", namespace="llm")
    forged["metadata"]["ownerReferences"] = controlled_by("GpuVM", lab.get("GpuVM", "vision", "a"))
    lab.cluster.create(forged)
    lab.edit("GpuVM", "vision", "a", runStrategy="Halted")
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Stopped"
    assert lab.grant("GpuVM", "vision", "a") is None
    assert pod(lab, "forged")["spec"].get("nodeName")


def test_a_pod_without_gpus_behind_our_gate_stops_nobody(lab: Lab) -> None:
    """Anyone may create a pod with our gate: a plan must come out all the same."""
    lab.apply(gpu_pod("idle", 0, namespace="llm", schedulingGates=[{"name": GATE}]), gpu_vm("a"))
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"
    assert is_gated(pod(lab, "idle"))
    assert lab.reason("Pod", "llm", "idle", of=ADMITTED) == "NothingRequested"


def test_a_gated_pod_that_has_failed_asks_for_nothing(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 3, namespace="llm"), gpu_pod("p", 2, namespace="llm"))
    lab.settle()
    lab.cluster.replace({**pod(lab, "p"), "status": {"phase": "Failed"}}, status=True)
    lab.delete("GpuVM", "llm", "a")
    lab.settle()
    assert lab.grant("Pod", "llm", "p") is None


def test_a_gated_pod_outside_of_any_tenant_is_told_so(lab: Lab) -> None:
    lab.apply(namespace("nobodys"), gpu_pod("p", namespace="nobodys", schedulingGates=[{"name": GATE}]))
    lab.settle()
    assert lab.reason("Pod", "nobodys", "p", of=ADMITTED) == "NoTenant"


def test_resource_claims_wait_with_a_reason(lab: Lab) -> None:
    lab.apply(gpu_pod("p", 0, namespace="llm", resourceClaims=[{"name": "gpu", "resourceClaimName": "mine"}]))
    lab.settle()
    assert is_gated(pod(lab, "p"))
    assert lab.reason("Pod", "llm", "p", of=ADMITTED) == "NotDeliverable"


def test_a_pod_may_name_the_class_it_means(lab: Lab) -> None:
    named = gpu_pod("p", namespace="llm")
    named["metadata"]["annotations"] = {CLASS_ANNOTATION: "quarter"}
    lab.apply(named)
    lab.settle()
    assert lab.reason("Pod", "llm", "p", of=ADMITTED) == "NotDeliverable"


def test_the_next_pod_of_the_same_name_is_another_one(lab: Lab) -> None:
    """As a StatefulSet makes it: the grant of the first must not serve the second."""
    lab.apply(gpu_pod("p", 2, namespace="llm"))
    lab.settle()
    first = lab.grant("Pod", "llm", "p")
    lab.delete("Pod", "llm", "p")
    lab.surroundings()
    lab.apply(gpu_pod("p", 2, namespace="llm"))
    lab.settle()
    second = lab.grant("Pod", "llm", "p")
    assert first
    assert second
    assert [uid_of(grant) for grant in lab.cluster.world.of("GpuAllocation")] == [uid_of(second)]
    assert uid_of(first) != uid_of(second)
    assert pod(lab, "p")["spec"]["nodeName"] == second["spec"]["node"]


GPU = "nvidia.com/gpu"


@pytest.mark.parametrize(
    ("containers", "init", "expected"),
    [
        ([2, 1], [], 3),
        ([1], [(4, False)], 4),
        ([1], [(4, True)], 5),
        ([1], [(1, True), (2, False)], 3),
        ([2], [(1, True), (4, False), (1, True)], 5),
        ([0], [], 0),
    ],
)
def test_requests_are_counted_as_the_scheduler_does(
    containers: list[int], init: list[tuple[int, bool]], expected: int
) -> None:
    def container(count: int, sidecar: bool = False) -> Object:
        found: Object = {"name": "c", "resources": {"requests": {GPU: count}}}
        return found | ({"restartPolicy": "Always"} if sidecar else {})

    spec = {"containers": [container(n) for n in containers], "initContainers": [container(*c) for c in init]}
    assert gpu_requests({"spec": spec}) == ({GPU: expected} if expected else {})


def test_a_thousand_gpus_are_written_with_a_suffix(lab: Lab) -> None:
    """The API server stores 1000 as "1k": that is no reason to stop planning."""
    pod_of_many = gpu_pod("many", namespace="llm")
    pod_of_many["spec"]["containers"][0]["resources"]["limits"][GPU] = "1k"
    lab.apply(pod_of_many, gpu_vm("a"))
    lab.settle()
    assert gpu_requests(pod(lab, "many")) == {GPU: 1000}
    assert lab.reason("Pod", "llm", "many", of=ADMITTED) == "QuotaExceeded"
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"
