"""Quota of cpu, memory and storage: what grants and volumes are charged, and what waits for it."""

from __future__ import annotations

from typing import Any

import pytest
from lab import Lab, gpu_pod, gpu_vm, manifest, tenant, virtual_cluster

from vmtenancy.cli.explain_cmd import answer_for
from vmtenancy.reconcile.view import View


def resources(**nominal: Any) -> list[dict[str, Any]]:
    """Quota that is a tenant's own, and of which nothing is borrowed."""
    return [{"name": name, "nominal": amount, "borrowingLimit": "0"} for name, amount in nominal.items()]


def disk(size: str, name: str = "data") -> dict[str, Any]:
    return {"name": name, "image": {"blank": {}}, "size": size}


def used(lab: Lab, name: str = "vision") -> dict[str, str]:
    return {row["name"]: row["used"] for row in lab.status("Tenant", "", name).get("resources", ())}


def message(lab: Lab, name: str) -> str:
    return str(lab.status("GpuVM", "vision", name).get("message", ""))


def admitted(lab: Lab, name: str) -> str:
    return lab.reason("GpuVM", "vision", name, of="Admitted")


def test_a_machine_is_charged_what_it_takes_of_its_node(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, resources=resources(cpu="3", memory="16Gi")), gpu_vm("a"), gpu_vm("b"))
    lab.settle()
    assert used(lab) == {"cpu": "2", "memory": "6Gi"}, "4Gi, and what the launcher needs"
    assert lab.status("Tenant", "", "vision")["resources"][0] == {
        "name": "cpu",
        "used": "2",
        "nominal": "3",
        "borrowed": "0",
    }
    assert admitted(lab, "b") == "QuotaExceeded"
    assert message(lab, "b") == "cpu: needs 2, 1 free of 3 in cohort research; held by GpuVM vision/a 2"
    lab.edit("GpuVM", "vision", "a", runStrategy="Halted")
    lab.settle()
    assert (used(lab), admitted(lab, "b")) == ({"cpu": "2", "memory": "6Gi"}, "Admitted")


def test_who_is_not_limited_is_charged_nothing(lab: Lab) -> None:
    lab.apply(tenant("llm", 3, 1, resources=resources(cpu="2")), gpu_vm("a"), gpu_vm("b"))
    lab.settle()
    assert (used(lab), used(lab, "llm")) == ({}, {"cpu": "0"})
    assert {admitted(lab, "a"), admitted(lab, "b")} == {"Admitted"}
    assert "resources" not in lab.status("Tenant", "", "vision")


def test_pods_of_a_virtual_cluster_are_charged_and_its_guarantee_is_not(lab: Lab) -> None:
    lab.apply(tenant("llm", 3, 1, resources=resources(cpu="2", memory="1Gi")), virtual_cluster("lab", 1, 2))
    lab.settle()
    assert used(lab, "llm") == {"cpu": "0", "memory": "0"}
    for name in ("p", "q"):
        pod = gpu_pod(name)
        pod["spec"]["containers"][0]["resources"]["requests"] = {"cpu": "1500m", "memory": "128Mi"}
        lab.inside("lab", pod)
    lab.settle()
    assert used(lab, "llm") == {"cpu": "1500m", "memory": "128Mi"}
    home = lab.status("VirtualCluster", "llm", "lab")["namespace"]
    told = [
        lab.reason("Pod", home, pod["metadata"]["name"], of="vmtenancy.io/Admitted") for pod in lab.pods(home)
    ]
    assert sorted(told) == ["", "QuotaExceeded"], (
        "one draws on the guarantee, and no cpu is left for the other"
    )


