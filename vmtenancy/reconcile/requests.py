"""Requests as they wait: put as demands, or why they can not be."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmtenancy.core.requests import Demand
from vmtenancy.reconcile.steps import Object


@dataclass(frozen=True, slots=True)
class Asked:
    """One waiting request: `owner` is the GpuVM, VirtualCluster or Pod; `hold` the allocation of a pod's parent."""

    owner: Object
    demand: Demand
    hold: str = ""


@dataclass(frozen=True, slots=True)
class Unclear:
    """A request that can not even be put as a demand; `reason` and `message` go into its condition."""

    owner: Object
    reason: str
    message: str


@dataclass(slots=True)
class Requests:
    """All waiting requests by the key of their demand, and those that are not clear by the uid of their owner."""

    asked: dict[str, Asked] = field(default_factory=dict)
    unclear: dict[str, Unclear] = field(default_factory=dict)
