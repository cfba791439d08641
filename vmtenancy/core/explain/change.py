"""Why one demand waits, for how long, and the smallest changes that would admit it now.

Each change was tried: the engine decided once more on all that waits, with the change and nothing else. The number of
its runs is bounded (`Explanation.runs`). A change that is larger than one that helps does, too: of counts, leases and
priorities only as many are tried as a binary search needs. Of other classes the `MOST_CLASSES` nearest in size are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from vmtenancy.api.gpuclass import PARTS_PER_GPU
from vmtenancy.api.gpuvm import HIGHEST_PRIORITY
from vmtenancy.core.admission import decide
from vmtenancy.core.books import class_refusal
from vmtenancy.core.calendar import Reserved
from vmtenancy.core.explain.question import Outcome, Question, with_units
from vmtenancy.core.explain.refusal import Reason
from vmtenancy.core.explain.shortage import utc
from vmtenancy.core.explain.start import Start, start_of
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.options import Units, units_text
from vmtenancy.core.policies import DEFAULT, Policies
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.core.requests import Admit, Decision, Demand, Wait
from vmtenancy.core.search import first

#: Other classes that are tried.
MOST_CLASSES = 8


@dataclass(frozen=True, slots=True)
class Raised:
    """The least priority with which a demand is admitted now; or, with `nominated`, with which its place is kept until
    `victims`, who would be stopped for it, and those that end anyway are gone.
    """

    priority: int
    nominated: bool = False
    victims: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.nominated:
            return f"would be admitted now with priority {self.priority}"
        stopped = (
            f"{', '.join(self.victims)} {'has' if len(self.victims) == 1 else 'have'} been stopped for it"
        )
        return (
            f"would have a place with priority {self.priority}, "
            f"once {stopped if self.victims else 'others have ended'}"
        )


@dataclass(frozen=True, slots=True)
class Explanation:
    """A waiting demand: `wait` says why (`reason`, `shortage` with pool, requested, free and holders). `positions` are
    its places, from 1, in the queues of its pools. `start` is when it may start; None: nobody knows.

    What would admit it now, each by itself and None where it would not help:

    - `smaller`: the request with the fewest units taken off one class, as it would be granted;
    - `other_class`: the request with one class replaced by another, of those that the tenant has quota for and that
      reach the runtime, the nearest in size that helps;
    - `ends`: a lease that ends by then (seconds as `Demand.ends`), where a reservation is in the way;
    - `priority`: a higher one.

    Priority and lease are those of a whole group, of a pod those of its virtual cluster; a pod outside of one has none.

    `runs` is how often the engine was asked for all this.
    """

    wait: Wait
    positions: Mapping[str, int]
    start: Start | None
    smaller: Units | None
    other_class: Units | None
    ends: float | None
    priority: Raised | None
    runs: int

    @property
    def changes(self) -> tuple[str, ...]:
        """Each change in words: `would be admitted now with 2 x h100-80gb`."""
        admitted = [
            f"would be admitted now with {units_text(requests)}"
            for requests in (self.smaller, self.other_class)
            if requests is not None
        ]
        if self.ends is not None:
            admitted.append(f"would be admitted now with a lease that ends by {utc(self.ends)}")
        return (*admitted, *([str(self.priority)] if self.priority else []))

    def __str__(self) -> str:
        said = [self.wait.message, *([str(self.start)] if self.start else []), *self.changes]
        return "; ".join(said)


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
    *,
    now: float = 0.0,
) -> Explanation | None:
    """Explain the demand `key` among all that wait; None if it would be admitted. The rest is as in `decide`.

    `now` is in seconds, as `Demand.ends`: what ends by then is about to. Raises KeyError where nothing of that key is
    demanded.
    """
    engine = partial(decide, fleet, tree, policies=policies)
    question = Question(
        engine, fleet, tree, tuple(holds), tuple(demands), key, ending, promised, tuple(reserved), promises
    )
    outcome = question.ask(question.holds, question.demands)
    wait = outcome.decision
    if isinstance(wait, Admit):
        return None
    smaller, other = _smaller(question), _other_class(question)
    ends, priority = _ends(question, wait), _priority(question, wait)
    start = start_of(question, outcome, now) if wait.position else None
    positions = _positions(outcome.decisions, key)
    return Explanation(wait, positions, start, smaller, other, ends, priority, question.runs)


def _positions(decisions: Iterable[Decision], key: str) -> dict[str, int]:
    """Places in the queues of the pools that it waits for, as `decide` counts them."""
    ahead: Counter[str] = Counter()
    for decision in decisions:
        pools = decision.pools if isinstance(decision, Wait) else ()
        ahead.update(pools)
        if decision.demand.key == key:
            return {pool: ahead[pool] for pool in sorted(pools)}
    raise KeyError(key)


def _smaller(question: Question) -> Units | None:
    """Fewer units of one class, the least taken away; a class may go where others stay."""
    best: tuple[int, Units] | None = None
    for i in range(len(question.demand.requests)):
        best = _less_of(question, i, best) or best
    return best and best[1]


def _less_of(question: Question, index: int, best: tuple[int, Units] | None) -> tuple[int, Units] | None:
    """What is taken away, in parts, and what is left, if less is taken than in the `best` so far."""
    demand, fleet = question.demand, question.fleet
    name, count = demand.requests[index]
    if name not in fleet.offerings:
        return None
    parts = fleet.offerings[name].parts

    def granted(units: int) -> Units | None:
        decision = question.with_demand(with_units(demand, index, name, count - units)).decision
        return decision.demand.requests if isinstance(decision, Admit) else None

    most = count if len(demand.requests) > 1 else count - 1
    found = first([n for n in range(1, most + 1) if best is None or n * parts < best[0]], granted)
    return found and (found[0] * parts, found[1])


def _other_class(question: Question) -> Units | None:
    """As many units of another class, in place of one."""
    fleet, demand = question.fleet, question.demand
    sizes = {name: offering.parts for name, offering in fleet.offerings.items()}
    candidates = sorted(
        (abs(sizes[name] - sizes.get(old, PARTS_PER_GPU)), name, i)
        for name in _classes(question)
        for i, (old, _) in enumerate(demand.requests)
    )
    tried = 0
    for _, name, i in candidates:
        changed = with_units(demand, i, name, demand.requests[i][1])
        names = [name for name, _ in changed.requests]
        if class_refusal(fleet, demand.runtime, demand.quota_alone, names):
            continue
        if tried == MOST_CLASSES:
            break
        tried += 1
        decision = question.with_demand(changed).decision
        if isinstance(decision, Admit):
            return decision.demand.requests
    return None


def _classes(question: Question) -> Iterable[str]:
    """Classes that it does not ask for and that its tenant, and its virtual cluster, have quota for."""
    demand, parent = question.demand, question.demand.parent
    asked = {name for name, _ in demand.requests}
    everything = (*question.demands, *(admit.demand for admit in question.holds))
    allowed = [dict(other.maximum) for other in everything if parent and other.key == parent]
    for name, offering in question.fleet.offerings.items():
        if (
            name not in asked
            and question.tree.is_open(demand.tenant, offering.pool)
            and all(name in maximum for maximum in allowed)
        ):
            yield name


def _ends(question: Question, wait: Wait) -> float | None:
    """The latest end of a lease that keeps clear of what is reserved: the start of a window."""
    if wait.reason is not Reason.RESERVED or question.demand.quota_alone:
        return None
    owners, now = question.owners, question.demand.ends
    starts = sorted({w.start for w in question.reserved if now is None or w.start < now}, reverse=True)

    def admitted(end: float) -> Outcome | None:
        def until(demand: Demand) -> Demand:
            shorter = demand.key in owners and (demand.ends is None or demand.ends > end)
            return replace(demand, ends=end) if shorter else demand

        outcome = _with(question, until)
        return outcome if outcome.is_admitted else None

    found = first(starts, admitted) if owners else None
    return found and found[0]


def _priority(question: Question, wait: Wait) -> Raised | None:
    """Only priorities at and right above those of others make a difference."""
    owners, own = question.owners, question.demand.priority
    everything = (*question.demands, *(admit.demand for admit in question.holds))
    others = {demand.priority for demand in everything}
    levels = sorted(p for p in others | {p + 1 for p in others} if own < p <= HIGHEST_PRIORITY)
    if not levels or not owners or question.demand.quota_alone:
        return None
    known: dict[int, Outcome] = {}

    def at(level: int) -> Outcome:
        def raised(demand: Demand) -> Demand:
            return replace(demand, priority=max(level, demand.priority)) if demand.key in owners else demand

        if level not in known:
            known[level] = _with(question, raised)
        return known[level]

    def admitted(level: int) -> Outcome | None:
        return outcome if (outcome := at(level)).is_admitted else None

    def placed(level: int) -> Outcome | None:
        return outcome if (outcome := at(level)).has_place else None

    if found := first(levels, admitted):
        return Raised(found[0])
    if wait.reason is Reason.NOMINATED or (found := first(levels, placed)) is None:
        return None
    least, outcome = found
    return Raised(least, nominated=True, victims=outcome.victims)


def _with(question: Question, change: Callable[[Demand], Demand]) -> Outcome:
    """What is decided if the owners of the demand change themselves."""
    holds = [replace(admit, demand=change(admit.demand)) for admit in question.holds]
    return question.ask(holds, [change(demand) for demand in question.demands])
