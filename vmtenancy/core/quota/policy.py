"""Whom a tenant's requests may stop to make room: Kueue's policies, by its names."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Preempts(StrEnum):
    """Which workloads may be stopped for a request."""

    NEVER = "Never"
    LOWER_PRIORITY = "LowerPriority"
    LOWER_OR_NEWER_EQUAL_PRIORITY = "LowerOrNewerEqualPriority"
    LOWER_OR_EQUAL_PRIORITY = "LowerOrEqualPriority"
    ANY = "Any"

    def allows(self, mine: int, theirs: int, *, newer: bool = False) -> bool:
        """Whether a request of priority `mine` may stop a workload of priority `theirs`, that is `newer` or not."""
        if theirs == mine:
            equal = self is Preempts.LOWER_OR_NEWER_EQUAL_PRIORITY and newer
            return equal or self in (Preempts.ANY, Preempts.LOWER_OR_EQUAL_PRIORITY)
        return self is Preempts.ANY or (self is not Preempts.NEVER and theirs < mine)


@dataclass(frozen=True, slots=True)
class BorrowWithinCohort:
    """A request may borrow what others have borrowed with a lower priority, of at most `max_priority` (None: any)."""

    max_priority: int | None = None

    def allows(self, mine: int, theirs: int) -> bool:
        """Whether a request of priority `mine` may stop a workload of priority `theirs` to borrow itself."""
        return theirs < mine and (self.max_priority is None or theirs <= self.max_priority)


@dataclass(frozen=True, slots=True)
class PreemptionPolicy:
    """`within_tenant`: workloads of the tenant itself (never `ANY`). `reclaim_within_cohort`: of others that hold
    more than their own share, as long as the one that takes back stays within its own. `borrow_within_cohort`: of
    these, which may be stopped even where it does not. `fair_share_within_cohort`: of those who have borrowed, which
    may be stopped where shares are fairer afterwards (never `ANY`: a higher priority is not stopped for fairness).
    """

    within_tenant: Preempts = Preempts.NEVER
    reclaim_within_cohort: Preempts = Preempts.NEVER
    borrow_within_cohort: BorrowWithinCohort | None = None
    fair_share_within_cohort: Preempts = Preempts.NEVER

    @property
    def may_preempt(self) -> bool:
        """Whether anything may ever be stopped."""
        ways = {self.within_tenant, self.reclaim_within_cohort, self.fair_share_within_cohort}
        return ways != {Preempts.NEVER}


NOBODY = PreemptionPolicy()
"""The policy of a tenant that names none: its requests stop nobody."""


@dataclass(frozen=True, slots=True)
class Fungibility:
    """When the next class is tried for a request that names alternatives: Kueue's `flavorFungibility` and its defaults.

    `try_next_to_borrow`: before one is taken that only fits by borrowing. `try_next_to_preempt`: before one is waited
    for that only fits once others have ended.
    """

    try_next_to_borrow: bool = False
    try_next_to_preempt: bool = True


DEFAULT_FUNGIBILITY = Fungibility()
"""That of a tenant that says nothing."""
