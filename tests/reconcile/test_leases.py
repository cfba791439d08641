"""Leases: machines and virtual clusters are warned, stopped when their time is over, and start again when renewed."""

from __future__ import annotations

from typing import Any

import pytest
from lab import Lab, gpu_pod, gpu_vm, tenant, virtual_cluster

from vmtenancy.reconcile.status import condition, seconds, timestamp

HOUR, MINUTE = 3600.0, 60.0
VM, CLUSTER = ("GpuVM", "vision", "a"), ("VirtualCluster", "llm", "lab")
Owner = tuple[str, str, str]


def lease(lab: Lab, owner: Owner) -> tuple[float, float]:
    """When the lease of an owner began and ends."""
    told = lab.status(*owner)["lease"]
    return seconds(told["startedAt"]), seconds(told["expiresAt"])


def committed(lab: Lab, owner: Owner) -> float:
    grant = lab.grant(*owner)
    assert grant
    return seconds(grant["metadata"]["creationTimestamp"])


def message(lab: Lab, owner: Owner, of: str = "Admitted") -> str:
    found = condition(lab.get(*owner), of)
    return str(found["message"]) if found else ""


def start(lab: Lab, **terms: Any) -> float:
    """A machine with a lease runs; when it ends."""
    lab.apply(gpu_vm("a", lease={"duration": "8h"} | terms))
    lab.settle()
    assert lab.status(*VM)["phase"] == "Running"
    return lease(lab, VM)[1]


def test_a_lease_counts_from_the_commit_of_the_grant(lab: Lab) -> None:
    end = start(lab)
    assert lease(lab, VM) == (committed(lab, VM), committed(lab, VM) + 8 * HOUR)
    assert message(lab, VM, "LeaseEnding") == f"its lease ends at {timestamp(end)}"
    assert lab.reason(*VM, of="LeaseEnding") == "LeaseRunning"


def test_the_planner_is_woken_for_each_warning_and_for_the_end_and_for_nothing_else(lab: Lab) -> None:
    end = start(lab)
    for due in (end - HOUR, end - 10 * MINUTE, end):
        assert lab.plan().retry_at == due
        lab.cluster.now = due - 1
        assert not lab.plan().chains, "nothing is due yet"
        lab.cluster.now = due
        lab.settle()
    assert lab.plan().retry_at is None


def test_each_warning_is_told_once(lab: Lab) -> None:
    end = start(lab)
    lab.wait_until(end - 5 * MINUTE)
    assert lab.events(*VM).count("LeaseEnding") == 2
    assert lab.reason(*VM, of="LeaseEnding") == "LeaseEnding"
    assert "in 10m or less" in message(lab, VM, "LeaseEnding")
    assert lab.status(*VM)["phase"] == "Running"


def test_warnings_that_are_not_shorter_than_the_lease_are_left_out(lab: Lab) -> None:
    start(lab, duration="30m", warnBefore=["30m", "2h", "5m"])
    assert lab.reason(*VM, of="LeaseEnding") == "LeaseRunning"
    assert lab.plan().retry_at == lease(lab, VM)[1] - 5 * MINUTE


def test_at_its_end_the_machine_is_stopped_and_stays_stopped(lab: Lab) -> None:
    end = start(lab)
    lab.wait_until(end + HOUR)
    assert lab.status(*VM)["phase"] == "Stopped"
    assert lab.reason(*VM, of="Admitted") == "LeaseExpired"
    assert timestamp(end) in message(lab, VM)
    assert lab.events(*VM).count("LeaseExpired") == 1
    assert lab.grant(*VM) is None
    machine = lab.get("VirtualMachine", "vision", "a")
    assert machine["spec"]["runStrategy"] == "Halted"
    assert condition(lab.get(*VM), "LeaseEnding") is None
    lab.wait_until(end + 1000 * HOUR)
    assert lab.grant(*VM) is None


def test_the_devices_are_its_own_until_its_pod_is_gone(lab: Lab) -> None:
    end = start(lab)
    lab.cluster.now = end
    lab.reconcile()
    lab.reconcile()
    assert lab.reason(*VM, of="Admitted") == "LeaseExpired"
    assert lab.grant(*VM) is not None, "its pod still runs (I4)"
    lab.settle()
    assert lab.grant(*VM) is None


