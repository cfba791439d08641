"""Best fit against a brute force that knows nothing of the arrays, and the reasons of every no."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from described import BY_NAME, GPU, OFFERINGS, POOLS, devices, fleet, node, node_lists
from hypothesis import given
from hypothesis import strategies as st

from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import Mode, NodeFacts, Offering, Placement, Runtime
from vmtenancy.core.placement.best_fit import NoPlacement, Obstacle, Request, best_fit, deliverable

WHOLE, HALF, QUARTER, SLICE = (BY_NAME[name] for name in ("whole", "half", "quarter", "slice"))


def request(*units: tuple[Offering, int], runtime: Runtime = Runtime.VM, **needs: object) -> Request:
    return Request(runtime, units, **needs)  # type: ignore[arg-type]


def placed(answer: Placement | NoPlacement) -> Placement:
    assert isinstance(answer, Placement), answer
    return answer


def refused(answer: Placement | NoPlacement) -> NoPlacement:
    assert isinstance(answer, NoPlacement), answer
    return answer


def test_the_runtime_decides_the_mode() -> None:
    one = fleet(node("a", Mode.CONTAINER), node("b", Mode.PASSTHROUGH), node("c", Mode.VGPU))
    assert placed(best_fit(one, request((WHOLE, 2)))).node == "b"
    assert placed(best_fit(one, request((WHOLE, 2), runtime=Runtime.POD))).node == "a"
    vgpu = placed(best_fit(one, request((QUARTER, 2))))
    assert (vgpu.node, vgpu.grants[0].resource, vgpu.grants[0].mode) == (
        "c",
        "nvidia.com/H100-20C",
        Mode.VGPU,
    )


def test_the_fullest_node_then_the_least_cpu_then_the_name() -> None:
    facts = [
        node("a", Mode.PASSTHROUGH),
        node("b", Mode.PASSTHROUGH, 4),
        node("d", Mode.PASSTHROUGH, 4, cpu=9_000),
    ]
    assert placed(best_fit(fleet(*facts), request((WHOLE, 3)))).node == "d"
    assert (
        placed(best_fit(fleet(*facts[:2], node("c", Mode.PASSTHROUGH, 4)), request((WHOLE, 3)))).node == "b"
    )
    assert placed(best_fit(fleet(*facts), request((WHOLE, 5)))).node == "a"


def test_vgpus_of_one_machine_share_the_fullest_gpu_and_types_never_mix() -> None:
    one = fleet(node("a", Mode.VGPU, 2))
    first, second = (device.id for device in devices(2))
    quarters = placed(best_fit(one, request((QUARTER, 3))))
    assert quarters.grants[0].devices == (first, first, first)
    assert quarters.grants[0].parts == 3 * GPU // 4
    one.hold(quarters)
    halves = placed(best_fit(one, request((HALF, 2))))
    assert halves.grants[0].devices == (second, second)
    one.hold(halves)
    assert refused(best_fit(one, request((HALF, 1)))).obstacles == {Obstacle.BUSY: 1}
    assert placed(best_fit(one, request((QUARTER, 1)))).grants[0].devices == (first,)
    half_empty = fleet(node("a", Mode.VGPU, 2))
    half_empty.hold(placed(best_fit(half_empty, request((QUARTER, 1)))))
    assert placed(best_fit(half_empty, request((HALF, 1)))).grants[0].devices == (second,)


def test_two_offerings_of_one_request_come_from_one_node() -> None:
    one = fleet(node("a", Mode.VGPU, 1), node("b", Mode.VGPU, 2))
    both = placed(best_fit(one, request((HALF, 1), (QUARTER, 1))))
    assert both.node == "b"
    assert [grant.offering for grant in both.grants] == ["half", "quarter"]
    assert len({device for grant in both.grants for device in grant.devices}) == 2


def test_cordoned_and_unhealthy_devices_are_never_used() -> None:
    one = fleet(node("a", Mode.PASSTHROUGH, devices=devices(4, cordoned=1, sick=1)))
    assert placed(best_fit(one, request((WHOLE, 2)))).grants[0].devices == ("0000:01:00.0", "0000:02:00.0")
    assert refused(best_fit(one, request((WHOLE, 3)))).obstacles == {Obstacle.DEVICES: 1}


def test_the_node_selector_is_kept() -> None:
    one = fleet(node("a", Mode.PASSTHROUGH), node("b", Mode.PASSTHROUGH))
    names = frozenset({"b", "not-a-node"})
    assert placed(best_fit(one, request((WHOLE, 1), allowed_nodes=names))).node == "b"
    assert refused(best_fit(one, request((WHOLE, 1), allowed_nodes=frozenset()))).obstacles == {
        Obstacle.SELECTOR: 2
    }


def test_avoided_nodes_are_taken_only_where_no_other_fits() -> None:
    one = fleet(
        node("a", Mode.PASSTHROUGH, 2), node("b", Mode.PASSTHROUGH, 4), node("c", Mode.PASSTHROUGH, 8)
    )

    def lands(count: int, *avoided: str) -> str:
        return placed(best_fit(one, request((WHOLE, count), avoided_nodes=frozenset(avoided)))).node

    assert lands(2) == "a"
    assert lands(2, "a") == "b"
    assert lands(2, "a", "b", "gone") == "c"
    assert lands(2, "a", "b", "c") == "a"
    assert lands(8, "c") == "c"


def test_an_avoided_node_of_one_mode_comes_after_another_of_the_other() -> None:
    ways = {Mode.PASSTHROUGH: "nvidia.com/H100", Mode.VGPU: "nvidia.com/H100-80C"}
    either = Offering("either", "h100", GPU, ways)
    small = node("a", Mode.PASSTHROUGH, 1)
    large = node("b", Mode.VGPU, 8, capacity={"nvidia.com/H100-80C": 8})
    one = Fleet.build((small, large), POOLS, (either,))
    assert placed(best_fit(one, request((either, 1)))).node == "a"
    assert placed(best_fit(one, request((either, 1), avoided_nodes=frozenset({"a"})))).node == "b"
    assert placed(best_fit(one, request((either, 1), avoided_nodes=frozenset({"a", "b"})))).node == "a"


def test_every_no_counts_each_node_of_the_pool_once() -> None:
    full = node("full", Mode.PASSTHROUGH, 2)
    one = fleet(
        node("container", Mode.CONTAINER),
        node("unknown", None),
        node("off", Mode.PASSTHROUGH, schedulable=False),
        node("silent", Mode.PASSTHROUGH, capacity={}),
        node("small", Mode.PASSTHROUGH, 1, capacity={"nvidia.com/H100": 2}),
        full,
        node("cpu", Mode.PASSTHROUGH, cpu=1),
        node("memory", Mode.PASSTHROUGH, memory=1),
        node("a100", Mode.PASSTHROUGH, product="A100"),
    )
    one.hold(placed(best_fit(fleet(full), request((WHOLE, 1)))))
    answer = refused(best_fit(one, request((WHOLE, 2), cpu=2, memory=2)))
    assert answer.obstacles == {
        Obstacle.MODE: 2,
        Obstacle.UNSCHEDULABLE: 1,
        Obstacle.NOT_ADVERTISED: 1,
        Obstacle.DEVICES: 1,
        Obstacle.BUSY: 1,
        Obstacle.CPU: 1,
        Obstacle.MEMORY: 1,
    }
    assert (answer.most_free, answer.largest) == (8 * GPU, 8 * GPU)


@pytest.mark.parametrize("count", [9, 40_000, 1 << 40])
def test_absurd_counts_are_refused_not_overflowed(count: int) -> None:
    one = fleet(node("a", Mode.PASSTHROUGH), node("b", Mode.VGPU), node("c", Mode.CONTAINER))
    for offering, runtime in ((WHOLE, Runtime.VM), (SLICE, Runtime.POD)):
        answer = best_fit(one, request((offering, count * 7), runtime=runtime, cpu=1 << 80, memory=1 << 80))
        assert sum(refused(answer).obstacles.values()) == 3


def test_an_empty_fleet_has_no_place() -> None:
    assert refused(best_fit(fleet(), request((WHOLE, 1)))).obstacles == {}


def test_deliverable_needs_one_pool_and_one_mode() -> None:
    other = Offering("other", "a100", GPU, WHOLE.resources)
    assert deliverable(Runtime.VM, [WHOLE]) == (Mode.PASSTHROUGH,)
    assert deliverable(Runtime.POD, [WHOLE, SLICE]) == (Mode.CONTAINER,)
    assert deliverable(Runtime.VM, [WHOLE, QUARTER]) == ()
    assert deliverable(Runtime.POD, [WHOLE, other]) == ()
    assert deliverable(Runtime.POD, [QUARTER]) == ()


# -- brute force ----------------------------------------------------------------------------------------------------


def assignments(gpus: list[tuple[int, str]], units: list[Offering], mode: Mode) -> Iterator[list[int]]:
    """Every way to give each unit a GPU; `gpus` are (free parts, resource in use or "")."""
    if not units:
        yield []
        return
    unit = units[0]
    for g, (free, used_by) in enumerate(gpus):
        if free >= unit.parts and used_by in ("", unit.resources[mode]):
            taken = [*gpus[:g], (free - unit.parts, unit.resources[mode]), *gpus[g + 1 :]]
            for rest in assignments(taken, units[1:], mode):
                yield [g, *rest]


def fits(facts: NodeFacts, held: list[Placement], wanted: Request) -> tuple[int, int] | None:
    """(parts left, cpu left) on a node that has room, by looking at everything."""
    suits = {Runtime.VM: (Mode.PASSTHROUGH, Mode.VGPU), Runtime.POD: (Mode.CONTAINER,)}[wanted.runtime]
    here = [placement for placement in held if placement.node == facts.name]
    units = [offering for offering, count in wanted.units for _ in range(count)]
    mode = facts.mode
    if (
        mode is None
        or mode not in suits
        or not facts.schedulable
        or not POOLS[0].matches(facts)
        or not all(mode in unit.resources for unit in units)
        or (wanted.allowed_nodes is not None and facts.name not in wanted.allowed_nodes)
    ):
        return None
    cpu = facts.cpu - sum(placement.cpu for placement in here)
    memory = facts.memory - sum(placement.memory for placement in here)
    if cpu < wanted.cpu or memory < wanted.memory:
        return None
    grants = [grant for placement in here for grant in placement.grants]
    for resource in {unit.resources[mode] for unit in units}:
        asked = sum(unit.resources[mode] == resource for unit in units)
        if facts.capacity.get(resource, 0) < asked + sum(g.count for g in grants if g.resource == resource):
            return None
    gpus = []
    for device in facts.devices:
        if device.healthy and not device.cordoned:
            on_it = [
                (g.parts // g.count, g.resource) for g in grants for name in g.devices if name == device.id
            ]
            gpus.append((GPU - sum(parts for parts, _ in on_it), on_it[0][1] if on_it else ""))
    if next(assignments(gpus, units, mode), None) is None:
        return None
    return sum(free for free, _ in gpus), cpu


@st.composite
def requests(draw: st.DrawFn) -> Request:
    runtime, offerings = draw(
        st.sampled_from(
            [
                (Runtime.VM, (WHOLE,)),
                (Runtime.VM, (HALF, QUARTER)),
                (Runtime.POD, (WHOLE, SLICE, BY_NAME["slice3"])),
            ]
        )
    )
    chosen = draw(st.lists(st.sampled_from(offerings), min_size=1, max_size=2, unique_by=lambda o: o.name))
    allowed = draw(st.sampled_from([None, None, frozenset({"node-0", "node-2"})]))
    units = tuple((offering, draw(st.integers(1, 3))) for offering in chosen)
    return Request(
        runtime, units, draw(st.sampled_from([0, 1_000, 3_000])), draw(st.sampled_from([0, 3 << 30])), allowed
    )


@given(nodes=node_lists(), wanted=st.lists(requests(), min_size=1, max_size=6))
def test_best_fit_is_what_brute_force_finds(nodes: list[NodeFacts], wanted: list[Request]) -> None:
    live = Fleet.build(nodes, POOLS, OFFERINGS)
    held: list[Placement] = []
    for one in wanted:
        room = {facts.name: left for facts in nodes if (left := fits(facts, held, one)) is not None}
        answer = best_fit(live, one)
        if not room:
            in_pool = sum(POOLS[0].matches(facts) for facts in nodes)
            assert sum(refused(answer).obstacles.values()) == in_pool
            continue
        placement = placed(answer)
        assert placement.node == min(room, key=lambda name: (*room[name], name))
        assert [(g.offering, g.count) for g in placement.grants] == [
            (o.name, count) for o, count in one.units
        ]
        live.hold(placement)
        held.append(placement)
        for facts in nodes:
            assert live.free_total[live.index[facts.name]] >= 0
