"""What the crash points rest on: names of writes, end states, the history of states, and what is played."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from arena import History
from end_states import differences, end_state
from lab import namespace
from points import Mode, Point, numbered, shard, write_name
from surroundings import AT_ONCE, surroundings

from vmtenancy.api.gpuclass import PARTS_PER_GPU
from vmtenancy.api.names import ALLOCATION_ANNOTATION
from vmtenancy.reconcile import World
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import Create, Delete, Object, Replace, Step
from vmtenancy.testing.faults import Call

UID = "b2051b88-4983-4046-b417-159fbdf3c42a"
OTHER = "48e2942a-cfc7-4ada-b975-3ae6955be509"


def write(resource: str, name: str, verb: str = "update", subresource: str = "", **fields: Any) -> Call:
    return Call(1, verb, "/", resource=resource, subresource=subresource, name=name, **fields)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (write("gpuvms", "a", namespace="vision"), "update gpuvms vision/a"),
        (write("gpuvms", "a", subresource="status", namespace="vision"), "update gpuvms/status vision/a"),
        (write("gpuallocations", f"vm-{UID}-1-1-7fcaf13c", "create"), "create gpuallocations *"),
        (write("pods", "virt-launcher-a-b-9fd3f9", namespace="vision"), "update pods vision/a-b"),
        (write("events", "a.e3767b659b1140bc", "create", namespace="vision"), "create events vision/a*"),
    ],
)
def test_a_write_has_the_same_name_in_every_run(call: Call, name: str) -> None:
    assert write_name(call).replace("virt-launcher-", "") == name


def test_writes_of_one_name_are_counted_and_reads_and_leases_are_none() -> None:
    calls = [
        write("pods", "p"),
        write("pods", "p", verb="get"),
        write("leases", "controller"),
        write("pods", "q"),
        write("pods", "p"),
        write("serviceaccounts", "controller", "create", "token"),
    ]
    assert list(numbered(calls)) == [("update pods p", 0), ("update pods q", 0), ("update pods p", 1)]


def test_shards_are_parts_of_all_points() -> None:
    points = [Point(act, "w", nth, mode) for act in range(3) for nth in range(20) for mode in Mode]
    parts = [{point for point in points if shard(index, 4)(point)} for index in range(4)]
    assert set().union(*parts) == set(points)
    assert sum(map(len, parts)) == len(points)
    assert all(len(part) > 20 for part in parts)


def world_of(*objects: Object) -> World:
    world = World()
    for obj in objects:
        world.put(obj)
    return world


def stored(kind: str, name: str, uid: str, namespace: str = "vision", **more: Any) -> Object:
    metadata = {
        "name": name,
        "uid": uid,
        "resourceVersion": uid[:4],
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    if namespace:
        metadata["namespace"] = namespace
    metadata |= more.pop("metadata", {})
    return {"apiVersion": KINDS[kind].api_version, "kind": kind, "metadata": metadata, **more}


def run_of(uid: str, *, node: str = "n", phase: str = "Running", version: int = 1) -> World:
    """A machine with its grant and pod, as one run leaves it."""
    grant = f"vm-{uid}-{version}-{version}-0000000{version}"
    launcher = stored(
        "Pod",
        f"virt-launcher-a-{uid[-6:]}",
        f"1{uid[1:]}",
        metadata={"annotations": {ALLOCATION_ANNOTATION: grant}},
        spec={"nodeName": node},
        status={"podIP": f"10.244.0.{version}"},
    )
    allocation = stored(
        "GpuAllocation", grant, f"2{uid[1:]}", "", spec={"owner": {"uid": uid}, "epoch": version}
    )
    return world_of(stored("GpuVM", "a", uid, status={"phase": phase}), launcher, allocation)


def test_two_runs_that_came_to_the_same_have_no_difference() -> None:
    assert differences(end_state(run_of(UID)), end_state(run_of(OTHER, version=2))) == []


@pytest.mark.parametrize("other", [{"node": "m"}, {"phase": "Failed"}])
def test_what_differs_is_named(other: dict[str, str]) -> None:
    (found,) = differences(end_state(run_of(UID)), end_state(run_of(OTHER, **other)))
    assert next(iter(other.values())) in found


def test_an_object_that_is_missing_or_left_over_is_a_difference() -> None:
    run, more = run_of(UID), run_of(OTHER)
    more.put(stored("Secret", "s", f"3{OTHER[1:]}"))
    assert [line.partition(":")[0] for line in differences(end_state(run), end_state(more))] == [
        "Secret vision/s"
    ]


# -- history ----------------------------------------------------------------------------------------------------------


def allocation(name: str, version: int, owner: str, sequence: int | None = None) -> Object:
    grant = {"class": "whole", "pool": "h100", "count": 1, "mode": "container", "resource": "nvidia.com/gpu"}
    spec = {
        "ledger": "fleet",
        "epoch": 1,
        "owner": {"kind": "Pod", "namespace": "llm", "name": owner, "uid": owner},
        "tenant": "llm",
        "node": "n",
        "grants": [grant | {"devices": ["0000:10:00.0"], "parts": PARTS_PER_GPU}],
    }
    made = stored("GpuAllocation", name, f"uid-of-{name}", "", spec=spec)
    made["metadata"]["resourceVersion"] = str(version)
    return made | ({"status": {"sequence": sequence}} if sequence else {})


def ledger(version: int, sequence: int, committed: list[tuple[str, int]], released: list[str]) -> Object:
    spec = {
        "epoch": 1,
        "holder": "controller-1",
        "sequence": sequence,
        "committed": [{"name": name, "sequence": number} for name, number in committed],
        "released": released,
    }
    made = stored("GpuLedger", "fleet", "ledger", "", spec=spec)
    made["metadata"]["resourceVersion"] = str(version)
    return made


def violations(*events: tuple[str, Object]) -> list[str]:
    async def run() -> list[str]:
        history = History(lambda: None)
        for info in KINDS.values():
            history.relist(info, [], "1", 0)
        for kind, obj in events:
            history.observe(kind, obj)
        return history.violations()

    return asyncio.run(run())


GIVEN_ON = [
    ("ADDED", allocation("one", 10, "p")),
    ("ADDED", ledger(11, 1, [("one", 1)], [])),
    ("ADDED", allocation("two", 12, "q")),
    ("MODIFIED", ledger(13, 2, [("two", 2)], ["one"])),
    ("DELETED", allocation("one", 14, "p")),
]


def test_a_device_that_is_given_on_with_its_release_has_one_owner_at_any_time() -> None:
    assert violations(*GIVEN_ON) == []


def test_the_order_is_that_of_the_api_server_not_that_of_the_watches() -> None:
    assert violations(*sorted(GIVEN_ON, key=lambda event: event[1]["kind"])) == []


def test_an_overlap_that_is_over_at_rest_is_found() -> None:
    overlap = [
        *GIVEN_ON[:3],
        ("MODIFIED", ledger(13, 2, [("one", 1), ("two", 2)], [])),
        ("MODIFIED", ledger(15, 3, [("two", 2)], ["one"])),
        ("DELETED", allocation("one", 16, "p")),
    ]
    (found,) = violations(*overlap)
    assert found.startswith("I1: 0000:10:00.0 on n is granted beyond one GPU: one, two")


# -- what is played ---------------------------------------------------------------------------------------------------


def machine(**spec: Any) -> Object:
    template = {"metadata": {"labels": {"x": "y"}}, "spec": {"domain": {"devices": {}}}}
    return stored("VirtualMachine", "a", UID, spec={"runStrategy": "Always", "template": template, **spec})


def steps(*objects: Object) -> list[Step]:
    homes = [namespace(name) for name in ("vision", "llm")]
    for home in homes:
        home["metadata"] |= {"uid": home["metadata"]["name"], "resourceVersion": "1"}
    world = world_of(*homes, *objects)
    before = repr(world)
    plan = surroundings(world, 0.0)
    assert repr(world) == before
    assert all(len(chain.steps) == 1 for chain in plan.chains)
    return [chain.steps[0] for chain in plan.chains]


def test_one_write_per_object_and_none_that_rests_on_another() -> None:
    finalizer, instance = steps(machine())
    assert isinstance(finalizer, Replace)
    assert not finalizer.status
    assert isinstance(instance, Create)
    assert instance.object["kind"] == "VirtualMachineInstance"
    # Its launcher waits for its uid.


def test_a_launcher_ends_at_once_and_the_instance_has_no_status_of_its_own() -> None:
    owner = [{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "a", "uid": UID}]
    instance = stored(
        "VirtualMachineInstance",
        "a",
        OTHER,
        metadata={"ownerReferences": owner},
        spec={"domain": {"devices": {"gpus": [{"deviceName": "nvidia.com/X", "name": "gpu0"}]}}},
        status={"phase": "Pending"},
    )
    (launcher,) = [step for step in steps(machine(), instance) if isinstance(step, Create)]
    assert launcher.object["metadata"]["annotations"] == AT_ONCE
    reference = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "a", "uid": OTHER}
    pod = stored(
        "Pod",
        "virt-launcher-a-1",
        "pod",
        metadata={"labels": {"kubevirt.io": "virt-launcher"}, "ownerReferences": [reference]},
        spec={"nodeName": "n", "containers": []},
        status={"phase": "Running"},
    )
    node = stored("Node", "n", "n", "", status={"conditions": [{"type": "Ready", "status": "True"}]}, spec={})
    writes = [step for step in steps(machine(), instance, pod, node) if isinstance(step, Replace)]
    (running,) = [step for step in writes if step.object["kind"] == "VirtualMachineInstance"]
    assert running.object["status"]["phase"] == "Running"
    assert not running.status


def test_a_pod_on_a_lost_node_fails_and_then_goes() -> None:
    pod = stored("Pod", "p", "pod", spec={"nodeName": "lost", "containers": []}, status={"phase": "Running"})
    (failed,) = steps(pod)
    assert isinstance(failed, Replace)
    assert failed.status
    assert failed.object["status"]["phase"] == "Failed"
    (gone,) = steps(failed.object)
    assert isinstance(gone, Delete)
