"""What is asked of the engine and what it answers: demands, admissions, and why a demand waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vmtenancy.core.explain.refusal import Reason
from vmtenancy.core.explain.shortage import Shortage
from vmtenancy.core.fleet.model import Placement, Runtime
from vmtenancy.core.quota.resources import Resource
from vmtenancy.errors import Code, Problem, VmtError


@dataclass(frozen=True, slots=True)
class Demand:
    """One request for devices, admitted as a whole or not at all.

    `key` is unique among live grants and waiting demands, and shown to people (`GpuVM vision/trainer`).
    `requests` are units by class. `created` only orders (older first). cpu in millicores, memory in bytes. A
    HOLD asks for the guaranteed units of a virtual cluster (0 is allowed) and gives its `maximum` by class;
    its pods name it as `parent`. `allowed_nodes` restricts placement (a pod's own node selector); None: any
    node. `avoided_nodes` are taken only where no other node will do. Demands of one `group` are admitted
    together or not at all; `""`: alone. What is not `preemptible` is never stopped for others; with all of its tenant
    that is not, and what its virtual clusters are guaranteed, it stays within the tenant's nominal quota. `ends` is
    when it ends by itself (seconds), None: nobody knows. A HOLD of `quota_alone` keeps quota, and no devices; what any
    runtime uses may draw on it. `storage` (bytes) is what its volumes take that are not there yet: those that are, also
    of what does not run, are `volumes`. `alternatives` are, by class of `requests`, other classes that would do as
    well, in the order in which they are tried; `minimum`, by class of `requests`, the fewest units that will do.

    Raises VmtError for a class that is named twice, alternatives included, a count that is too small, and alternatives
    or a minimum of what is not requested.
    """

    key: str
    tenant: str
    runtime: Runtime
    requests: tuple[tuple[str, int], ...]
    priority: int = 0
    created: float = 0.0
    cpu: int = 0
    memory: int = 0
    parent: str | None = None
    maximum: tuple[tuple[str, int], ...] = ()
    allowed_nodes: frozenset[str] | None = None
    avoided_nodes: frozenset[str] = frozenset()
    group: str = ""
    preemptible: bool = True
    ends: float | None = None
    quota_alone: bool = False
    storage: int = 0
    alternatives: tuple[tuple[str, tuple[str, ...]], ...] = ()
    minimum: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        least = 0 if self.runtime is Runtime.HOLD else 1
        problems = [
            Problem(
                Code.INVALID_FIELD, f"spec.gpus[{i}].count", "is too small", str(count), f"at least {least}"
            )
            for i, (_, count) in enumerate(self.requests)
            if count < least
        ]
        if len({name for name, _ in self.requests}) < len(self.requests) or len(self.requests) < least:
            found = ", ".join(name for name, _ in self.requests) or "none"
            problems.append(Problem(Code.INVALID_FIELD, "spec.gpus", "must name classes, each once", found))
        if self.alternatives or self.minimum:
            problems += self._problems_of_options(least)
        if problems:
            raise VmtError.of(problems)

    @property
    def together(self) -> str:
        """One name for all that is decided together with it: of its group, or of itself alone."""
        return self.group or f"/{self.key}"

    def takes(self, resource: Resource) -> int:
        """How much it takes of a resource, in millicores or bytes."""
        match resource:
            case Resource.CPU:
                return self.cpu
            case Resource.MEMORY:
                return self.memory
            case Resource.STORAGE:
                return self.storage

    def _problems_of_options(self, least: int) -> Iterator[Problem]:
        counts = dict(self.requests)
        others = [name for _, names in self.alternatives for name in names]
        asked = [*(name for name, _ in self.alternatives), *(name for name, _ in self.minimum)]
        if unasked := ", ".join(name for name in asked if name not in counts):
            yield Problem(Code.INVALID_FIELD, "spec.gpus", "does not request the class", unasked)
        if len({*counts, *others}) < len(counts) + len(others):
            message = "must name classes, each once"
            yield Problem(Code.INVALID_FIELD, "spec.gpus.alternatives", message, ", ".join(others))
        for name, fewest in self.minimum:
            if not least <= fewest <= counts.get(name, fewest):
                expected = f"{least} to {counts.get(name, fewest)}"
                yield Problem(Code.INVALID_FIELD, "spec.gpus.minCount", "is no part", str(fewest), expected)


@dataclass(frozen=True, slots=True)
class Tenure:
    """What a live grant has behind it, for preemption; times in seconds, as `Demand.ends`.

    `since`: when it was granted, or was promised its place where that was before. `work`: seconds of work that would
    be lost if it were stopped now. Until `safe_within_tenant` and `safe_within_cohort` (None: no longer) requests of
    its own tenant, and of others, may not stop it.
    """

    since: float = 0.0
    work: float = 0.0
    safe_within_tenant: float | None = None
    safe_within_cohort: float | None = None


_UNKNOWN = Tenure()


@dataclass(frozen=True, slots=True)
class Admit:
    """The demand may go ahead. `placement` is None for a HOLD.

    `charged` is what this adds to the tenant's usage, in parts by pool: nothing for what a pod draws from its
    virtual cluster's hold; and by resource that the tenant is limited in. `borrowed` is the part of it above the
    tenant's nominal quota, and `reach` how far up its cohorts it borrows (as `QuotaTree.reach`). The demand's
    `requests` are what it was granted. `tenure` is read of live grants only.
    """

    demand: Demand
    placement: Placement | None
    charged: Mapping[str, int] = field(default_factory=dict)
    borrowed: Mapping[str, int] = field(default_factory=dict)
    reach: int = 0
    tenure: Tenure = _UNKNOWN


def volumes(key: str, tenant: str, storage: int) -> Admit:
    """What the volumes of the workload `key` are charged for as long as they exist, whether it runs or not."""
    return Admit(Demand(f"volumes of {key}", tenant, Runtime.HOLD, (), storage=storage), None)


@dataclass(frozen=True, slots=True)
class Wait:
    """The demand waits. `position` counts from 1 among the demands that wait for the same `pools` (or resources), in
    the longest of their queues; 0: in none. `victims` are the keys of live grants that have to be stopped for it now.
    `nominated` are the units by class that it gets once others have ended, where its demand leaves a choice. From
    `stops_from` on (seconds) others could be stopped for it, who have not run for their least time yet; None: nobody.
    """

    demand: Demand
    reason: Reason
    message: str
    problem: Problem
    position: int
    shortage: Shortage | None = None
    victims: tuple[str, ...] = ()
    nominated: tuple[tuple[str, int], ...] = ()
    stops_from: float | None = None
    pools: tuple[str, ...] = ()


Decision = Admit | Wait
