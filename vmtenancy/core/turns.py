"""Whose turn it is: promised ones, then priority, then fair share, then age.

Among those of one priority the tenants compete as in Kueue's fair sharing (KEP-1714, `fair_sharing_iterator.go`): in
each cohort the child goes first whose dominant share would be the least with what it asks for next, so that two tenants
are compared right below the lowest cohort that both belong to. Who is equal goes by age. A turn changes shares on the
path from one tenant to its root only, so it costs O(depth² + depth · log children).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from vmtenancy.core.books import Books
from vmtenancy.core.choice import likely
from vmtenancy.core.policies import Ordering
from vmtenancy.core.requests import Demand
from vmtenancy.errors import Code, Problem, VmtError

Bundle = tuple[Demand, ...]
"""What is decided together: one demand, or all of a group, the largest first, for they fit worst."""

_Rank = tuple[bool, int, float, str]
_EVERYWHERE = ""


def turns(
    demands: Iterable[Demand], promised: frozenset[str], books: Books, ordering: Ordering
) -> Iterator[Bundle]:
    """All demands in turn. What was decided for one must be in the `books` before the next is asked for.

    A group has the place of its last member, a pod comes after the hold of its virtual cluster. Among the
    `promised` there is no fair share: what was freed for one must not go to another.

    Raises VmtError for a key that is demanded twice.
    """
    for (not_promised, _), level in itertools.groupby(
        _by_age(demands, promised, ordering), lambda turn: turn[0]
    ):
        bundles = [bundle for _, bundle in level]
        yield from _Fairly(bundles, books) if not_promised and ordering.fair_share else bundles


class _Entry(NamedTuple):
    """A node competes below the node above it, with what one of the tenants below it asks for next."""

    share: float
    age: int
    stamp: int
    node: str
    tenant: str


class _Fairly:
    """Bundles of one priority, given by age, by fair share."""

    def __init__(self, bundles: Sequence[Bundle], books: Books) -> None:
        self._books = books
        self._waiting: dict[str, deque[tuple[int, Bundle]]] = defaultdict(deque)
        for age, bundle in enumerate(bundles):
            self._waiting[bundle[0].tenant].append((age, bundle))
        self._paths = {tenant: (*books.path(tenant), _EVERYWHERE) for tenant in self._waiting}
        #: What each tenant's next bundle would add to its charge.
        self._asks: dict[str, Mapping[str, int]] = {}
        self._heaps: dict[str, list[_Entry]] = defaultdict(list)
        #: How often each node entered; what it entered before counts no more.
        self._stamps: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Bundle]:
        first: str | None = None
        for tenant in self._waiting:
            first = self._compete(tenant)
        while first is not None:
            yield self._waiting[first].popleft()[1]
            first = self._compete(first)

    def _compete(self, tenant: str) -> str | None:
        """Who is first of all, after a change in what the tenant holds or asks for."""
        path = self._paths[tenant]
        best = None
        if waiting := self._waiting[tenant]:
            best, self._asks[tenant] = tenant, self._books.charge_of(likely(waiting[0][1], self._books))
        for i, (node, above) in enumerate(itertools.pairwise(path), start=1):
            left = len(path) - i
            self._stamps[node] += 1
            heap = self._heaps[above]
            if best is not None:
                # The path of whoever is best has the same nodes from here up; it may have more or fewer below.
                level = len(self._paths[best]) - 1 - left
                share = self._books.share(best, self._asks[best], level)
                heappush(heap, _Entry(share, self._waiting[best][0][0], self._stamps[node], node, best))
            while heap and heap[0].stamp != self._stamps[heap[0].node]:
                heappop(heap)
            best = heap[0].tenant if heap else None
        return best


def _by_age(
    demands: Iterable[Demand], promised: frozenset[str], ordering: Ordering
) -> list[tuple[tuple[bool, int], Bundle]]:
    """All bundles with their level (whether it is not promised; as ordered, by priority), in order of level and age."""
    by_key: dict[str, Demand] = {}
    groups: dict[str, list[Demand]] = defaultdict(list)
    for demand in demands:
        if demand.key in by_key:
            raise VmtError(Problem(Code.INVALID_FIELD, "demands", "keys must be unique", demand.key))
        by_key[demand.key] = demand
        groups[demand.together].append(demand)

    first = {demand.together for key, demand in by_key.items() if key in promised}

    ranks = {
        key: (demand.together not in first, *ordering.rank(demand), key) for key, demand in by_key.items()
    }

    def rank(demand: Demand) -> _Rank:
        return ranks[demand.key]

    def order(demand: Demand) -> tuple[_Rank, bool, _Rank]:
        parent = by_key.get(demand.parent) if demand.parent is not None else None
        if parent is None or rank(parent) < rank(demand):
            return (rank(demand), False, rank(demand))
        return (rank(parent), True, rank(demand))

    def size(demand: Demand) -> tuple[int, _Rank]:
        return (-sum(count for _, count in demand.requests), rank(demand))

    turns = sorted((max(map(order, members)), members) for members in groups.values())
    return [(place[0][:2], tuple(sorted(members, key=size))) for place, members in turns]
