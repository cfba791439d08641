"""GpuVMs that would do with another class, or with fewer units: what was granted is what is rendered, told and kept."""

from __future__ import annotations

from typing import Any

import pytest
from lab import Lab, add_node, gpu_class, gpu_vm, group, reservation, small_lab, tenant
from test_doctor import findings
from test_recovery import grants, lose_grants, unjudged, what_runs

from vmtenancy.cli.explain_cmd import answer_for
from vmtenancy.cli.get import workloads
from vmtenancy.core.fleet.model import Mode, Offering, Runtime
from vmtenancy.core.requests import Demand
from vmtenancy.reconcile.granted import as_running
from vmtenancy.reconcile.status import condition
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import View
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.story import PASSTHROUGH, VGPU


@pytest.fixture
def lab() -> Lab:
    """Vision may hold all of the 4 whole GPUs and the 4 quarters."""
    lab = small_lab()
    lab.apply(tenant("vision", 5), tenant("llm", 1))
    lab.settle()
    return lab


def asks(
    name: str, count: int, others: tuple[str, ...] = (), least: int | None = None, **spec: Any
) -> Object:
    """A machine that asks for whole GPUs, or others, or fewer."""
    gpu: dict[str, Any] = {"class": "whole", "count": count}
    if others:
        gpu["alternatives"] = list(others)
    if least is not None:
        gpu["minCount"] = least
    return gpu_vm(name, gpus=[gpu], **spec)


def told(lab: Lab, name: str) -> str:
    """The message of the condition Admitted."""
    found = condition(lab.get("GpuVM", "vision", name), "Admitted")
    assert found
    return str(found["message"])


def has(lab: Lab, name: str) -> dict[str, int]:
    """Units by class that its status says it has."""
    allocation = lab.status("GpuVM", "vision", name).get("allocation") or {}
    return {gpu["class"]: gpu["count"] for gpu in allocation.get("gpus") or ()}


def devices(lab: Lab, name: str) -> list[str]:
    """The device names of its VirtualMachine."""
    spec = lab.get("VirtualMachine", "vision", name)["spec"]["template"]["spec"]
    return [gpu["deviceName"] for gpu in spec["domain"]["devices"].get("gpus") or ()]


def explained(lab: Lab, name: str) -> str:
    view = View(lab.cluster.world, lab.cluster.now)
    answer = answer_for(view, lab.get("GpuVM", "vision", name))
    return "\n".join([answer.summary, *answer.details])


def test_the_first_class_is_taken_where_it_fits_and_nothing_else_is_said(lab: Lab) -> None:
    lab.apply(asks("a", 2, ("quarter",), 1))
    lab.settle()
    assert has(lab, "a") == {"whole": 2}
    assert told(lab, "a") == "2 x whole on node machines"


def test_an_alternative_is_rendered_told_and_kept(lab: Lab) -> None:
    lab.apply(gpu_vm("first", 3))
    lab.settle()
    lab.apply(asks("a", 2, ("quarter",)))
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"
    assert has(lab, "a") == {"quarter": 2}
    assert devices(lab, "a") == [VGPU, VGPU]
    assert told(lab, "a") == "2 x quarter on node slices, instead of 2 x whole"
    [event] = [e for e in lab.cluster.events if e.reason == "Admitted" and e.about["metadata"]["name"] == "a"]
    assert event.message == told(lab, "a")
    [row] = [row for row in workloads(View(lab.cluster.world, 0.0)) if row.name == "a"]
    assert row.gpus == {"quarter": 2}
    assert "holds 2 x quarter" in explained(lab, "a")
    assert findings(lab) == {}
    lab.delete(
        "GpuVM", "vision", "first"
    )  # the first class is free again, and a running machine keeps what it has
    lab.settle()
    running = what_runs(lab)
    lab.restart()
    lab.settle()
    assert what_runs(lab) == running
    assert has(lab, "a") == {"quarter": 2}


def test_fewer_are_granted_rendered_and_told(lab: Lab) -> None:
    lab.apply(gpu_vm("first", 1))
    lab.settle()
    lab.apply(asks("a", 4, least=2))
    lab.settle()
    assert has(lab, "a") == {"whole": 3}
    assert devices(lab, "a") == [PASSTHROUGH] * 3
    assert told(lab, "a") == "3 x whole on node machines, instead of 4 x whole"
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"
    usage = lab.status("Tenant", "", "vision")["usage"]
    assert usage == [{"pool": "h100", "allocated": "4", "nominal": 5, "borrowed": "0"}]
    assert findings(lab) == {}


