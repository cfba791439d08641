"""One demand among all that wait, and what the engine would decide if something were otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from vmtenancy.core.calendar import Reserved
from vmtenancy.core.explain.refusal import Reason
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import Runtime
from vmtenancy.core.options import Units
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.core.requests import Admit, Decision, Demand, Wait


class Engine(Protocol):
    """`decide`, with all that stays as it is."""

    def __call__(
        self,
        holds: Iterable[Admit],
        demands: Iterable[Demand],
        ending: frozenset[str],
        promised: frozenset[str],
        reserved: Sequence[Reserved],
        promises: Mapping[str, Units],
    ) -> list[Decision]:
        """The decisions in queue order."""


@dataclass(slots=True)
class Question:
    """What the engine is asked about the demand `key`; `runs` counts how often it was.

    Raises KeyError where nothing of that key is demanded.
    """

    engine: Engine
    fleet: Fleet
    tree: QuotaTree
    holds: Sequence[Admit]
    demands: Sequence[Demand]
    key: str
    ending: frozenset[str]
    promised: frozenset[str]
    reserved: Sequence[Reserved]
    promises: Mapping[str, Units]
    runs: int = 0
    demand: Demand = field(init=False)

    def __post_init__(self) -> None:
        by_key = {demand.key: demand for demand in self.demands}
        self.demand = by_key[self.key]

    @property
    def group(self) -> frozenset[str]:
        """The keys of all that is decided together with the demand, itself among them."""
        return frozenset(demand.key for demand in self.demands if demand.together == self.demand.together)

    @property
    def owners(self) -> frozenset[str]:
        """The keys of all that has its priority and lease of the same owner: a virtual cluster with all of its pods,
        a group; empty where nobody can give it any: a pod outside of a virtual cluster.
        """
        demand = self.demand
        of_pod = demand.runtime is Runtime.POD
        root = demand.parent if of_pod else demand.key
        if root is None:
            return frozenset()
        everything = (*self.demands, *(admit.demand for admit in self.holds))
        pods = (d.key for d in everything if d.runtime is Runtime.POD and d.parent == root)
        return frozenset([root, *pods]) if of_pod else frozenset([*self.group, *pods])

    def with_demand(self, changed: Demand) -> Outcome:
        """What is decided if the demand is changed to another one of its key."""
        return self.ask(self.holds, [changed if d.key == self.key else d for d in self.demands])

    def ask(
        self,
        holds: Iterable[Admit],
        demands: Iterable[Demand],
        *,
        ending: frozenset[str] | None = None,
        promised: frozenset[str] | None = None,
        reserved: Sequence[Reserved] | None = None,
        promises: Mapping[str, Units] | None = None,
    ) -> Outcome:
        """What is decided of other holds and demands; all else is as it is."""
        self.runs += 1
        decisions = self.engine(
            holds,
            demands,
            self.ending if ending is None else ending,
            self.promised if promised is None else promised,
            self.reserved if reserved is None else reserved,
            self.promises if promises is None else promises,
        )
        return Outcome(self.key, self.group, tuple(decisions))


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that was decided, and of it what concerns the demand `key`, which is decided together with its `group`."""

    key: str
    group: frozenset[str]
    decisions: tuple[Decision, ...]

    @property
    def decision(self) -> Decision:
        """What was decided of the demand."""
        return next(decision for decision in self.decisions if decision.demand.key == self.key)

    @property
    def is_admitted(self) -> bool:
        """Whether it is admitted."""
        return isinstance(self._found, Admit)

    @property
    def has_place(self) -> bool:
        """Whether it is admitted, or nominated."""
        found = self._found
        return isinstance(found, Admit) or (found is not None and found.reason is Reason.NOMINATED)

    @property
    def _found(self) -> Decision | None:
        """None once its window is over."""
        return next((decision for decision in self.decisions if decision.demand.key == self.key), None)

    @property
    def stops_from(self) -> float | None:
        """As `Wait.stops_from`; None where it does not wait."""
        found = self._found
        return found.stops_from if isinstance(found, Wait) else None

    @property
    def victims(self) -> tuple[str, ...]:
        """Whom it, or its group, stops."""
        ours = (d for d in self.decisions if isinstance(d, Wait) and d.demand.key in self.group)
        return tuple(victim for wait in ours for victim in wait.victims)


def with_units(demand: Demand, index: int, name: str, count: int) -> Demand:
    """The demand with `count` units of a class in place of those at `index`; without them where it is 0. It leaves no
    other choice of counts, and of the classes that would do those of the requests that stay.
    """
    changed = [(name, count) if i == index else old for i, old in enumerate(demand.requests)]
    requests = tuple((name, count) for name, count in changed if count)
    named = {name for name, _ in requests}
    others = tuple(
        (asked, left)
        for asked, classes in demand.alternatives
        if asked in named and (left := tuple(each for each in classes if each not in named))
    )
    return replace(demand, requests=requests, alternatives=others, minimum=())
