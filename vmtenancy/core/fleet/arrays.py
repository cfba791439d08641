"""The fleet as arrays: GPU-major, small integers, with per-node summaries kept current by `hold` and
`release`.

N nodes in name order (so the lowest index is the first name), G GPUs at most per node, R extended resources,
T unit types. A *unit type* is a resource with the parts of a GPU that one unit takes. A GPU that is in use
holds units of one type until it is empty again: that is how NVIDIA's time-sliced vGPUs share a GPU, and it
keeps feasibility exact by counting.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmtenancy.api.gpuclass import PARTS_PER_GPU
from vmtenancy.core.fleet.model import MODES, Mode, NodeFacts, Offering, Placement, Pool, Runtime
from vmtenancy.errors import Code, Problem, VmtError

_EMPTY = -1
#: A GPU whose units are of several types, or of one that no offering has: nothing more is placed on it.
_ALIEN = -2
#: No node has more units of a resource: bounds what meets the int32 arrays, however much is asked for.
MOST_UNITS: Final = 1 << 24
_MODE_INDEX = {mode: index for index, mode in enumerate(Mode)}

#: The arrays that change with what is held.
_TAKEN = (
    *("free_parts", "kind", "empty", "partial", "free_total", "granted_total", "left"),
    *("cpu", "memory", "rank"),
)

#: (free parts, kind of the units on it or -1) of one usable GPU, by its index on the node.
GpuState = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class PoolTotals:
    """Sums over a pool: GPUs there are, those healthy and not cordoned, parts granted, parts of foreign
    holders.
    """

    gpus: int
    allocatable: int
    allocated: int
    foreign: int


class Fleet:
    """Supply and what is taken of it. `build` makes it from facts; `hold` and `release` keep it current.

    Read by placement: `empty` [N] int16 (usable GPUs that are wholly free), `partial` [T, N] int32 (units
    that still fit on GPUs in use by that type), `left` [R, N] int32 (units of the resource that the node can
    still hand out), `free_total` [N] int32 (free parts on usable GPUs), `usable` [N] int16 (usable GPUs),
    `capacity` [R, N] int32, `cpu` [N] int64 (millicores), `memory` [N] int64 (bytes), `rank` [N] int64 (order
    of best fit), `pool` [N] int16 (-1: none), `mode` [N] int8 (-1: not known), `schedulable` [N] bool.
    """

    def __init__(
        self, nodes: Iterable[NodeFacts], pools: Iterable[Pool], offerings: Iterable[Offering]
    ) -> None:
        problems: list[Problem] = []
        self.nodes = tuple(_distinct(node, problems) for node in sorted(nodes, key=lambda node: node.name))
        self.pools = {pool.name: pool for pool in sorted(pools, key=lambda pool: pool.name)}
        self.offerings = {offering.name: offering for offering in offerings}
        self.index = {node.name: n for n, node in enumerate(self.nodes)}
        if len(self.index) < len(self.nodes):
            twice = next(
                name for name, count in Counter(node.name for node in self.nodes).items() if count > 1
            )
            raise VmtError(Problem(Code.INVALID_FIELD, "nodes", "node names must be unique", twice))
        types = sorted({(r, o.parts) for o in self.offerings.values() for r in o.resources.values()})
        #: Index of each unit type by (resource, parts), and of each extended resource that an offering names.
        self.types = {unit: t for t, unit in enumerate(types)}
        self.resources = {name: r for r, name in enumerate(sorted({resource for resource, _ in types}))}
        self.pool_index = {name: p for p, name in enumerate(self.pools)}
        size = len(self.nodes)
        gpus = max((len(node.devices) for node in self.nodes), default=0)
        #: [G, N] int16: free parts per GPU (0 where there is none), over all holders.
        self.free_parts: NDArray[np.int16] = np.zeros((gpus, size), np.int16)
        #: [G, N] int16: index of the type of the units on it; -1 none, -2 no one type.
        self.kind: NDArray[np.int16] = np.full((gpus, size), _EMPTY, np.int16)
        #: [G, N] bool: healthy and not cordoned.
        self.device_usable: NDArray[np.bool_] = np.zeros((gpus, size), np.bool_)
        self.empty: NDArray[np.int16] = np.zeros(size, np.int16)
        self.usable: NDArray[np.int16] = np.zeros(size, np.int16)
        self.partial: NDArray[np.int32] = np.zeros((len(self.types), size), np.int32)
        self.free_total: NDArray[np.int32] = np.zeros(size, np.int32)
        self.granted_total: NDArray[np.int32] = np.zeros(size, np.int32)
        self.capacity: NDArray[np.int32] = np.zeros((len(self.resources), size), np.int32)
        self.cpu: NDArray[np.int64] = np.fromiter((node.cpu for node in self.nodes), np.int64, size)
        self.memory: NDArray[np.int64] = np.fromiter((node.memory for node in self.nodes), np.int64, size)
        self.rank: NDArray[np.int64] = np.zeros(size, np.int64)
        self.pool: NDArray[np.int16] = np.full(size, -1, np.int16)
        self.mode: NDArray[np.int8] = np.fromiter(
            (-1 if node.mode is None else _MODE_INDEX[node.mode] for node in self.nodes), np.int8, size
        )
        self.schedulable: NDArray[np.bool_] = np.fromiter(
            (node.schedulable for node in self.nodes), np.bool_, size
        )
        #: Parts of grants by unit type, by node and device: also for what the facts do not show at the moment.
        self._held: dict[str, dict[str, Counter[int]]] = {}
        #: By node: the place of each device in it, by id.
        self._devices_of: list[dict[str, int]] = []
        self._foreign: dict[int, Counter[tuple[str, int]]] = {}
        self._journal: list[tuple[int, Placement]] | None = None
        self._read_facts(problems)
        self.problems = tuple(problems)
        self.left: NDArray[np.int32] = self.capacity.copy()
        self._eligible: dict[tuple[str, Mode], NDArray[np.bool_]] = {}

    @classmethod
    def build(cls, nodes: Iterable[NodeFacts], pools: Iterable[Pool], offerings: Iterable[Offering]) -> Fleet:
        """Arrays from facts, nothing held. What contradicts itself is in `problems`; the rest works.

        A node belongs to the first pool, by name, that matches it. Raises VmtError for a node named twice.
        """
        return cls(nodes, pools, offerings)

    def _read_facts(self, problems: list[Problem]) -> None:
        overlaps: dict[tuple[str, ...], list[str]] = {}
        indexes: dict[tuple[str, ...], dict[str, int]] = {}
        for n, node in enumerate(self.nodes):
            matching = tuple(name for name, pool in self.pools.items() if pool.matches(node))
            if matching:
                self.pool[n] = self.pool_index[matching[0]]
            if len(matching) > 1:
                overlaps.setdefault(matching, []).append(node.name)
            ids = tuple(device.id for device in node.devices)
            self._devices_of.append(indexes.setdefault(ids, {name: g for g, name in enumerate(ids)}))
            self.free_parts[: len(ids), n] = PARTS_PER_GPU
            self.device_usable[: len(ids), n] = [d.healthy and not d.cordoned for d in node.devices]
            for resource, r in self.resources.items():
                self.capacity[r, n] = min(node.capacity.get(resource, 0), MOST_UNITS)
        for matching, names in overlaps.items():
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            message = f"pools {', '.join(matching)} all match {shown}; counted in {matching[0]} alone"
            problems.append(Problem(Code.INVALID_FIELD, "spec.selector", message))
        # How many GPUs there are does not change with what is held; what is free does (`_refresh`).
        self.exists: NDArray[np.int16] = (self.free_parts > 0).sum(axis=0, dtype=np.int16)
        self.usable[:] = self.device_usable.sum(axis=0, dtype=np.int16)
        self.empty[:] = self.usable
        self.free_total[:] = self.usable.astype(np.int32) * PARTS_PER_GPU
        self.rank[:] = (self.free_total.astype(np.int64) << 40) + np.clip(self.cpu, 0, (1 << 40) - 1)

    def hold(self, placement: Placement) -> None:
        """Take the devices, units, cpu and memory of a grant.

        Raises VmtError (LEDGER) if a device has fewer parts left than asked (I1) or the grant contradicts
        itself; nothing is taken then. A device that the facts do not show counts as some GPU of its node; of a
        node that they do not show, the holders are remembered.
        """
        wanted = self._devices(placement)
        held = self._held.setdefault(placement.node, {})
        for device, parts in wanted.items():
            free = PARTS_PER_GPU - held.get(device, Counter()).total()
            if parts.total() > free:
                message = f"I1: device {device} of node {placement.node} is taken"
                found = f"{parts.total()} parts asked, {free} free"
                raise VmtError(Problem(Code.LEDGER, "", message, found))
        for device, parts in wanted.items():
            held.setdefault(device, Counter()).update(parts)
        self._account(placement, 1)

    def release(self, placement: Placement) -> None:
        """Give back what `hold` took. Raises VmtError (LEDGER) if the devices are not held; nothing changes
        then.
        """
        wanted = self._devices(placement)
        held = self._held.get(placement.node, {})
        for device, parts in wanted.items():
            if not parts <= held.get(device, Counter()):
                message = f"device {device} of node {placement.node} is released but not held"
                raise VmtError(Problem(Code.LEDGER, "", message))
        for device, parts in wanted.items():
            held[device] -= parts
            if not held[device]:
                del held[device]
        self._account(placement, -1)

    def hold_foreign(self, node: str, resource: str, count: int) -> None:
        """Subtract `count` units that pods without a grant hold on `node`; which GPUs they use is not known.

        They are seated on what the grants leave free, so the order of calls does not matter. A resource that
        no offering of the node's pool delivers counts as whole GPUs. A node that is not in the fleet has no
        supply.
        """
        n = self.index.get(node)
        if n is None:
            return
        mode = self.nodes[n].mode
        pool = self.pool_of(n)
        parts = [
            offering.parts
            for offering in self.offerings.values()
            if mode is not None and offering.pool == pool and offering.resources.get(mode) == resource
        ]
        foreign = self._foreign.setdefault(n, Counter())
        foreign[(resource, max(parts, default=PARTS_PER_GPU))] += count
        if resource in self.resources:
            self.left[self.resources[resource], n] -= count
        self._refresh(n)

    @contextmanager
    def what_if(self) -> Iterator[None]:
        """Whatever is held or released inside is undone at the end, at a cost of the changes alone. Nests."""
        outer, self._journal = self._journal, []
        try:
            yield
        finally:
            journal, self._journal = self._journal, None
            for sign, placement in reversed(journal):
                (self.release if sign > 0 else self.hold)(placement)
            self._journal = outer

    def copy(self) -> Fleet:
        """Another one with the same facts, on which others may hold and release."""
        twin = copy.copy(self)
        for name in _TAKEN:
            setattr(twin, name, getattr(self, name).copy())
        twin._held = {
            node: {device: Counter(parts) for device, parts in held.items()}
            for node, held in self._held.items()
        }
        twin._foreign = {n: Counter(units) for n, units in self._foreign.items()}
        twin._journal = None
        return twin

    def pool_of(self, n: int) -> str | None:
        """The pool of node number `n`."""
        return None if self.pool[n] < 0 else tuple(self.pools)[self.pool[n]]

    def eligible(self, pool: str, mode: Mode) -> NDArray[np.bool_]:
        """[N] bool: schedulable nodes of the pool in that mode. Read only."""
        mask = self._eligible.get((pool, mode))
        if mask is None:
            mask = (
                self.schedulable
                & (self.pool == self.pool_index.get(pool, -2))
                & (self.mode == _MODE_INDEX[mode])
            )
            self._eligible[(pool, mode)] = mask
        return mask

    def supply(self, pool: str, runtime: Runtime) -> tuple[int, int]:
        """(free, all) parts on usable GPUs of the pool's schedulable nodes whose mode suits the runtime."""
        free = total = 0
        for mode in MODES[runtime]:
            mask = self.eligible(pool, mode)
            free += int(self.free_total[mask].sum())
            total += int(self.usable[mask].sum()) * PARTS_PER_GPU
        return free, total

    def totals(self, pool: str) -> PoolTotals:
        """Sums over all nodes of the pool, whatever their mode."""
        mask = self.pool == self.pool_index.get(pool, -2)
        gpus, allocated = int(self.exists[mask].sum()), int(self.granted_total[mask].sum())
        free = int(self.free_parts[:, mask].sum(dtype=np.int64))
        return PoolTotals(
            gpus, int(self.usable[mask].sum()), allocated, gpus * PARTS_PER_GPU - free - allocated
        )

    def gpus(self, n: int) -> list[GpuState]:
        """The usable GPUs of node number `n` with something free on them: (index, free parts, kind)."""
        states = zip(
            self.device_usable[:, n].tolist(),
            self.free_parts[:, n].tolist(),
            self.kind[:, n].tolist(),
            strict=True,
        )
        return [(g, free, kind) for g, (usable, free, kind) in enumerate(states) if usable and free]

    def _devices(self, placement: Placement) -> dict[str, Counter[int]]:
        """Parts by unit type, by device, of a placement."""
        wanted: dict[str, Counter[int]] = {}
        for grant in placement.grants:
            unit, rest = divmod(grant.parts, grant.count) if grant.count > 0 else (0, 1)
            if rest or unit <= 0 or len(grant.devices) != grant.count:
                found = f"count {grant.count}, parts {grant.parts}, {len(grant.devices)} devices"
                raise VmtError(
                    Problem(Code.LEDGER, "", "a grant needs one device and equal parts per unit", found)
                )
            kind = self.types.get((grant.resource, unit), _ALIEN)
            for device in grant.devices:
                wanted.setdefault(device, Counter())[kind] += unit
        return wanted

    def _account(self, placement: Placement, sign: int) -> None:
        if self._journal is not None:
            self._journal.append((sign, placement))
        n = self.index.get(placement.node)
        if n is None:
            return
        for grant in placement.grants:
            if grant.resource in self.resources:
                self.left[self.resources[grant.resource], n] -= sign * grant.count
        self.cpu[n] -= sign * placement.cpu
        self.memory[n] -= sign * placement.memory
        self._refresh(n)

    def _refresh(self, n: int) -> None:
        """Derive everything of one node again from its holders: no drift, whatever the order of changes."""
        units = [parts for _, parts in self.types]
        index = self._devices_of[n]
        held = self._held.get(self.nodes[n].name, {})
        size = len(index)
        free, kinds, usable = [PARTS_PER_GPU] * size, [_EMPTY] * size, self.device_usable[:size, n].tolist()
        for device in held.keys() & index.keys():
            free[index[device]] -= held[device].total()
            kinds[index[device]] = next(iter(held[device])) if len(held[device]) == 1 else _ALIEN
        for device in sorted(held.keys() - index.keys()):
            for kind, parts in sorted(held[device].items()):
                unit = units[kind] if kind >= 0 else parts
                _seat(free, kinds, usable, kind=kind, unit=unit, count=parts // unit)
        granted = sum(parts.total() for parts in held.values())
        for (resource, unit), count in sorted(self._foreign.get(n, {}).items()):
            kind = self.types.get((resource, unit), _ALIEN)
            _seat(free, kinds, usable, kind=kind, unit=unit, count=count)
        self.free_parts[:size, n] = free
        self.kind[:size, n] = kinds
        self.partial[:, n] = 0
        empty = total = 0
        for is_usable, parts, kind in zip(usable, free, kinds, strict=True):
            if is_usable:
                total += parts
                empty += kind == _EMPTY
                if kind >= 0:
                    self.partial[kind, n] += parts // units[kind]
        self.empty[n], self.free_total[n], self.granted_total[n] = empty, total, granted
        self.rank[n] = (total << 40) + min(max(int(self.cpu[n]), 0), (1 << 40) - 1)


def _distinct(node: NodeFacts, problems: list[Problem]) -> NodeFacts:
    """The node with each device once; what is dropped is added to `problems`."""
    devices = {device.id: device for device in reversed(node.devices)}
    if len(devices) == len(node.devices):
        return node
    twice = ", ".join(
        sorted(name for name, count in Counter(d.id for d in node.devices).items() if count > 1)
    )
    problems.append(
        Problem(Code.INVALID_FIELD, "", f"node {node.name} shows device {twice} twice; counted once")
    )
    return replace(node, devices=tuple(reversed(devices.values())))


def _seat(free: list[int], kinds: list[int], usable: list[bool], *, kind: int, unit: int, count: int) -> None:
    """Take `unit` parts `count` times, in place: first beside units of the same kind, then on empty GPUs,
    then where there is room at all; usable GPUs first, for nothing is placed on the others anyway.
    """
    for _ in range(count):
        room = [g for g, parts in enumerate(free) if parts >= unit]
        if not room:
            return
        g = min(room, key=lambda g: (not usable[g], (kinds[g] != kind) + (kinds[g] not in (kind, _EMPTY)), g))
        free[g] -= unit
        kinds[g] = kind if kinds[g] in (kind, _EMPTY) else _ALIEN
