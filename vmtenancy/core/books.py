"""Fleet and quota together, with every live grant entered: what one decision needs."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from vmtenancy.core.explain import refusal
from vmtenancy.core.explain.refusal import Refusal
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import Placement, Runtime
from vmtenancy.core.holds import Hold, net_of
from vmtenancy.core.placement.best_fit import NoPlacement, Request, best_fit, deliverable
from vmtenancy.core.quota.policy import Fungibility
from vmtenancy.core.quota.resources import Resource
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.core.requests import Admit, Demand

_NOTHING: dict[str, int] = {}


class Books:
    """Fleet and quota with every live grant entered: what one decision needs, and what each admission
    changes.
    """

    def __init__(self, fleet: Fleet, tree: QuotaTree, live: Iterable[Admit]) -> None:
        self._fleet = fleet
        self._tree = tree
        self._holds: dict[str, Hold] = {}
        #: Parts by pool that no pod may take because virtual clusters have not drawn them yet.
        self._kept: Counter[str] = Counter()
        #: What is wrong with classes whatever is free: the same for all that ask for them.
        self._of_classes: dict[tuple[Runtime, bool, tuple[str, ...]], Refusal | None] = {}
        #: Holds as they were before what is undone later, by key; None where there was none. None: nothing will be.
        self._before: dict[str, Hold | None] | None = None
        # Holds first: their pods draw on them.
        with tree.all_at_once():
            for admit in sorted(live, key=lambda admit: admit.demand.runtime is not Runtime.HOLD):
                self.enter(admit)

    def copy(self) -> Books:
        """Other books, on copies of fleet and quota, that go their own way."""
        twin = copy.copy(self)
        twin._fleet, twin._tree = self._fleet.copy(), self._tree.copy()
        twin._holds = {key: hold.copy() for key, hold in self._holds.items()}
        twin._kept, twin._before = Counter(self._kept), None
        return twin

    @contextmanager
    def what_if(self) -> Iterator[None]:
        """Whatever enters or leaves inside is undone at the end, at a cost of the changes alone. Nests."""
        outer, kept = self._before, Counter(self._kept)
        self._before = before = dict[str, Hold | None]()
        try:
            with self._fleet.what_if(), self._tree.what_if():
                yield
        finally:
            for key, hold in before.items():
                if hold is None:
                    self._holds.pop(key, None)
                else:
                    self._holds[key] = hold
            self._before, self._kept = outer, kept

    def enter(self, admit: Admit, seat: Placement | None = None) -> None:
        """Hold and charge a grant; of its devices only those in `seat`, where that is given.

        Raises VmtError (LEDGER) where they are taken.
        """
        demand = admit.demand
        if admit.placement is not None:
            self._fleet.hold(seat or admit.placement)
        gross = self._gross(admit)
        hold = self._hold_of(demand)
        net, units = net_of(hold, gross, demand.requests)
        if demand.runtime is Runtime.HOLD:
            if demand.requests or demand.maximum:  # else it is of volumes, and nothing draws on it
                self._remember(demand.key)
                self._holds[demand.key] = Hold(demand, gross)
            if not demand.quota_alone:
                for pool, parts in gross.items():
                    self._kept[pool] += parts
        elif hold is not None:
            self._kept.subtract({pool: min(parts, hold.undrawn(pool)) for pool, parts in gross.items()})
            self._remember(hold.key)
            hold.drawn.update(gross)
            hold.used.update(dict(demand.requests))
        holder = hold.key if hold is not None else demand.key
        net |= self._resources(demand)
        for column, amount in net.items():
            self._tree.charge(demand.tenant, column, amount, holder, units, firm=_is_firm(demand, column))
            units = {}

    def leave(self, admit: Admit, seat: Placement | None = None) -> dict[str, int]:
        """Take back what `enter` did with the same arguments; a HOLD after all that draws on it.

        Returns the parts by pool that its tenant gets back.
        Raises VmtError (LEDGER) where it was not entered.
        """
        demand = admit.demand
        if admit.placement is not None:
            self._fleet.release(seat or admit.placement)
        gross = self._gross(admit)
        hold = self._hold_of(demand)
        if demand.runtime is Runtime.HOLD:
            self._remember(demand.key)
            self._holds.pop(demand.key, None)
            if not demand.quota_alone:
                self._kept.subtract(gross)
        elif hold is not None:
            self._remember(hold.key)
            hold.drawn.subtract(gross)
            hold.used.subtract(dict(demand.requests))
            self._kept.update({pool: min(parts, hold.undrawn(pool)) for pool, parts in gross.items()})
        net, units = net_of(hold, gross, demand.requests)
        holder = hold.key if hold is not None else demand.key
        for column, amount in (net | self._resources(demand)).items():
            self._tree.uncharge(demand.tenant, column, amount, holder, units, firm=_is_firm(demand, column))
            units = {}
        return _nonzero(net)

    def keep(self, admit: Admit) -> None:
        """Keep free what a grant to come will use: its quota, and as much of its devices as is free already."""
        if admit.placement is not None:
            self.enter(admit, self._free_part(admit.placement))
            return
        gross = self._gross(admit)
        if not admit.demand.quota_alone:
            self._kept.update(gross)
        for pool, parts in gross.items():
            self._tree.charge(admit.demand.tenant, pool, parts, admit.demand.key, firm=True)

    def of_quota(self) -> Books:
        """Other books, on a copy of the quota, that go their own way as long as no devices are held or released."""
        twin = copy.copy(self)
        twin._tree, twin._kept, twin._before = self._tree.copy(), Counter(self._kept), None
        twin._holds = {key: hold.copy() for key, hold in self._holds.items()}
        return twin

    def enter_quota(self, admit: Admit) -> None:
        """As `enter`, without its devices."""
        self.enter(admit, _no_devices(admit))

    def leave_quota(self, admit: Admit) -> None:
        """As `leave`, without its devices."""
        self.leave(admit, _no_devices(admit))

    def has_borrowed_from(self, lender: str, tenant: str, pool: str) -> bool:
        """As `QuotaTree.has_borrowed_from`, with what is in these books."""
        return self._tree.has_borrowed_from(lender, tenant, pool)

    def path(self, tenant: str) -> tuple[str, ...]:
        """As `QuotaTree.path`."""
        return self._tree.path(tenant)

    def fungibility(self, tenant: str) -> Fungibility:
        """As `QuotaTree.fungibility`."""
        return self._tree.fungibility(tenant)

    def share(self, tenant: str, more: Mapping[str, int], level: int) -> float:
        """As `QuotaTree.share`."""
        return self._tree.share(tenant, more, level)

    def extent(self, tenant: str, level: int) -> float:
        """As `QuotaTree.extent`."""
        return self._tree.extent(tenant, level)

    def charge_of(self, demands: Sequence[Demand]) -> Mapping[str, int]:
        """What the demands, admitted together, would add to their tenant's charge, by pool and resource."""
        gross: dict[str | None, Counter[str]] = defaultdict(Counter)
        for demand in demands:
            gross[demand.parent].update(_by_pool(demand, self._fleet))
        more: Counter[str] = Counter()
        for parent, parts in gross.items():
            hold = self._holds.get(parent) if parent is not None else None
            more.update(net_of(hold, parts, ())[0])
        for demand in demands:
            if resources := self._resources(demand):
                more.update(resources)
        return more

    def lacking(self, demands: Sequence[Demand]) -> frozenset[str]:
        """Of what the demands, admitted together, would be charged: where quota does not suffice."""
        tenant, more = demands[0].tenant, self.charge_of(demands)
        return frozenset(
            column for column, amount in more.items() if not self._tree.fits(tenant, column, amount)
        )

    def _free_part(self, placement: Placement) -> Placement:
        """What of a placement could be held now: those of its devices that are free, its cpu and memory."""
        n = self._fleet.index[placement.node]
        states = {self._fleet.nodes[n].devices[g].id: (free, kind) for g, free, kind in self._fleet.gpus(n)}
        grants = []
        for grant in placement.grants:
            unit = grant.parts // grant.count
            kind = self._fleet.types[(grant.resource, unit)]
            devices = []
            for device in grant.devices:
                free, used_by = states.get(device, (0, -1))
                if free >= unit and used_by in (kind, -1):
                    states[device] = (free - unit, kind)
                    devices.append(device)
            if devices:
                count = len(devices)
                grants.append(replace(grant, count=count, devices=tuple(devices), parts=count * unit))
        return replace(placement, grants=tuple(grants))

    def judge(self, demand: Demand) -> Admit | Refusal:
        """Whether the demand could be admitted as things stand. Nothing is changed."""
        fleet, tree, tenant = self._fleet, self._tree, demand.tenant
        classes = demand.runtime, demand.quota_alone, tuple(name for name, _ in demand.requests)
        if classes not in self._of_classes:
            self._of_classes[classes] = class_refusal(fleet, *classes)
        if why := self._of_classes[classes] or self.quota_refusal(demand):
            return why
        gross = _by_pool(demand, fleet)
        pools = tuple(gross)
        hold = self._hold_of(demand)
        net, _ = net_of(hold, gross, demand.requests)
        placement: Placement | None = None
        if demand.runtime is not Runtime.HOLD:
            wanted = tuple((fleet.offerings[name], count) for name, count in demand.requests)
            where = demand.allowed_nodes, demand.avoided_nodes
            request = Request(demand.runtime, wanted, demand.cpu, demand.memory, *where)
            answer = best_fit(fleet, request)
            if isinstance(answer, NoPlacement):
                return refusal.no_node(tree, pools[0], gross[pools[0]], answer)
            placement = answer
        if demand.runtime is not Runtime.VM and not demand.quota_alone:
            for pool, parts in gross.items():
                elastic = parts - (min(parts, hold.undrawn(pool)) if hold is not None else 0)
                if elastic > max(0, fleet.supply(pool, Runtime.POD)[0] - self._kept[pool]):
                    return refusal.no_supply(fleet, tree, pool, elastic, self._kept[pool])
        charged = net | self._resources(demand)
        borrowed = _nonzero(
            {column: self._borrowed(tenant, column, amount) for column, amount in charged.items()}
        )
        reach = max((tree.reach(tenant, column, charged[column]) for column in borrowed), default=0)
        return Admit(demand, placement, _nonzero(charged), borrowed, reach)

    def quota_refusal(self, demand: Demand) -> Refusal | None:
        """Why quota alone does not let the demand be admitted; None where it does. Its classes are known."""
        tree, tenant = self._tree, demand.tenant
        gross = _by_pool(demand, self._fleet)
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
        net, units = net_of(hold, gross, demand.requests)
        for name, count in units.items():
            room = tree.class_room(tenant, name)
            if room is not None and count > max(0, room):
                return refusal.class_limit(tenant, name, asked=count, room=room, pools=pools)
        net |= self._resources(demand)
        for column, amount in net.items():
            if not demand.preemptible and amount > max(0, tree.own_room(tenant, column)):
                return refusal.own_quota_exceeded(tree, tenant, column, amount)
            if not tree.fits(tenant, column, amount):
                return refusal.quota_exceeded(tree, tenant, column, amount)
        return None

    def judge_all(self, demands: Sequence[Demand]) -> tuple[Admit, ...] | Refusal:
        """Whether all of the demands could be admitted together, one after the other; else why the first can not."""
        admits: list[Admit] = []
        with self.what_if() if len(demands) > 1 else nullcontext():
            for demand in demands:
                answer = self.judge(demand)
                if isinstance(answer, Refusal):
                    if len(demands) > 1:
                        _ = answer.told  # with the others of the group in the books
                    return answer
                admits.append(answer)
                if len(demands) > 1:
                    self.enter(answer)
        return tuple(admits)

    def pools_of(self, demands: Iterable[Demand]) -> frozenset[str]:
        """The pools that the demands would be charged in."""
        return frozenset(pool for demand in demands for pool in _by_pool(demand, self._fleet))

    def _resources(self, demand: Demand) -> dict[str, int]:
        """What a demand takes of the resources that its tenant is limited in; guarantees are of GPUs alone."""
        limited = self._tree.limited(demand.tenant)
        if not limited:
            return _NOTHING
        return {resource: taken for resource in limited if (taken := demand.takes(resource))}

    def _gross(self, admit: Admit) -> dict[str, int]:
        """Parts by pool that a grant takes, guaranteed ones included."""
        if admit.placement is None:
            return dict(admit.charged) or _by_pool(admit.demand, self._fleet)
        gross: dict[str, int] = {}
        for grant in admit.placement.grants:
            gross[grant.pool] = gross.get(grant.pool, 0) + grant.parts
        return gross

    def _remember(self, key: str) -> None:
        """Before a hold changes: as it is, if that will be undone."""
        if self._before is not None and key not in self._before:
            hold = self._holds.get(key)
            self._before[key] = None if hold is None else hold.copy()

    def _hold_of(self, demand: Demand) -> Hold | None:
        hold = self._holds.get(demand.parent) if demand.parent is not None else None
        return hold if hold is not None and hold.tenant == demand.tenant else None

    def _borrowed(self, tenant: str, column: str, amount: int) -> int:
        over = self._tree.usage(tenant, column) - self._tree.nominal(tenant, column)
        return max(0, over + amount) - max(0, over)


