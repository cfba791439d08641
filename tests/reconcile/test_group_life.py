"""GpuGroup: machines and pods that get their GPUs at once, or none of them does."""

from __future__ import annotations

import pytest
from lab import Lab, gpu_pod, gpu_vm, group, small_lab, tenant, virtual_cluster

G = ("GpuGroup", "vision", "g")


@pytest.fixture
def lab() -> Lab:
    return small_lab()


def holders(lab: Lab) -> set[str]:
    return {str(obj["spec"]["owner"]["name"]) for obj in lab.cluster.world.of("GpuAllocation")}


def test_members_wait_until_all_are_there_and_then_start_at_once(lab: Lab) -> None:
    lab.apply(group("g", 3), gpu_vm("a", 2, group="g"), gpu_vm("b", group="g"))
    lab.settle()
    assert holders(lab) == set()
    assert lab.reason("GpuVM", "vision", "a", of="Admitted") == "GroupIncomplete"
    assert lab.status(*G)["message"] == "2 of 3 members are there"
    lab.apply(gpu_pod("p", namespace="vision", group="g"))
    lab.reconcile()
    assert holders(lab) == {"a", "b", "p"}, "one commit for all of them"
    lab.settle()
    assert (lab.status(*G)["members"], lab.status(*G)["admitted"]) == (3, 3)
    assert lab.reason(*G, of="Admitted") == "Admitted"


def test_where_not_all_fit_none_holds_anything(lab: Lab) -> None:
    lab.apply(group("g", 2), gpu_vm("a", 2, group="g"), gpu_vm("b", 3, group="g"))
    lab.settle()
    assert holders(lab) == set()
    assert lab.reason("GpuVM", "vision", "a", of="Admitted") == "QuotaExceeded"
    assert "the group vision/g waits as a whole" in lab.status("GpuVM", "vision", "a")["message"]
    assert lab.reason(*G, of="Admitted") == "QuotaExceeded"
    lab.apply(gpu_vm("small", 2))
    lab.settle()
    assert holders(lab) == {"small"}, "who waits blocks nobody"


def test_a_member_that_starts_anew_needs_no_others(lab: Lab) -> None:
    lab.apply(group("g", 2), gpu_vm("a", group="g"), gpu_vm("b", group="g"))
    lab.settle()
    lab.edit("GpuVM", "vision", "a", runStrategy="Halted")
    lab.settle()
    assert holders(lab) == {"b"}
    lab.edit("GpuVM", "vision", "a", runStrategy="Always")
    lab.settle()
    assert holders(lab) == {"a", "b"}


def test_an_unknown_group_is_told(lab: Lab) -> None:
    lab.apply(gpu_vm("a", group="nobody"))
    lab.settle()
    assert lab.reason("GpuVM", "vision", "a", of="Admitted") == "UnknownGroup"
    lab.apply(group("nobody", 2), gpu_vm("b", group="nobody"))
    lab.settle()
    assert holders(lab) == {"a", "b"}


def test_pods_of_a_virtual_cluster_join_a_group_beside_it(lab: Lab) -> None:
    lab.apply(virtual_cluster(guaranteed=1, most=2), group("g", 2, namespace="llm"))
    lab.settle()
    lab.inside("lab", gpu_pod("p", group="g"))
    lab.settle()
    assert holders(lab) == {"lab"}
    lab.apply(gpu_vm("a", namespace="llm", group="g"))
    lab.settle()
    assert len(holders(lab)) == 3


def test_a_group_is_stopped_as_a_whole(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, preemption={"withinTenant": "LowerPriority"}), group("g", 2))
    lab.apply(gpu_vm("a", 2, group="g"), gpu_vm("b", 2, group="g"))
    lab.settle()
    lab.apply(gpu_vm("urgent", 2, priority=5))
    lab.settle()
    assert holders(lab) == {"urgent"}
    lab.delete("GpuVM", "vision", "urgent")
    lab.settle()
    assert holders(lab) == {"a", "b"}
