"""Reservations: quota kept for a window, what keeps clear of it before, what draws on it, and its end."""

from __future__ import annotations

import pytest
from lab import Lab, gpu_pod, gpu_vm, reservation, small_lab, tenant, virtual_cluster

from vmtenancy.reconcile.status import condition, timestamp

HOUR = 3600.0
WINDOW = ("GpuReservation", "vision", "r")


@pytest.fixture
def lab() -> Lab:
    found = small_lab()
    found.apply(tenant("vision", 3, 0), tenant("llm", 3, 0))
    found.settle()
    return found


def message(lab: Lab, kind: str, namespace: str, name: str) -> str:
    found = condition(lab.get(kind, namespace, name), "Admitted")
    return str(found["message"]) if found else ""


def phase(lab: Lab, name: str, kind: str = "GpuVM", namespace: str = "vision") -> str:
    return str(lab.status(kind, namespace, name).get("phase"))


def reason(lab: Lab, name: str, kind: str = "GpuVM", namespace: str = "vision") -> str:
    return lab.reason(kind, namespace, name, of="Admitted")


def test_a_window_is_shown_begins_on_time_and_ends_on_time(lab: Lab) -> None:
    start = lab.cluster.now + 2 * HOUR
    lab.apply(reservation("r", 2, start, start + 4 * HOUR))
    lab.settle()
    assert (phase(lab, "r", "GpuReservation"), reason(lab, "r", "GpuReservation")) == (
        "Scheduled",
        "Scheduled",
    )
    assert lab.grant(*WINDOW) is None
    assert lab.plan().retry_at == start
    lab.cluster.now = start
    lab.settle()
    assert phase(lab, "r", "GpuReservation") == "Active"
    assert lab.grant(*WINDOW)
    assert lab.status("Tenant", "", "vision")["usage"][0]["allocated"] == "2"
    assert lab.plan().retry_at == start + 4 * HOUR
    lab.wait_until(start + 4 * HOUR)
    assert (phase(lab, "r", "GpuReservation"), reason(lab, "r", "GpuReservation")) == ("Ended", "Ended")
    assert not lab.live_grants()
    assert lab.events(*WINDOW) == ["Scheduled", "Admitted", "Ended"]
    assert lab.plan().retry_at is None


def test_what_has_no_end_keeps_clear_and_what_ends_before_may_run(lab: Lab) -> None:
    start = lab.cluster.now + 2 * HOUR
    lab.apply(reservation("r", 2, start, start + 4 * HOUR))
    lab.settle()
    lab.apply(gpu_vm("small", 1))
    lab.settle()
    assert phase(lab, "small") == "Running", "it is not in the way: 1 and 2 are 3"
    lab.apply(gpu_vm("forever", 2), gpu_vm("late", 2, lease={"duration": "3h"}))
    lab.settle()
    for name in ("forever", "late"):
        assert reason(lab, name) == "Reserved"
        assert f"from {timestamp(start)} on GpuReservation vision/r needs it" in message(
            lab, "GpuVM", "vision", name
        )
    lab.apply(gpu_vm("short", 2, lease={"duration": "1h"}))
    lab.settle()
    assert phase(lab, "short") == "Running"
    lab.wait_until(start)
    assert reason(lab, "short") == "LeaseExpired"
    assert phase(lab, "r", "GpuReservation") == "Active"
    assert phase(lab, "small") == "Running"
    assert reason(lab, "forever") == "QuotaExceeded", "now it is held"
    lab.wait_until(start + 4 * HOUR)
    assert phase(lab, "forever") == "Running"


def test_a_lease_is_not_renewed_for_it_but_its_quota_is_kept_from_its_start_on(lab: Lab) -> None:
    """One that runs is not stopped for a window: that waits, first in the queue, until it fits."""
    lab.apply(gpu_vm("a", 3))
    lab.settle()
    start = lab.cluster.now + HOUR
    lab.apply(reservation("r", 2, start, start + 4 * HOUR))
    lab.wait_until(start)
    assert (phase(lab, "r", "GpuReservation"), reason(lab, "r", "GpuReservation")) == (
        "Pending",
        "QuotaExceeded",
    )
    assert phase(lab, "a") == "Running"
    lab.apply(gpu_vm("behind", 3, priority=100))
    lab.delete("GpuVM", "vision", "a")
    lab.settle()
    assert phase(lab, "r", "GpuReservation") == "Active"
    assert reason(lab, "behind") == "QuotaExceeded"


def test_machines_draw_on_it_are_charged_once_and_end_with_it(lab: Lab) -> None:
    start = lab.cluster.now + HOUR
    lab.apply(reservation("r", 2, start, start + 4 * HOUR), gpu_vm("a", 1, reservation="r"))
    lab.settle()
    assert reason(lab, "a") == "ReservationPending"
    lab.wait_until(start)
    assert phase(lab, "a") == "Running"
    assert lab.status(*WINDOW)["used"] == 1
    assert lab.status("Tenant", "", "vision")["usage"][0]["allocated"] == "2"
    assert lab.status("GpuVM", "vision", "a")["lease"]["expiresAt"] == timestamp(start + 4 * HOUR)
    lab.apply(gpu_vm("b", 2, reservation="r"), gpu_vm("q", 1, of="quarter", reservation="r"))
    lab.settle()
    assert reason(lab, "b") == "MaxReached"
    assert reason(lab, "q") == "MaxReached"
    lab.wait_until(start + 4 * HOUR)
    assert (phase(lab, "a"), reason(lab, "a")) == ("Stopped", "ReservationEnded")
    assert lab.events("GpuVM", "vision", "a").count("LeaseEnding") == 2
    assert "LeaseExpired" in lab.events("GpuVM", "vision", "a")
    assert not lab.live_grants()


