"""Grants follow what really runs: after they were lost, and after the ledger's head was."""

from __future__ import annotations

import pytest
from lab import Lab, add_node, gpu_pod, gpu_vm, namespace, virtual_cluster

from vmtenancy.api.names import ADOPT_ANNOTATION, ALLOCATION_ANNOTATION
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import LEDGER_NAME
from vmtenancy.reconcile.world import uid_of
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.story import PASSTHROUGH


def lose_grants(lab: Lab, *owners: str) -> None:
    """As deleting the CRD does: the objects are gone, and nobody released anything."""
    for obj in list(lab.cluster.world.of("GpuAllocation")):
        if not owners or obj["spec"]["owner"]["name"] in owners:
            lab.cluster.world.remove("GpuAllocation", "", obj["metadata"]["name"])


def lose_head(lab: Lab) -> None:
    lab.cluster.world.remove("GpuLedger", "", LEDGER_NAME)


def altered(lab: Lab, obj: Object, **spec: object) -> None:
    """Another state of an object that nothing of ours would write: it came from a backup, or from a bug."""
    meta = {**obj["metadata"], "resourceVersion": f"{obj['metadata']['resourceVersion']}000"}
    lab.cluster.world.put({**obj, "metadata": meta, "spec": {**obj["spec"], **spec}})


def grants(lab: Lab) -> dict[str, tuple[str, list[str]]]:
    """Node and devices by owner of all live grants."""
    live = lab.live_grants()
    return {
        f"{obj['spec']['owner']['kind']} {obj['spec']['owner']['name']}": (
            obj["spec"].get("node", ""),
            [device for part in obj["spec"]["grants"] for device in part["devices"]],
        )
        for obj in lab.cluster.world.of("GpuAllocation")
        if obj["metadata"]["name"] in live
    }


def what_runs(lab: Lab) -> dict[str, str]:
    return {
        uid_of(obj): obj["metadata"]["name"]
        for kind in ("Pod", "VirtualMachine", "VirtualMachineInstance")
        for obj in lab.cluster.world.of(kind)
    }


def unjudged(lab: Lab, rounds: int = 30) -> None:
    """Let all act without a look at the invariants: until the grants are back, what runs has none."""
    lab.judge = lambda **_: None  # type: ignore[method-assign]
    lab.rest(rounds)
    del lab.judge


@pytest.fixture
def busy(lab: Lab) -> Lab:
    """A machine with 2 GPUs, a quarter of one, and a virtual cluster whose pods have its guarantee."""
    lab.apply(gpu_vm("a", 2), gpu_vm("slice", 1, of="quarter"), virtual_cluster("lab", 1, 2))
    lab.settle()
    for name in ("one", "two"):
        lab.inside("lab", gpu_pod(name, namespace="default"))
    lab.settle()
    assert len(grants(lab)) == 5
    return lab


def test_lost_grants_are_given_again_and_nothing_is_stopped(busy: Lab) -> None:
    running, before = what_runs(busy), grants(busy)
    names = busy.live_grants()
    lose_grants(busy)
    unjudged(busy)
    busy.settle()
    assert what_runs(busy) == running
    assert {owner: node for owner, (node, _) in grants(busy).items()} == {
        owner: node for owner, (node, _) in before.items()
    }
    assert not busy.live_grants() & names
    assert busy.status("GpuVM", "vision", "a")["phase"] == "Running"
    [usage] = busy.status("Tenant", "", "llm")["usage"]
    assert usage["allocated"] == "2", "the pods draw on the hold, which is charged once"


def test_a_lost_grant_is_given_again_above_quota(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 3))
    lab.settle()
    lab.quota_just_decided = False
    lab.edit("Tenant", "", "vision", quota=[{"pool": "h100", "nominal": 1, "borrowingLimit": 0}])
    lose_grants(lab)
    unjudged(lab)
    lab.settle()
    assert grants(lab)["GpuVM a"][0] == "machines"
    [usage] = lab.status("Tenant", "", "vision")["usage"]
    assert (usage["allocated"], usage["nominal"], usage["borrowed"]) == ("3", 1, "2")


def test_a_lost_hold_is_given_again_though_its_pods_use_up_the_quota(busy: Lab) -> None:
    """What was admitted is not asked for again: it would wait for what its own pods have."""
    busy.quota_just_decided = False
    busy.edit("Tenant", "", "llm", quota=[{"pool": "h100", "nominal": 2, "borrowingLimit": 0}])
    lose_grants(busy)
    unjudged(busy)
    busy.settle()
    assert "VirtualCluster lab" in grants(busy)
    assert busy.status("Tenant", "", "llm")["usage"][0]["allocated"] == "2"


def test_what_waits_is_decided_after_what_runs_has_its_grants(busy: Lab) -> None:
    """In the round in which grants are lost their devices look free but for the pods: nobody else may get them."""
    busy.apply(gpu_vm("late", 2, namespace="llm"))
    lose_grants(busy)
    unjudged(busy)
    busy.settle()
    assert grants(busy)["GpuVM a"][0] == "machines"
    assert busy.status("GpuVM", "vision", "a")["phase"] == "Running"


def test_a_machine_that_was_asked_to_stop_stops_without_its_grant(busy: Lab) -> None:
    lose_grants(busy, "a")
    busy.edit("GpuVM", "vision", "a", runStrategy="Halted")
    unjudged(busy)
    busy.settle()
    assert busy.status("GpuVM", "vision", "a")["phase"] == "Stopped"
    assert "GpuVM a" not in grants(busy)