def test_volumes_are_charged_until_the_machine_is_deleted(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, resources=resources(cpu="8", storage="150Gi")))
    lab.apply(gpu_vm("a", disks=[disk("100Gi")]))
    lab.settle()
    grant = lab.grant("GpuVM", "vision", "a")
    assert grant is not None
    assert grant["spec"]["storage"] == "100Gi"
    assert used(lab) == {"cpu": "2", "storage": "100Gi"}
    lab.edit("GpuVM", "vision", "a", runStrategy="Halted")
    lab.settle()
    assert used(lab) == {"cpu": "0", "storage": "100Gi"}, (
        "its disk is there, and its GPU is not its own any more"
    )
    lab.apply(gpu_vm("b", disks=[disk("60Gi")]))
    lab.settle()
    assert message(lab, "b") == (
        "storage: needs 60Gi, 50Gi free of 150Gi in cohort research; held by volumes of GpuVM vision/a 100Gi"
    )
    lab.edit("GpuVM", "vision", "a", runStrategy="Always")
    lab.settle()
    assert used(lab) == {"cpu": "2", "storage": "100Gi"}, "it asks for nothing twice"
    lab.delete("GpuVM", "vision", "a")
    lab.settle()
    assert used(lab) == {"cpu": "2", "storage": "60Gi"}


def test_a_machine_that_never_ran_is_charged_no_storage(lab: Lab) -> None:
    lab.apply(tenant("vision", 1, resources=resources(storage="100Gi")))
    lab.apply(gpu_vm("big", 4, disks=[disk("90Gi")]), gpu_vm("small", disks=[disk("60Gi")]))
    lab.settle()
    assert used(lab) == {"storage": "60Gi"}


def test_more_volumes_have_to_be_admitted_first(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, resources=resources(storage="150Gi")), gpu_vm("a", disks=[disk("100Gi")]))
    lab.settle()
    before = lab.get("VirtualMachine", "vision", "a")["spec"]
    lab.edit("GpuVM", "vision", "a", disks=[disk("100Gi"), disk("100Gi", "more")])
    lab.settle()
    assert lab.get("VirtualMachine", "vision", "a")["spec"] == before
    assert "its volumes need 200Gi, and 100Gi were granted" in message(lab, "a")
    lab.edit("GpuVM", "vision", "a", runStrategy="Halted")
    lab.settle()
    stopped = lab.get("VirtualMachine", "vision", "a")["spec"]
    assert stopped == {**before, "runStrategy": "Halted"}
    seen = lab.status("GpuVM", "vision", "a")
    assert (seen["phase"], used(lab)) == ("Stopped", {"storage": "100Gi"})
    assert seen["observedGeneration"] < lab.get("GpuVM", "vision", "a")["metadata"]["generation"]
    lab.edit("GpuVM", "vision", "a", runStrategy="Always")
    lab.settle()
    assert message(lab, "a") == (
        "storage: needs 100Gi, 50Gi free of 150Gi in cohort research; held by volumes of GpuVM vision/a 100Gi"
    )
    lab.edit("GpuVM", "vision", "a", disks=[disk("100Gi"), disk("40Gi", "more")])
    lab.settle()
    assert (admitted(lab, "a"), used(lab)) == ("Admitted", {"storage": "140Gi"})
    volumes = lab.get("VirtualMachine", "vision", "a")["spec"]["dataVolumeTemplates"]
    assert [volume["metadata"]["name"] for volume in volumes] == ["a-data", "a-more"]


@pytest.mark.parametrize("when_stopped", ["Release", "Hold"])
def test_one_that_keeps_its_gpus_asks_again_for_more_volumes(lab: Lab, when_stopped: str) -> None:
    lab.apply(tenant("vision", 4, resources=resources(storage="150Gi")))
    lab.apply(gpu_vm("a", disks=[disk("100Gi")], whenStopped=when_stopped))
    lab.settle()
    lab.edit("GpuVM", "vision", "a", runStrategy="Halted")
    lab.settle()
    lab.edit("GpuVM", "vision", "a", disks=[disk("150Gi")])
    lab.settle()
    lab.edit("GpuVM", "vision", "a", runStrategy="Always")
    lab.settle()
    assert (admitted(lab, "a"), used(lab)) == ("Admitted", {"storage": "150Gi"})


