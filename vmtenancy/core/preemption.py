"""Who has to make room for a request that does not fit, and what is kept free for it meanwhile.

The policies are Kueue's (`preemption` of its ClusterQueue: `withinClusterQueue`, `reclaimWithinCohort`,
`borrowWithinCohort`), extended to placement: victims must free both the quota and the devices of one node. Within a
tenant, lower priority makes room. From its cohort a tenant takes back what it lends: victims are of tenants that hold
more than their own share, and the one that takes back stays within its own. Where its policy says so, it may borrow
what was borrowed with a lower priority. A guarantee, what a pod draws on one, and what is not preemptible is never
taken.

A request that gets its place once others have ended is *nominated*: what it will use is kept free for it, so nobody
who comes later in the queue can undo what others were stopped for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vmtenancy.core.books import Books
from vmtenancy.core.explain.refusal import Refusal
from vmtenancy.core.fleet.model import DeviceGrant, Runtime
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.core.requests import Admit, Demand

#: Nodes on which room is tried to be made, those with the fewest candidates first.
_MOST_NODES = 16


@dataclass(frozen=True, slots=True)
class Nomination:
    """Requests that get their places once `victims`, to be stopped now, and those ending already are gone."""

    admits: tuple[Admit, ...]
    victims: tuple[Admit, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Grants that may be taken together: one, or all of a group.

    `foreign`: of another tenant, which has borrowed. `only_within_own`: not for what would be borrowed again.
    """

    grants: tuple[Admit, ...]
    foreign: bool
    only_within_own: bool

    @property
    def parts(self) -> int:
        """What they hold, over all pools."""
        return sum(grant.parts for grant in self.devices)

    @property
    def devices(self) -> list[DeviceGrant]:
        """All that they hold."""
        return [grant for admit in self.grants if admit.placement for grant in admit.placement.grants]

    @property
    def order(self) -> tuple[bool, int, float, str]:
        """Who goes first: what was borrowed, lower priority, the youngest."""
        demands = [admit.demand for admit in self.grants]
        priority, created = max(d.priority for d in demands), max(d.created for d in demands)
        return (not self.foreign, priority, -created, demands[0].key)


