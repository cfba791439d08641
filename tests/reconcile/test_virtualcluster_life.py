"""A VirtualCluster: what it holds, what its pods draw on it, its maximum, and an end that leaves nothing."""

from __future__ import annotations

from collections.abc import Iterable

from lab import Lab, fork, gpu_class, gpu_pod, gpu_vm, tenant, virtual_cluster

from vmtenancy.api.names import OWNER_UID_LABEL, TENANT_LABEL, VIRTUAL_CLUSTER_LABEL
from vmtenancy.reconcile.steps import Object, RenderChart
from vmtenancy.reconcile.world import labels_of, uid_of

LAB = ("VirtualCluster", "llm", "lab")
HOME = "vc-llm--lab"


def allocated(lab: Lab, name: str = "llm") -> str:
    return str(lab.status("Tenant", "", name)["usage"][0]["allocated"])


def running(lab: Lab) -> list[str]:
    return [
        str(pod["metadata"]["name"]).split("-x-")[0]
        for pod in lab.pods(HOME)
        if (pod.get("status") or {}).get("phase") == "Running"
    ]


def finish(lab: Lab, name: str) -> None:
    pod = lab.get("Pod", HOME, lab.host_name(name, "default", "lab"))
    lab.cluster.replace({**pod, "status": {"phase": "Succeeded"}}, status=True)


def test_it_holds_its_guarantee_from_creation_on(lab: Lab) -> None:
    lab.apply(virtual_cluster(guaranteed=2, most=3))
    lab.settle()
    status = lab.status(*LAB)
    assert status["phase"] == "Ready"
    assert status["namespace"] == HOME
    assert status["kubeconfigSecret"] == "lab-kubeconfig"
    assert status["gpus"] == [{"class": "whole", "guaranteed": 2, "max": 3, "used": 0}]
    grant = lab.grant(*LAB)
    assert grant
    assert not grant["spec"].get("node")
    assert allocated(lab) == "2"
    told = lab.events(*LAB)
    assert (told[0], told[-1], len(told)) == ("Admitted", "Ready", len(set(told)))
    home = labels_of(lab.get("Namespace", "", HOME))
    assert home[TENANT_LABEL] == "llm"
    assert home[VIRTUAL_CLUSTER_LABEL] == "lab"
    assert home[OWNER_UID_LABEL] == uid_of(lab.get(*LAB))


def test_its_pods_draw_on_the_hold_first_and_nothing_is_charged_twice(lab: Lab) -> None:
    lab.apply(virtual_cluster(guaranteed=2, most=3))
    lab.settle()
    for name, charge in (("p", "2"), ("q", "2"), ("r", "3")):
        lab.inside("lab", gpu_pod(name))
        lab.settle()
        assert allocated(lab) == charge
    assert running(lab) == ["p", "q", "r"]
    assert lab.status(*LAB)["gpus"][0]["used"] == 3
    for name, charge in (("p", "2"), ("q", "2"), ("r", "2")):
        finish(lab, name)
        lab.settle()
        assert allocated(lab) == charge


def test_its_maximum_is_kept_and_the_pod_is_told(lab: Lab) -> None:
    lab.apply(virtual_cluster(guaranteed=0, most=1))
    lab.settle()
    lab.inside("lab", gpu_pod("p"))
    lab.settle()
    lab.inside("lab", gpu_pod("q"))
    lab.settle()
    assert running(lab) == ["p"]
    waiting = ("Pod", HOME, lab.host_name("q", "default", "lab"))
    assert lab.reason(*waiting, of="vmtenancy.io/Admitted") == "MaxReached"
    assert lab.events(*waiting) == ["MaxReached"]
    finish(lab, "p")
    lab.settle()
    assert running(lab) == ["q"]


