"""Which waiting requests are admitted now, and why the others wait: quota and placement decided together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vmtenancy.core.explain import refusal
from vmtenancy.core.explain.refusal import Reason, Refusal
from vmtenancy.core.explain.shortage import Shortage
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import Placement, Runtime
from vmtenancy.core.placement.best_fit import NoPlacement, Request, best_fit, deliverable
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.errors import Code, Problem, VmtError


@dataclass(frozen=True, slots=True)
class Demand:
    """One request for devices, admitted as a whole or not at all.

    `key` is unique among live grants and waiting demands, and shown to people (`GpuVM vision/trainer`).
    `requests` are units by class. `created` only orders (older first). cpu in millicores, memory in bytes. A
    HOLD asks for the guaranteed units of a virtual cluster (0 is allowed) and gives its `maximum` by class;
    its pods name it as `parent`. `allowed_nodes` restricts placement (a pod's own node selector); None: any
    node.

    Raises VmtError for a class that is named twice or a count that is too small.
    """

    key: str
    tenant: str
    runtime: Runtime
    requests: tuple[tuple[str, int], ...]
    priority: int = 0
    created: float = 0.0
    cpu: int = 0
    memory: int = 0
    parent: str | None = None
    maximum: tuple[tuple[str, int], ...] = ()
    allowed_nodes: frozenset[str] | None = None

    def __post_init__(self) -> None:
        least = 0 if self.runtime is Runtime.HOLD else 1
        problems = [
            Problem(
                Code.INVALID_FIELD, f"spec.gpus[{i}].count", "is too small", str(count), f"at least {least}"
            )
            for i, (_, count) in enumerate(self.requests)
            if count < least
        ]
        if len({name for name, _ in self.requests}) < len(self.requests) or len(self.requests) < least:
            found = ", ".join(name for name, _ in self.requests) or "none"
            problems.append(Problem(Code.INVALID_FIELD, "spec.gpus", "must name classes, each once", found))
        if problems:
            raise VmtError.of(problems)


@dataclass(frozen=True, slots=True)
class Admit:
    """The demand may go ahead. `placement` is None for a HOLD.

    `charged` is what this adds to the tenant's usage, in parts by pool: nothing for what a pod draws from its
    virtual cluster's hold. `borrowed` is the part of it above the tenant's nominal quota.
    """

    demand: Demand
    placement: Placement | None
    charged: Mapping[str, int] = field(default_factory=dict)
    borrowed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wait:
    """The demand waits. `position` counts from 1 among the demands that wait for its pools; 0: in no
    queue.
    """

    demand: Demand
    reason: Reason
    message: str
    problem: Problem
    position: int
    shortage: Shortage | None = None


Decision = Admit | Wait


def decide(
    fleet: Fleet, tree: QuotaTree, holds: Iterable[Admit], demands: Iterable[Demand]
) -> list[Decision]:
    """Decide every demand; the result is in queue order: priority (higher first), age, key.

    `holds` are the grants that live already, in the form in which this function returned them (of their
    demands only key, tenant, runtime, requests, parent and maximum are read; of a HOLD also what it was
    `charged`). `fleet` carries supply and foreign pods, `tree` the rules; both come back unchanged.

    Best effort, not strict FIFO: who waits blocks nobody behind, so small requests may pass a large one for
    as long as it does not fit. Nothing is charged that can not be placed. A pod is looked at after the hold
    of its virtual cluster. Reasons are those at the end of the round, when all that fits has been admitted.

    Raises VmtError for a key that is demanded twice, and (LEDGER) for holds that contradict each other (I1).
    """
    queue = _in_order(demands)
    with fleet.what_if(), tree.what_if():
        books = Books(fleet, tree, holds)
        decided: dict[str, Decision] = {}
        for demand in queue:
            verdict = books.judge(demand)
            if isinstance(verdict, Admit):
                books.enter(verdict)
                decided[demand.key] = verdict
        ahead: Counter[str] = Counter()
        for demand in queue:
            if demand.key not in decided:
                why = books.judge(demand)
                assert isinstance(why, Refusal)  # noqa: S101 (admissions only take room away)
                ahead.update(why.pools)
                position = max((ahead[pool] for pool in why.pools), default=0)
                decided[demand.key] = Wait(
                    demand, why.reason, _sentence(why.problem), why.problem, position, why.shortage
                )
    return [decided[demand.key] for demand in queue]


def _sentence(problem: Problem) -> str:
    """A problem for the owner's condition: what is wrong, and what would be right where that can be said."""
    return f"{problem.message}; expected {problem.expected}" if problem.expected else problem.message


def _in_order(demands: Iterable[Demand]) -> list[Demand]:
    by_key: dict[str, Demand] = {}
    for demand in demands:
        if demand.key in by_key:
            raise VmtError(Problem(Code.INVALID_FIELD, "demands", "keys must be unique", demand.key))
        by_key[demand.key] = demand

    def rank(demand: Demand) -> tuple[int, float, str]:
        return (-demand.priority, demand.created, demand.key)

    def order(demand: Demand) -> tuple[tuple[int, float, str], bool, tuple[int, float, str]]:
        parent = by_key.get(demand.parent) if demand.parent is not None else None
        if parent is None or rank(parent) < rank(demand):
            return (rank(demand), False, rank(demand))
        return (rank(parent), True, rank(demand))

    return sorted(by_key.values(), key=order)


class _Hold:
    """A virtual cluster's guarantee, and what its pods use: per pool it is charged the larger of the two."""

    def __init__(self, demand: Demand, parts: Mapping[str, int]) -> None:
        self.key = demand.key
        self.tenant = demand.tenant
        self.guaranteed = Counter(dict(demand.requests))
        self.maximum = dict(demand.maximum)
        self.used: Counter[str] = Counter()
        self.parts = Counter(parts)
        self.drawn: Counter[str] = Counter()

    def undrawn(self, pool: str) -> int:
        """Parts that are guaranteed and in no pod's use."""
        return max(0, self.parts[pool] - self.drawn[pool])


class Books:
    """Fleet and quota with every live grant entered: what one decision needs, and what each admission
    changes.
    """

    def __init__(self, fleet: Fleet, tree: QuotaTree, live: Iterable[Admit]) -> None:
        self._fleet = fleet
        self._tree = tree
        self._holds: dict[str, _Hold] = {}
        #: Parts by pool that no pod may take because virtual clusters have not drawn them yet.
        self._kept: Counter[str] = Counter()
        # Holds first: their pods draw on them.
        for admit in sorted(live, key=lambda admit: admit.demand.runtime is not Runtime.HOLD):
            self.enter(admit)

    def enter(self, admit: Admit) -> None:
        """Hold and charge a grant. Raises VmtError (LEDGER) where its devices are taken."""
        demand = admit.demand
        gross: Counter[str] = Counter()
        if admit.placement is not None:
            self._fleet.hold(admit.placement)
            for grant in admit.placement.grants:
                gross[grant.pool] += grant.parts
        elif admit.charged:
            gross.update(admit.charged)
        else:
            gross.update(_by_pool(demand, self._fleet))
        hold = self._hold_of(demand)
        net, units = _net(hold, gross, demand.requests)
        if demand.runtime is Runtime.HOLD:
            self._holds[demand.key] = _Hold(demand, gross)
            self._kept.update(gross)
        elif hold is not None:
            self._kept.subtract({pool: min(parts, hold.undrawn(pool)) for pool, parts in gross.items()})
            hold.drawn.update(gross)
            hold.used.update(dict(demand.requests))
        holder = hold.key if hold is not None else demand.key
        for pool in net:
            self._tree.charge(demand.tenant, pool, net[pool], holder, units)
            units = {}

    def judge(self, demand: Demand) -> Admit | Refusal:
        """Whether the demand could be admitted as things stand. Nothing is changed."""
        fleet, tree, tenant = self._fleet, self._tree, demand.tenant
        for i, (name, _) in enumerate(demand.requests):
            if name not in fleet.offerings:
                return refusal.unknown_class(i, name, fleet.offerings)
            if fleet.offerings[name].pool not in fleet.pools:
                return refusal.unknown_pool(i, fleet.offerings[name])
        wanted = tuple((fleet.offerings[name], count) for name, count in demand.requests)
        offerings = [offering for offering, _ in wanted]
        # A virtual cluster may hold of several pools: each of its pods comes from one.
        together = [[offering] for offering in offerings] if demand.runtime is Runtime.HOLD else [offerings]
        if not all(deliverable(demand.runtime, group) for group in together):
            return refusal.not_deliverable(demand.runtime, offerings)
        gross = _by_pool(demand, fleet)
        pools = tuple(gross)
        for pool in pools:
            if not tree.is_open(tenant, pool):
                return refusal.no_quota(tree, tenant, pool)
        hold = self._hold_of(demand)
        if demand.parent is not None:
            if hold is None:
                return refusal.hold_pending(demand.parent, pools)
            for name, count in demand.requests:
                used, maximum = hold.used[name], hold.maximum.get(name, 0)
                if used + count > maximum:
                    return refusal.max_reached(
                        hold.key, name, asked=count, used=used, maximum=maximum, pools=pools
                    )
        net, units = _net(hold, gross, demand.requests)
        for name, count in units.items():
            room = tree.class_room(tenant, name)
            if room is not None and count > max(0, room):
                return refusal.class_limit(tenant, name, asked=count, room=room, pools=pools)
        for pool, parts in net.items():
            if not tree.fits(tenant, pool, parts):
                return refusal.quota_exceeded(tree, tenant, pool, parts)
        placement: Placement | None = None
        if demand.runtime is not Runtime.HOLD:
            request = Request(demand.runtime, wanted, demand.cpu, demand.memory, demand.allowed_nodes)
            answer = best_fit(fleet, request)
            if isinstance(answer, NoPlacement):
                return refusal.no_node(tree, pools[0], gross[pools[0]], answer)
            placement = answer
        if demand.runtime is not Runtime.VM:
            for pool, parts in gross.items():
                elastic = parts - (min(parts, hold.undrawn(pool)) if hold is not None else 0)
                if elastic > max(0, fleet.supply(pool, Runtime.POD)[0] - self._kept[pool]):
                    return refusal.no_supply(fleet, tree, pool, elastic, self._kept[pool])
        borrowed = {pool: self._borrowed(tenant, pool, parts) for pool, parts in net.items()}
        return Admit(demand, placement, _nonzero(net), _nonzero(borrowed))

    def _hold_of(self, demand: Demand) -> _Hold | None:
        hold = self._holds.get(demand.parent) if demand.parent is not None else None
        return hold if hold is not None and hold.tenant == demand.tenant else None

    def _borrowed(self, tenant: str, pool: str, parts: int) -> int:
        over = self._tree.usage(tenant, pool) - self._tree.nominal(tenant, pool)
        return max(0, over + parts) - max(0, over)


def _by_pool(demand: Demand, fleet: Fleet) -> dict[str, int]:
    """Parts by pool that a demand asks for, in classes as they are now."""
    parts: Counter[str] = Counter()
    for name, count in demand.requests:
        if offering := fleet.offerings.get(name):
            parts[offering.pool] += count * offering.parts
    return dict(parts)


def _net(
    hold: _Hold | None, gross: Mapping[str, int], requests: Iterable[tuple[str, int]]
) -> tuple[dict[str, int], dict[str, int]]:
    """What a request adds to its tenant's charge, in parts by pool, and to its units by class (nothing
    twice).
    """
    if hold is None:
        return dict(gross), dict(requests)

    def more(guaranteed: int, used: int, count: int) -> int:
        return max(guaranteed, used + count) - max(guaranteed, used)

    parts = {pool: more(hold.parts[pool], hold.drawn[pool], count) for pool, count in gross.items()}
    return parts, {name: more(hold.guaranteed[name], hold.used[name], count) for name, count in requests}


def _nonzero(parts: Mapping[str, int]) -> dict[str, int]:
    return {pool: count for pool, count in parts.items() if count}