class Preemption:
    """One round: who ends, and who is nominated for what. It changes the `books` of the round by what it keeps free.

    `live` are the grants in the books; `ending` the keys of those that end soon whatever is decided here. Demands come
    as they are decided: one, or all of a group.
    """

    def __init__(self, books: Books, tree: QuotaTree, live: Iterable[Admit], ending: frozenset[str]) -> None:
        self._books, self._tree = books, tree
        self._after: Books | None = None
        grants = [admit for admit in live if admit.demand.runtime is not Runtime.HOLD]
        self._staying = {a.demand.key: a for a in grants if a.demand.key not in ending}
        self._ending = [admit for admit in grants if admit.demand.key in ending]

    def admitted(self, admits: Iterable[Admit]) -> None:
        """Demands were admitted in this round, and entered in its books."""
        if self._after is not None:
            for admit in admits:
                self._after.enter(admit)

    def nominate(self, demands: Sequence[Demand]) -> Nomination | None:
        """Places for demands that do not fit now, or None. What they will use is kept free from now on."""
        may_preempt = self._tree.policy(demands[0].tenant).may_preempt
        if self._after is None and not (may_preempt or self._ending):
            return None
        after = self._afterwards()
        answer = after.judge_all(demands)
        if not isinstance(answer, Refusal):
            nomination = Nomination(answer, ())
        elif may_preempt and answer.pools and (found := self._cheapest(demands)):
            nomination = found
        else:
            return None
        for victim in nomination.victims:
            after.leave(self._staying.pop(victim.demand.key))
        for admit in nomination.admits:
            after.enter(admit)
            self._books.keep(admit)
        return nomination

    def _afterwards(self) -> Books:
        """The books as they will be: those that end are gone, those nominated have their places."""
        if self._after is None:
            self._after = self._books.copy()
            for ending in self._ending:
                self._after.leave(ending)
        return self._after

    def _cheapest(self, demands: Sequence[Demand]) -> Nomination | None:
        """What others borrowed, where that is enough; of all choices the victims of lowest priority; among those the
        fewest, then the smallest, then the youngest.
        """
        candidates = sorted(self._candidates(demands), key=lambda candidate: candidate.order)
        found = self._choices(demands, candidates)
        if any(candidate.only_within_own for candidate in candidates):
            # Without these the request may borrow, so fewer may be enough.
            found += self._choices(demands, [c for c in candidates if not c.only_within_own])
        return min(found, key=lambda nomination: _cost(nomination, demands[0].tenant), default=None)

    def _choices(self, demands: Sequence[Demand], candidates: Sequence[_Candidate]) -> list[Nomination]:
        """Some ways to make room by these candidates, given in the order in which they go."""
        if not candidates or not self._fits_without(demands, candidates):
            return []
        # The youngest of a priority, or the largest (fewer are needed), or the smallest (less is lost).
        by_size = sorted(candidates, key=lambda c: (*c.order[:2], c.parts, len(c.grants)))
        largest_first = sorted(by_size, key=lambda candidate: (*candidate.order[:2], -candidate.parts))
        found = [self._fewest(demands, order) for order in (candidates, largest_first, by_size)]
        by_node: dict[str, list[_Candidate]] = defaultdict(list)
        for candidate in candidates:
            for node in {admit.placement.node for admit in candidate.grants if admit.placement}:
                by_node[node].append(candidate)
        for _, here in sorted(by_node.items(), key=lambda item: (len(item[1]), item[0]))[:_MOST_NODES]:
            on_node = {id(candidate) for candidate in here}
            elsewhere = [candidate for candidate in candidates if id(candidate) not in on_node]
            # The smallest first: of who has borrowed all may go as long as it still holds more than its share.
            smallest = sorted(here, key=lambda candidate: (not candidate.foreign, candidate.parts))
            found.append(
                self._fewest(demands, [*here, *elsewhere]) or self._fewest(demands, [*smallest, *elsewhere])
            )
        return [nomination for nomination in found if nomination is not None]

    def _candidates(self, demands: Sequence[Demand]) -> Iterator[_Candidate]:
        tenant, priority = demands[0].tenant, min(demand.priority for demand in demands)
        pools = self._afterwards().pools_of(demands)
        borrowing = self._tree.policy(tenant).borrow_within_cohort
        together: dict[str, list[Admit]] = defaultdict(list)
        for admit in self._staying.values():
            together[admit.demand.group or f"/{admit.demand.key}"].append(admit)
        for grants in together.values():
            grants.sort(key=lambda grant: grant.demand.key)
            foreign = grants[0].demand.tenant != tenant
            may_borrow = borrowing is not None and all(
                borrowing.allows(priority, grant.demand.priority) for grant in grants
            )
            candidate = _Candidate(tuple(grants), foreign, foreign and not may_borrow)
            if (
                any(grant.pool in pools for grant in candidate.devices)
                and all(self._may_take(tenant, priority, grant.demand, pools) for grant in grants)
                and any(map(self._gives_back, grants))
            ):
                yield candidate

    def _may_take(self, tenant: str, priority: int, other: Demand, pools: Iterable[str]) -> bool:
        policy = self._tree.policy(tenant)
        if not other.preemptible:
            return False
        if other.tenant == tenant:
            return policy.within_tenant.allows(priority, other.priority)
        return policy.reclaim_within_cohort.allows(priority, other.priority) and self._borrows(
            tenant, other, pools
        )

    def _borrows(self, lender: str, other: Demand, pools: Iterable[str]) -> bool:
        return any(self._afterwards().has_borrowed_from(lender, other.tenant, pool) for pool in pools)

    def _gives_back(self, admit: Admit) -> bool:
        """Whether its end gives quota back: a pod that draws on a guarantee has nothing that others could use."""
        if admit.demand.parent is None:
            return True
        after = self._afterwards()
        with after.what_if():
            return bool(after.leave(admit))

    def _fits_without(self, demands: Sequence[Demand], candidates: Iterable[_Candidate]) -> bool:
        after = self._afterwards()
        with after.what_if():
            for candidate in candidates:
                _leave(after, candidate)
            return self._fits(demands, candidates) is not None

    def _fits(self, demands: Sequence[Demand], gone: Iterable[_Candidate]) -> tuple[Admit, ...] | None:
        """The demands' places as things stand; after what was lent is taken back, only within their own quota."""
        answer = self._afterwards().judge_all(demands)
        if isinstance(answer, Refusal):
            return None
        if any(candidate.only_within_own for candidate in gone) and any(admit.borrowed for admit in answer):
            return None
        return answer

    def _fewest(self, demands: Sequence[Demand], candidates: Sequence[_Candidate]) -> Nomination | None:
        """Take candidates in order until the demands fit, then give back, last first, all that they fit without."""
        after = self._afterwards()
        pools = after.pools_of(demands)
        taken: list[_Candidate] = []
        with after.what_if():
            for candidate in candidates:
                if candidate.foreign and not self._borrows(
                    demands[0].tenant, candidate.grants[0].demand, pools
                ):
                    continue  # it has given back all that it had borrowed
                _leave(after, candidate)
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
                    _leave(after, candidate)
                else:
                    taken, answer = kept, better
        return Nomination(answer, tuple(admit for candidate in taken for admit in candidate.grants))


def _leave(books: Books, candidate: _Candidate) -> None:
    for admit in candidate.grants:
        books.leave(admit)


def _cost(nomination: Nomination, tenant: str) -> tuple[bool, int, int, int, float, list[str]]:
    demands = [victim.demand for victim in nomination.victims]
    parts = sum(grant.parts for v in nomination.victims if v.placement for grant in v.placement.grants)
    return (
        any(demand.tenant == tenant for demand in demands),
        max(demand.priority for demand in demands),
        len(demands),
        parts,
        -min(demand.created for demand in demands),
        sorted(demand.key for demand in demands),
    )
