"""What is reserved for later: nobody is admitted who would still be there when a window begins, and be in its way.

It speaks of quota alone, as a reservation does. For each moment at which a window begins it keeps the books as they
will be then, if nobody comes: what ends by itself before is gone, and the windows of that time have their quota. A
window that would not fit even so (what runs has no end) keeps nobody else out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vmtenancy.core.books import Books
from vmtenancy.core.explain import refusal
from vmtenancy.core.explain.refusal import Refusal
from vmtenancy.core.fleet.model import Runtime
from vmtenancy.core.quota.resources import Resource
from vmtenancy.core.requests import Admit, Demand


@dataclass(frozen=True, slots=True)
class Reserved:
    """A window to come: a HOLD of quota alone from `start` (seconds, as `Demand.ends`) until `demand.ends`."""

    demand: Demand
    start: float


class Calendar:
    """One round's look ahead. `live` are the grants in the books, `ending` the keys of those that end soon.

    Costs a copy of the quota's books for each moment at which a window begins; nothing without windows.
    """

    def __init__(
        self, books: Books, live: Sequence[Admit], ending: frozenset[str], reserved: Sequence[Reserved]
    ) -> None:
        windows = sorted(
            reserved, key=lambda window: (window.start, window.demand.created, window.demand.key)
        )
        self._moments: list[tuple[float, Books, list[Demand]]] = []
        for start in sorted({window.start for window in windows}):
            then = books.of_quota()
            # A hold goes after what draws on it.
            for admit in sorted(live, key=lambda admit: admit.demand.runtime is Runtime.HOLD):
                if admit.demand.key in ending or not lasts(admit.demand, start):
                    then.leave_quota(admit)
            kept = []
            for window in windows:
                if (
                    window.start <= start
                    and lasts(window.demand, start)
                    and not then.quota_refusal(window.demand)
                ):
                    then.enter_quota(Admit(window.demand, None))
                    kept.append(window.demand)
            if kept:
                self._moments.append((start, then, kept))

    def admitted(self, admits: Iterable[Admit]) -> None:
        """Demands were admitted in this round."""
        for admit in admits:
            for start, then, _ in self._moments:
                if lasts(admit.demand, start):
                    then.enter_quota(admit)

    def refusal(self, demands: Iterable[Demand]) -> Refusal | None:
        """Why demands that are decided together would be in the way of a window; None where they are not."""
        demands = tuple(demands)
        for start, then, windows in self._moments:
            with then.what_if():
                for demand in demands:
                    if not lasts(demand, start):
                        continue
                    if why := then.quota_refusal(demand):
                        if _is_in_the_way(why, then, windows, demands):
                            return refusal.reserved(why, ", ".join(window.key for window in windows), start)
                        break
                    then.enter_quota(Admit(demand, None))
        return None


def _is_in_the_way(why: Refusal, books: Books, windows: Iterable[Demand], demands: Iterable[Demand]) -> bool:
    """Whether the windows may have a part in it: they hold GPUs alone, of their pools."""
    of_resources = any(isinstance(column, Resource) for column in why.pools)
    return not of_resources and not books.pools_of(windows).isdisjoint(books.pools_of(demands))


def lasts(demand: Demand, moment: float) -> bool:
    """Whether it is still there then, for all that is known."""
    return demand.ends is None or demand.ends > moment