def class_refusal(fleet: Fleet, runtime: Runtime, quota_alone: bool, names: Sequence[str]) -> Refusal | None:
    """What is wrong with classes that are asked for together, whatever is free; None where nothing is."""
    for i, name in enumerate(names):
        if name not in fleet.offerings:
            return refusal.unknown_class(i, name, fleet.offerings)
        if fleet.offerings[name].pool not in fleet.pools:
            return refusal.unknown_pool(i, fleet.offerings[name])
    offerings = [fleet.offerings[name] for name in names]
    # A virtual cluster may hold of several pools: each of its pods comes from one.
    together = [[offering] for offering in offerings] if runtime is Runtime.HOLD else [offerings]
    if not quota_alone and not all(deliverable(runtime, group) for group in together):
        return refusal.not_deliverable(runtime, offerings)
    return None


def _is_firm(demand: Demand, column: str) -> bool:
    """Whether what it is charged is never given back for others: so are guarantees and volumes."""
    return demand.runtime is Runtime.HOLD or not demand.preemptible or column is Resource.STORAGE


def _no_devices(admit: Admit) -> Placement | None:
    return Placement(admit.placement.node, ()) if admit.placement is not None else None


def _by_pool(demand: Demand, fleet: Fleet) -> dict[str, int]:
    """Parts by pool that a demand asks for, in classes as they are now."""
    parts: dict[str, int] = {}
    for name, count in demand.requests:
        if offering := fleet.offerings.get(name):
            parts[offering.pool] = parts.get(offering.pool, 0) + count * offering.parts
    return parts


def _nonzero(parts: Mapping[str, int]) -> dict[str, int]:
    return {pool: count for pool, count in parts.items() if count}
