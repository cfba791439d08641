"""Who makes room for whom, as the fields of tenants say: for fairness, at the least cost, and not too soon."""

from __future__ import annotations

from typing import Any

import pytest
from lab import Lab, gpu_pod, gpu_vm, group, manifest, tenant

from vmtenancy.api.names import ADMITTED_CONDITION, CHECKPOINTED_ANNOTATION
from vmtenancy.reconcile.demands import held
from vmtenancy.reconcile.status import condition, seconds, timestamp
from vmtenancy.reconcile.view import View

FAIR = {"fairShareWithinCohort": "LowerOrEqualPriority"}
LOWER = {"withinTenant": "LowerPriority"}
HOUR = 3600.0


def shared(lab: Lab, preemption: dict[str, Any]) -> None:
    """Tenants with nothing of their own that share the four GPUs for machines."""
    lab.apply(
        tenant("vision", 0, None, preemption=preemption),
        tenant("llm", 0, None),
        manifest("Cohort", "research", {"quota": [{"pool": "h100", "nominal": 4}]}),
    )
    lab.settle()


def running(lab: Lab, namespace: str, *names: str) -> list[str]:
    return [name for name in names if lab.grant("GpuVM", namespace, name) is not None]


def granted_at(lab: Lab, name: str) -> float:
    grant = lab.grant("GpuVM", "vision", name)
    assert grant is not None
    return seconds(grant["metadata"]["creationTimestamp"])


def message(lab: Lab, name: str) -> str:
    found = condition(lab.get("GpuVM", "vision", name), "Admitted")
    return str(found["message"]) if found else ""


def test_what_one_has_borrowed_alone_is_shared_and_stays_so(lab: Lab) -> None:
    shared(lab, FAIR)
    for name in ("a", "b"):
        lab.apply(gpu_vm(name, 2, namespace="llm"))
        lab.settle()
    lab.apply(gpu_vm("mine", 2), gpu_vm("more", 2))
    lab.rest()
    assert running(lab, "vision", "mine", "more") == ["mine"]
    assert running(lab, "llm", "a", "b") == ["a"], "b got its GPUs last"
    assert lab.reason("GpuVM", "llm", "b", of="Admitted") == "QuotaExceeded", (
        "it waits again, and stops nobody"
    )
    assert lab.events("GpuVM", "llm", "b").count("Preempted") == 1


def test_a_place_counts_from_when_it_was_promised(lab: Lab) -> None:
    shared(lab, FAIR)
    lab.apply(gpu_vm("a", 4, namespace="llm"))
    lab.settle()
    lab.apply(gpu_vm("mine", 2))
    lab.reconcile()
    lab.reconcile()
    grant = lab.grant("GpuVM", "llm", "a")
    assert grant is not None
    promised = grant["status"]["revoked"]["at"]
    lab.cluster.now += 100
    lab.rest()
    assert lab.grant("GpuVM", "vision", "mine")["spec"]["promisedAt"] == promised  # type: ignore[index]
    (live,) = held(View(lab.cluster.world, lab.cluster.now), frozenset())
    assert live.tenure.since == seconds(promised)
    assert live.tenure.since < granted_at(lab, "mine")


def test_the_places_of_a_group_count_from_one_moment(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, preemption=LOWER), group("g", 2), gpu_vm("low", 4))
    lab.settle()
    lab.apply(*(gpu_vm(name, 1, priority=5, group="g") for name in ("x", "y")))
    lab.reconcile()
    lab.reconcile()
    grant = lab.grant("GpuVM", "vision", "low")
    assert grant is not None
    promised = grant["status"]["revoked"]["at"]
    lab.cluster.now += 100
    lab.settle()
    for name in ("x", "y"):
        assert lab.grant("GpuVM", "vision", name)["spec"]["promisedAt"] == promised  # type: ignore[index]


def test_without_the_policy_a_borrower_keeps_what_it_has(lab: Lab) -> None:
    shared(lab, {"withinTenant": "LowerOrNewerEqualPriority"})
    lab.apply(gpu_vm("a", 4, namespace="llm"))
    lab.settle()
    lab.apply(gpu_vm("mine", 2))
    lab.rest()
    assert running(lab, "llm", "a") == ["a"]


def test_a_newer_one_of_equal_priority_makes_room(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, preemption={"withinTenant": "LowerOrNewerEqualPriority"}))
    lab.settle()
    lab.apply(gpu_vm("old", 4, runStrategy="Halted"))
    lab.settle()
    lab.apply(gpu_vm("new", 4))
    lab.settle()
    lab.edit("GpuVM", "vision", "old", runStrategy="Always")
    lab.rest()
    assert running(lab, "vision", "old", "new") == ["old"]
    lab.edit("GpuVM", "vision", "new", runStrategy="Halted")
    lab.edit("GpuVM", "vision", "new", runStrategy="Always")
    lab.rest()
    assert running(lab, "vision", "old", "new") == ["old"], "it is still the newer"