@pytest.mark.parametrize(("kept", "then"), [("Release", {"whole": 2}), ("Hold", {"quarter": 2})])
def test_a_stopped_machine_asks_anew_unless_it_holds(lab: Lab, kept: str, then: dict[str, int]) -> None:
    lab.apply(gpu_vm("first", 3))
    lab.settle()
    lab.apply(asks("a", 2, ("quarter",), whenStopped=kept))
    lab.settle()
    lab.edit("GpuVM", "vision", "a", runStrategy="Halted")
    lab.delete("GpuVM", "vision", "first")
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Stopped"
    assert has(lab, "a") == ({"quarter": 2} if kept == "Hold" else {})
    lab.edit("GpuVM", "vision", "a", runStrategy="Always")
    lab.settle()
    assert has(lab, "a") == then
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"


def test_what_was_lost_is_granted_again_as_it_runs(lab: Lab) -> None:
    lab.apply(gpu_vm("first", 2))
    lab.settle()
    lab.apply(asks("fewer", 4, least=1), asks("other", 3, ("quarter",), 1))
    lab.settle()
    before, running = grants(lab), what_runs(lab)
    assert (has(lab, "fewer"), has(lab, "other")) == ({"whole": 2}, {"quarter": 3})
    lose_grants(lab)
    unjudged(lab)
    lab.settle()
    assert what_runs(lab) == running
    assert {owner: (node, len(got)) for owner, (node, got) in grants(lab).items()} == {
        owner: (node, len(got)) for owner, (node, got) in before.items()
    }
    assert (has(lab, "fewer"), has(lab, "other")) == ({"whole": 2}, {"quarter": 3})


def test_of_classes_delivered_alike_the_status_says_which_was_lost(lab: Lab) -> None:
    lab.apply(gpu_class("twin", passthrough=PASSTHROUGH))
    quota = {"pool": "h100", "nominal": 5, "classes": [{"name": "whole", "limit": 1}]}
    lab.edit("Tenant", "", "vision", quota=[quota])
    lab.settle()
    lab.apply(asks("a", 2, ("twin",)))
    lab.settle()
    assert has(lab, "a") == {"twin": 2}
    lose_grants(lab)
    unjudged(lab)
    lab.settle()
    assert has(lab, "a") == {"twin": 2}