def test_a_volume_of_no_known_size_is_refused_where_storage_is_limited(lab: Lab) -> None:
    clone = {"metadata": {"name": "a-clone"}, "spec": {"source": {"pvc": {"name": "golden"}}, "storage": {}}}
    volumes = [{"name": "clone", "dataVolume": {"name": "a-clone"}}]
    overlay = {"dataVolumeTemplates": [clone], "template": {"spec": {"volumes": volumes}}}
    lab.apply(gpu_vm("a", vm=overlay))
    lab.settle()
    assert admitted(lab, "a") == "Admitted"
    lab.apply(tenant("vision", 4, resources=resources(storage="1Ti")), gpu_vm("b", vm=overlay))
    lab.settle()
    assert admitted(lab, "b") == "CannotRender"
    assert "spec.vm.dataVolumeTemplates[0].spec: has no size" in message(lab, "b")
    assert admitted(lab, "a") == "Admitted", "what was there before goes on"


def test_cpu_that_was_lent_is_taken_back(lab: Lab) -> None:
    lent = [{"name": "cpu", "nominal": "2"}]
    lab.apply(tenant("vision", 3, resources=lent, preemption={"reclaimWithinCohort": "Any"}))
    lab.apply(tenant("llm", 3, resources=lent))
    lab.settle()
    lab.apply(gpu_vm("x", namespace="llm"), gpu_vm("y", namespace="llm"))
    lab.settle()
    assert lab.status("Tenant", "", "llm")["resources"][0]["borrowed"] == "2"
    lab.apply(gpu_vm("mine"))
    lab.rest()
    assert admitted(lab, "mine") == "Admitted"
    assert (used(lab), used(lab, "llm")) == ({"cpu": "2"}, {"cpu": "2"})
    assert sorted(lab.reason("GpuVM", "llm", name, of="Admitted") for name in "xy") == [
        "Admitted",
        "QuotaExceeded",
    ]


def test_the_share_counts_what_was_borrowed_of_a_resource(lab: Lab) -> None:
    lab.apply(manifest("Cohort", "research", {"resources": [{"name": "memory", "nominal": "24Gi"}]}))
    lab.apply(tenant("vision", 3, resources=[{"name": "memory", "nominal": "0"}]), gpu_vm("a"))
    lab.settle()
    assert lab.status("Tenant", "", "vision")["fairShare"] == "0.25", (
        "6 of 24Gi; of the GPUs nothing is borrowed"
    )


def test_quota_that_is_lowered_stops_nobody_and_is_told(lab: Lab) -> None:
    lab.apply(tenant("vision", 3, resources=resources(cpu="4")), gpu_vm("a"), gpu_vm("b"))
    lab.settle()
    lab.quota_just_decided = False
    lab.apply(tenant("vision", 3, resources=resources(cpu="1")))
    lab.settle()
    assert {admitted(lab, "a"), admitted(lab, "b")} == {"Admitted"}
    assert lab.status("Tenant", "", "vision")["resources"] == [
        {"name": "cpu", "used": "4", "nominal": "1", "borrowed": "3"}
    ]


def test_explain_says_what_is_missing_of_a_resource(lab: Lab) -> None:
    lab.apply(tenant("vision", 3, resources=resources(memory="8Gi")), gpu_vm("a"))
    lab.settle()
    lab.apply(gpu_vm("b"))
    lab.settle()
    answer = answer_for(View(lab.cluster.world, lab.cluster.now), lab.get("GpuVM", "vision", "b"))
    assert (
        "memory: needs 6Gi, 2Gi free of 8Gi in cohort research; held by GpuVM vision/a 6Gi" in answer.summary
    )
    assert "needs 6Gi, free 2Gi of 8Gi (cohort research)" in answer.details
