"""Whom Kueue would evict: its classical preemption, rule by rule, over our quota tree.

It serves comparisons and those who move from Kueue and want the same victims. It follows KEP-83, KEP-1337 and
KEP-79 as v0.15 has them (`pkg/scheduler/preemption`), by quota alone: where something runs does not matter here,
as it does not to Kueue. What vmtenancy itself does is in `core/preemption`.

The heuristic takes candidates in a fixed order until the request fits, then gives back, in reverse, those it can
do without. Candidates are, in this order:

1. *hierarchical*: of queues that borrow what the lowest subtree around the request that has room for it could use;
   whatever `borrowWithinCohort` says, the request may borrow;
2. *priority*: of other queues that borrow; the request may borrow only where `borrowWithinCohort` allows it;
3. *own*: of the request's own queue, by `withinClusterQueue`.

In each, evicted ones come first, then lower priority, then the youngest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from itertools import pairwise

from vmtenancy.core.quota.tree import QuotaTree


class Policy(StrEnum):
    """Kueue's values of `withinClusterQueue` and `reclaimWithinCohort`."""

    NEVER = "Never"
    LOWER_PRIORITY = "LowerPriority"
    LOWER_OR_NEWER_EQUAL_PRIORITY = "LowerOrNewerEqualPriority"
    ANY = "Any"

    def allows(self, mine: Workload, theirs: Workload) -> bool:
        """Whether a request may evict a workload, by priority and age."""
        if self is Policy.LOWER_OR_NEWER_EQUAL_PRIORITY and theirs.priority == mine.priority:
            return mine.created < theirs.created
        return self is Policy.ANY or (self is not Policy.NEVER and theirs.priority < mine.priority)


@dataclass(frozen=True, slots=True)
class Preemption:
    """`preemption` of a ClusterQueue. `borrow_within_cohort`: its policy is LowerPriority, not Never; candidates
    above `max_priority_threshold` (None: there is none) are then still for requests that do not borrow alone.
    """

    within_cluster_queue: Policy = Policy.NEVER
    reclaim_within_cohort: Policy = Policy.NEVER
    borrow_within_cohort: bool = False
    max_priority_threshold: int | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """What runs or asks: parts by pool, its queue (a tenant of the tree), priority, when it was made or got its quota.

    `ending`: it is being evicted already, and still holds what it has.
    """

    key: str
    queue: str
    parts: Mapping[str, int]
    priority: int = 0
    created: float = 0.0
    ending: bool = False


class _Kind(IntEnum):
    HIERARCHICAL = 0
    PRIORITY = 1
    OWN = 2


@dataclass(frozen=True, slots=True)
class _Candidate:
    workload: Workload
    kind: _Kind
    #: Its queue and the cohorts up to, and without, the lowest one that the request's queue is below, too.
    below: tuple[int, ...] = ()
    #: The request may borrow when this one is evicted.
    while_borrowing: bool = True

    @property
    def order(self) -> tuple[bool, _Kind, int, float, str]:
        w = self.workload
        return (not w.ending, self.kind, w.priority, -w.created, w.key)


def victims(
    tree: QuotaTree, running: Iterable[Workload], incoming: Workload, policy: Preemption
) -> tuple[Workload, ...]:
    """Whom Kueue evicts for a request that does not fit; nobody where it would not fit even so.

    `running` are all workloads that are charged in `tree`, each under its key as the holder; the tree comes back as
    it was. `policy` is that of the request's queue.
    """
    need = tuple(pool for pool, parts in incoming.parts.items() if not tree.fits(incoming.queue, pool, parts))
    found = sorted(_candidates(tree, running, incoming, policy, need), key=lambda candidate: candidate.order)
    for borrowing in _attempts(tree, incoming, policy, need, {candidate.kind for candidate in found}):
        if chosen := _attempt(tree, found, incoming, need, borrowing=borrowing):
            return tuple(candidate.workload for candidate in chosen)
    return ()


