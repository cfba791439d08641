"""Whom Kueue would evict with fair sharing: its KEP-1714, rule by rule, over our quota tree.

The *share* of a node is what it has borrowed of a pool, over all that the node above it could hold of that pool, in the
pool where that is the most, by the node's weight. Kueue goes down from the root to the child with the highest share,
and there takes the next candidate if, where the branches of the request and of the candidate part, the share of the
request's side is then

- at most that of the other side without the candidate (LessThanOrEqualToFinalShare), in a first pass; or
- less than that of the other side with it (LessThanInitialShare), in a second, once per queue.

Candidates of the request's own queue need no such comparison. As in `kueue`, what is not needed is given back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vmtenancy.core.quota.kueue import Policy, Preemption, Workload, change, fits
from vmtenancy.core.quota.tree import QuotaTree


@dataclass(frozen=True, slots=True)
class Eviction:
    """Whom Kueue evicts. `arbitrary`: two cohorts had one share, and Kueue takes either of them first, so the victims
    may be others when it is asked again; here the last of them by number is taken.
    """

    victims: tuple[Workload, ...] = ()
    arbitrary: bool = False


def evict(
    tree: QuotaTree,
    running: Iterable[Workload],
    incoming: Workload,
    policy: Preemption,
    weights: Mapping[int, int],
) -> Eviction:
    """As `kueue.victims`, with fair sharing. `weights` are those of nodes of the tree that are not 1."""
    need = [pool for pool, parts in incoming.parts.items() if not tree.fits(incoming.queue, pool, parts)]
    candidates = sorted(
        (other for other in running if _may_go(tree, other, incoming, policy, need)),
        key=lambda w: (not w.ending, w.queue == incoming.queue, w.priority, -w.created, w.key),
    )
    with tree.what_if():
        change(tree.charge, incoming)
        taken: list[Workload] = []
        retry: list[Workload] = []
        branches = _Branches(tree, incoming, candidates, weights)
        enough, arbitrary = _first(branches, taken, retry), branches.arbitrary
        if not enough:
            branches = _Branches(tree, incoming, retry, weights)
            enough, arbitrary = _second(branches, taken), arbitrary or branches.arbitrary
        if not enough:
            return Eviction((), arbitrary)
        change(tree.uncharge, incoming)
        for workload in taken[-2::-1]:
            change(tree.charge, workload)
            if fits(tree, incoming, borrowing=True):
                taken.remove(workload)
            else:
                change(tree.uncharge, workload)
    return Eviction(tuple(taken), arbitrary)


def _may_go(
    tree: QuotaTree, other: Workload, incoming: Workload, policy: Preemption, need: Sequence[str]
) -> bool:
    if not any(pool in other.parts for pool in need):
        return False
    if other.queue == incoming.queue:
        return policy.within_cluster_queue.allows(incoming, other)
    return (
        tree.nodes(other.queue)[-1] == tree.nodes(incoming.queue)[-1]
        and any(tree.usage(other.queue, pool) > tree.nominal(other.queue, pool) for pool in need)
        and policy.reclaim_within_cohort is not Policy.NEVER
        and policy.reclaim_within_cohort.allows(incoming, other)
    )


class _Branches:
    """The branches of the tree that have candidates, of which the one with the highest share is next.

    The incoming workload is charged.
    """

    def __init__(
        self,
        tree: QuotaTree,
        incoming: Workload,
        candidates: Iterable[Workload],
        weights: Mapping[int, int],
    ) -> None:
        self.tree, self.incoming, self._weights = tree, incoming, weights
        self.path = tree.nodes(incoming.queue)
        self.waiting: dict[int, list[Workload]] = defaultdict(list)
        self._parents: dict[int, int] = dict(pairwise(self.path))
        for candidate in candidates:
            nodes = tree.nodes(candidate.queue)
            self.waiting[nodes[0]].append(candidate)
            self._parents.update(pairwise(nodes))
        self._children: dict[int, set[int]] = defaultdict(set)
        for node, parent in self._parents.items():
            self._children[parent].add(node)
        self._queues = {self.path[0], *self.waiting}
        self._pruned: set[int] = set()
        self.arbitrary = False

    def __iter__(self) -> Iterator[int]:
        """Queues to take from, by node. Between two, one of its candidates has to go, or the queue."""
        if len(self.path) == 1:
            while self.waiting[self.path[0]]:
                yield self.path[0]
            return
        while self.path[-1] not in self._pruned:
            queue = self._next(self.path[-1])
            if queue is not None:
                yield queue

    def drop(self, queue: int) -> None:
        """No more candidates of the queue."""
        self._pruned.add(queue)

    def share(self, node: int) -> float:
        """The node's dominant share by its weight, as Kueue computes it; 0 of a root."""
        parent = self._parents.get(node)
        if parent is None:
            return 0.0
        ratios = (
            borrowed * 1000.0 / most
            for pool in self.tree.columns
            if (borrowed := -self.tree.spare(node, pool)) > 0
            and (most := self.tree.potential(parent, pool)) > 0
        )
        return max(ratios, default=0.0) / self._weights.get(node, 1)

    def sides(self, queue: int) -> tuple[int, int]:
        """The nodes, of the request and of the queue, below the lowest cohort above both."""
        theirs = queue
        while self._parents[theirs] not in self.path:
            theirs = self._parents[theirs]
        return self.path[self.path.index(self._parents[theirs]) - 1], theirs

    def _next(self, cohort: int) -> int | None:
        """The queue at the end of the branch with the highest share; None where something was pruned instead."""
        best_queue, queue_share, best_cohort, cohort_share = -1, -1.0, -1, -1.0
        for node in sorted(self._children[cohort] - self._pruned):
            share = self.share(node)
            if node in self._queues:
                if not self.waiting[node] or (share == 0 and node != self.path[0]):
                    self._pruned.add(node)
                elif share > queue_share or (share == queue_share and self._before(node, best_queue)):
                    best_queue, queue_share = node, share
            elif share == 0 and node not in self.path:
                self._pruned.add(node)
            elif share >= cohort_share:
                self.arbitrary |= share == cohort_share
                best_cohort, cohort_share = node, share
        if best_queue < 0 and best_cohort < 0:
            self._pruned.add(cohort)
            return None
        return self._next(best_cohort) if cohort_share >= queue_share else best_queue

    def _before(self, queue: int, other: int) -> bool:
        def order(node: int) -> tuple[bool, bool, int, float, str]:
            w = self.waiting[node][0]
            return (not w.ending, node == self.path[0], w.priority, -w.created, w.key)

        return order(queue) < order(other)

    def fits_without(self, workload: Workload, taken: list[Workload]) -> bool:
        """Take the workload; whether the request, charged all the time, fits now."""
        change(self.tree.uncharge, workload)
        taken.append(workload)
        change(self.tree.uncharge, self.incoming)
        enough = fits(self.tree, self.incoming, borrowing=True)
        change(self.tree.charge, self.incoming)
        return enough


def _first(branches: _Branches, taken: list[Workload], retry: list[Workload]) -> bool:
    """Whether it fits after LessThanOrEqualToFinalShare. `retry` are those that were spared."""
    for queue in branches:
        waiting = branches.waiting[queue]
        if queue == branches.path[0]:
            if branches.fits_without(waiting.pop(0), taken):
                return True
            continue
        mine, theirs = branches.sides(queue)
        share = branches.share(mine)
        while waiting:
            workload = waiting.pop(0)
            with branches.tree.what_if():
                change(branches.tree.uncharge, workload)
                final = branches.share(theirs)
            if share <= final:
                if branches.fits_without(workload, taken):
                    return True
                break  # the highest share may be elsewhere now
            retry.append(workload)
    return False


def _second(branches: _Branches, taken: list[Workload]) -> bool:
    """Whether it fits after LessThanInitialShare."""
    for queue in branches:
        mine, theirs = branches.sides(queue)
        if branches.share(mine) < branches.share(theirs) and branches.fits_without(
            branches.waiting[queue].pop(0), taken
        ):
            return True
        branches.drop(queue)
    return False