def test_a_machine_that_is_deleted_without_its_grant_goes(busy: Lab) -> None:
    lose_grants(busy, "a")
    busy.delete("GpuVM", "vision", "a")
    unjudged(busy)
    busy.settle()
    assert busy.find("GpuVM", "vision", "a") is None
    assert "GpuVM a" not in grants(busy)


def test_a_grant_without_the_record_of_its_pod_gets_it(busy: Lab) -> None:
    grant = busy.grant("GpuVM", "vision", "a")
    assert grant
    status = {key: value for key, value in grant["status"].items() if key == "sequence"}
    busy.cluster.replace({**grant, "status": status}, status=True)
    unjudged(busy)
    busy.settle()
    again = busy.grant("GpuVM", "vision", "a")
    assert again
    assert uid_of(again) == uid_of(grant)
    assert again["status"]["podUIDs"] == grant["status"]["podUIDs"]


def test_a_grant_that_names_another_node_gives_way_to_what_runs(busy: Lab) -> None:
    """An import of an older state: the pod of the grant has gone since, and another runs elsewhere."""
    add_node(busy, gpu_node("more", mode="vm-passthrough", gpus=4, resources={PASSTHROUGH: 4}))
    grant = busy.grant("GpuVM", "vision", "a")
    assert grant
    altered(busy, {**grant, "status": {"sequence": grant["status"]["sequence"]}}, node="more")
    unjudged(busy)
    busy.settle()
    assert grants(busy)["GpuVM a"][0] == "machines"
    assert busy.status("GpuVM", "vision", "a")["phase"] == "Running"


def test_live_grants_of_pods_that_are_long_gone_are_released(busy: Lab) -> None:
    """The other way round: an older state names what does not run any more."""
    pod = busy.pods(busy.status("VirtualCluster", "llm", "lab")["namespace"])[0]
    busy.cluster.world.remove("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
    for kind in ("VirtualMachine", "VirtualMachineInstance", "GpuVM"):
        busy.cluster.world.remove(kind, "vision", "a")
    busy.cluster.world.remove("Pod", "vision", busy.pods("vision")[0]["metadata"]["name"])
    busy.settle()
    assert len(grants(busy)) == 3


def test_without_enough_free_devices_nothing_is_written_and_the_owner_is_told(busy: Lab) -> None:
    """The agent shows one GPU of a node on which a machine runs with two: nobody is stopped for it."""
    lose_grants(busy, "a")
    facts = busy.get("GpuNode", "", "machines")
    altered(busy, {**facts, "status": {**facts["status"], "gpus": facts["status"]["gpus"][:1]}})
    running = what_runs(busy)
    unjudged(busy)
    assert what_runs(busy) == running
    assert "GpuVM a" not in grants(busy)
    assert busy.reason("GpuVM", "vision", "a", of="Admitted") == "GrantLost"
    message = busy.status("GpuVM", "vision", "a")["conditions"][0]["message"]
    assert message == "it runs with 2 x whole on machines, which has fewer GPUs that no grant names"


def test_a_pod_that_nobody_let_through_gets_no_grant(lab: Lab) -> None:
    """A foreign holder is subtracted from supply, and an administrator may adopt it: it is no lost grant."""
    lab.apply(namespace("outside"))
    foreign = lab.cluster.create(gpu_pod("foreign", 1, namespace="llm"))
    lab.cluster.world.put(bound(foreign, "pods-1"))
    unjudged(lab)
    assert grants(lab) == {}


@pytest.mark.parametrize("mark", [ALLOCATION_ANNOTATION, ADOPT_ANNOTATION])
def test_a_marked_pod_outside_of_any_tenant_gets_no_grant(lab: Lab, mark: str) -> None:
    lab.apply(namespace("outside"))
    foreign = gpu_pod("foreign", 1, namespace="outside")
    foreign["metadata"]["annotations"] = {mark: "x"}
    lab.cluster.world.put(bound(lab.cluster.create(foreign), "pods-1"))
    lab.settle()
    assert grants(lab) == {}


def bound(pod: Object, node: str) -> Object:
    """As it runs on a node, whatever held it."""
    spec = {key: value for key, value in pod["spec"].items() if key != "schedulingGates"}
    return {**pod, "spec": {**spec, "nodeName": node}}


# -- the head ---------------------------------------------------------------------------------------------------------


def test_a_head_that_is_deleted_starts_above_all_that_it_said(busy: Lab) -> None:
    before, running, live = busy.head(), what_runs(busy), busy.live_grants()
    lose_head(busy)
    busy.settle()
    after = busy.head()
    assert after.epoch > before.epoch
    assert after.sequence >= max(
        grant["status"]["sequence"] for grant in busy.cluster.world.of("GpuAllocation")
    )
    assert busy.live_grants() == live
    assert what_runs(busy) == running


def test_head_and_grants_lost_at_once(busy: Lab) -> None:
    """All of it comes back from what runs; what the controller has seen keeps the names apart."""
    before, running, live = busy.head(), what_runs(busy), busy.live_grants()
    lose_head(busy)
    lose_grants(busy)
    busy.cluster.world.head_seen = (before.epoch, before.sequence)
    unjudged(busy)
    busy.settle()
    assert busy.head().epoch == before.epoch + 1
    assert len(grants(busy)) == 5
    assert not busy.live_grants() & live
    assert what_runs(busy) == running


def test_a_head_of_an_older_state_is_raised_above_the_marks(busy: Lab) -> None:
    before = busy.head()
    altered(busy, busy.get("GpuLedger", "", LEDGER_NAME), sequence=0, epoch=0)
    busy.settle()
    assert busy.head().sequence == before.sequence
    assert busy.head().epoch == 2
    assert len(grants(busy)) == 5
