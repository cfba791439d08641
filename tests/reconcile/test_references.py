"""What names something that does not exist, or is not valid, says so at once, and in one event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from lab import Lab, gpu_class, gpu_pod, gpu_vm, manifest, tenant, virtual_cluster

from vmtenancy.reconcile.status import condition
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.world import ref_of

LIMITED = {
    "pool": "h100",
    "nominal": 1,
    "classes": [{"name": "whole", "limit": 1}, {"name": "nosuch", "limit": 1}],
}


@dataclass
class Case:
    """`wrong` is applied: `condition` is False with this reason, its message has these words; `right` repairs it."""

    wrong: Object
    condition: str
    reason: str
    words: tuple[str, ...]
    right: tuple[Object, ...] = field(default=())


CASES = {
    "class of a GpuVM": Case(
        gpu_vm("a", of="nosuch"),
        *("Admitted", "UnknownClass", ("class nosuch does not exist",)),
        right=(gpu_class("nosuch", passthrough="nvidia.com/GH100_H100_SXM5_80GB"),),
    ),
    "template of a GpuVM": Case(
        gpu_vm("a", template={"name": "nosuch"}),
        *("Admitted", "CannotRender", ("nosuch", "default")),
        right=(gpu_vm("a"),),
    ),
    "parameter of a template": Case(
        gpu_vm("a", template={"name": "ubuntu-cuda", "parameters": {"driver": "new"}}),
        *("Admitted", "CannotRender", ("driver",)),
        right=(gpu_vm("a", template={"name": "ubuntu-cuda"}),),
    ),
    "class of a VirtualCluster": Case(
        manifest("VirtualCluster", "lab", {"gpus": [{"class": "nosuch", "guaranteed": 1, "max": 1}]}, "llm"),
        *("Admitted", "UnknownClass", ("class nosuch does not exist",)),
        right=(gpu_class("nosuch", container="nvidia.com/gpu"),),
    ),
    "class of which nothing is guaranteed": Case(
        manifest("VirtualCluster", "lab", {"gpus": [{"class": "nosuch", "max": 1}]}, "llm"),
        *("Ready", "CannotRender", ("no such GpuClass", "nosuch", "quarter, whole")),
        right=(virtual_cluster(guaranteed=0),),
    ),
    "pool of a class": Case(
        gpu_class("lost", pool="nosuch", container="nvidia.com/gpu"),
        *("Ready", "PoolNotFound", ("nosuch", "h100")),
        right=(manifest("GpuPool", "nosuch", {"selector": {"products": ["none"]}}),),
    ),
    "pool of a tenant": Case(
        tenant("third", 0, quota=[{"pool": "nosuch", "nominal": 1}]),
        *("Ready", "PoolNotFound", ("nosuch", "h100")),
        right=(tenant("third", 1),),
    ),
    "class of a tenant's limit": Case(
        tenant("third", 0, quota=[LIMITED]),
        *("Ready", "ClassNotFound", ("nosuch", "quarter, whole")),
        right=(tenant("third", 1),),
    ),
    "cohort of a tenant": Case(
        tenant("third", 1, cohort="nosuch"),
        *("Ready", "CohortNotFound", ("nosuch", "nothing is borrowed")),
        right=(manifest("Cohort", "nosuch", {}),),
    ),
    "parent of a cohort": Case(
        manifest("Cohort", "branch", {"parent": "nosuch"}),
        *("Ready", "ParentNotFound", ("nosuch",)),
        right=(manifest("Cohort", "nosuch", {}),),
    ),
    "a pool that matches nothing": Case(
        manifest("GpuPool", "empty", {"selector": {"products": ["NVIDIA-B200"]}}),
        *("Ready", "NoGpus", ("no GPU matches",)),
    ),
    "a class that machines do not get": Case(
        gpu_vm("a", of="containers"),
        *("Admitted", "UnknownClass", ("containers",)),
        right=(
            gpu_class(
                "containers", container="nvidia.com/gpu", passthrough="nvidia.com/GH100_H100_SXM5_80GB"
            ),
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_told_at_once_in_one_event(lab: Lab, name: str) -> None:
    case = CASES[name]
    ref = ref_of(case.wrong)
    lab.apply(case.wrong)
    lab.settle()
    found = condition(lab.get(ref.kind, ref.namespace, ref.name), case.condition)
    assert found
    assert (found["status"], found["reason"]) == ("False", case.reason)
    for word in case.words:
        assert word in found["message"]
    assert lab.events(ref.kind, ref.namespace, ref.name).count(case.reason) == 1
    assert not lab.live_grants()
    if case.right:
        lab.apply(*case.right)
        lab.settle()
        assert lab.reason(ref.kind, ref.namespace, ref.name, of=case.condition) in ("Ready", "Admitted")


def test_two_cohorts_in_a_circle_are_both_told(lab: Lab) -> None:
    lab.apply(
        manifest("Cohort", "left", {"parent": "right"}), manifest("Cohort", "right", {"parent": "left"})
    )
    lab.settle()
    for name in ("left", "right"):
        assert lab.reason("Cohort", "", name) == "CohortCycle"
        assert lab.events("Cohort", "", name) == ["CohortCycle"]
    assert lab.reason("Cohort", "", "research") == "Ready"


def test_a_machine_that_can_not_be_rendered_holds_no_gpus_and_blocks_nobody(lab: Lab) -> None:
    lab.apply(gpu_vm("broken", 4, template={"name": "nosuch"}))
    lab.settle()
    lab.apply(gpu_vm("a", 4))
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"


def test_a_running_machine_whose_template_goes_wrong_goes_on_and_says_so(lab: Lab) -> None:
    lab.apply(gpu_vm("a"))
    lab.settle()
    lab.edit("GpuVM", "vision", "a", template={"name": "nosuch"})
    lab.settle()
    assert lab.reason("GpuVM", "vision", "a", of="Degraded") == "CannotRender"
    assert lab.events("GpuVM", "vision", "a").count("CannotRender") == 1
    assert lab.get("VirtualMachine", "vision", "a")["spec"]["runStrategy"] == "Always"
    assert lab.live_grants()


def test_no_tenant_and_an_unknown_one(lab: Lab) -> None:
    lab.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "nobodys"}})
    lab.apply(gpu_vm("a", namespace="nobodys"), virtual_cluster(namespace="nobodys"))
    lab.settle()
    for kind, name in (("GpuVM", "a"), ("VirtualCluster", "lab")):
        assert lab.reason(kind, "nobodys", name, of="Admitted") == "NoTenant"
        assert lab.events(kind, "nobodys", name).count("NoTenant") == 1
    lab.apply(tenant("third", 2, namespaces=["nobodys"]))
    lab.settle()
    assert lab.status("GpuVM", "nobodys", "a")["phase"] == "Running"


# -- objects that the models refuse: a schema was by-passed, or is of another version ---------------------------------

INVALID: dict[str, Callable[[], Object]] = {
    "GpuVM": lambda: gpu_vm("bad", gpus=[]),
    "VirtualCluster": lambda: manifest(
        "VirtualCluster", "bad", {"gpus": [{"class": "whole", "max": 0}]}, "llm"
    ),
    "Tenant": lambda: manifest("Tenant", "bad", {"namespaces": ["bad"], "quota": [{"pool": "h100"}]}),
    "GpuPool": lambda: manifest("GpuPool", "bad", {"selector": {"minMemory": "much"}}),
    "GpuClass": lambda: gpu_class("bad", share="1/11", container="nvidia.com/gpu"),
    "Cohort": lambda: manifest("Cohort", "bad", {"quota": [{"pool": "h100", "nominal": -1}]}),
}


@pytest.mark.parametrize("kind", INVALID)
def test_what_is_invalid_says_so_and_disturbs_nobody(lab: Lab, kind: str) -> None:
    obj = INVALID[kind]()
    ref = ref_of(obj)
    lab.apply(obj, gpu_vm("a"), virtual_cluster())
    lab.settle()
    of = "Admitted" if kind in ("GpuVM", "VirtualCluster") else "Ready"
    assert lab.reason(kind, ref.namespace, ref.name, of=of) == "Invalid"
    assert "VMT-A001" in lab.status(kind, ref.namespace, ref.name)["conditions"][0]["message"]
    assert lab.events(kind, ref.namespace, ref.name) == ["Invalid"]
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"
    assert lab.status("VirtualCluster", "llm", "lab")["phase"] == "Ready"
    lab.delete(kind, ref.namespace, ref.name)
    lab.settle()
    assert lab.find(kind, ref.namespace, ref.name) is None


def test_an_invalid_gpunode_is_as_none(lab: Lab) -> None:
    facts = lab.get("GpuNode", "", "machines")
    lab.cluster.replace({**facts, "status": {"gpus": [{"pciAddress": "somewhere"}]}}, status=True)
    lab.apply(gpu_vm("a"))
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["allocation"]["devices"] == ["gpu-0"]


def test_a_tenant_that_turns_invalid_keeps_what_it_has(lab: Lab) -> None:
    lab.apply(gpu_pod("p", namespace="vision"), gpu_vm("a"))
    lab.settle()
    lab.edit("Tenant", "", "vision", quota=[{"pool": "h100", "nominal": "three"}])
    lab.apply(gpu_pod("q", namespace="vision"), gpu_vm("b"))
    lab.quota_just_decided = False
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"
    assert lab.reason("GpuVM", "vision", "b", of="Admitted") == "TenantInvalid"
    assert lab.reason("Pod", "vision", "q", of="vmtenancy.io/Admitted") == "TenantInvalid"


@pytest.mark.parametrize("label", ["nvidia.com/gpu.count", "nvidia.com/gpu.memory"])
def test_a_node_label_that_is_no_number_stops_nobody(lab: Lab, label: str) -> None:
    node = lab.get("Node", "", "pods-1")
    labels = {**node["metadata"]["labels"], label: "eight"}
    lab.cluster.replace({**node, "metadata": {**node["metadata"], "labels": labels}})
    lab.delete("GpuNode", "", "pods-1")
    lab.apply(gpu_vm("a"))
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"