def test_elastic_pods_end_where_the_quota_ends(lab: Lab) -> None:
    lab.apply(virtual_cluster(guaranteed=1, most=4), gpu_pod("other", 2, namespace="llm"))
    lab.settle()
    for name in "pqr":
        lab.inside("lab", gpu_pod(name))
    lab.settle()
    assert running(lab) == ["p", "q"]
    assert allocated(lab) == "4"
    assert lab.reason("Pod", HOME, lab.host_name("r", "default", "lab"), of="vmtenancy.io/Admitted") in (
        "QuotaExceeded",
        "NoCapacity",
    )


def test_what_is_guaranteed_is_kept_free_for_it(lab: Lab) -> None:
    lab.apply(virtual_cluster(guaranteed=3, most=3))
    lab.settle()
    lab.apply(tenant("vision", 3, 1), gpu_pod("big", 2, namespace="vision"))
    lab.settle()
    assert lab.reason("Pod", "vision", "big", of="vmtenancy.io/Admitted") == "NoCapacity"
    for name in "pqr":
        lab.inside("lab", gpu_pod(name))
    lab.settle()
    assert running(lab) == ["p", "q", "r"]


def test_over_quota_it_waits_and_nothing_is_made(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 3, namespace="llm"))
    lab.settle()
    lab.apply(virtual_cluster(guaranteed=2, most=2))
    lab.settle()
    assert lab.status(*LAB)["phase"] == "Pending"
    assert lab.reason(*LAB, of="Admitted") == "QuotaExceeded"
    assert lab.find("Namespace", "", HOME) is None
    lab.delete("GpuVM", "llm", "a")
    lab.settle()
    assert lab.status(*LAB)["phase"] == "Ready"


def test_deletion_takes_namespace_pods_and_holds_along(lab: Lab) -> None:
    lab.apply(virtual_cluster(guaranteed=1, most=2))
    lab.settle()
    lab.inside("lab", gpu_pod("p", 1))
    lab.inside("lab", gpu_pod("q", 1))
    lab.settle()
    hold = lab.grant(*LAB)
    assert hold
    lab.delete(*LAB)
    while lab.pods(HOME):
        lab.reconcile()
        assert hold["metadata"]["name"] in lab.live_grants()  # not before the last pod is gone
        lab.surroundings()
    lab.settle()
    assert lab.find(*LAB) is None
    assert lab.find("Namespace", "", HOME) is None
    assert lab.find("Secret", "llm", "lab-kubeconfig") is None
    assert not list(lab.cluster.world.of("GpuAllocation"))
    assert allocated(lab) == "0"


def test_two_with_one_name_in_two_namespaces_stay_apart(lab: Lab) -> None:
    lab.apply(virtual_cluster(), virtual_cluster(namespace="vision"))
    lab.settle()
    lab.delete(*LAB)
    lab.settle()
    assert lab.status("VirtualCluster", "vision", "lab")["phase"] == "Ready"
    assert lab.find("Namespace", "", "vc-vision--lab") is not None


def test_a_namespace_that_was_there_before_is_not_taken(lab: Lab) -> None:
    lab.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME}})
    lab.apply(virtual_cluster())
    lab.settle()
    assert lab.reason(*LAB) == "CannotRender"
    assert f"Namespace {HOME}" in lab.status(*LAB)["message"]
    assert TENANT_LABEL not in labels_of(lab.get("Namespace", "", HOME))
    lab.delete(*LAB)
    lab.settle()
    assert lab.find("Namespace", "", HOME) is not None


def test_a_class_for_machines_alone_is_refused(lab: Lab) -> None:
    cluster = virtual_cluster(guaranteed=0)
    cluster["spec"]["gpus"][0]["class"] = "quarter"
    lab.apply(cluster)
    lab.settle()
    assert lab.reason(*LAB) == "CannotRender"
    assert "VMT-P002" in lab.status(*LAB)["message"]
    assert lab.events(*LAB).count("CannotRender") == 1


