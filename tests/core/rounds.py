"""Rounds of decisions until nothing changes: those who were stopped end after a while, and wait again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vmtenancy.core.admission import decide
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import Runtime
from vmtenancy.core.policies import DEFAULT, Policies
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.core.requests import Admit, Decision, Demand, Tenure, Wait


@dataclass
class Rounds:
    """One world. `ends_after` is how many rounds each workload takes to end, by key (0: at once).

    A pod that was stopped comes again as a new one, a machine as the same. `stops` are the (preemptor, victim) pairs
    so far.
    """

    fleet: Fleet
    rules: QuotaTree
    waiting: list[Demand]
    ends_after: Mapping[str, int] = field(default_factory=dict)
    policies: Policies = DEFAULT
    live: dict[str, Admit] = field(default_factory=dict)
    stops: list[tuple[str, str]] = field(default_factory=list)
    _ending: dict[str, int] = field(default_factory=dict)
    _preemptor: dict[str, str] = field(default_factory=dict)
    _promised_at: dict[str, float] = field(default_factory=dict)
    _tick: float = 1000.0

    def ask(self, demands: Iterable[Demand]) -> None:
        """More demands come."""
        self.waiting += demands

    def decide(self) -> Sequence[Decision]:
        """What would be decided now."""
        promised = frozenset(self._preemptor.values())
        return decide(
            self.fleet, self.rules, self.live.values(), self.waiting, frozenset(self._ending), promised,
            policies=self.policies,
        )  # fmt: skip

    def step(self) -> bool:
        """One round. Whether anything happened."""
        ended = [key for key, left in self._ending.items() if not left]
        for key in ended:
            del self._ending[key]
            self._come_back(self.live.pop(key).demand)
        before = (len(self.live), len(self._ending))
        decisions = self.decide()
        for key in ended:
            del self._preemptor[key]
        self._ending = {key: left - 1 for key, left in self._ending.items()}
        for decision in decisions:
            key = decision.demand.key
            self._tick += 1
            if isinstance(decision, Wait):
                if decision.victims:
                    self._promised_at[key] = self._tick
                for victim in decision.victims:
                    assert victim not in self._ending, "each is stopped once"
                    self.stops.append((key, victim))
                    self._ending[victim] = self.ends_after.get(victim, 0)
                    self._preemptor[victim] = key
            else:
                since = self._promised_at.pop(key, self._tick)
                self.live[key] = replace(decision, tenure=Tenure(since))
        self.waiting = [demand for demand in self.waiting if demand.key not in self.live]
        return bool(ended) or (len(self.live), len(self._ending)) != before

    @property
    def is_ending(self) -> bool:
        """Whether any of those that were stopped has not ended yet, or was not replaced."""
        return bool(self._ending or self._promised_at)

    def run(self, most: int) -> bool:
        """Whether it comes to rest within so many rounds."""
        return any(not self.step() for _ in range(most))

    def _come_back(self, demand: Demand) -> None:
        self._tick += 1
        if demand.runtime is Runtime.POD:
            demand = replace(demand, created=self._tick)
        self.waiting.append(demand)