def test_another_gets_the_devices(lab: Lab) -> None:
    end = start(lab)
    lab.apply(gpu_vm("b", 4))
    lab.settle()
    assert lab.grant("GpuVM", "vision", "b") is None
    lab.wait_until(end)
    assert lab.status("GpuVM", "vision", "b")["phase"] == "Running"
    lab.edit(*VM, lease={"duration": "8h", "renewedAt": timestamp(end + MINUTE)})
    lab.wait_until(end + MINUTE)
    assert lab.reason(*VM, of="Admitted") == "QuotaExceeded", "it queues again"
    assert "lease" not in lab.status(*VM)
    lab.wait_until(end + 100 * HOUR)
    lab.delete("GpuVM", "vision", "b")
    lab.settle()
    assert lease(lab, VM)[1] == committed(lab, VM) + 8 * HOUR, "it is a new one"


@pytest.mark.parametrize("change", ["renewed", "longer", "dropped"])
def test_what_is_over_starts_again_when_it_is_renewed_made_longer_or_dropped(lab: Lab, change: str) -> None:
    end = start(lab)
    lab.wait_until(end + HOUR)
    wanted: Any = {
        "renewed": {"duration": "8h", "renewedAt": timestamp(end + HOUR)},
        "longer": {"duration": "24h"},
        "dropped": None,
    }[change]
    lab.edit(*VM, lease=wanted)
    lab.settle()
    assert lab.status(*VM)["phase"] == "Running"
    if wanted:
        began = committed(lab, VM)
        assert began > end
        assert lease(lab, VM)[0] == began
    else:
        assert "lease" not in lab.status(*VM)


def test_a_renewal_before_the_end_keeps_it_running(lab: Lab) -> None:
    end = start(lab)
    lab.wait_until(end - 5 * MINUTE)
    grant = lab.grant(*VM)
    lab.edit(*VM, lease={"duration": "8h", "renewedAt": timestamp(end - 5 * MINUTE)})
    lab.settle()
    assert lease(lab, VM)[1] == end - 5 * MINUTE + 8 * HOUR
    assert lab.reason(*VM, of="LeaseEnding") == "LeaseRunning"
    lab.wait_until(end + HOUR)
    assert lab.grant(*VM) == grant
    lab.wait_until(end + 8 * HOUR)
    assert lab.reason(*VM, of="Admitted") == "LeaseExpired"


def test_one_that_is_stopped_and_started_by_its_owner_has_a_new_lease(lab: Lab) -> None:
    end = start(lab)
    lab.wait_until(end)
    lab.edit(*VM, runStrategy="Halted")
    lab.settle()
    assert lab.reason(*VM, of="Admitted") == "Stopped"
    assert "lease" not in lab.status(*VM)
    lab.edit(*VM, runStrategy="Always")
    lab.settle()
    assert lease(lab, VM)[0] == committed(lab, VM) > end


def test_a_stopped_machine_that_holds_its_devices_gives_them_back_at_the_end(lab: Lab) -> None:
    lab.apply(gpu_vm("a", lease={"duration": "8h"}, whenStopped="Hold"))
    lab.settle()
    lab.edit(*VM, runStrategy="Halted")
    lab.settle()
    assert lab.grant(*VM)
    lab.wait_until(lease(lab, VM)[1])
    assert lab.grant(*VM) is None


def test_renewed_while_it_stops_it_queues_anew(lab: Lab) -> None:
    end = start(lab)
    old = lab.grant(*VM)
    lab.cluster.now = end
    lab.reconcile()
    lab.edit(*VM, lease={"duration": "8h", "renewedAt": timestamp(end)})
    lab.settle()
    grant = lab.grant(*VM)
    assert grant
    assert old
    assert grant["metadata"]["name"] != old["metadata"]["name"]
    assert lease(lab, VM)[1] == committed(lab, VM) + 8 * HOUR


# -- what the tenant says -----------------------------------------------------------------------------------------


def test_the_tenants_default_is_for_those_that_name_none(lab: Lab) -> None:
    lab.apply(tenant("vision", 3, 1, leases={"default": "2h", "maximum": "4h"}))
    lab.apply(gpu_vm("a"), gpu_vm("b", lease={"duration": "3h"}))
    lab.settle()
    assert lease(lab, VM)[1] == committed(lab, VM) + 2 * HOUR
    b = ("GpuVM", "vision", "b")
    assert lease(lab, b)[1] == committed(lab, b) + 3 * HOUR


def test_a_maximum_alone_is_the_default(lab: Lab) -> None:
    lab.apply(tenant("vision", 3, 1, leases={"maximum": "4h"}), gpu_vm("a"))
    lab.settle()
    assert lease(lab, VM)[1] == committed(lab, VM) + 4 * HOUR


