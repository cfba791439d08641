"""Who has to make room for a request that does not fit, and what is kept free for it meanwhile.

The policies are Kueue's (`preemption` of its ClusterQueue: `withinClusterQueue`, `reclaimWithinCohort`,
`borrowWithinCohort`), extended to placement: victims must free both the quota and the devices of one node. Within a
tenant, lower priority makes room. From its cohort a tenant takes back what it lends: victims are of tenants that hold
more than their own share, and the one that takes back stays within its own. Where its policy says so, it may borrow
what was borrowed with a lower priority, or what others have borrowed of more than its fair share (`core/levels`). A
guarantee, what a pod draws on one, and what is not preemptible or has not run for its least time is never taken.

A request that gets its place once others have ended is *nominated*: what it will use is kept free for it, so nobody
who comes later in the queue can undo what others were stopped for.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from vmtenancy.core.books import Books
from vmtenancy.core.explain.refusal import Refusal
from vmtenancy.core.fleet.model import Runtime
from vmtenancy.core.levels import Standing, is_fairer, levels, parting, standing
from vmtenancy.core.policies import Policies, Way
from vmtenancy.core.quota.resources import Resource
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.core.requests import Admit, Demand
from vmtenancy.core.search import first
from vmtenancy.core.victims import Candidate, Nomination, leave, rank, safe_times, youngest

#: Nodes on which room is tried to be made, those with the fewest candidates first.
_MOST_NODES = 16
_WITHIN = (Way.WITHIN_TENANT,)
_OUTSIDE = (Way.RECLAIM, Way.BORROW, Way.FAIR_SHARE)
_NO_WAY: frozenset[Way] = frozenset()


class Preemption:
    """One round: who ends, and who is nominated for what. It changes the `books` of the round by what it keeps free.

    `live` are the grants in the books; `ending` the keys of those that end soon whatever is decided here. Demands come
    as they are decided: one, or all of a group.
    """

    def __init__(
        self,
        books: Books,
        tree: QuotaTree,
        live: Iterable[Admit],
        ending: frozenset[str],
        policies: Policies,
    ) -> None:
        self._books, self._tree, self._policies = books, tree, policies
        self._after: Books | None = None
        grants = [admit for admit in live if admit.demand.runtime is not Runtime.HOLD]
        self._staying = {a.demand.key: a for a in grants if a.demand.key not in ending}
        self._ending = [admit for admit in grants if admit.demand.key in ending]
        #: What got its place in this round, and where the others stand; None: not known now.
        self._placed: list[Admit] = []
        self._levels: Mapping[str, Standing] | None = None

    def admitted(self, admits: Iterable[Admit]) -> None:
        """Demands were admitted in this round, and entered in its books."""
        for admit in admits:
            self._placed.append(admit)
            if self._after is not None:
                self._after.enter(admit)

    def later(self, demands: Sequence[Demand]) -> tuple[float, Nomination] | None:
        """When others will have run long enough that the demands, which get no place now, would get one, and how."""
        if not self._tree.policy(demands[0].tenant).may_preempt or not self._some_are_safe:
            return None
        needs = self._needs(demands, math.inf)
        candidates = (candidate for need in needs for candidate in self._candidates(demands, need, math.inf))
        safe = {until for candidate in candidates if (until := candidate.safe_until()) is not None}
        return first(sorted(filter(math.isfinite, safe)), lambda moment: self._found(demands, moment))

    @cached_property
    def _some_are_safe(self) -> bool:
        return any(map(safe_times, self._staying.values()))

    def find(self, demands: Sequence[Demand]) -> Nomination | None:
        """Places for demands that do not fit now, or None. Nothing is changed."""
        may_preempt = self._tree.policy(demands[0].tenant).may_preempt
        if self._after is None and not (may_preempt or self._ending):
            return None
        after = self._afterwards()
        answer = after.judge_all(demands)
        if not isinstance(answer, Refusal):
            return Nomination(answer, ())
        return self._found(demands) if may_preempt and answer.pools else None

    def keep(self, nomination: Nomination) -> None:
        """Have it so: what the demands will use is kept free from now on."""
        after = self._afterwards()
        for victim in nomination.victims:
            after.leave(self._staying.pop(victim.demand.key))
            self._levels = None  # those of others may be lower now
        for admit in nomination.admits:
            after.enter(admit)
            self._placed.append(admit)
            self._books.keep(admit)

    def _afterwards(self) -> Books:
        """The books as they will be: those that end are gone, those nominated have their places."""
        if self._after is None:
            self._after = self._books.copy()
            for ending in self._ending:
                self._after.leave(ending)
        return self._after

    def _found(self, demands: Sequence[Demand], by: float = -math.inf) -> Nomination | None:
        """The first way to make room that there is, by what is needed of those who go: of those who may be stopped `by`
        a moment.
        """
        ways = (
            self._cheapest(demands, list(self._candidates(demands, need, by)))
            for need in self._needs(demands, by)
        )
        return next((way for way in ways if way is not None), None)

    def _needs(self, demands: Sequence[Demand], by: float) -> Iterator[frozenset[str]]:
        """Of what victims have to hold some: the demands' pools, and the resources whose quota does not suffice.

        Where no other quota is short, first of these resources alone: devices may be free. If nobody else can give them
        back, nobody is stopped, for what others hold of them is their own. Volumes are never given back.
        """
        after = self._afterwards()
        pools, lacking = after.pools_of(demands), after.lacking(demands)
        resources = lacking - pools
        if Resource.STORAGE in resources:
            return
        if resources and resources == lacking:
            yield resources
            candidates = sorted(self._candidates(demands, resources, by), key=lambda each: each.order)
            with after.what_if():
                for candidate in candidates:
                    if self._still_owes(demands, candidate):
                        leave(after, candidate)
                if after.lacking(demands):
                    return
        yield pools | resources

    def _cheapest(self, demands: Sequence[Demand], candidates: Sequence[Candidate]) -> Nomination | None:
        """What others borrowed, where that is enough; of all choices the victims of lowest priority; among those the
        fewest, then the cheapest.
        """
        own = [candidate for candidate in candidates if not candidate.foreign]
        taken_back = [
            replace(candidate, only_within_own=Way.BORROW not in candidate.ways)
            for candidate in candidates
            if Way.RECLAIM in candidate.ways
        ]
        found = self._choices(demands, [*own, *taken_back])
        to_borrow = [candidate for candidate in taken_back if not candidate.only_within_own]
        if len(to_borrow) < len(taken_back):
            # Without these the request may borrow, so fewer may be enough.
            found += self._choices(demands, [*own, *to_borrow])
        found += self._choices(demands, self._fairly(demands, candidates))
        tenant = demands[0].tenant
        best = min((rank(nomination, tenant) for nomination in found), default=None)
        equal = [nomination for nomination in found if rank(nomination, tenant) == best]
        return min(equal, key=lambda nomination: (self._cost(nomination), youngest(nomination)), default=None)

    def _fairly(self, demands: Sequence[Demand], candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that may go for fair share, beside those that may go in any case; nobody without any of the first.

        Of the tenant's own only such of a lower priority go with them: see `docs/adr/0004-fair-share-preemption.md`.
        A guarantee takes nothing for fairness, for it would never have to give it back.
        """
        if any(demand.runtime is Runtime.HOLD for demand in demands):
            return []
        lowest = min(demand.priority for demand in demands)
        free = [
            candidate
            for candidate in candidates
            if Way.BORROW in candidate.ways or (not candidate.foreign and candidate.priority < lowest)
        ]
        fair = [
            replace(candidate, fairly=True)
            for candidate in candidates
            if Way.FAIR_SHARE in candidate.ways and Way.BORROW not in candidate.ways
        ]
        while fair:
            with self._afterwards().what_if():
                for candidate in (*free, *fair):
                    leave(self._afterwards(), candidate)
                gets = self._standing_with(demands)
            kept = [candidate for candidate in fair if self._is_fair(demands, gets, candidate)]
            if len(kept) == len(fair):
                return [*free, *fair]
            fair = kept  # with fewer who go the request's own shares are larger
        return []

    def _standing_with(self, demands: Sequence[Demand]) -> Standing:
        """Where the demands would stand as things are."""
        after = self._afterwards()
        with after.what_if():
            for demand in demands:
                after.enter_quota(Admit(demand, None))
            return standing(after, demands[0].tenant)

    def _is_fair(self, demands: Sequence[Demand], gets: Standing, candidate: Candidate) -> bool:
        if self._levels is None:
            self._levels = levels(self._afterwards(), self._placed, self._staying.values())
        return all(
            is_fairer(
                self._books,
                demands[0].tenant,
                gets,
                grant.demand.tenant,
                self._levels[grant.demand.key],
            )
            for grant in candidate.grants
        )

    def _overshoots(self, demands: Sequence[Demand], gone: Iterable[Candidate]) -> bool:
        """Whether one of those who lose by fair share, who are gone, has less then than the demands' side gets."""
        after, tenant, gets = self._afterwards(), demands[0].tenant, self._standing_with(demands)
        for other in {candidate.grants[0].demand.tenant for candidate in gone if candidate.fairly}:
            mine, theirs = parting(after, tenant, other)
            if after.share(other, {}, theirs) < gets.shares[mine]:
                return True
        return False

    def _cost(self, nomination: Nomination) -> float:
        """What the victims lose, as policy has it."""
        after = self._afterwards()
        lost = 0.0
        with after.what_if():
            for victim in nomination.victims:
                after.leave(victim)
            for admit in nomination.admits:
                after.enter(admit)
            for victim in nomination.victims:
                place = after.judge(victim.demand)
                if isinstance(place, Admit):
                    after.enter(place)
                lost += self._policies.cost.of(victim, moves=isinstance(place, Admit))
        return lost

    def _choices(self, demands: Sequence[Demand], candidates: Sequence[Candidate]) -> list[Nomination]:
        """Some ways to make room by these candidates, given in the order in which they go."""
        if not candidates or not self._fits_without(demands, candidates):
            return []
        # The youngest of a priority, or the largest (fewer are needed), or the smallest or cheapest (less is lost).
        candidates = sorted(candidates, key=lambda candidate: candidate.order)
        by_size = sorted(candidates, key=lambda c: (*c.order[:2], c.size, len(c.grants)))
        largest_first = sorted(by_size, key=lambda candidate: (*candidate.order[:2], -candidate.size))
        cheapest = sorted(
            candidates,
            key=lambda c: (*c.order[:2], sum(self._policies.cost.of(v, moves=False) for v in c.grants)),
        )
        orders = [candidates, largest_first, by_size, cheapest]
        found = [self._fewest(demands, order) for order in orders]
        by_node: dict[str, list[Candidate]] = defaultdict(list)
        for candidate in candidates:
            for node in {admit.placement.node for admit in candidate.grants if admit.placement}:
                by_node[node].append(candidate)
        for _, here in sorted(by_node.items(), key=lambda item: (len(item[1]), item[0]))[:_MOST_NODES]:
            on_node = {id(candidate) for candidate in here}
            elsewhere = [candidate for candidate in candidates if id(candidate) not in on_node]
            # The smallest first: of who has borrowed all may go as long as it still holds more than its share.
            smallest = sorted(here, key=lambda candidate: (not candidate.foreign, candidate.size))
            found.append(
                self._fewest(demands, [*here, *elsewhere]) or self._fewest(demands, [*smallest, *elsewhere])
            )
        return [nomination for nomination in found if nomination is not None]

    def _candidates(self, demands: Sequence[Demand], need: frozenset[str], by: float) -> Iterator[Candidate]:
        """Who may be stopped, and holds some of what is needed; of those that have not run for their least time, who
        will have `by` a moment.
        """
        tenant = demands[0].tenant
        together: dict[str, list[Admit]] = defaultdict(list)
        for admit in self._staying.values():
            together[admit.demand.together].append(admit)
        for grants in together.values():
            grants.sort(key=lambda grant: grant.demand.key)
            ways = frozenset.intersection(*(self._ways(demands, grant.demand, need) for grant in grants))
            candidate = Candidate(tuple(grants), grants[0].demand.tenant != tenant, ways, need)
            until = candidate.safe_until()
            if (
                ways
                and self._holds_some(candidate)
                and (until is None or until <= by)
                and any(map(self._gives_back, grants))
            ):
                yield candidate

    def _holds_some(self, candidate: Candidate) -> bool:
        """Whether it holds some of what is needed."""
        return any(grant.pool in candidate.need for grant in candidate.devices) or any(
            resource in candidate.need and admit.demand.takes(resource)
            for admit in candidate.grants
            for resource in self._tree.limited(admit.demand.tenant)
        )

    def _ways(self, demands: Sequence[Demand], other: Demand, need: Iterable[str]) -> frozenset[Way]:
        """How the demands may stop a workload."""
        tenant = demands[0].tenant
        policy, allows = self._tree.policy(tenant), self._policies.victims.allows
        if not other.preemptible:
            return _NO_WAY
        asked = _WITHIN if other.tenant == tenant else _OUTSIDE
        ways = frozenset(way for way in asked if allows(way, policy, demands, other))
        if Way.RECLAIM not in ways:
            ways -= {Way.BORROW}
        if not ways or (other.tenant != tenant and not self._borrows(tenant, other, need)):
            return _NO_WAY
        return ways

    def _borrows(self, lender: str, other: Demand, need: Iterable[str]) -> bool:
        return any(self._afterwards().has_borrowed_from(lender, other.tenant, column) for column in need)

    def _still_owes(self, demands: Sequence[Demand], candidate: Candidate) -> bool:
        """Whether its tenant has not given back all that it had borrowed."""
        other = candidate.grants[0].demand
        return not candidate.foreign or self._borrows(demands[0].tenant, other, candidate.need)

    def _gives_back(self, admit: Admit) -> bool:
        """Whether its end gives quota back: a pod that draws on a guarantee has nothing that others could use."""
        if admit.demand.parent is None:
            return True
        after = self._afterwards()
        with after.what_if():
            return bool(after.leave(admit))

    def _fits_without(self, demands: Sequence[Demand], candidates: Sequence[Candidate]) -> bool:
        after = self._afterwards()
        with after.what_if():
            for candidate in candidates:
                leave(after, candidate)
            return self._fits(demands, candidates) is not None

    def _fits(self, demands: Sequence[Demand], gone: Sequence[Candidate]) -> tuple[Admit, ...] | None:
        """The demands' places as things stand; after what was lent is taken back, only within their own quota, and
        after others have gone for fair share only where that is fair.
        """
        answer = self._afterwards().judge_all(demands)
        if isinstance(answer, Refusal):
            return None
        if any(candidate.only_within_own for candidate in gone) and any(admit.borrowed for admit in answer):
            return None
        fair = [candidate for candidate in gone if candidate.fairly]
        if fair:
            gets = self._standing_with(demands)
            if not all(self._is_fair(demands, gets, candidate) for candidate in fair):
                return None
        return answer

    def _fewest(self, demands: Sequence[Demand], candidates: Sequence[Candidate]) -> Nomination | None:
        """Take candidates in order until the demands fit, then give back, last first, all that they fit without."""
        after = self._afterwards()
        taken: list[Candidate] = []
        with after.what_if():
            for candidate in candidates:
                if not self._still_owes(demands, candidate):
                    continue
                leave(after, candidate)
                taken.append(candidate)
                answer = self._fits(demands, taken)
                if answer is not None:
                    break
            else:
                return None
            for candidate in reversed(taken[:-1]):
                for admit in candidate.grants:
                    after.enter(admit)
                kept = [other for other in taken if other is not candidate]
                better = self._fits(demands, kept)
                if better is None:
                    leave(after, candidate)
                else:
                    taken, answer = kept, better
            overshoots = self._overshoots(demands, taken)
        victims = tuple(admit for candidate in taken for admit in candidate.grants)
        return Nomination(answer, victims, overshoots)
