"""Small fleets and quota for the tests of the core, from few words; and hypothesis strategies for random
ones.
"""

from __future__ import annotations

from hypothesis import strategies as st

from vmtenancy.api.gpuclass import PARTS_PER_GPU
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import DeviceFacts, Mode, NodeFacts, Offering, Pool

GPU = PARTS_PER_GPU
#: Whole GPUs to virtual machines and pods; vGPUs of two sizes; MIG slices of two sizes.
OFFERINGS = (
    Offering("whole", "h100", GPU, {Mode.CONTAINER: "nvidia.com/gpu", Mode.PASSTHROUGH: "nvidia.com/H100"}),
    Offering("half", "h100", GPU // 2, {Mode.VGPU: "nvidia.com/H100-40C"}),
    Offering("quarter", "h100", GPU // 4, {Mode.VGPU: "nvidia.com/H100-20C"}),
    Offering("slice", "h100", GPU // 7, {Mode.CONTAINER: "nvidia.com/mig-1g.10gb"}),
    Offering("slice3", "h100", 3 * GPU // 7, {Mode.CONTAINER: "nvidia.com/mig-3g.40gb"}),
)
BY_NAME = {offering.name: offering for offering in OFFERINGS}
POOLS = (Pool("h100", frozenset({"H100"})),)


def devices(count: int, *, cordoned: int = 0, sick: int = 0) -> tuple[DeviceFacts, ...]:
    """`count` GPUs, of which the first are cordoned and the last unhealthy."""
    return tuple(DeviceFacts(f"0000:{i:02x}:00.0", i < count - sick, i < cordoned) for i in range(count))


def node(name: str, mode: Mode | None, gpus: int = 8, **facts: object) -> NodeFacts:
    """An H100 node that advertises all that its mode delivers."""
    shown = {
        resource: gpus * (GPU // offering.parts)
        for offering in OFFERINGS
        for way, resource in offering.resources.items()
        if way is mode
    }
    known: dict[str, object] = {
        "product": "H100",
        "gpu_memory": 80 << 30,
        "devices": devices(gpus),
        "capacity": shown,
        "cpu": 64_000,
        "memory": 512 << 30,
    }
    return NodeFacts(name, mode, **(known | facts))  # type: ignore[arg-type]


def fleet(*nodes: NodeFacts) -> Fleet:
    """A fleet of one pool with all offerings."""
    return Fleet.build(nodes, POOLS, OFFERINGS)


@st.composite
def node_facts(draw: st.DrawFn, name: str) -> NodeFacts:
    """A node with up to 3 GPUs, any mode, and something wrong with it now and then."""
    mode = draw(st.sampled_from([*Mode, *Mode, None]))
    gpus = draw(st.integers(0, 3))
    facts = node(name, mode, gpus)
    flaws = draw(st.lists(st.sampled_from(["healthy", "cordoned"]), max_size=1))
    hardware = facts.devices
    if flaws and hardware:
        at = draw(st.integers(0, gpus - 1))
        flawed = DeviceFacts(hardware[at].id, flaws[0] != "healthy", flaws[0] == "cordoned")
        hardware = (*hardware[:at], flawed, *hardware[at + 1 :])
    capacity = {
        resource: draw(st.sampled_from([count, count, max(0, count - 1), 0]))
        for resource, count in facts.capacity.items()
    }
    return node(
        name,
        mode,
        gpus,
        devices=hardware,
        capacity=capacity,
        schedulable=draw(st.sampled_from([True, True, True, False])),
        product=draw(st.sampled_from(["H100", "H100", "H100", "A100"])),
        cpu=draw(st.sampled_from([2_000, 4_000, 4_000])),
        memory=draw(st.sampled_from([4, 8])) << 30,
    )


def node_lists(max_size: int = 4) -> st.SearchStrategy[list[NodeFacts]]:
    """Up to `max_size` nodes in any order."""
    return st.integers(1, max_size).flatmap(
        lambda count: st.permutations(range(count)).flatmap(
            lambda order: st.tuples(*(node_facts(f"node-{i}") for i in order)).map(list)
        )
    )
