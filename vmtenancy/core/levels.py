"""How fair it was that each workload got its place: what fair-share preemption compares.

A workload *stands* at the shares to which it brought its tenant, and each cohort above it below the root, when what
they hold is looked at in a fixed order: what can not be stopped first, then higher priority, then who was granted
before. Its *reach* are the same amounts in one measure for the whole tree, the largest first. A request may stop what
stands above the share that its own side gets, and reaches further than it would itself.

What comes later in that order never raises where others stand, and what goes only lowers it. So with each step the
reaches of all workloads of a priority, in ascending order, are better at the first place in which they change, and
requests can not stop each other in turn (see `docs/adr/0004-fair-share-preemption.md`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vmtenancy.core.books import Books
from vmtenancy.core.fleet.model import Runtime
from vmtenancy.core.requests import Admit


class Standing(NamedTuple):
    """Of the nodes on a tenant's path below the root, itself first: `shares`; `reach` is in descending order."""

    shares: tuple[float, ...]
    reach: tuple[float, ...]


def levels(books: Books, placed: Iterable[Admit], staying: Iterable[Admit]) -> Mapping[str, Standing]:
    """Where each of `staying` stands, by key. Costs a copy of the quota and its charges.

    `placed` got their places in this round: they come after all others, and are no victims.
    """
    then = books.of_quota()
    for admit in placed:
        if admit.demand.runtime is not Runtime.HOLD:
            then.leave_quota(admit)
    found = {}
    for admit in sorted(staying, key=_order, reverse=True):
        found[admit.demand.key] = standing(then, admit.demand.tenant)
        then.leave_quota(admit)
    return found


def standing(books: Books, tenant: str) -> Standing:
    """Where the last of the tenant stands, as things are."""
    below_root = range(len(books.path(tenant)) - 1)
    reach = (books.extent(tenant, level) for level in below_root)
    return Standing(
        tuple(books.share(tenant, {}, level) for level in below_root),
        tuple(sorted((amount for amount in reach if amount), reverse=True)),
    )


def is_fairer(books: Books, mine: str, gets: Standing, theirs: str, stands: Standing) -> bool:
    """Whether a request of `mine`, which gets to `gets`, may stop a workload of `theirs` that stands at `stands`."""
    side, other = parting(books, mine, theirs)
    return gets.shares[side] < stands.shares[other] and gets.reach < stands.reach


def parting(books: Books, mine: str, theirs: str) -> tuple[int, int]:
    """The places on the two paths right below the lowest cohort above both tenants, which have one."""
    path, other = books.path(mine), books.path(theirs)
    lowest = next(node for node in path if node in other)
    return path.index(lowest) - 1, other.index(lowest) - 1


def _order(admit: Admit) -> tuple[bool, int, float, float, str]:
    demand = admit.demand
    return (demand.preemptible, -demand.priority, admit.tenure.since, demand.created, demand.key)
