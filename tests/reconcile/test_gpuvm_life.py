"""A GpuVM from its creation to its end: what the controller does, in order, and what people are told."""

from __future__ import annotations

import pytest
from lab import Lab, fork, gpu_vm

from vmtenancy.api.names import FINALIZER
from vmtenancy.reconcile.world import uid_of
from vmtenancy.testing.story import PASSTHROUGH

A = ("GpuVM", "vision", "a")


def of_the_machine(lab: Lab) -> list[str]:
    """What was done, without reports on pool and tenant and without what names carry of uids."""
    about_others = ("report GpuPool", "report Tenant")
    shown = [why for why in lab.whys if not why.startswith(about_others)]
    return [why.split(" vm-uid-")[0] for why in shown]


def test_from_creation_to_running(lab: Lab) -> None:
    lab.whys.clear()
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    assert of_the_machine(lab) == [
        "commit 1: 1 granted, 0 released",
        "keep GpuVM vision/a until its devices are free",
        "mark",
        "apply GpuVM vision/a",
        "report GpuVM vision/a: Admitted",
        f"let Pod vision/{lab.pods('vision')[0]['metadata']['name']} go to machines",
        "report GpuVM vision/a: Starting",
        "report GpuVM vision/a: Running",
    ]
    status = lab.status(*A)
    assert status["phase"] == "Running"
    assert status["allocation"]["node"] == "machines"
    assert len(set(status["allocation"]["devices"])) == 2
    assert lab.events(*A) == ["Admitted", "Running"]
    assert lab.pods("vision")[0]["spec"]["nodeName"] == "machines"
    assert lab.status("Tenant", "", "vision")["usage"][0]["allocated"] == "2"
    assert lab.status("GpuPool", "", "h100")["allocated"] == "2"


def test_deletion_takes_everything_along_and_keeps_the_grant_until_the_pod_is_gone(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    lab.whys.clear()
    lab.delete(*A)
    while lab.pods("vision"):
        lab.reconcile()
        assert len(lab.live_grants()) == 1
        lab.surroundings()
    lab.settle()
    assert of_the_machine(lab) == [
        "delete what GpuVM vision/a had",
        "report GpuVM vision/a: Deleting",
        "commit 2: 0 granted, 1 released",
        "clear away",
        "report GpuVM vision/a: Deleting",
        "let GpuVM vision/a go",
    ]
    assert lab.find(*A) is None
    assert lab.find("VirtualMachine", "vision", "a") is None
    assert not lab.live_grants()
    assert not list(lab.cluster.world.of("GpuAllocation"))
    assert lab.status("Tenant", "", "vision")["usage"][0]["allocated"] == "0"


def test_nothing_is_kept_of_one_that_never_got_a_grant(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 5))
    lab.settle()
    assert lab.status(*A)["phase"] == "Pending"
    assert lab.find("VirtualMachine", "vision", "a") is None
    lab.delete(*A)
    lab.settle()
    assert lab.find(*A) is None


@pytest.mark.parametrize("moment", range(6))
def test_it_can_be_deleted_at_any_moment(lab: Lab, moment: int) -> None:
    lab.apply(gpu_vm("a", 2))
    for _ in range(moment):
        lab.reconcile()
        lab.surroundings()
    lab.delete(*A)
    lab.settle()
    assert lab.find(*A) is None
    assert not list(lab.cluster.world.of("GpuAllocation"))
    assert not lab.pods("vision")


def test_a_foreign_finalizer_holds_the_object_but_not_the_gpus(lab: Lab) -> None:
    vm = gpu_vm("a", 2)
    vm["metadata"]["finalizers"] = ["example.com/theirs"]
    lab.apply(vm)
    lab.settle()
    lab.delete(*A)
    lab.settle()
    assert lab.get(*A)["metadata"]["finalizers"] == ["example.com/theirs"]
    assert not lab.live_grants()


def test_release_gives_back_and_hold_keeps(lab: Lab) -> None:
    for policy, kept in (("Release", False), ("Hold", True)):
        one = fork(lab)
        one.apply(gpu_vm("a", 2, whenStopped=policy))
        one.settle()
        before = one.grant(*A)
        one.edit(*A, runStrategy="Halted")
        one.settle()
        assert one.status(*A)["phase"] == "Stopped"
        assert not one.pods("vision")
        assert one.find("VirtualMachine", "vision", "a") is not None
        assert (one.grant(*A) is not None) is kept
        assert one.status("Tenant", "", "vision")["usage"][0]["allocated"] == ("2" if kept else "0")
        one.edit(*A, runStrategy="Always")
        one.settle()
        assert one.status(*A)["phase"] == "Running"
        after = one.grant(*A)
        assert before
        assert after
        assert (uid_of(before) == uid_of(after)) is kept


def test_a_stopped_machine_keeps_its_grant_until_its_pod_is_gone(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    lab.edit(*A, runStrategy="Halted")
    for _ in range(3):
        lab.reconcile()
    assert lab.pods("vision")
    assert lab.live_grants()
    lab.surroundings()
    lab.settle()
    assert not lab.live_grants()


def test_hold_that_is_made_while_stopped_takes_nothing(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2, whenStopped="Hold", runStrategy="Halted"))
    lab.settle()
    assert lab.reason(*A, of="Admitted") == "Stopped"
    assert not lab.live_grants()


