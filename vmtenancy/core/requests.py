"""What is asked of the engine and what it answers: demands, admissions, and why a demand waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmtenancy.core.explain.refusal import Reason
from vmtenancy.core.explain.shortage import Shortage
from vmtenancy.core.fleet.model import Placement, Runtime
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
    runtime uses may draw on it.

    Raises VmtError for a class that is named twice or a count that is too small.
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
        if problems:
            raise VmtError.of(problems)


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
    virtual cluster's hold. `borrowed` is the part of it above the tenant's nominal quota. `tenure` is read of live
    grants only.
    """

    demand: Demand
    placement: Placement | None
    charged: Mapping[str, int] = field(default_factory=dict)
    borrowed: Mapping[str, int] = field(default_factory=dict)
    tenure: Tenure = _UNKNOWN


@dataclass(frozen=True, slots=True)
class Wait:
    """The demand waits. `position` counts from 1 among the demands that wait for its pools; 0: in no
    queue. `victims` are the keys of live grants that have to be stopped for it now. From `stops_from` on (seconds)
    others could be stopped for it, who have not run for their least time yet; None: nobody.
    """

    demand: Demand
    reason: Reason
    message: str
    problem: Problem
    position: int
    shortage: Shortage | None = None
    victims: tuple[str, ...] = ()
    stops_from: float | None = None


Decision = Admit | Wait
