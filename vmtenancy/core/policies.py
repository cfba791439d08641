"""What of the engine can be replaced: the order of requests, whom they may stop, and what it costs to be stopped.

Each is a Protocol with the engine's own as the default; `decide` and `explain` take all three as `Policies`. They are
asked in the middle of a decision and must be pure: the same answer for the same arguments. What the engine promises
whatever they say: no limit of quota is exceeded, nobody is stopped in vain, and neither a guarantee, nor what is not
preemptible, nor what has not run for its least time is taken. That requests do not stop each other in turn is promised
of the defaults only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from vmtenancy.api.gpuclass import PARTS_PER_GPU
from vmtenancy.core.fleet.model import Runtime
from vmtenancy.core.quota.policy import PreemptionPolicy
from vmtenancy.core.requests import Admit, Demand


class Ordering(Protocol):
    """In which order requests are looked at, after those for which others were stopped already."""

    @property
    def fair_share(self) -> bool:
        """Whether tenants take turns by fair share among requests of one level."""

    def rank(self, demand: Demand) -> tuple[int, float]:
        """Its level, the lower first, and its age among those of one level and tenant, the lower first."""


class Way(StrEnum):
    """How a request comes to stop another workload: the fields of `Tenant.spec.preemption`."""

    WITHIN_TENANT = "withinTenant"
    RECLAIM = "reclaimWithinCohort"
    BORROW = "borrowWithinCohort"
    FAIR_SHARE = "fairShareWithinCohort"


class VictimPolicy(Protocol):
    """Which workloads a request may stop."""

    def allows(self, way: Way, policy: PreemptionPolicy, demands: Sequence[Demand], victim: Demand) -> bool:
        """Whether `demands`, decided together, of a tenant with this `policy`, may stop `victim` in this way.

        Asked of what is preemptible: of the same tenant WITHIN_TENANT, else the others, which count only for a workload
        whose tenant has borrowed, and BORROW only where RECLAIM is allowed, too.
        """


class EvictionCost(Protocol):
    """What is lost when a workload is stopped."""

    def of(self, victim: Admit, *, moves: bool) -> float:
        """The cost, in any unit, at least 0. `moves`: it would get another place at once."""


@dataclass(frozen=True, slots=True)
class PriorityThenFairShare:
    """By priority, then fair share, then age."""

    fair_share: bool = True

    def rank(self, demand: Demand) -> tuple[int, float]:
        """See `Ordering`."""
        return (-demand.priority, demand.created)


@dataclass(frozen=True, slots=True)
class AsTenantsSay:
    """By priority and age, as `Tenant.spec.preemption` says."""

    def allows(self, way: Way, policy: PreemptionPolicy, demands: Sequence[Demand], victim: Demand) -> bool:
        """See `VictimPolicy`. A group has the priority and the age of its last member."""
        mine, theirs = min(demand.priority for demand in demands), victim.priority
        if way is Way.WITHIN_TENANT:
            newer = victim.created > max(demand.created for demand in demands)
            return policy.within_tenant.allows(mine, theirs, newer=newer)
        if way is Way.RECLAIM:
            return policy.reclaim_within_cohort.allows(mine, theirs)
        if way is Way.FAIR_SHARE:
            return policy.fair_share_within_cohort.allows(mine, theirs)
        borrow = policy.borrow_within_cohort
        return borrow is not None and borrow.allows(mine, theirs)


@dataclass(frozen=True, slots=True)
class WorkLost:
    """GPU-seconds that are lost: the work since the last checkpoint, the time to start again, and that for which it
    waits where no other place is free (nobody knows how long: `waiting`). All times in seconds.
    """

    restart: Mapping[Runtime, float] = field(default_factory=lambda: {Runtime.VM: 120.0, Runtime.POD: 30.0})
    waiting: float = 3600.0

    def of(self, victim: Admit, *, moves: bool) -> float:
        """See `EvictionCost`."""
        parts = sum(grant.parts for grant in victim.placement.grants) if victim.placement else 0
        seconds = victim.tenure.work + self.restart.get(victim.demand.runtime, 0.0)
        return parts / PARTS_PER_GPU * (seconds + (0.0 if moves else self.waiting))


@dataclass(frozen=True, slots=True)
class Policies:
    """All that can be replaced; what is not named is the engine's own."""

    ordering: Ordering = field(default_factory=PriorityThenFairShare)
    victims: VictimPolicy = field(default_factory=AsTenantsSay)
    cost: EvictionCost = field(default_factory=WorkLost)


DEFAULT = Policies()
"""What the controller decides by."""
