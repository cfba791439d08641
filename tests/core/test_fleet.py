"""The fleet's arrays: what facts become, I1, and no drift whatever is held and released."""

from __future__ import annotations

import numpy as np
import pytest
from described import GPU, OFFERINGS, POOLS, devices, fleet, node, node_lists
from hypothesis import given
from hypothesis import strategies as st

from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import DeviceGrant, Mode, NodeFacts, Placement, Pool, Runtime
from vmtenancy.core.placement.best_fit import Obstacle, Request, best_fit
from vmtenancy.errors import Code, VmtError

ARRAYS = (
    *("free_parts", "kind", "device_usable", "empty", "usable", "partial", "free_total", "granted_total"),
    *("capacity", "left", "cpu", "memory", "rank", "pool", "mode", "schedulable"),
)


def state(of: Fleet) -> dict[str, list[object]]:
    return {name: getattr(of, name).tolist() for name in ARRAYS}


def grant(ids: tuple[str, ...], parts: int = GPU, mode: Mode = Mode.PASSTHROUGH) -> DeviceGrant:
    resource = "nvidia.com/H100" if parts == GPU else "nvidia.com/H100-20C"
    return DeviceGrant("whole", "h100", len(ids), mode, resource, ids, parts * len(ids))


FIRST, SECOND = (device.id for device in devices(2))


def test_i1_a_taken_device_is_refused_and_nothing_changes() -> None:
    one = fleet(node("a", Mode.PASSTHROUGH))
    one.hold(Placement("a", (grant((FIRST,)),)))
    before = state(one)
    with pytest.raises(VmtError, match=r"I1: device 0000:00:00\.0 of node a is taken") as refused:
        one.hold(Placement("a", (grant((SECOND, FIRST)),), cpu=1000))
    assert refused.value.code is Code.LEDGER
    assert state(one) == before


def test_i1_holds_for_nodes_and_devices_that_the_facts_do_not_show() -> None:
    gone = fleet(node("a", Mode.PASSTHROUGH))
    for where, device in (("lost", FIRST), ("a", "gpu-0")):
        gone.hold(Placement(where, (grant((device,)),)))
        with pytest.raises(VmtError, match="I1"):
            gone.hold(Placement(where, (grant((device,)),)))


def test_a_held_device_that_is_not_shown_takes_some_gpu_of_its_node() -> None:
    """The grant says `gpu-0`, then the agent starts and calls the same GPU by its PCI address."""
    one = fleet(node("a", Mode.PASSTHROUGH, 2))
    one.hold(Placement("a", (grant(("gpu-0",)),)))
    assert one.empty.tolist() == [1]
    assert one.supply("h100", Runtime.VM) == (GPU, 2 * GPU)


