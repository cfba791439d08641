"""The ways in which a request may be served: with other classes, and with fewer units.

Classes are tried in the order given; of several requests in one demand, those of the last change first. In a group the
members change in step: all have their first way, or all their second, and who has fewer stays with its last. So
machines that belong together get the same class, and a group has no more ways than its members. Units become fewer in
step, too, as in Kueue's partial admission: each request by the same part of what it may lack.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from vmtenancy.core.requests import Demand

Units = tuple[tuple[str, int], ...]


def has_options(demands: Sequence[Demand]) -> bool:
    """Whether there is more than one way to serve demands that are decided together."""
    for demand in demands:  # noqa: SIM110 - asked of every request in every round, and twice as fast as `any`
        if demand.alternatives or demand.minimum:
            return True
    return False


def most_lacking(demands: Sequence[Demand]) -> int:
    """How many units the demands may lack in all: the steps from what they ask for to the fewest that will do."""
    return sum(lack for demand in demands for lack in _lacks(demand))


def ways(demands: Sequence[Demand], lacking: int = 0) -> Iterator[tuple[Demand, ...]]:
    """Every choice of classes, in the order in which they are tried, each as demands with no options left.

    `lacking` is at most `most_lacking`; each request then has about that part of its own lack, rounded in its favour.
    """
    total = most_lacking(demands)
    chosen = [list(_choices(demand, lacking, total)) for demand in demands]
    for i in range(max(map(len, chosen))):
        yield tuple(each[min(i, len(each) - 1)] for each in chosen)


def _lacks(demand: Demand) -> Iterator[int]:
    fewest = dict(demand.minimum)
    return (count - fewest.get(name, count) for name, count in demand.requests)


def _choices(demand: Demand, lacking: int, total: int) -> Iterator[Demand]:
    if not (demand.alternatives or demand.minimum):
        yield demand
        return
    others = dict(demand.alternatives)
    lacks = (lack * lacking // total if total else 0 for lack in _lacks(demand))
    counts = [count - lack for (_, count), lack in zip(demand.requests, lacks, strict=True)]
    for names in itertools.product(*((name, *others.get(name, ())) for name, _ in demand.requests)):
        requests = tuple(zip(names, counts, strict=True))
        yield replace(demand, requests=requests, alternatives=(), minimum=())


def as_promised(demand: Demand, units: Units) -> Demand | None:
    """The demand for just these units, with no options left; None where they are not what it asks for (any more)."""
    left, others, fewest = dict(units), dict(demand.alternatives), dict(demand.minimum)
    requests = []
    for name, count in demand.requests:
        given = [each for each in (name, *others.get(name, ())) if each in left]
        if len(given) != 1 or not fewest.get(name, count) <= left[given[0]] <= count:
            return None
        requests.append((given[0], left.pop(given[0])))
    return None if left else replace(demand, requests=tuple(requests), alternatives=(), minimum=())


def units_text(requests: Units) -> str:
    """Units by class for people: `2 x whole, 1 x half`."""
    return ", ".join(f"{count} x {name}" for name, count in requests)


def instead(asked: Sequence[Demand], granted: Sequence[Demand]) -> str:
    """What demands get that is not what they ask for first, in words; empty where it is."""
    pairs = zip(asked, granted, strict=True)
    return "; ".join(units_text(got.requests) for ask, got in pairs if ask.requests != got.requests)