def test_what_runs_is_shared_out_exactly_or_it_is_another_thing() -> None:
    offerings = {
        name: Offering(name, "h100", 10080 // share, {mode: resource})
        for name, share, mode, resource in (
            ("whole", 1, Mode.PASSTHROUGH, "x"),
            ("twin", 1, Mode.PASSTHROUGH, "x"),
            ("quarter", 4, Mode.VGPU, "y"),
        )
    }
    demand = Demand(
        "a",
        "t",
        Runtime.VM,
        (("whole", 4), ("twin", 2)),
        alternatives=(("twin", ("quarter", "none")),),
        minimum=(("whole", 2),),
    )

    def found(told: dict[str, int], **running: int) -> list[dict[str, int]]:
        return [dict(way.requests) for way in as_running(demand, told, running, offerings)]

    assert found({}, x=5) == [{"whole": 3, "twin": 2}]
    assert found({}, x=7) == found({}, x=3) == found({}, x=4, y=2) == []


def test_where_nothing_fits_each_class_is_told(lab: Lab) -> None:
    lab.apply(gpu_vm("first", 4), gpu_vm("slice", 3, of="quarter"))
    lab.settle()
    lab.apply(asks("a", 3, ("quarter", "none"), 2))
    lab.settle()
    assert lab.reason("GpuVM", "vision", "a", of="Admitted") == "QuotaExceeded"
    assert told(lab, "a") == (
        "pool h100: needs 3 GPUs, 0.25 free of 5; held by GpuVM vision/first 4, GpuVM vision/slice 0.75; nor with "
        "3 x quarter (QuotaExceeded: 0.25 free of 5 in pool h100), 3 x none (UnknownClass: class none does not exist); "
        "nor with fewer, down to 2 x whole"
    )
    assert "nor with 3 x quarter" in explained(lab, "a")


def test_an_alternative_that_does_not_exist_is_told_of_a_machine_that_runs(lab: Lab) -> None:
    lab.apply(asks("a", 1, ("quarter", "tpyo")))
    lab.settle()
    assert (
        told(lab, "a")
        == "1 x whole on node machines; spec.gpus[0].alternatives[1]: class tpyo does not exist"
    )
    lab.apply(gpu_class("tpyo", vgpu=VGPU, share="1/4"))
    lab.settle()
    assert told(lab, "a") == "1 x whole on node machines"


def test_the_tenant_says_whether_others_are_stopped_first(lab: Lab) -> None:
    rules = {
        "preemption": {"withinTenant": "LowerPriority"},
        "classFungibility": {"whenCanPreempt": "Preempt"},
    }
    lab.apply(tenant("vision", 5, **rules), gpu_vm("low", 4))
    lab.settle()
    lab.apply(asks("urgent", 2, ("quarter",), priority=5))
    lab.settle()
    assert has(lab, "urgent") == {"whole": 2}
    lab.edit("Tenant", "", "vision", classFungibility={"whenCanPreempt": "TryNextClass"})
    lab.apply(asks("more", 3, ("quarter",), priority=5))
    lab.settle()
    assert has(lab, "more") == {"quarter": 3}


@pytest.mark.parametrize(("then", "gets"), [("Borrow", {"whole": 2}), ("TryNextClass", {"quarter": 2})])
def test_the_tenant_says_whether_the_first_is_borrowed_first(
    lab: Lab, then: str, gets: dict[str, int]
) -> None:
    lab.apply(tenant("vision", 1, None, classFungibility={"whenCanBorrow": then}), tenant("llm", 3))
    lab.settle()
    lab.apply(asks("a", 2, ("quarter",)))
    lab.settle()
    assert has(lab, "a") == gets


def test_the_alternative_that_others_are_stopped_for_is_told(lab: Lab) -> None:
    lab.apply(tenant("vision", 5, preemption={"withinTenant": "LowerPriority"}))
    lab.apply(gpu_vm("high", 4, priority=9), gpu_vm("low", 2, of="quarter"))
    lab.settle()
    lab.apply(asks("a", 3, ("quarter",), priority=5))
    lab.reconcile()
    lab.reconcile()
    assert told(lab, "a") == "has a place with 3 x quarter once others end"
    lab.settle()
    assert has(lab, "a") == {"quarter": 3}


def test_members_of_a_group_get_the_same(lab: Lab) -> None:
    lab.apply(gpu_vm("first", 2), group("g", 2))
    lab.settle()
    lab.apply(asks("a", 1, ("quarter",), group="g"), asks("b", 2, ("quarter",), group="g"))
    lab.settle()
    assert (has(lab, "a"), has(lab, "b")) == ({"quarter": 1}, {"quarter": 2})


def test_a_machine_draws_as_much_as_its_reservation_has_left(lab: Lab) -> None:
    now = lab.cluster.now
    lab.apply(reservation("course", 3, now, now + 3600))
    lab.settle()
    lab.apply(asks("a", 2, reservation="course"))
    lab.settle()
    lab.apply(asks("b", 3, ("quarter",), 1, reservation="course"))
    lab.settle()
    assert has(lab, "b") == {"whole": 1}
    assert lab.status("GpuReservation", "vision", "course")["used"] == 3


def test_a_machine_whose_node_is_lost_asks_anew(lab: Lab) -> None:
    lab.apply(gpu_vm("first", 3))
    lab.settle()
    lab.apply(asks("a", 2, ("quarter",)))
    lab.settle()
    assert lab.node_of("GpuVM", "vision", "a") == "slices"
    add_node(lab, gpu_node("machines-2", mode="vm-passthrough", gpus=2, resources={PASSTHROUGH: 2}))
    lab.edit("Tenant", "", "vision", quota=[{"pool": "h100", "nominal": 6}])
    lab.lose("slices")
    lab.settle()
    assert has(lab, "a") == {"whole": 2}
    assert devices(lab, "a") == [PASSTHROUGH] * 2


def test_what_others_were_stopped_for_is_what_it_gets_by_a_new_controller_too(lab: Lab) -> None:
    """More would be free once they have ended; but with more it would hold what nobody was stopped for."""
    lab.apply(
        tenant("vision", 2, None, preemption={"reclaimWithinCohort": "Any"}),
        tenant("llm", 2, None, preemption={"reclaimWithinCohort": "Any"}),
        gpu_vm("theirs", 4, namespace="llm"),
    )
    lab.settle()
    lab.apply(asks("a", 3, least=1))
    lab.reconcile()
    lab.reconcile()
    taken = lab.grant("GpuVM", "llm", "theirs")
    assert taken
    promised = [{"request": "GpuVM vision/a", "class": "whole", "count": 2}]
    assert taken["status"]["revoked"]["promised"] == promised
    lab.restart()
    lab.settle()
    assert has(lab, "a") == {"whole": 2}