def test_one_that_asks_for_more_than_the_maximum_is_not_admitted(lab: Lab) -> None:
    lab.apply(tenant("vision", 3, 1, leases={"maximum": "4h"}), gpu_vm("a", lease={"duration": "5h"}))
    lab.settle()
    assert lab.reason(*VM, of="Admitted") == "LeaseTooLong"
    assert "found 5h, at most 4h" in message(lab, VM)
    lab.edit(*VM, lease={"duration": "4h"})
    lab.settle()
    assert lab.status(*VM)["phase"] == "Running"


def test_renewals_do_not_pass_the_maximum(lab: Lab) -> None:
    lab.apply(tenant("vision", 3, 1, leases={"maximum": "10h"}))
    end = start(lab)
    began = lease(lab, VM)[0]
    lab.wait_until(end - HOUR)
    lab.edit(*VM, lease={"duration": "8h", "renewedAt": timestamp(end - HOUR)})
    lab.settle()
    assert lease(lab, VM)[1] == began + 10 * HOUR
    lab.wait_until(began + 10 * HOUR)
    assert lab.reason(*VM, of="Admitted") == "LeaseExpired"
    lab.edit(*VM, lease={"duration": "8h", "renewedAt": timestamp(began + 11 * HOUR)})
    lab.wait_until(began + 11 * HOUR)
    assert lease(lab, VM)[1] == committed(lab, VM) + 8 * HOUR, "it has queued again"


def test_a_lease_that_comes_later_counts_from_then(lab: Lab) -> None:
    lab.apply(gpu_vm("a"))
    lab.settle()
    later = committed(lab, VM) + 100 * HOUR
    lab.wait_until(later)
    lab.cluster.now = later = lab.cluster.now + 1
    lab.apply(tenant("vision", 3, 1, leases={"default": "2h"}))
    lab.settle()
    assert lease(lab, VM) == (later, later + 2 * HOUR)


def test_lowered_terms_leave_the_time_of_the_first_warning(lab: Lab) -> None:
    end = start(lab)
    lab.cluster.now = lowered = end - 2 * HOUR
    lab.apply(tenant("vision", 3, 1, leases={"maximum": "4h"}))
    lab.settle()
    assert lease(lab, VM)[1] == lowered + HOUR
    assert lab.reason(*VM, of="LeaseEnding") == "LeaseEnding"
    lab.wait_until(lowered + HOUR - 1)
    assert lab.status(*VM)["phase"] == "Running"
    lab.wait_until(lowered + HOUR)
    assert lab.reason(*VM, of="Admitted") == "LeaseExpired"


def test_without_warnings_lowered_terms_hold_at_once(lab: Lab) -> None:
    end = start(lab, warnBefore=[])
    lab.wait_until(end - HOUR)
    lab.edit(*VM, lease={"duration": "1h", "warnBefore": []})
    lab.settle()
    assert lab.reason(*VM, of="Admitted") == "LeaseExpired"


# -- what else happens meanwhile ------------------------------------------------------------------------------------


def test_a_preempted_machine_gets_a_new_lease_with_its_next_grant(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, preemption={"withinTenant": "LowerPriority"}))
    end = start(lab)
    lab.cluster.now = end - 2 * HOUR
    lab.apply(gpu_vm("urgent", 4, priority=5))
    lab.settle()
    assert "lease" not in lab.status(*VM)
    lab.wait_until(end + HOUR)
    assert lab.reason(*VM, of="Admitted") == "QuotaExceeded", "its time does not run while it waits"
    lab.delete("GpuVM", "vision", "urgent")
    lab.settle()
    assert lease(lab, VM)[1] == committed(lab, VM) + 8 * HOUR


def test_a_grant_that_was_lost_comes_back_with_the_lease_that_it_had(lab: Lab) -> None:
    end = start(lab)
    lab.wait_until(end - 2 * HOUR)
    grant = lab.grant(*VM)
    assert grant
    lab.cluster.world.remove("GpuAllocation", "", grant["metadata"]["name"])
    lab.judge = lambda **_: None  # type: ignore[method-assign]
    lab.rest()  # what runs has no grant for a moment
    del lab.judge
    assert committed(lab, VM) > seconds(grant["metadata"]["creationTimestamp"])
    assert lease(lab, VM)[1] == end


def test_another_controller_goes_on_with_the_lease(lab: Lab) -> None:
    end = start(lab)
    lab.restart()
    lab.settle()
    assert lease(lab, VM)[1] == end
    lab.cluster.now = end + HOUR  # none ran when it ended
    lab.restart()
    lab.settle()
    assert lab.reason(*VM, of="Admitted") == "LeaseExpired"


