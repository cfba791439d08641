"""Shares, borrowing and what is never stopped, as the fields of tenants and machines say."""

from __future__ import annotations

from lab import Lab, gpu_vm, manifest, tenant

from vmtenancy.reconcile.status import condition


def test_the_share_of_a_tenant_is_in_its_status(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 4))
    lab.rest()
    assert lab.status("Tenant", "", "vision")["fairShare"] == "0.1667", "it could have 6 and has borrowed 1"
    assert lab.status("Tenant", "", "llm")["fairShare"] == "0"
    lab.edit("Tenant", "", "vision", fairShare={"weight": 2})
    lab.rest()
    assert lab.status("Tenant", "", "vision")["fairShare"] == "0.0833"


def test_weights_of_cohorts_and_tenants_decide_whose_turn_it_is(lab: Lab) -> None:
    lab.apply(
        tenant("vision", 0, None, fairShare={"weight": 3}),
        tenant("llm", 0, None),
        manifest("Cohort", "research", {"quota": [{"pool": "h100", "nominal": 4}]}),
    )
    lab.settle()
    lab.apply(*(gpu_vm(f"{home}{i}", namespace=home) for home in ("llm", "vision") for i in range(4)))
    lab.rest()
    for home, count in (("vision", 3), ("llm", 1)):
        assert sum(lab.grant("GpuVM", home, f"{home}{i}") is not None for i in range(4)) == count


def test_what_others_borrowed_is_borrowed_by_a_higher_priority(lab: Lab) -> None:
    borrow = {"policy": "LowerPriority", "maxPriorityThreshold": 0}
    lab.apply(
        tenant("vision", 1, None, preemption={"reclaimWithinCohort": "Any", "borrowWithinCohort": borrow}),
        tenant("llm", 0, None),
        tenant("third", 1),
    )
    lab.settle()
    lab.apply(gpu_vm("low", 1, namespace="llm"), gpu_vm("mine", 1))
    lab.settle()
    lab.apply(gpu_vm("same", 1), gpu_vm("urgent", 1, priority=5))
    lab.rest()
    assert lab.grant("GpuVM", "vision", "urgent") is not None
    assert lab.grant("GpuVM", "vision", "same") is None
    assert lab.reason("GpuVM", "llm", "low", of="Admitted") in ("Preempted", "QuotaExceeded")


def test_a_machine_that_is_not_preemptible_stays_and_stays_so(lab: Lab) -> None:
    lab.apply(tenant("vision", 2, None), tenant("llm", 4, None, preemption={"reclaimWithinCohort": "Any"}))
    lab.settle()
    lab.apply(gpu_vm("firm", 2, preemptible=False), gpu_vm("soft", 1))
    lab.apply(gpu_vm("more", 1, preemptible=False))
    lab.rest()
    assert lab.reason("GpuVM", "vision", "more", of="Admitted") == "OwnQuotaExceeded"
    grant = lab.grant("GpuVM", "vision", "firm")
    assert grant is not None
    assert grant["spec"]["preemptible"] is False
    lab.edit("GpuVM", "vision", "firm", preemptible=True)
    lab.edit("GpuVM", "vision", "soft", preemptible=False)
    lab.apply(gpu_vm("theirs", 2, namespace="llm"))
    lab.rest()
    assert lab.grant("GpuVM", "vision", "soft") is None, "as it was when its GPUs were granted"
    assert lab.grant("GpuVM", "vision", "firm") is not None


def over(lab: Lab, name: str) -> tuple[str, str]:
    found = condition(lab.get("Tenant", "", name), "OverQuota")
    assert found is not None
    return found["reason"], found["message"]


def test_quota_that_is_lowered_stops_nothing_is_marked_and_taken_back_by_policy(lab: Lab) -> None:
    lab.apply(tenant("vision", 3, None), tenant("llm", 3, None, preemption={"reclaimWithinCohort": "Any"}))
    lab.settle()
    lab.apply(gpu_vm("a", 2), gpu_vm("b", 2))
    lab.settle()
    assert over(lab, "vision") == ("WithinQuota", ""), "what is borrowed may be borrowed"
    lab.quota_just_decided = False
    lab.edit("Tenant", "", "vision", quota=[{"pool": "h100", "nominal": 1, "borrowingLimit": 1}])
    lab.settle()
    assert lab.grant("GpuVM", "vision", "a") is not None
    assert lab.grant("GpuVM", "vision", "b") is not None
    assert over(lab, "vision") == (
        "QuotaLowered",
        "pool h100: 2 GPUs more than tenant vision allows; nothing is stopped for it alone, others take back "
        "what is theirs",
    )
    assert lab.status("Tenant", "", "vision")["usage"][0]["borrowed"] == "3"
    assert "QuotaLowered" in lab.events("Tenant", "", "vision")
    lab.apply(gpu_vm("theirs", 2, namespace="llm"))
    lab.settle()
    assert lab.grant("GpuVM", "llm", "theirs") is not None
    left = [name for name in "ab" if lab.grant("GpuVM", "vision", name) is not None]
    assert len(left) == 1, "one is enough"
    assert over(lab, "vision") == ("WithinQuota", "")


def test_who_holds_what_is_its_own_is_not_marked_when_its_cohort_has_too_little(lab: Lab) -> None:
    lab.apply(tenant("vision", 3, None), tenant("llm", 3, None))
    lab.settle()
    lab.apply(gpu_vm("mine", 1, namespace="llm"), gpu_vm("a", 3))
    lab.settle()
    lab.quota_just_decided = False
    lab.edit("Tenant", "", "vision", quota=[{"pool": "h100", "nominal": 0}])
    lab.edit("Tenant", "", "llm", quota=[{"pool": "h100", "nominal": 2}])
    lab.settle()
    assert over(lab, "llm")[0] == "WithinQuota"
    assert over(lab, "vision")[1].startswith("pool h100: 2 GPUs more than cohort research allows")
