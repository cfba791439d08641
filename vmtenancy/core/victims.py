"""Who could make room for a request, and which of several ways to make room is the best."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vmtenancy.core.books import Books
from vmtenancy.core.fleet.model import DeviceGrant
from vmtenancy.core.policies import Way
from vmtenancy.core.quota.resources import Resource
from vmtenancy.core.requests import Admit


@dataclass(frozen=True, slots=True)
class Nomination:
    """Requests that get their places once `victims`, to be stopped now, and those ending already are gone.

    `overshoots`: one of those who lose by fair share has less than the requests' side then.
    """

    admits: tuple[Admit, ...]
    victims: tuple[Admit, ...]
    overshoots: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """Grants that may be taken together: one, or all of a group.

    `foreign`: of another tenant, which has borrowed. `ways`: how the request may stop them. `need`: what they are
    candidates for, pools and resources, of which they hold some. `only_within_own`: not for what would be borrowed
    again. `fairly`: only where shares are fairer then.
    """

    grants: tuple[Admit, ...]
    foreign: bool
    ways: frozenset[Way]
    need: frozenset[str]
    only_within_own: bool = False
    fairly: bool = False

    @property
    def size(self) -> int:
        """What they hold: over all pools, or of the resources where these alone are needed."""
        resources = [column for column in self.need if isinstance(column, Resource)]
        if len(resources) < len(self.need):
            return sum(grant.parts for grant in self.devices)
        return sum(admit.demand.takes(resource) for admit in self.grants for resource in resources)

    @property
    def devices(self) -> list[DeviceGrant]:
        """All that they hold."""
        return [grant for admit in self.grants if admit.placement for grant in admit.placement.grants]

    @property
    def order(self) -> tuple[bool, int, float, str]:
        """Who goes first: what was borrowed, lower priority, the youngest."""
        demands = [admit.demand for admit in self.grants]
        return (not self.foreign, self.priority, -max(d.created for d in demands), demands[0].key)

    @property
    def priority(self) -> int:
        """The highest of them."""
        return max(admit.demand.priority for admit in self.grants)

    def safe_until(self) -> float | None:
        """Until when they may not be stopped yet; None where they may."""
        tenures = [grant.tenure for grant in self.grants]
        safe = [t.safe_within_cohort if self.foreign else t.safe_within_tenant for t in tenures]
        return max((until for until in safe if until is not None), default=None)


def leave(books: Books, candidate: Candidate) -> None:
    """Take what the candidate holds out of the books."""
    for admit in candidate.grants:
        books.leave(admit)


def safe_times(admit: Admit) -> list[float]:
    """When a grant will have run for its least times, as long as it has not."""
    tenure = admit.tenure
    return [u for u in (tenure.safe_within_tenant, tenure.safe_within_cohort) if u is not None]


def safe_at(admit: Admit, moment: float) -> Admit:
    """The grant at a later moment: without the least run times that are over by then."""
    if all(until > moment for until in safe_times(admit)):
        return admit

    def left(until: float | None) -> float | None:
        return until if until is not None and until > moment else None

    tenure = admit.tenure
    within, outside = left(tenure.safe_within_tenant), left(tenure.safe_within_cohort)
    return replace(admit, tenure=replace(tenure, safe_within_tenant=within, safe_within_cohort=outside))


def rank(nomination: Nomination, tenant: str) -> tuple[bool, int, bool, int]:
    """What comes before the cost: nobody of the tenant itself goes, low priority, nobody more than is fair, few."""
    demands = [victim.demand for victim in nomination.victims]
    return (
        any(demand.tenant == tenant for demand in demands),
        max(demand.priority for demand in demands),
        nomination.overshoots,
        len(demands),
    )


def youngest(nomination: Nomination) -> tuple[float, list[str]]:
    """What decides between choices that cost the same."""
    demands = [victim.demand for victim in nomination.victims]
    return (-min(demand.created for demand in demands), sorted(demand.key for demand in demands))
