"""Why one demand waits, and the smallest change that would admit it now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from vmtenancy.core.admission import decide
from vmtenancy.core.calendar import Reserved
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import Offering
from vmtenancy.core.options import Units
from vmtenancy.core.policies import DEFAULT, Policies
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.core.requests import Admit, Demand, Wait


@dataclass(frozen=True, slots=True)
class Explanation:
    """A waiting demand (`wait.reason`, `wait.shortage` with pool, requested, free and holders) and what would
    help.

    `smaller` is the request with the fewest units taken off one class that would be admitted now, as it would be
    granted; None where no smaller count helps.
    """

    wait: Wait
    smaller: tuple[tuple[str, int], ...] | None

    def __str__(self) -> str:
        if self.smaller is None:
            return self.wait.message
        smaller = ", ".join(f"{count} x {name}" for name, count in self.smaller)
        return f"{self.wait.message}. Would be admitted now: {smaller}"


def explain(
    fleet: Fleet,
    tree: QuotaTree,
    holds: Iterable[Admit],
    demands: Iterable[Demand],
    key: str,
    ending: frozenset[str] = frozenset(),
    promised: frozenset[str] = frozenset(),
    reserved: Sequence[Reserved] = (),
    promises: Mapping[str, Units] = MappingProxyType({}),
    policies: Policies = DEFAULT,
) -> Explanation | None:
    """Explain the demand `key` among all that wait; None if it would be admitted. The rest is as in `decide`.

    Each smaller request is tried by the engine itself, after all that comes before it in the queue.
    Raises KeyError where nothing of that key is demanded.
    """
    holds = tuple(holds)
    decisions = decide(fleet, tree, holds, demands, ending, promised, reserved, promises, policies)
    place = next((i for i, decision in enumerate(decisions) if decision.demand.key == key), None)
    if place is None:
        raise KeyError(key)
    wait = decisions[place]
    if isinstance(wait, Admit):
        return None
    ahead = [decision.demand for decision in decisions[:place]]
    for smaller in _smaller(wait.demand, fleet.offerings):
        answers = decide(
            fleet, tree, holds, [*ahead, smaller], ending, promised, reserved, promises, policies
        )
        for answer in answers:
            if isinstance(answer, Admit) and answer.demand.key == key:
                return Explanation(wait, answer.demand.requests)
    return Explanation(wait, None)


def _smaller(demand: Demand, offerings: Mapping[str, Offering]) -> Iterator[Demand]:
    """The demand with fewer units of one class, the least taken away first; a class may go where others
    stay.
    """
    steps = [
        (cut * offerings[name].parts, i, cut)
        for i, (name, count) in enumerate(demand.requests)
        if name in offerings
        for cut in range(1, count + 1)
    ]
    for _, i, cut in sorted(steps):
        requests = [(name, count - cut * (i == j)) for j, (name, count) in enumerate(demand.requests)]
        left = tuple((name, count) for name, count in requests if count)
        if left:
            others = tuple((name, names) for name, names in demand.alternatives if name in dict(left))
            yield replace(demand, requests=left, alternatives=others, minimum=())