def test_without_its_reservation_a_machine_goes_on_and_is_charged_by_itself(lab: Lab) -> None:
    now = lab.cluster.now
    lab.apply(reservation("r", 2, now, now + 4 * HOUR), gpu_vm("a", 1, reservation="r"))
    lab.settle()
    assert phase(lab, "a") == "Running"
    lab.delete(*WINDOW)
    lab.settle()
    assert phase(lab, "a") == "Running"
    assert lab.status("Tenant", "", "vision")["usage"][0]["allocated"] == "1"
    lab.apply(gpu_vm("b", 2))
    lab.settle()
    assert phase(lab, "b") == "Running"
    lab.edit("GpuVM", "vision", "a", runStrategy="Halted")
    lab.settle()
    lab.edit("GpuVM", "vision", "a", runStrategy="Always")
    lab.settle()
    assert reason(lab, "a") == "ReservationNotFound"


def test_a_virtual_cluster_and_pods_keep_clear_too(lab: Lab) -> None:
    start = lab.cluster.now + 2 * HOUR
    lab.apply(reservation("r", 3, start, start + HOUR, namespace="llm"))
    lab.settle()
    lab.apply(virtual_cluster(guaranteed=1, most=2), gpu_pod("p", namespace="llm"))
    lab.settle()
    assert reason(lab, "lab", "VirtualCluster", "llm") == "Reserved"
    assert lab.reason("Pod", "llm", "p", of="vmtenancy.io/Admitted") == "Reserved"
    lab.edit("VirtualCluster", "llm", "lab", lease={"duration": "1h"})
    lab.settle()
    assert phase(lab, "lab", "VirtualCluster", "llm") == "Ready"
    lab.inside("lab", gpu_pod("inside"))
    lab.settle()
    assert len([pod for pod in lab.pods("vc-llm--lab") if pod["spec"].get("nodeName")]) == 1, (
        "its lease ends before"
    )
    lab.wait_until(start)
    assert phase(lab, "r", "GpuReservation", "llm") == "Active"


def test_nobody_borrows_what_its_owner_has_reserved(lab: Lab) -> None:
    lab.apply(tenant("llm", 3, 3))
    start = lab.cluster.now + 2 * HOUR
    lab.apply(reservation("r", 3, start, start + HOUR))
    lab.settle()
    lab.apply(gpu_vm("b", 4, namespace="llm"))
    lab.settle()
    assert reason(lab, "b", namespace="llm") == "Reserved"
    lab.edit("GpuVM", "llm", "b", lease={"duration": "1h"})
    lab.settle()
    assert phase(lab, "b", namespace="llm") == "Running"
    lab.wait_until(start)
    assert phase(lab, "r", "GpuReservation") == "Active"


@pytest.mark.parametrize(
    ("count", "begin", "stands"), [(1, 0, True), (2, 0, False), (2, 3, False), (2, 4, True), (2, -2, True)]
)
def test_what_is_too_much_at_some_moment_is_told_at_once(
    lab: Lab, count: int, begin: int, stands: bool
) -> None:
    start = lab.cluster.now + 4 * HOUR
    lab.apply(reservation("r", 2, start, start + 4 * HOUR))
    lab.settle()
    mine = start + begin * HOUR
    lab.apply(reservation("s", count, mine, mine + 2 * HOUR))
    lab.settle()
    assert reason(lab, "r", "GpuReservation") == "Scheduled"
    assert reason(lab, "s", "GpuReservation") == ("Scheduled" if stands else "ReservationConflict")
    if not stands:
        told = message(lab, "GpuReservation", "vision", "s")
        assert "VMT-T002: spec: pool h100: needs 2 GPUs, tenant vision has 3 of its own" in told
        assert "of which 2 are reserved by GpuReservation vision/r" in told
        lab.delete(*WINDOW)
        lab.settle()
        assert reason(lab, "s", "GpuReservation") == "Scheduled"


def test_all_tenants_together_do_not_reserve_more_than_the_pool_has(lab: Lab) -> None:
    lab.apply(tenant("vision", 6, 0), tenant("llm", 6, 0))
    lab.quota_just_decided = False
    start = lab.cluster.now + HOUR
    lab.apply(
        reservation("r", 5, start, start + HOUR), reservation("s", 5, start, start + HOUR, namespace="llm")
    )
    lab.settle()
    told = message(lab, "GpuReservation", "llm", "s") + message(lab, "GpuReservation", "vision", "r")
    assert "the pool has 9" in told
    assert "holds 5 x whole" in told


def test_an_unknown_class_is_told(lab: Lab) -> None:
    lab.apply(reservation("r", 1, lab.cluster.now, lab.cluster.now + HOUR, of="unknown"))
    lab.settle()
    assert reason(lab, "r", "GpuReservation") == "UnknownClass"


def test_another_controller_goes_on_with_it(lab: Lab) -> None:
    now = lab.cluster.now
    lab.apply(reservation("r", 2, now, now + HOUR))
    lab.settle()
    lab.restart()
    lab.cluster.now = now + 2 * HOUR
    lab.settle()
    assert phase(lab, "r", "GpuReservation") == "Ended"
    assert not lab.live_grants()
