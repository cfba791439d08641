"""Requests make others stop, gracefully, and get their place: machines and pods alike."""

from __future__ import annotations

import pytest
from lab import Lab, gpu_pod, gpu_vm, small_lab, tenant, virtual_cluster

LOWER = {"withinTenant": "LowerPriority"}


@pytest.fixture
def lab() -> Lab:
    return small_lab()


def test_a_machine_is_stopped_for_a_more_urgent_one_and_runs_again_afterwards(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, preemption=LOWER), gpu_vm("a", 3))
    lab.settle()
    lab.apply(gpu_vm("urgent", 3, priority=5))
    lab.settle()
    assert lab.status("GpuVM", "vision", "urgent")["phase"] == "Running"
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Pending"
    assert lab.events("GpuVM", "vision", "urgent") == ["Nominated", "Admitted", "Running"]
    assert "Preempted" in lab.events("GpuVM", "vision", "a")
    assert lab.reason("GpuVM", "vision", "a", of="Admitted") == "QuotaExceeded"
    lab.delete("GpuVM", "vision", "urgent")
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"


def test_the_one_that_waits_is_told_for_whom_and_the_other_why(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, preemption=LOWER), gpu_vm("a", 3))
    lab.settle()
    lab.apply(gpu_vm("urgent", 3, priority=5))
    lab.reconcile()
    assert lab.status("GpuVM", "vision", "urgent").get("phase") in (None, "Pending")
    lab.reconcile()
    assert lab.reason("GpuVM", "vision", "urgent", of="Admitted") == "Nominated"
    assert lab.reason("GpuVM", "vision", "a", of="Admitted") == "Preempted"
    grant = lab.grant("GpuVM", "vision", "a")
    assert grant
    assert grant["status"]["revoked"]["preemptor"] == "GpuVM vision/urgent"
    assert lab.node_of("GpuVM", "vision", "a"), "it has its devices until its pod is gone (I4)"


def test_without_a_policy_nobody_stops(lab: Lab) -> None:
    lab.apply(tenant("vision", 4), gpu_vm("a", 3))
    lab.settle()
    lab.apply(gpu_vm("urgent", 3, priority=5))
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"
    assert lab.reason("GpuVM", "vision", "urgent", of="Admitted") == "QuotaExceeded"


def test_what_was_lent_comes_back_from_pods_of_a_virtual_cluster_but_not_its_guarantee(lab: Lab) -> None:
    lab.apply(tenant("vision", 3, preemption={"reclaimWithinCohort": "Any"}), tenant("llm", 1, 3))
    lab.settle()
    lab.apply(virtual_cluster(guaranteed=1, most=4))
    lab.settle()
    for name in "pqrs":
        lab.inside("lab", gpu_pod(name))
    lab.settle()
    assert len([pod for pod in lab.pods("vc-llm--lab") if pod["spec"].get("nodeName")]) == 4
    lab.apply(gpu_pod("mine", 2, namespace="vision"))
    lab.settle()
    assert lab.node_of("Pod", "vision", "mine")
    left = [pod for pod in lab.pods("vc-llm--lab") if pod["spec"].get("nodeName")]
    assert len(left) == 2, "one more than it must leave: both GPUs come from one node"
    assert lab.status("VirtualCluster", "llm", "lab")["phase"] == "Ready"


def test_a_waiting_request_that_goes_lets_the_stopped_one_run_again(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, preemption=LOWER), gpu_vm("a", 3))
    lab.settle()
    lab.apply(gpu_vm("urgent", 3, priority=5))
    lab.reconcile()
    lab.delete("GpuVM", "vision", "urgent")
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"
