"""Best fit: the node that keeps the least GPU free, then the least cpu, then the first by name.

All devices of one workload come from one node. Feasibility is exact by counting: a GPU in use takes further
units of its own type while parts are left, an empty GPU takes any. KubeVirt asks the device plugin for a
*count* of a resource and neither it nor the kubelet promises which GPU each unit comes from, so several vGPUs
of one machine may share a GPU or not; here the fullest GPU is filled first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from vmtenancy.api.gpuclass import PARTS_PER_GPU
from vmtenancy.core.fleet.arrays import MOST_UNITS, Fleet
from vmtenancy.core.fleet.model import MODES, DeviceGrant, Mode, Offering, Placement, Runtime

_MODES = tuple(Mode)


class Obstacle(StrEnum):
    """Why a node of the pool is no place for a request: the first rule, in this order, that it fails."""

    MODE = "in a mode that does not deliver it"
    UNSCHEDULABLE = "unschedulable"
    SELECTOR = "excluded by the node selector"
    NOT_ADVERTISED = "advertise too few devices"
    DEVICES = "have too few healthy GPUs"
    BUSY = "have too few free GPUs"
    CPU = "have too little cpu"
    MEMORY = "have too little memory"


@dataclass(frozen=True, slots=True)
class Request:
    """Units of offerings for one workload. cpu in millicores, memory in bytes; `allowed_nodes` None: any.

    `avoided_nodes` are taken only where no other node fits.
    """

    runtime: Runtime
    units: tuple[tuple[Offering, int], ...]
    cpu: int = 0
    memory: int = 0
    allowed_nodes: frozenset[str] | None = None
    avoided_nodes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NoPlacement:
    """No node fits. `obstacles` counts the pool's nodes by the first rule failed; the counts sum to its
    nodes.

    `most_free` of `largest`: parts free on the node with the most, of all on the largest, over schedulable
    nodes in a suitable mode.
    """

    obstacles: Mapping[Obstacle, int]
    most_free: int
    largest: int


def deliverable(runtime: Runtime, offerings: Sequence[Offering]) -> tuple[Mode, ...]:
    """The node modes in which every one of the offerings reaches the runtime; empty: in none, or of several
    pools.
    """
    if len({offering.pool for offering in offerings}) > 1:
        return ()
    return tuple(mode for mode in MODES[runtime] if all(mode in offering.resources for offering in offerings))


def best_fit(fleet: Fleet, request: Request) -> Placement | NoPlacement:
    """Where the request lands. The fleet is not changed: `Fleet.hold` takes what is returned.

    The request names at least one unit, and its offerings are ones that the fleet was built with.
    """
    pool = request.units[0][0].pool
    modes = deliverable(request.runtime, [offering for offering, _ in request.units])
    allowed = _mask(fleet, request.allowed_nodes)
    avoided = _mask(fleet, request.avoided_nodes) if request.avoided_nodes else None
    best: tuple[bool, int, int] | None = None
    for mode in modes:
        fits = fleet.eligible(pool, mode) & _has_room(fleet, _needs(fleet, request, mode))
        fits &= (fleet.cpu >= request.cpu) & (fleet.memory >= request.memory)
        if allowed is not None:
            fits &= allowed
        welcome = fits if avoided is None else fits & ~avoided
        last_resort = not welcome.any()
        nodes = np.flatnonzero(fits if last_resort else welcome)
        if nodes.size:
            n = int(nodes[fleet.rank[nodes].argmin()])
            candidate = (last_resort, int(fleet.rank[n]), n)
            best = candidate if best is None else min(best, candidate)
    if best is None:
        return _why_not(fleet, request, pool, modes, allowed)
    return _seat(fleet, request, best[2])


def _needs(fleet: Fleet, request: Request, mode: Mode) -> Counter[int]:
    """Units by unit type that the request takes on a node in that mode."""
    needs: Counter[int] = Counter()
    for offering, count in request.units:
        needs[fleet.types[(offering.resources[mode], offering.parts)]] += min(count, MOST_UNITS)
    return needs


def _mask(fleet: Fleet, names: frozenset[str] | None) -> NDArray[np.bool_] | None:
    if names is None:
        return None
    mask = np.zeros(len(fleet.nodes), np.bool_)
    mask[[fleet.index[name] for name in names if name in fleet.index]] = True
    return mask


def _has_room(fleet: Fleet, needs: Mapping[int, int]) -> NDArray[np.bool_]:
    """[N] bool: nodes whose free devices and resource counts suffice, exactly."""
    room = _advertised(fleet, needs, fleet.left)
    wanted: NDArray[np.int32] = np.zeros(len(fleet.nodes), np.int32)
    units = tuple(fleet.types)
    for kind, count in needs.items():
        per_gpu = PARTS_PER_GPU // units[kind][1]
        missing = np.maximum(0, count - fleet.partial[kind])
        wanted = wanted + (missing if per_gpu == 1 else -(-missing // per_gpu))
    room &= fleet.empty >= wanted
    return room


def _advertised(fleet: Fleet, needs: Mapping[int, int], counts: NDArray[np.int32]) -> NDArray[np.bool_]:
    """[N] bool: nodes where `counts` [R, N] has as many units of each resource as needed."""
    units = tuple(fleet.types)
    by_resource: Counter[int] = Counter()
    for kind, count in needs.items():
        by_resource[fleet.resources[units[kind][0]]] += count
    (first, least), *more = by_resource.items()
    enough: NDArray[np.bool_] = counts[first] >= least
    for resource, count in more:
        enough &= counts[resource] >= count
    return enough


def _seat(fleet: Fleet, request: Request, n: int) -> Placement:
    """Devices for a request that has room on node number `n`: GPUs in use by the type first, the fullest
    first.
    """
    node = fleet.nodes[n]
    mode = node.mode
    assert mode is not None  # noqa: S101 (eligible nodes have one)
    states = {g: (free, kind) for g, free, kind in fleet.gpus(n)}
    grants = []
    for offering, count in request.units:
        kind = fleet.types[(offering.resources[mode], offering.parts)]
        devices = []
        for _ in range(count):
            g = min(
                (
                    g
                    for g, (free, used_by) in states.items()
                    if free >= offering.parts and used_by in (kind, -1)
                ),
                key=lambda g: (states[g][0], g),
            )
            states[g] = (states[g][0] - offering.parts, kind)
            devices.append(node.devices[g].id)
        grants.append(
            DeviceGrant(
                offering.name,
                offering.pool,
                count,
                mode,
                offering.resources[mode],
                tuple(devices),
                count * offering.parts,
            )
        )
    return Placement(node.name, tuple(grants), request.cpu, request.memory)


def _why_not(
    fleet: Fleet, request: Request, pool: str, modes: Sequence[Mode], allowed: NDArray[np.bool_] | None
) -> NoPlacement:
    remaining = fleet.pool == fleet.pool_index.get(pool, -2)
    obstacles: dict[Obstacle, int] = {}

    def strike(obstacle: Obstacle, passes: NDArray[np.bool_]) -> None:
        nonlocal remaining
        failed = int(np.count_nonzero(remaining & ~passes))
        if failed:
            obstacles[obstacle] = failed
        remaining = remaining & passes

    in_mode = {mode: fleet.mode == _MODES.index(mode) for mode in modes}
    none = np.zeros(len(fleet.nodes), np.bool_)
    needs = {mode: _needs(fleet, request, mode) for mode in modes}

    def either(test: Mapping[Mode, NDArray[np.bool_]]) -> NDArray[np.bool_]:
        passes = none
        for mode, in_this in test.items():
            passes = passes | (in_mode[mode] & in_this)
        return passes

    strike(Obstacle.MODE, either(in_mode))
    strike(Obstacle.UNSCHEDULABLE, fleet.schedulable)
    shown = remaining
    if allowed is not None:
        strike(Obstacle.SELECTOR, allowed)
    strike(Obstacle.NOT_ADVERTISED, either({m: _advertised(fleet, needs[m], fleet.capacity) for m in modes}))
    units = tuple(fleet.types)
    whole = {
        m: sum(-(-count // (PARTS_PER_GPU // units[kind][1])) for kind, count in needs[m].items())
        for m in modes
    }
    strike(Obstacle.DEVICES, either({mode: fleet.usable >= whole[mode] for mode in modes}))
    strike(Obstacle.BUSY, either({mode: _has_room(fleet, needs[mode]) for mode in modes}))
    strike(Obstacle.CPU, fleet.cpu >= request.cpu)
    strike(Obstacle.MEMORY, fleet.memory >= request.memory)
    return NoPlacement(
        obstacles,
        int(fleet.free_total[shown].max(initial=0)),
        int(fleet.usable[shown].max(initial=0)) * PARTS_PER_GPU,
    )