def _candidates(
    tree: QuotaTree,
    running: Iterable[Workload],
    incoming: Workload,
    policy: Preemption,
    need: Sequence[str],
) -> Iterable[_Candidate]:
    path = tree.nodes(incoming.queue)
    advantage = _advantage(tree, path, incoming.parts)
    for other in running:
        if not any(pool in other.parts for pool in need):
            continue
        if other.queue == incoming.queue:
            if policy.within_cluster_queue.allows(incoming, other):
                yield _Candidate(other, _Kind.OWN)
            continue
        theirs = tree.nodes(other.queue)
        below = tuple(node for node in theirs if node not in path)
        if (
            len(below) == len(theirs)
            or not policy.reclaim_within_cohort.allows(incoming, other)
            or not _all_borrow(tree, below, need)
        ):
            continue
        if advantage[theirs[len(below)]]:
            yield _Candidate(other, _Kind.HIERARCHICAL, below)
        else:
            threshold = policy.max_priority_threshold
            cheap = other.priority < incoming.priority and (threshold is None or other.priority <= threshold)
            yield _Candidate(other, _Kind.PRIORITY, below, policy.borrow_within_cohort and cheap)


def _advantage(tree: QuotaTree, path: Sequence[int], parts: Mapping[str, int]) -> dict[int, bool]:
    """By cohort above the request's queue: whether the request fits into the own share of a node below it."""
    by_cohort: dict[int, bool] = {}
    fits, rest = False, dict(parts)
    for node, above in pairwise(path):
        fits = fits or all(count <= tree.spare(node, pool) for pool, count in rest.items())
        rest = {pool: max(0, count - tree.unlent(node, pool)) for pool, count in rest.items()}
        by_cohort[above] = fits
    return by_cohort


def _all_borrow(tree: QuotaTree, nodes: Iterable[int], pools: Iterable[str]) -> bool:
    return all(any(tree.spare(node, pool) < 0 for pool in pools) for node in nodes)


def _attempts(
    tree: QuotaTree, incoming: Workload, policy: Preemption, need: Sequence[str], kinds: set[_Kind]
) -> tuple[bool, ...]:
    """Whether the request may borrow, in the attempts that are made, in their order."""
    forbidden = not policy.borrow_within_cohort
    below_nominal = all(
        tree.usage(incoming.queue, pool) < tree.nominal(incoming.queue, pool) for pool in need
    )
    if not kinds - {_Kind.OWN} or (forbidden and not below_nominal):
        return (True,)
    if forbidden and _Kind.HIERARCHICAL not in kinds:
        return (False, True)
    return (True, False)


def _attempt(
    tree: QuotaTree,
    candidates: Iterable[_Candidate],
    incoming: Workload,
    need: Sequence[str],
    *,
    borrowing: bool,
) -> list[_Candidate]:
    taken: list[_Candidate] = []
    with tree.what_if():
        for candidate in candidates:
            if borrowing and not candidate.while_borrowing:
                continue
            if not _all_borrow(tree, candidate.below, need):
                continue  # its queue, or a cohort above it, is back within its own share
            change(tree.uncharge, candidate.workload)
            taken.append(candidate)
            if fits(tree, incoming, borrowing=borrowing):
                break
        else:
            return []
        for candidate in taken[-2::-1]:
            change(tree.charge, candidate.workload)
            if fits(tree, incoming, borrowing=borrowing):
                taken.remove(candidate)
            else:
                change(tree.uncharge, candidate.workload)
    return taken


def fits(tree: QuotaTree, incoming: Workload, *, borrowing: bool) -> bool:
    """Whether the request fits into quota as things stand; without `borrowing` only within its queue's nominal."""
    return all(
        tree.fits(incoming.queue, pool, parts)
        and (borrowing or tree.usage(incoming.queue, pool) + parts <= tree.nominal(incoming.queue, pool))
        for pool, parts in incoming.parts.items()
    )


def change(how: Callable[[str, str, int, str], None], workload: Workload) -> None:
    """Charge a workload to the tree, or uncharge it (`how`), in all of its pools."""
    for pool, parts in workload.parts.items():
        how(workload.queue, pool, parts, workload.key)