def test_nobody_is_stopped_before_the_least_run_time_is_over(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, preemption={**LOWER, "minRunTime": {"withinTenant": "1h"}}))
    lab.settle()
    lab.apply(gpu_vm("low", 4))
    lab.settle()
    lab.apply(gpu_vm("urgent", 4, priority=5))
    lab.settle()
    until = granted_at(lab, "low") + HOUR
    assert message(lab, "urgent").endswith(
        f"; from {timestamp(until)} on GpuVM vision/low may be stopped for it"
    )
    assert lab.plan().retry_at == until
    lab.cluster.now = until - 1
    assert not lab.plan().chains, "nothing changes with time alone"
    lab.cluster.now = until
    lab.rest()
    assert running(lab, "vision", "low", "urgent") == ["urgent"]
    assert lab.plan().retry_at is None


def test_each_of_the_least_run_times_is_for_its_own_kind_of_request(lab: Lab) -> None:
    reclaim = {"reclaimWithinCohort": "Any"}
    lab.apply(
        tenant("vision", 0, None, preemption={"minRunTime": {"withinTenant": "8h", "withinCohort": "10m"}}),
        tenant("llm", 4, None, preemption=reclaim),
    )
    lab.settle()
    lab.apply(gpu_vm("borrowed", 4))
    lab.settle()
    lab.apply(gpu_vm("back", 4, namespace="llm"))
    lab.settle()
    until = granted_at(lab, "borrowed") + 600
    assert running(lab, "vision", "borrowed") == ["borrowed"]
    assert lab.plan().retry_at == until
    lab.wait_until(until + 1)
    assert running(lab, "llm", "back") == ["back"]


def test_the_earliest_time_is_told_though_a_later_one_would_cost_less(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, preemption={**LOWER, "minRunTime": {"withinTenant": "1h"}}))
    lab.settle()
    lab.apply(gpu_vm("first", 2, priority=1))
    lab.settle()
    lab.cluster.now += 600
    lab.apply(gpu_vm("second", 2))
    lab.settle()
    lab.apply(gpu_vm("urgent", 2, priority=5))
    lab.settle()
    assert lab.plan().retry_at == granted_at(lab, "first") + HOUR


def test_a_group_is_left_alone_as_long_as_one_of_it_is(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, preemption={**LOWER, "minRunTime": {"withinTenant": "1h"}}), group("g", 2))
    lab.settle()
    lab.apply(gpu_vm("first", 1, group="g"), gpu_vm("beside", 1, group="g"))
    lab.settle()
    lab.cluster.now += 1800
    lab.apply(gpu_vm("second", 2, group="g"))
    lab.settle()
    lab.apply(gpu_vm("urgent", 2, priority=5))
    lab.settle()
    assert lab.plan().retry_at == granted_at(lab, "second") + HOUR


@pytest.mark.parametrize(
    ("said", "spared"),
    [("now", "b"), (None, "a"), ("soon", "a"), ("2026-1-1T0:0:0Z", "a"), ("2026-02-31T00:00:00Z", "a")],
)
def test_the_one_goes_whose_work_was_saved_last(lab: Lab, said: str | None, spared: str) -> None:
    """`a` runs for an hour longer than `b`; what can not be read as a time counts for nothing."""
    lab.apply(tenant("vision", 4, preemption=LOWER))
    lab.settle()
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    lab.cluster.now += HOUR
    lab.apply(gpu_vm("b", 2))
    lab.settle()
    lab.cluster.now += HOUR
    if said:
        obj = lab.get("GpuVM", "vision", "a")
        text = timestamp(lab.cluster.now) if said == "now" else said
        lab.cluster.replace(
            {**obj, "metadata": {**obj["metadata"], "annotations": {CHECKPOINTED_ANNOTATION: text}}}
        )
    lab.apply(gpu_vm("urgent", 2, priority=5))
    lab.rest()
    assert running(lab, "vision", "a", "b", "urgent") == sorted([spared, "urgent"])


# -- notice -----------------------------------------------------------------------------------------------------------


def with_notice(lab: Lab, **spec: Any) -> float:
    """A machine with all that the tenant has, which makes room for another; when it is stopped."""
    lab.apply(tenant("vision", 4, preemption={**LOWER, "notice": "5m"}))
    lab.settle()
    lab.apply(gpu_vm("low", 4, **spec))
    lab.settle()
    lab.apply(gpu_vm("urgent", 4, priority=5))
    lab.settle()
    grant = lab.grant("GpuVM", "vision", "low")
    assert grant is not None
    revoked = grant["status"]["revoked"]
    assert seconds(revoked["since"]) == seconds(revoked["at"]) + 300
    return seconds(revoked["since"])