def test_a_slice_of_a_gpu_can_be_held_until_it_is_full() -> None:
    one = fleet(node("a", Mode.VGPU, 1))
    for _ in range(4):
        one.hold(Placement("a", (grant((FIRST,), GPU // 4, Mode.VGPU),)))
    with pytest.raises(VmtError, match="2520 parts asked, 0 free"):
        one.hold(Placement("a", (grant((FIRST,), GPU // 4, Mode.VGPU),)))


def test_release_of_what_is_not_held_is_refused() -> None:
    one = fleet(node("a", Mode.PASSTHROUGH))
    with pytest.raises(VmtError, match="released but not held"):
        one.release(Placement("a", (grant((FIRST,)),)))


@pytest.mark.parametrize(
    "bad",
    [
        DeviceGrant("whole", "h100", 2, Mode.PASSTHROUGH, "nvidia.com/H100", (FIRST,), 2 * GPU),
        DeviceGrant("whole", "h100", 0, Mode.PASSTHROUGH, "nvidia.com/H100", (), 0),
        DeviceGrant("whole", "h100", 2, Mode.PASSTHROUGH, "nvidia.com/H100", (FIRST, SECOND), GPU + 1),
    ],
)
def test_a_grant_that_contradicts_itself_is_refused(bad: DeviceGrant) -> None:
    with pytest.raises(VmtError, match="one device and equal parts per unit"):
        fleet(node("a", Mode.PASSTHROUGH)).hold(Placement("a", (bad,)))


def test_two_matching_pools_are_reported_and_the_node_counted_once() -> None:
    both = Fleet.build(
        [node("a", Mode.CONTAINER, 4), node("b", Mode.CONTAINER, 4)],
        [Pool("zoo"), Pool("h100", frozenset({"H100"}), min_memory=80 << 30)],
        OFFERINGS,
    )
    assert (both.totals("h100").gpus, both.totals("zoo").gpus) == (8, 0)
    assert [str(problem) for problem in both.problems] == [
        "VMT-A001: spec.selector: pools h100, zoo all match a, b; counted in h100 alone"
    ]


@pytest.mark.parametrize(
    ("pool", "matches"),
    [
        (Pool("p"), True),
        (Pool("p", frozenset({"A100", "H100"})), True),
        (Pool("p", frozenset({"A100"})), False),
        (Pool("p", min_memory=80 << 30), True),
        (Pool("p", min_memory=(80 << 30) + 1), False),
        (Pool("p", node_labels={"zone": "x"}), True),
        (Pool("p", node_labels={"zone": "x", "rack": "1"}), False),
    ],
)
def test_pool_selector(pool: Pool, matches: bool) -> None:
    assert pool.matches(node("a", Mode.CONTAINER, labels={"zone": "x"})) is matches


def test_totals_tell_granted_and_foreign_apart() -> None:
    one = fleet(node("a", Mode.PASSTHROUGH, devices=devices(8, cordoned=1, sick=2)))
    one.hold(Placement("a", (grant((SECOND,)),)))
    one.hold_foreign("a", "nvidia.com/H100", 2)
    totals = one.totals("h100")
    assert (totals.gpus, totals.allocatable, totals.allocated, totals.foreign) == (8, 5, GPU, 2 * GPU)
    assert one.totals("nothing").gpus == 0


def test_a_device_shown_twice_is_reported_and_counted_once() -> None:
    twice = fleet(node("a", Mode.PASSTHROUGH, devices=(*devices(1), *devices(1))))
    assert twice.totals("h100").gpus == 1
    assert "shows device 0000:00:00.0 twice" in str(twice.problems[0])
    twice.hold(Placement("a", (grant((FIRST,)),)))
    assert twice.free_total.tolist() == [0]


def test_node_names_are_unique() -> None:
    with pytest.raises(VmtError, match="node names must be unique"):
        fleet(node("a", Mode.CONTAINER), node("a", Mode.VGPU))


def test_foreign_pods_take_supply_whatever_comes_first() -> None:
    facts = node("a", Mode.VGPU, 2)
    ours = Placement("a", (grant((FIRST,), GPU // 4, Mode.VGPU),))
    before, after = fleet(facts), fleet(facts)
    before.hold_foreign("a", "nvidia.com/H100-20C", 5)
    before.hold(ours)
    after.hold(ours)
    after.hold_foreign("a", "nvidia.com/H100-20C", 5)
    assert state(before) == state(after)
    assert before.free_total.tolist() == [2 * GPU // 4]


@pytest.mark.parametrize("resource", ["nvidia.com/other", "nvidia.com/gpu"])
def test_a_foreign_resource_that_no_class_delivers_there_counts_as_whole_gpus(resource: str) -> None:
    one = fleet(node("a", Mode.VGPU, 4))
    one.hold_foreign("a", resource, 3)
    one.hold_foreign("elsewhere", resource, 3)
    assert (one.empty.tolist(), one.totals("h100").foreign) == ([1], 3 * GPU)


def test_i6_a_device_plugin_that_reports_nothing_takes_no_grant_away() -> None:
    silent = fleet(node("a", Mode.PASSTHROUGH, capacity={}))
    held = Placement("a", (grant((FIRST,)),))
    silent.hold(held)
    answer = best_fit(silent, Request(Runtime.VM, ((OFFERINGS[0], 1),)))
    assert answer.obstacles == {Obstacle.NOT_ADVERTISED: 1}  # type: ignore[union-attr]
    silent.release(held)
    assert silent.left.tolist() == silent.capacity.tolist()


def test_what_if_nests_and_undoes_in_order() -> None:
    one = fleet(node("a", Mode.PASSTHROUGH, 2))
    first, second = (Placement("a", (grant((device,)),), cpu=1000) for device in (FIRST, SECOND))
    one.hold(first)
    before = state(one)
    with one.what_if():
        one.release(first)
        with one.what_if():
            one.hold(second)
            one.hold(first)
        assert one.empty.tolist() == [2]
        one.hold(second)
    assert state(one) == before
    one.hold(second)


@given(nodes=node_lists(), data=st.data())
def test_i1_and_no_drift_after_random_changes(nodes: list[NodeFacts], data: st.DataObject) -> None:
    """After every change the arrays are those of a new fleet that holds the same, in any order."""
    live = Fleet.build(nodes, POOLS, OFFERINGS)
    fresh = state(live)
    held: list[Placement] = []
    for _ in range(data.draw(st.integers(1, 8))):
        if held and data.draw(st.booleans()):
            live.release(held.pop(data.draw(st.integers(0, len(held) - 1))))
        else:
            offering = data.draw(st.sampled_from(OFFERINGS))
            runtime = data.draw(st.sampled_from([Runtime.VM, Runtime.POD]))
            if not any(mode in offering.resources for mode in (Mode.PASSTHROUGH, Mode.VGPU, Mode.CONTAINER)):
                continue
            request = Request(runtime, ((offering, data.draw(st.integers(1, 4))),), cpu=500)
            answer = best_fit(live, request)
            if isinstance(answer, Placement):
                with live.what_if():
                    live.hold(answer)
                live.hold(answer)
                held.append(answer)
        again = Fleet.build(nodes, POOLS, OFFERINGS)
        for placement in data.draw(st.permutations(held)):
            again.hold(placement)
        assert state(again) == state(live)
        by_device: dict[tuple[str, str], int] = {}
        for placement in held:
            for part in placement.grants:
                for device in part.devices:
                    key = (placement.node, device)
                    by_device[key] = by_device.get(key, 0) + part.parts // part.count
        assert all(parts <= GPU for parts in by_device.values())
    for placement in held:
        live.release(placement)
    assert state(live) == fresh
    assert (live.left == live.capacity).all()
    assert np.array_equal(live.empty, live.usable)
