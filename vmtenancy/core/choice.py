"""Which of the ways to serve a request is taken: Kueue's flavor fungibility and partial admission, for classes.

The full count comes first. Its ways are tried in order until one has room without borrowing and without stopping
anybody, or until the tenant's policy (`Fungibility`) says not to try the next one. Of those that were tried the best is
taken: what has room now, then what has room once others have ended by themselves, then what takes back what was lent,
last what stops work of the tenant's own; of two that are equal in this, what borrows from nearer by in the cohorts,
then the first. So does Kueue's documentation; its code takes the way at which the policy ended the search, even where
one before it has room by borrowing and this one stops others.

Only where the full count gets no place in any way, as many units are asked for as get one. What others were stopped for
is taken as it was promised.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from vmtenancy.core.books import Books
from vmtenancy.core.calendar import Calendar
from vmtenancy.core.explain import refusal
from vmtenancy.core.explain.refusal import Reason, Refusal
from vmtenancy.core.options import (
    Units,
    as_promised,
    has_options,
    instead,
    most_lacking,
    units_text,
    ways,
)
from vmtenancy.core.preemption import Preemption
from vmtenancy.core.quota.policy import Fungibility
from vmtenancy.core.requests import Admit, Demand
from vmtenancy.core.search import first
from vmtenancy.core.victims import Nomination

Found = tuple[Admit, ...] | Nomination
_Demands = Sequence[Demand]

#: How good a way is: the greater, the better. Below `_FITS` others have to end.
_OWN_END, _LENT_COMES_BACK, _OTHERS_END, _FITS = range(4)


class Choice:
    """One round's choices, by its books. Nothing is changed."""

    def __init__(
        self,
        books: Books,
        preemption: Preemption,
        calendar: Calendar,
        promises: Mapping[str, Units],
    ) -> None:
        self._books, self._preemption, self._calendar = books, preemption, calendar
        self._promises = promises

    def best(self, demands: _Demands) -> Found | None:
        """What demands that are decided together are admitted or nominated with; None where they get no place."""
        if not has_options(demands):
            answer = self._judge(demands)
            if not isinstance(answer, Refusal):
                return answer
            return None if answer.reason is Reason.RESERVED else self._preemption.find(demands)
        way, policy = self._as_promised(demands), self._books.fungibility(demands[0].tenant)
        if way:
            free = self._fit(way) or (self._own(demands) if policy.try_next_to_preempt else None)
            if found := free or self._room(way):
                return found
        return _search(demands, policy, self._fit, self._room)

    def verdict(self, demands: _Demands) -> tuple[Admit, ...] | Refusal:
        """Why demands that got no place have none: what is wrong with the first way, and in short with the others.

        Or how they fit, for a group may fit better where less is free.
        """
        if not has_options(demands):
            return self._judge(demands)
        others: list[tuple[str, Refusal]] = []
        for way in ways(demands):
            answer = self._judge(way)
            if not isinstance(answer, Refusal):
                return answer
            others.append((instead(demands, way), answer))
        most = most_lacking(demands)
        fewest = next(ways(demands, most)) if most else ()
        return refusal.none_of(others[0][1], others[1:], "; ".join(units_text(d.requests) for d in fewest))

    def later(self, demands: _Demands) -> tuple[float, Nomination] | None:
        """As `Preemption.later`, in the way that comes first; of fewer units only the fewest, for they come first."""
        tried: Iterable[_Demands] = [demands]
        if has_options(demands):
            most = most_lacking(demands)
            tried = itertools.chain(ways(demands), ways(demands, most) if most else ())
        found = [then for way in tried if (then := self._preemption.later(way))]
        return min(found, key=lambda then: then[0], default=None)

    def _as_promised(self, demands: _Demands) -> _Demands | None:
        """The way that gives what others were stopped for, if there is one."""
        if not any(demand.key in self._promises for demand in demands):
            return None
        given = [as_promised(d, self._promises.get(d.key, d.requests)) for d in demands]
        way = [demand for demand in given if demand is not None]
        return way if len(way) == len(given) else None

    def _own(self, demands: _Demands) -> tuple[Admit, ...] | None:
        """The full count where it has room now and borrows nothing: nobody can take that back, so nobody need go."""
        found = (answer for way in ways(demands) if (answer := self._fit(way)))
        return next((answer for answer in found if not any(admit.borrowed for admit in answer)), None)

    def _judge(self, demands: _Demands) -> tuple[Admit, ...] | Refusal:
        return self._calendar.refusal(demands) or self._books.judge_all(demands)

    def _fit(self, demands: _Demands) -> tuple[Admit, ...] | None:
        answer = self._judge(demands)
        return None if isinstance(answer, Refusal) else answer

    def _room(self, demands: _Demands) -> Nomination | None:
        return None if self._calendar.refusal(demands) else self._preemption.find(demands)


def likely(demands: _Demands, books: Books) -> _Demands:
    """What demands would be admitted with as things stand, or what they ask for first; windows to come are ignored."""
    if not has_options(demands):
        return demands

    def fit(way: _Demands) -> tuple[Admit, ...] | None:
        answer = books.judge_all(way)
        return None if isinstance(answer, Refusal) else answer

    found = _search(demands, books.fungibility(demands[0].tenant), fit, lambda _: None)
    return [admit.demand for admit in found] if isinstance(found, tuple) else demands


_Try = Callable[[_Demands], Found | None]


def _search(demands: _Demands, policy: Fungibility, fit: _Try, room: _Try) -> Found | None:
    """The full count, else as many units as get a place. Whether they do falls with the count, so it is bisected."""

    def best(lacking: int) -> Found | None:
        return _best(ways(demands, lacking), policy, fit, room)

    if found := best(0):
        return found
    fewer: tuple[int, Found] | None = first(range(1, most_lacking(demands) + 1), best)
    return fewer[1] if fewer else None


def _best(tried: Iterable[_Demands], policy: Fungibility, fit: _Try, room: _Try) -> Found | None:
    refused: list[_Demands] = []
    found: list[Found] = []
    for way in tried:
        answer = fit(way)
        if answer is None and policy.try_next_to_preempt:
            refused.append(way)  # asked for room only if none fits: then it costs nothing where one does
        elif answer := answer or room(way):
            found.append(answer)
            if not _tries_next(answer, policy):
                break
    if not found:
        found = [answer for way in refused if (answer := room(way))]
    return max(found, key=_goodness, default=None)


def _goodness(found: Found) -> tuple[int, int]:
    """How good a way is, and against it how far up the cohorts it borrows."""
    if not isinstance(found, Nomination):
        return _FITS, -_reach(found)
    tenant = found.admits[0].demand.tenant
    if not found.victims:
        kind = _OTHERS_END
    else:
        own = any(victim.demand.tenant == tenant for victim in found.victims)
        kind = _OWN_END if own else _LENT_COMES_BACK
    return kind, -_reach(found.admits)


def _reach(admits: Iterable[Admit]) -> int:
    return max(admit.reach for admit in admits)


def _tries_next(found: Found, policy: Fungibility) -> bool:
    kind, reach = _goodness(found)
    if kind < _FITS and policy.try_next_to_preempt:
        return True
    return reach < 0 and policy.try_next_to_borrow
