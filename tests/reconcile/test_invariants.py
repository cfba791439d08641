"""`check` is the judge of all other tests: it finds what is broken on purpose, and only that."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from lab import Lab, fork, gpu_pod, gpu_vm, namespace, tenant, virtual_cluster

from vmtenancy.api.names import GATE, OWNER_UID_LABEL
from vmtenancy.reconcile import check
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import LEDGER_NAME
from vmtenancy.reconcile.world import uid_of

A, B, P = ("GpuVM", "vision", "a"), ("GpuVM", "vision", "b"), ("Pod", "llm", "p")


@pytest.fixture
def running(lab: Lab) -> Lab:
    """Two machines, a virtual cluster and a pod, at rest, without a violation."""
    lab.apply(gpu_vm("a", 2), gpu_vm("b", of="quarter"), virtual_cluster(), gpu_pod("p", namespace="llm"))
    lab.settle()
    assert not check(lab.cluster.world)
    return lab


def broken(lab: Lab, obj: Object, change: Callable[[Object], None]) -> None:
    """Write into the world itself: no API server, and no controller, would do it."""
    obj = copy.deepcopy(obj)
    change(obj)
    obj["metadata"]["resourceVersion"] = "999999"
    lab.cluster.world.put(obj)


def numbers(lab: Lab, *, quota_just_decided: bool = True, at_rest: bool = True) -> set[str]:
    world = lab.cluster.world
    return {v.invariant for v in check(world, quota_just_decided=quota_just_decided, at_rest=at_rest)}


def grant(lab: Lab, owner: tuple[str, str, str]) -> Object:
    found = lab.grant(*owner)
    assert found
    return found


def other_grant(lab: Lab, like: Object, name: str, **spec: object) -> Object:
    """A live grant in the world that nobody committed."""
    obj = copy.deepcopy(like)
    obj["metadata"] |= {"name": name, "uid": f"uid-of-{name}"}
    obj["spec"] |= spec
    lab.cluster.world.put(obj)
    return obj


def test_i1_one_device_for_two(running: Lab) -> None:
    devices = grant(running, A)["spec"]["grants"][0]["devices"]
    owner = {"kind": "Pod", "namespace": "llm", "name": "x", "uid": uid_of(running.get(*P))}
    twice = copy.deepcopy(grant(running, A)["spec"]["grants"])
    twice[0]["devices"], twice[0]["count"], twice[0]["parts"] = [devices[0]], 1, 10080
    running.delete(*P)
    running.surroundings()
    other_grant(running, grant(running, A), "second", owner=owner, grants=twice)
    found = [v for v in check(running.cluster.world) if v.invariant == "I1"]
    assert [v.message for v in found] == [
        f"{devices[0]} on machines is granted beyond one GPU: "
        + ", ".join(sorted(["second", grant(running, A)["metadata"]["name"]]))
    ]


def test_i1_one_device_in_two_ways(running: Lab) -> None:
    def other_way(obj: Object) -> None:
        obj["metadata"] |= {"name": "second", "uid": "uid-second"}
        obj["spec"]["grants"][0]["resource"] = "nvidia.com/NVIDIA_H100-40C"
        obj["spec"]["owner"]["uid"] = "uid-second"

    broken(running, grant(running, B), other_way)
    assert "I1" in numbers(running)


def test_i1_counts_what_was_granted_not_what_the_class_says_now(running: Lab) -> None:
    running.apply(gpu_vm("c", 3, of="quarter"))
    running.settle()
    cls = running.get("GpuClass", "", "quarter")
    running.cluster.replace({**cls, "spec": {**cls["spec"], "share": "1/2"}})
    assert not numbers(running)


def test_i2_more_than_the_tenant_may_have(running: Lab) -> None:
    running.apply(tenant("vision", 1, 0))
    assert numbers(running) == {"I2"}
    assert not numbers(running, quota_just_decided=False)


def test_i2_more_than_the_cohort_has(running: Lab) -> None:
    running.apply(tenant("vision", 2, None, namespaces=["vision"]), tenant("llm", 0, None))
    assert numbers(running) == {"I2"}


def test_i2_a_tenant_that_is_gone_is_over_nobodys_quota(running: Lab) -> None:
    running.delete("Tenant", "", "llm")
    assert not numbers(running)


@pytest.mark.parametrize(
    "change",
    [
        lambda pod: pod["spec"].update(nodeName="machines"),
        lambda pod: pod["spec"].update(schedulingGates=[{"name": GATE}]),
        lambda pod: pod["metadata"].update(uid="uid-of-another"),
    ],
    ids=["on another node", "gated and bound", "not the one that is named"],
)
def test_i3_a_bound_pod_without_its_grant(running: Lab, change: Callable[[Object], None]) -> None:
    broken(running, running.get(*P), change)
    assert "I3" in numbers(running)


def test_i3_a_pod_that_came_by_another_way(running: Lab) -> None:
    by_another_way = gpu_pod("q", namespace="llm", nodeName="pods-1")
    by_another_way["metadata"]["uid"] = "uid-q"
    running.cluster.world.put(by_another_way)
    assert numbers(running) == {"I3"}


def test_i3_says_nothing_of_pods_outside_of_tenants(running: Lab) -> None:
    running.apply(namespace("theirs"), gpu_pod("q", namespace="theirs", nodeName="pods-1"))
    assert not numbers(running)


def test_i4_released_while_a_pod_has_the_devices(running: Lab) -> None:
    name = grant(running, P)["metadata"]["name"]
    ledger = running.get("GpuLedger", "", LEDGER_NAME)
    broken(running, ledger, lambda obj: obj["spec"].update(released=[name]))
    assert numbers(running) == {"I3", "I4"}


def test_i4_a_pod_that_is_still_gated_has_nothing(lab: Lab) -> None:
    lab.apply(gpu_pod("p", namespace="llm"))
    while not (lab.live_grants() and (grant(lab, P).get("status") or {}).get("podUIDs")):
        for chain in lab.plan().chains:
            lab.run_chain(chain, 0, -1 if chain.why.startswith("let ") else None)
    ledger = lab.get("GpuLedger", "", LEDGER_NAME)
    broken(lab, ledger, lambda obj: obj["spec"].update(released=[grant(lab, P)["metadata"]["name"]]))
    assert not numbers(lab)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["committed"].append({"name": "vm-nowhere-1-1", "sequence": 1}),
        lambda spec: spec.update(sequence=0),
        lambda spec: spec.update(epoch=0),
        lambda spec: [entry.update(sequence=entry["sequence"] + 7) for entry in spec["committed"]],
    ],
    ids=["committed, but not there", "sequence went back", "epoch went back", "mark and head differ"],
)
def test_i5_the_head_and_the_allocations_disagree(running: Lab, change: Callable[[Object], None]) -> None:
    running.apply(gpu_pod("q", namespace="llm"))
    running.reconcile()  # committed now, and so still in the log of the head
    running.reconcile()
    broken(running, running.get("GpuLedger", "", LEDGER_NAME), lambda obj: change(obj["spec"]))
    assert numbers(running, at_rest=False) == {"I5"}


def test_i5_two_grants_for_one_owner(running: Lab) -> None:
    other_grant(running, grant(running, B), "second", node="elsewhere")
    assert "I5" in numbers(running)


def test_i9_a_grant_without_an_owner(running: Lab) -> None:
    running.cluster.world.remove(*P)
    assert numbers(running) == {"I9"}
    assert not numbers(running, at_rest=False)


def test_i9_a_grant_outlives_its_owner_as_long_as_a_pod_has_the_devices(running: Lab) -> None:
    running.cluster.world.remove(*A)
    assert not any(found.message.startswith("vm-") for found in check(running.cluster.world))


def test_i9_a_child_without_an_owner(running: Lab) -> None:
    home = running.get("Namespace", "", "vc-llm--lab")
    broken(running, home, lambda obj: obj["metadata"]["labels"].update({OWNER_UID_LABEL: "uid-of-nobody"}))
    assert numbers(running) == {"I9"}


@pytest.mark.parametrize(
    ("kind", "home", "name"),
    [
        A,
        ("VirtualCluster", "llm", "lab"),
        ("Tenant", "", "llm"),
        ("GpuPool", "", "h100"),
        ("Cohort", "", "research"),
    ],
)
def test_i12_a_generation_that_is_ahead(running: Lab, kind: str, home: str, name: str) -> None:
    ahead = fork(running)
    broken(ahead, ahead.get(kind, home, name), lambda obj: obj["status"].update(observedGeneration=99))
    assert numbers(ahead) == {"I12"}