def test_its_end_is_written_before_its_grant_is_taken_back(lab: Lab) -> None:
    lab.apply(gpu_vm("a", lease={"duration": "8h"}))
    while not lab.live_grants():
        lab.reconcile()
    lab.cluster.now += 9 * HOUR  # none ran meanwhile, and nothing is told of the lease yet
    whys = [chain.why for chain in lab.plan().chains]
    assert any(why.startswith("report GpuVM vision/a") for why in whys)
    assert not any(why.startswith("end the lease") for why in whys)
    lab.settle()
    assert lab.reason(*VM, of="Admitted") == "LeaseExpired"


def test_a_machine_that_goes_needs_no_lease(lab: Lab) -> None:
    end = start(lab)
    lab.delete(*VM)
    lab.cluster.now = end
    lab.settle()
    assert lab.find(*VM) is None
    assert "LeaseExpired" not in lab.events(*VM)


# -- virtual clusters ---------------------------------------------------------------------------------------------


def running_pods(lab: Lab) -> list[str]:
    return [pod["metadata"]["name"] for pod in lab.pods("vc-llm--lab") if pod["spec"].get("nodeName")]


@pytest.mark.parametrize("guaranteed", [0, 1])
def test_a_virtual_cluster_gives_its_gpus_back_and_stays_there(lab: Lab, guaranteed: int) -> None:
    lab.apply(virtual_cluster(guaranteed=guaranteed, lease={"duration": "2h"}))
    lab.settle()
    end = lease(lab, CLUSTER)[1]
    began = (
        committed(lab, CLUSTER) if guaranteed else seconds(lab.get(*CLUSTER)["metadata"]["creationTimestamp"])
    )
    assert end == began + 2 * HOUR
    lab.inside("lab", gpu_pod("p"))
    lab.inside("lab", gpu_pod("q"))
    lab.settle()
    assert len(running_pods(lab)) == 2
    lab.wait_until(end - MINUTE)
    assert len(running_pods(lab)) == 2
    assert lab.events(*CLUSTER).count("LeaseEnding") == 2
    lab.wait_until(end)
    assert not running_pods(lab)
    assert lab.reason(*CLUSTER, of="Admitted") == "LeaseExpired"
    assert lab.events(*CLUSTER).count("LeaseExpired") == 1
    assert not lab.live_grants()
    assert not any(gpu["guaranteed"] for gpu in lab.status(*CLUSTER)["gpus"])
    assert lab.status(*CLUSTER)["kubeconfigSecret"], "its API is still there"
    waiting = lab.inside("lab", gpu_pod("r"))
    lab.settle()
    pod = lab.get("Pod", "vc-llm--lab", waiting["metadata"]["name"])
    assert (
        lab.reason("Pod", "vc-llm--lab", pod["metadata"]["name"], of="vmtenancy.io/Admitted")
        == "LeaseExpired"
    )
    lab.edit(*CLUSTER, lease={"duration": "2h", "renewedAt": timestamp(lab.cluster.now)})
    lab.settle()
    assert running_pods(lab) == [waiting["metadata"]["name"]]
    assert lab.reason(*CLUSTER, of="Admitted") == "Admitted"
    assert lease(lab, CLUSTER)[1] > end


@pytest.mark.parametrize("guaranteed", [0, 1])
def test_a_virtual_cluster_that_asks_for_too_long_gets_nothing(lab: Lab, guaranteed: int) -> None:
    lab.apply(tenant("llm", 3, 1, leases={"maximum": "1h"}))
    lab.apply(virtual_cluster(guaranteed=guaranteed, lease={"duration": "2h"}))
    lab.settle()
    assert lab.reason(*CLUSTER, of="Admitted") == "LeaseTooLong"
    assert "lease" not in lab.status(*CLUSTER)
    lab.edit(*CLUSTER, lease={"duration": "1h"})
    lab.settle()
    assert lab.reason(*CLUSTER, of="Admitted") == "Admitted"


def test_a_hold_is_kept_until_its_status_says_that_it_is_gone(lab: Lab) -> None:
    lab.apply(virtual_cluster(lease={"duration": "2h", "warnBefore": []}))
    lab.settle()
    lab.cluster.now = lease(lab, CLUSTER)[1]
    lab.reconcile()
    for chain in lab.plan().chains:
        if chain.why.startswith("commit"):
            lab.run_chain(chain)  # and the controller is killed
    lab.edit(*CLUSTER, lease={"duration": "2h", "renewedAt": timestamp(lab.cluster.now)})
    lab.apply(tenant("llm", 0, 0))
    lab.quota_just_decided = False
    lab.settle()
    assert lab.reason(*CLUSTER, of="Admitted") == "QuotaExceeded", "it is not taken for lost, but queues"
