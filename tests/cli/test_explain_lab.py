"""`vmtenancy explain` on a small fleet in memory: what it tells, and that it comes true."""

from __future__ import annotations

from typing import Any

import pytest
from lab import Lab, gpu_pod, gpu_vm, reservation, small_lab, tenant, virtual_cluster

from vmtenancy.cli.explain_cmd import Answer, State, answer_for
from vmtenancy.reconcile.status import timestamp
from vmtenancy.reconcile.view import View

HOUR = 3600.0


@pytest.fixture
def lab() -> Lab:
    return small_lab()


def explained(lab: Lab, kind: str, namespace: str, name: str) -> Answer:
    return answer_for(View(lab.cluster.world, lab.cluster.now), lab.get(kind, namespace, name))


def changes(answer: Answer) -> dict[str, Any]:
    return {key: value for key, value in answer.data["changes"].items() if value is not None}


def test_the_end_of_a_lease_is_when_it_starts(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 3, lease={"duration": "2h"}), gpu_vm("b", 1))
    lab.settle()
    lab.apply(gpu_vm("c", 3))
    lab.settle()
    told = explained(lab, "GpuVM", "vision", "c")
    ends = lab.status("GpuVM", "vision", "a")["lease"]["expiresAt"]
    assert told.data["start"] == {"earliest": ends, "latest": ends}
    assert f"starts at {ends}" in told.details
    assert "number 1 in the queue for pool h100" in told.details
    lab.wait_until(lab.cluster.now + 2 * HOUR)
    assert lab.status("GpuVM", "vision", "c")["phase"] == "Running"
    assert explained(lab, "GpuVM", "vision", "c").state is State.HOLDS
    assert explained(lab, "GpuVM", "vision", "a").data["reason"] == "LeaseExpired"


def test_what_it_says_would_be_admitted_is(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    lab.apply(gpu_vm("b", 4), gpu_vm("c", 4))
    lab.settle()
    for name in ("b", "c"):
        told = explained(lab, "GpuVM", "vision", name)
        assert changes(told) == {
            "fewer": [{"class": "whole", "count": 2}],
            "otherClass": [{"class": "quarter", "count": 4}],
        }
    lab.edit("GpuVM", "vision", "b", gpus=[{"class": "quarter", "count": 4}])
    lab.settle()
    assert lab.status("GpuVM", "vision", "b")["phase"] == "Running"
    assert changes(explained(lab, "GpuVM", "vision", "c")) == {"fewer": [{"class": "whole", "count": 1}]}
    lab.edit("GpuVM", "vision", "c", gpus=[{"class": "whole", "count": 1}])
    lab.settle()
    assert lab.status("GpuVM", "vision", "c")["phase"] == "Running"


def test_a_higher_priority_comes_true_and_names_whom_it_stops(lab: Lab) -> None:
    lab.apply(tenant("vision", 3, 0, preemption={"withinTenant": "LowerPriority"}))
    lab.settle()
    lab.apply(gpu_vm("a", 3, priority=4))
    lab.settle()
    lab.apply(gpu_vm("b", 3))
    lab.settle()
    told = explained(lab, "GpuVM", "vision", "b")
    assert changes(told) == {"priority": {"value": 5, "nominated": True, "stops": ["GpuVM vision/a"]}}
    lab.edit("GpuVM", "vision", "b", priority=4)
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"
    lab.edit("GpuVM", "vision", "b", priority=5)
    lab.settle()
    assert lab.status("GpuVM", "vision", "b")["phase"] == "Running"


def test_a_shorter_lease_where_something_is_reserved(lab: Lab) -> None:
    lab.apply(tenant("vision", 3, 0))
    start = lab.cluster.now + 2 * HOUR
    lab.apply(reservation("r", 3, start, start + HOUR))
    lab.settle()
    lab.apply(gpu_vm("a", 2, lease={"duration": "8h"}))
    lab.settle()
    told = explained(lab, "GpuVM", "vision", "a")
    assert changes(told) == {"leaseUntil": timestamp(start)}
    over = timestamp(start + HOUR)
    assert told.data["start"] == {"earliest": over, "latest": over}
    lab.edit("GpuVM", "vision", "a", lease={"duration": "110m"})
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"


def test_a_virtual_cluster_and_a_pod_in_one(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 3, namespace="llm", lease={"duration": "1h"}))
    lab.settle()
    ends = lab.status("GpuVM", "llm", "a")["lease"]["expiresAt"]
    lab.apply(virtual_cluster(guaranteed=2, most=3))
    lab.settle()
    told = explained(lab, "VirtualCluster", "llm", "lab")
    assert told.data["shortage"]["boundBy"] == "tenant llm"
    assert changes(told) == {"fewer": [{"class": "whole", "count": 1}]}
    assert told.data["start"] == {"earliest": ends, "latest": ends}
    lab.edit("VirtualCluster", "llm", "lab", gpus=[{"class": "whole", "guaranteed": 1, "max": 3}])
    lab.settle()
    lab.inside("lab", gpu_pod("p", 2))
    lab.settle()
    (pod,) = (pod for pod in lab.pods("vc-llm--lab") if not pod["spec"].get("nodeName"))
    told = explained(lab, "Pod", "vc-llm--lab", pod["metadata"]["name"])
    assert told.data["reason"] == "QuotaExceeded"
    assert changes(told) == {"fewer": [{"class": "whole", "count": 1}]}
    assert told.data["start"] == {"earliest": ends, "latest": ends}
    lab.wait_until(lab.cluster.now + HOUR)
    assert explained(lab, "Pod", "vc-llm--lab", pod["metadata"]["name"]).state is State.HOLDS


def test_one_that_is_stopped_asks_for_nothing(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 1, runStrategy="Halted"))
    lab.settle()
    assert explained(lab, "GpuVM", "vision", "a").state is State.IDLE