def test_hold_is_given_up_when_the_wish_turns_to_release(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2, whenStopped="Hold"))
    lab.settle()
    lab.edit(*A, runStrategy="Halted")
    lab.settle()
    lab.edit(*A, whenStopped="Release")
    lab.settle()
    assert not lab.live_grants()


def test_a_restart_waits_for_the_old_pod(lab: Lab) -> None:
    """The new launcher uses the same grant, so it must not go while the old one has the devices (I1, I4)."""
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    grant = lab.grant(*A)
    old = lab.pods("vision")[0]
    instance = lab.get("VirtualMachineInstance", "vision", "a")
    copy = {
        **old,
        "metadata": {"name": "virt-launcher-a-new", "namespace": "vision"}
        | {key: old["metadata"][key] for key in ("labels", "ownerReferences")},
        "spec": {"containers": old["spec"]["containers"]},
    }
    new = lab.cluster.create(copy)
    assert uid_of(instance) in [owner["uid"] for owner in new["metadata"]["ownerReferences"]]
    for _ in range(3):
        lab.reconcile()
    gated = lab.get("Pod", "vision", "virt-launcher-a-new")
    assert gated["spec"]["schedulingGates"]
    lab.delete("Pod", "vision", old["metadata"]["name"])
    lab.reconcile()
    assert lab.get("Pod", "vision", "virt-launcher-a-new")["spec"].get("schedulingGates")
    lab.surroundings()
    lab.reconcile()
    assert not lab.get("Pod", "vision", "virt-launcher-a-new")["spec"].get("schedulingGates")
    kept = lab.grant(*A)
    assert kept
    assert grant
    assert uid_of(kept) == uid_of(grant)


def test_other_gpus_are_granted_after_the_old_ones_are_free(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    lab.edit(*A, gpus=[{"class": "quarter", "count": 3}])
    lab.reconcile()
    assert lab.reason(*A, of="Admitted") == "Admitted"
    lab.settle()
    assert lab.node_of(*A) == "slices"
    assert lab.status(*A)["phase"] == "Running"
    assert len(list(lab.cluster.world.of("GpuAllocation"))) == 1


def test_other_gpus_that_can_not_be_had_leave_it_waiting(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    lab.edit(*A, gpus=[{"class": "whole", "count": 9}])
    lab.settle()
    assert lab.status(*A)["phase"] == "Pending"
    assert lab.reason(*A, of="Admitted") == "QuotaExceeded"
    assert not lab.pods("vision")


def test_who_waits_is_told_why_and_where_in_the_queue(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 3), gpu_vm("b", 2), gpu_vm("c", 2))
    lab.settle()
    assert lab.status("GpuVM", "vision", "b")["queuePosition"] == 1
    assert lab.status("GpuVM", "vision", "c")["queuePosition"] == 2
    message = lab.status("GpuVM", "vision", "b")["message"]
    for part in ("pool h100", "needs 2 GPUs", "1 free of 4", "GpuVM vision/a 3"):
        assert part in message
    lab.delete(*A)
    lab.settle()
    assert lab.status("GpuVM", "vision", "b")["phase"] == "Running"
    assert "queuePosition" not in lab.status("GpuVM", "vision", "b")
    assert lab.events("GpuVM", "vision", "b") == [
        "QuotaExceeded",
        "Nominated",
        "Admitted",
        "Running",
    ]


def test_priority_goes_before_age(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 3))
    lab.settle()
    lab.apply(gpu_vm("old", 3))
    lab.settle()
    lab.apply(gpu_vm("urgent", 3, priority=10))
    lab.settle()
    lab.delete(*A)
    lab.settle()
    assert lab.status("GpuVM", "vision", "urgent")["phase"] == "Running"
    assert lab.status("GpuVM", "vision", "old")["phase"] == "Pending"


def test_a_child_that_somebody_deletes_comes_back(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    lab.delete("VirtualMachine", "vision", "a")
    lab.settle()
    assert lab.status(*A)["phase"] == "Running"
    assert FINALIZER in lab.get(*A)["metadata"]["finalizers"]


def test_the_name_of_another_virtual_machine_is_not_taken_over(lab: Lab) -> None:
    theirs = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "a", "namespace": "vision"},
        "spec": {"runStrategy": "Halted", "template": {"spec": {"domain": {"devices": {}}}}},
    }
    lab.cluster.create(theirs)
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    assert lab.reason(*A, of="Degraded") == "CannotRender"
    assert "VirtualMachine vision/a" in lab.status(*A)["message"]
    assert lab.get("VirtualMachine", "vision", "a")["spec"] == theirs["spec"]
    assert lab.status(*A)["phase"] == "Failed"


def test_an_instance_of_an_earlier_template_that_the_gate_holds_is_made_anew(lab: Lab) -> None:
    """Found by the model: the watch of instances stood still while the machine got other GPUs."""
    lab.apply(gpu_vm("a"))
    for _ in range(2):
        lab.reconcile()
    lab.surroundings()
    key = ("vision", "a")
    instance = lab.cluster.world.objects["VirtualMachineInstance"].pop(key)
    pods = dict(lab.cluster.world.objects["Pod"])
    lab.cluster.world.objects["Pod"].clear()
    lab.edit(*A, gpus=[{"class": "whole", "count": 2}])
    for _ in range(3):
        lab.reconcile()
    lab.cluster.world.objects["VirtualMachineInstance"][key] = instance
    lab.cluster.world.objects["Pod"].update(pods)
    lab.settle()
    assert lab.status(*A)["phase"] == "Running"
    (pod,) = lab.pods("vision")
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {PASSTHROUGH: "2"}