def test_a_machine_is_told_when_it_is_stopped_and_runs_until_then(lab: Lab) -> None:
    end = with_notice(lab)
    assert lab.status("GpuVM", "vision", "low")["phase"] == "Running"
    assert lab.reason("GpuVM", "vision", "low", of="Admitted") == "Preempting"
    assert message(lab, "low") == f"it makes room for GpuVM vision/urgent (priority 5) at {timestamp(end)}"
    assert lab.events("GpuVM", "vision", "low")[-1] == "Preempting"
    assert lab.reason("GpuVM", "vision", "urgent", of="Admitted") == "Nominated"
    assert lab.plan().retry_at == end
    lab.cluster.now = end - 1
    assert not lab.plan().chains, "nothing changes with time alone"
    lab.cluster.now = end
    lab.rest()
    assert running(lab, "vision", "low", "urgent") == ["urgent"]
    assert lab.events("GpuVM", "vision", "low").count("Preempting") == 1
    assert "Preempted" in lab.events("GpuVM", "vision", "low")


def test_nobody_else_is_stopped_while_notice_runs(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, preemption={**LOWER, "notice": "5m"}))
    lab.settle()
    lab.apply(gpu_vm("low", 2), gpu_vm("other", 2))
    lab.settle()
    lab.apply(gpu_vm("urgent", 2, priority=5))
    lab.settle()
    told = [
        name
        for name in ("low", "other")
        if lab.reason("GpuVM", "vision", name, of="Admitted") == "Preempting"
    ]
    assert len(told) == 1
    lab.wait_until(lab.cluster.now + 400)
    assert len(running(lab, "vision", "low", "other")) == 1
    assert running(lab, "vision", "urgent") == ["urgent"]


def test_who_is_not_needed_any_more_goes_on(lab: Lab) -> None:
    end = with_notice(lab)
    lab.delete("GpuVM", "vision", "urgent")
    lab.settle()
    assert lab.reason("GpuVM", "vision", "low", of="Admitted") == "Admitted"
    lab.wait_until(end + 10)
    assert lab.status("GpuVM", "vision", "low")["phase"] == "Running"
    assert "Preempted" not in lab.events("GpuVM", "vision", "low")
    assert lab.plan().retry_at is None


def test_who_is_not_needed_since_another_has_ended_goes_on(lab: Lab) -> None:
    lab.apply(tenant("vision", 4, preemption={**LOWER, "notice": "5m"}))
    lab.settle()
    lab.apply(gpu_vm("low", 2), gpu_vm("done", 2, priority=9))
    lab.settle()
    lab.apply(gpu_vm("urgent", 2, priority=5))
    lab.settle()
    assert lab.reason("GpuVM", "vision", "low", of="Admitted") == "Preempting"
    lab.delete("GpuVM", "vision", "done")
    lab.settle()
    assert running(lab, "vision", "low", "urgent") == ["low", "urgent"]
    assert lab.reason("GpuVM", "vision", "low", of="Admitted") == "Admitted"


def test_a_request_that_can_not_be_served_any_more_lets_the_other_go_on(lab: Lab) -> None:
    with_notice(lab)
    lab.edit("GpuVM", "vision", "urgent", gpus=[{"class": "whole", "count": 5}])
    lab.settle()
    assert lab.reason("GpuVM", "vision", "urgent", of="Admitted") == "QuotaExceeded"
    assert lab.reason("GpuVM", "vision", "low", of="Admitted") == "Admitted"


def test_a_lease_that_ends_first_ends(lab: Lab) -> None:
    end = with_notice(lab, lease={"duration": "4m", "warnBefore": []})
    lab.wait_until(end - 30)
    assert lab.reason("GpuVM", "vision", "low", of="Admitted") == "LeaseExpired"
    assert running(lab, "vision", "low", "urgent") == ["urgent"]


def test_a_pod_is_told_and_deleted_afterwards(lab: Lab) -> None:
    lab.apply(
        tenant("llm", 0, None, preemption={"notice": "5m"}),
        tenant("vision", 2, None, preemption={"reclaimWithinCohort": "Any"}),
    )
    lab.settle()
    lab.apply(gpu_pod("train", 2, namespace="llm"))
    lab.settle()
    lab.apply(gpu_pod("back", 2, namespace="vision"))
    lab.settle()
    told = condition(lab.get("Pod", "llm", "train"), ADMITTED_CONDITION)
    assert told is not None
    assert (told["status"], told["reason"]) == ("True", "Preempting")
    assert lab.events("Pod", "llm", "train")[-1] == "Preempting"
    lab.delete("Pod", "vision", "back")
    lab.settle()
    assert lab.reason("Pod", "llm", "train", of=ADMITTED_CONDITION) == "Admitted"
    lab.apply(gpu_pod("again", 2, namespace="vision"))
    lab.settle()
    lab.wait_until(lab.cluster.now + 400)
    assert lab.find("Pod", "llm", "train") is None
    assert lab.node_of("Pod", "vision", "again")
