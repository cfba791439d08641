"""`plan` is a function of world and time: it changes nothing, says the same twice, and at rest says nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
from lab import Lab, fork, gpu_pod, gpu_vm, tenant, virtual_cluster
from scenarios import SCENARIOS

from vmtenancy.reconcile import Plan, World, check, plan
from vmtenancy.reconcile.steps import Create, Emit, Replace
from vmtenancy.reconcile.world import ref_of


def busy(lab: Lab) -> None:
    """Something of everything."""
    lab.apply(gpu_vm("a", 2), gpu_vm("b", 3), gpu_vm("c", of="nosuch"), virtual_cluster())
    lab.apply(gpu_pod("p", namespace="llm"), gpu_pod("q", 2, namespace="vision"))


@pytest.mark.parametrize("turns", range(7))
def test_two_plans_of_one_world_are_equal_and_the_world_is_as_before(lab: Lab, turns: int) -> None:
    busy(lab)
    for _ in range(turns):
        lab.reconcile()
        lab.surroundings()
    world = lab.cluster.world
    before = copy.deepcopy((world.objects, world.charts, world.identity))
    first = plan(world, lab.cluster.now)
    check(world)
    assert plan(world, lab.cluster.now) == first
    assert (world.objects, world.charts, world.identity) == before


def test_what_is_remembered_changes_no_plan(lab: Lab) -> None:
    busy(lab)
    for _ in range(8):
        world = lab.cluster.world
        forgetful = World(
            world.identity,
            world.objects,
            world.charts,
            world.chart_errors,
            world.templates,
            world.vcluster_values,
        )
        assert plan(forgetful, lab.cluster.now) == lab.plan()
        lab.reconcile()
        lab.surroundings()


def test_the_order_of_objects_means_nothing(lab: Lab) -> None:
    busy(lab)
    lab.quota_just_decided = False
    for turn in range(20):
        if turn == 10:
            lab.delete("GpuVM", "vision", "a")
            lab.delete("VirtualCluster", "llm", "lab")
            lab.delete("Tenant", "", "llm")
        turned = fork(lab)
        objects = turned.cluster.world.objects
        for kind in objects:
            objects[kind] = dict(reversed(objects[kind].items()))
        assert turned.plan() == lab.plan()
        lab.reconcile()
        lab.surroundings()


@pytest.mark.parametrize("name", SCENARIOS)
def test_i7_at_rest_nothing_is_planned_however_late_it_is(lab: Lab, name: str) -> None:
    for act in SCENARIOS[name]:
        act(lab)
        lab.settle()
        due = lab.plan().retry_at
        lab.cluster.now += 1_000_000
        assert (lab.plan() == Plan()) is (due is None), "unless the plan said so itself"


def waiting(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 3), gpu_vm("b", 3), gpu_vm("c", of="nosuch"), gpu_pod("p", 2, namespace="llm"))
    lab.apply(gpu_pod("q", 3, namespace="llm"), tenant("third", 1, cohort="nosuch"))


@pytest.mark.parametrize("act", [busy, waiting])
def test_i7_an_event_is_written_at_a_transition_and_never_again(lab: Lab, act: Callable[[Lab], None]) -> None:
    act(lab)
    lab.settle()
    told = len(lab.cluster.events)
    assert told
    for ref in {ref_of(event.about) for event in lab.cluster.events}:
        reasons = lab.events(ref.kind, ref.namespace, ref.name)
        assert all(before != after for before, after in pairwise(reasons)), reasons
    lab.settle()
    other = fork(lab)
    other.restart()
    other.settle()
    assert len(other.cluster.events) == told


def test_an_event_follows_the_status_that_it_is_about(lab: Lab) -> None:
    """So that a write that is refused, and decided again, tells people once."""
    busy(lab)
    for _ in range(8):
        for chain in lab.plan().chains:
            kinds = [type(step) for step in chain.steps]
            assert Emit not in kinds or kinds[0] is Replace
        lab.reconcile()
        lab.surroundings()


def test_i12_the_generation_is_reported_only_once_it_is_applied(lab: Lab) -> None:
    lab.apply(gpu_vm("a"))
    lab.settle()
    lab.edit("GpuVM", "vision", "a", cpu={"cores": 4})
    generation = lab.get("GpuVM", "vision", "a")["metadata"]["generation"]
    seen = []
    for _ in range(6):
        for chain in lab.plan().chains:
            for step in chain.steps:
                lab.cluster.run_step(step)
                machine = lab.get("VirtualMachine", "vision", "a")
                applied = machine["spec"]["template"]["spec"]["domain"]["cpu"]["cores"] == 4
                observed = lab.status("GpuVM", "vision", "a")["observedGeneration"] == generation
                assert applied or not observed
                seen.append((applied, observed))
        lab.surroundings()
    assert seen[-1] == (True, True)


def test_i12_a_spec_that_can_not_be_applied_is_not_reported_as_seen(lab: Lab) -> None:
    lab.apply(gpu_vm("a"), virtual_cluster())
    lab.settle()
    lab.edit("GpuVM", "vision", "a", template={"name": "nosuch"})
    lab.edit(
        "VirtualCluster", "llm", "lab", values={"experimental": {"isolatedControlPlane": {"enabled": True}}}
    )
    lab.settle()
    for kind, home, name in (("GpuVM", "vision", "a"), ("VirtualCluster", "llm", "lab")):
        obj = lab.get(kind, home, name)
        assert obj["status"]["observedGeneration"] < obj["metadata"]["generation"]


def test_i12_other_gpus_are_reported_only_once_they_are_granted(lab: Lab) -> None:
    lab.apply(gpu_vm("a"))
    lab.settle()
    lab.edit("GpuVM", "vision", "a", gpus=[{"class": "whole", "count": 2}])
    generation = lab.get("GpuVM", "vision", "a")["metadata"]["generation"]
    for _ in range(12):
        for chain in lab.plan().chains:
            for step in chain.steps:
                lab.cluster.run_step(step)
                grant = lab.grant("GpuVM", "vision", "a")
                stale = grant is not None and grant["spec"]["grants"][0]["count"] == 1
                assert not stale or lab.status("GpuVM", "vision", "a")["observedGeneration"] < generation
        lab.surroundings()
    assert lab.status("GpuVM", "vision", "a")["observedGeneration"] == generation


def test_the_first_thing_that_is_written_is_the_head(lab: Lab) -> None:
    fresh = Lab()
    planned = fresh.plan()
    assert [type(step) for chain in planned.chains for step in chain.steps] == [Create]
    other = fork(lab)
    busy(other)
    other.restart()
    planned = other.plan()
    assert [step.object["kind"] for chain in planned.chains for step in chain.steps] == ["GpuLedger"]  # type: ignore[union-attr]