def test_several_classes_are_counted_apart(lab: Lab) -> None:
    lab.apply(gpu_class("slice", "1/7", container="nvidia.com/mig-1g.10gb"))
    node = lab.get("Node", "", "pods-2")
    offered = {**node["status"]["allocatable"], "nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "14"}
    lab.cluster.replace({**node, "status": {**node["status"], "allocatable": offered}}, status=True)
    cluster = virtual_cluster(guaranteed=1, most=1)
    cluster["spec"]["gpus"].append({"class": "slice", "max": 2})
    lab.apply(cluster)
    lab.settle()
    for name, resource in (("p", "nvidia.com/gpu"), ("q", "nvidia.com/mig-1g.10gb")):
        lab.inside("lab", gpu_pod(name, resource=resource))
    lab.settle()
    assert running(lab) == ["p", "q"]
    assert [gpu["used"] for gpu in lab.status(*LAB)["gpus"]] == [1, 1]


def test_a_chart_that_reaches_out_is_refused(lab: Lab) -> None:
    def evil(step: RenderChart) -> Iterable[Object]:
        yield {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x", "namespace": "kube-system"}}

    lab.cluster.renderer = evil
    lab.apply(virtual_cluster())
    lab.settle()
    assert lab.reason(*LAB) == "CannotRender"
    assert lab.find("Secret", "kube-system", "x") is None
    assert lab.find("Namespace", "", HOME) is None


def test_without_a_chart_it_says_so_once(lab: Lab) -> None:
    lab.cluster.renderer = None
    lab.apply(virtual_cluster())
    lab.settle()
    assert "no vCluster chart is configured" in lab.status(*LAB)["message"]
    assert lab.events(*LAB).count("CannotRender") == 1


def test_a_new_controller_renders_the_chart_again_and_changes_nothing(lab: Lab) -> None:
    lab.apply(virtual_cluster())
    lab.settle()
    other = fork(lab)
    other.restart()
    other.whys.clear()
    other.settle()
    assert other.whys == ["take over the ledger as epoch 2", "apply VirtualCluster llm/lab"]
    assert isinstance(other.steps[-1], RenderChart)


def test_a_guarantee_that_comes_later_takes_in_what_its_pods_have(lab: Lab) -> None:
    lab.apply(virtual_cluster(guaranteed=0, most=3))
    lab.settle()
    lab.inside("lab", gpu_pod("p"))
    lab.settle()
    assert allocated(lab) == "1"
    lab.edit(*LAB, gpus=[{"class": "whole", "guaranteed": 2, "max": 3}])
    lab.settle()
    assert allocated(lab) == "2"
    lab.inside("lab", gpu_pod("q"))
    lab.settle()
    assert allocated(lab) == "2"
    assert running(lab) == ["p", "q"]


def test_i12_another_guarantee_is_not_reported_as_held(lab: Lab) -> None:
    """What is held stays what it was at the admission; at least nobody is told otherwise."""
    lab.apply(virtual_cluster(guaranteed=2, most=3))
    lab.settle()
    lab.edit(*LAB, gpus=[{"class": "whole", "guaranteed": 1, "max": 3}])
    lab.settle()
    status = lab.status(*LAB)
    assert status["observedGeneration"] < lab.get(*LAB)["metadata"]["generation"]
    assert status["gpus"][0]["guaranteed"] == 2
    assert allocated(lab) == "2"


def test_a_maximum_that_is_lowered_evicts_nobody(lab: Lab) -> None:
    lab.apply(virtual_cluster(guaranteed=0, most=3))
    lab.settle()
    for name in "pq":
        lab.inside("lab", gpu_pod(name))
    lab.settle()
    lab.edit(*LAB, gpus=[{"class": "whole", "guaranteed": 0, "max": 1}])
    lab.settle()
    assert running(lab) == ["p", "q"]
    finish(lab, "p")
    lab.inside("lab", gpu_pod("r"))
    lab.settle()
    assert running(lab) == ["q"]
    assert lab.get("ResourceQuota", HOME, "vmtenancy-gpus")["spec"]["hard"] == {
        "requests.nvidia.com/gpu": "1"
    }
