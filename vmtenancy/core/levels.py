"""How fair it was that each workload got its place: what fair-share preemption compares.

The *level* of a workload is the share to which it brought its tenant, and each cohort above it below the root, when
what they hold is looked at in a fixed order: what can not be stopped first, then higher priority, then who was granted
before. A request may stop, of its own priority, only what stands at a higher level than it gets itself. What comes
later in that order never raises the level of what is there, and what goes only lowers it. So with each step the
levels of a priority, in ascending order, get better at the first place in which they change, and no round of requests
can stop each other in turn (see `docs/adr/0004-fair-share-preemption.md`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vmtenancy.core.books import Books
from vmtenancy.core.fleet.model import Runtime
from vmtenancy.core.requests import Admit

Shares = tuple[float, ...]
"""Of the nodes on a tenant's path, itself first, without the root: which borrows from nobody."""


def levels(books: Books, placed: Iterable[Admit], staying: Iterable[Admit]) -> Mapping[str, Shares]:
    """The shares at which each of `staying` stands, by key. Costs a copy of the quota and its charges.

    `placed` got their places in this round: they come after all others, and are no victims.
    """
    then = books.of_quota()
    for admit in placed:
        if admit.demand.runtime is not Runtime.HOLD:
            then.leave_quota(admit)
    found = {}
    for admit in sorted(staying, key=_order, reverse=True):
        found[admit.demand.key] = shares(then, admit.demand.tenant)
        then.leave_quota(admit)
    return found


def shares(books: Books, tenant: str, more: Mapping[str, int] | None = None) -> Shares:
    """The shares of the tenant's path, if it were charged `more` (parts by pool) than it is."""
    return tuple(books.share(tenant, more or {}, level) for level in range(len(books.path(tenant)) - 1))


def is_fairer(books: Books, mine: str, gets: Shares, theirs: str, stands: Shares) -> bool:
    """Whether `mine`, which gets to these shares, may stop a workload of `theirs` that stands at those.

    Its side of the lowest cohort above both must have the smaller share, and the largest of all its shares, then the
    next, must be smaller.
    """
    side, other = parting(books, mine, theirs)
    return gets[side] < stands[other] and _largest_first(gets) < _largest_first(stands)


def parting(books: Books, mine: str, theirs: str) -> tuple[int, int]:
    """The places on the two paths right below the lowest cohort above both tenants, which have one."""
    path, other = books.path(mine), books.path(theirs)
    lowest = next(node for node in path if node in other)
    return path.index(lowest) - 1, other.index(lowest) - 1


def _largest_first(shares: Shares) -> list[float]:
    return sorted((share for share in shares if share), reverse=True)


def _order(admit: Admit) -> tuple[bool, int, float, float, str]:
    demand = admit.demand
    return (demand.preemptible, -demand.priority, admit.tenure.since, demand.created, demand.key)
