"""One fleet for GPU virtual machines and virtual clusters.

The public API, for other controllers: describe a fleet and a quota tree, then ask what `decide` would admit,
where, and why the rest waits. Everything here is typed, pure and needs no cluster. Names are imported when
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmtenancy.api.gpuclass import PARTS_PER_GPU as PARTS_PER_GPU
    from vmtenancy.core.admission import decide as decide
    from vmtenancy.core.explain.change import Explanation as Explanation
    from vmtenancy.core.explain.change import Raised as Raised
    from vmtenancy.core.explain.change import explain as explain
    from vmtenancy.core.explain.start import Start as Start
    from vmtenancy.core.fleet.arrays import Fleet as Fleet
    from vmtenancy.core.fleet.model import DeviceFacts as DeviceFacts
    from vmtenancy.core.fleet.model import Mode as Mode
    from vmtenancy.core.fleet.model import NodeFacts as NodeFacts
    from vmtenancy.core.fleet.model import Offering as Offering
    from vmtenancy.core.fleet.model import Placement as Placement
    from vmtenancy.core.fleet.model import Pool as Pool
    from vmtenancy.core.fleet.model import Runtime as Runtime
    from vmtenancy.core.policies import EvictionCost as EvictionCost
    from vmtenancy.core.policies import Ordering as Ordering
    from vmtenancy.core.policies import Policies as Policies
    from vmtenancy.core.policies import VictimPolicy as VictimPolicy
    from vmtenancy.core.policies import Way as Way
    from vmtenancy.core.policies import WorkLost as WorkLost
    from vmtenancy.core.quota.policy import BorrowWithinCohort as BorrowWithinCohort
    from vmtenancy.core.quota.policy import PreemptionPolicy as PreemptionPolicy
    from vmtenancy.core.quota.policy import Preempts as Preempts
    from vmtenancy.core.quota.resources import Resource as Resource
    from vmtenancy.core.quota.tree import CohortQuota as CohortQuota
    from vmtenancy.core.quota.tree import PoolQuota as PoolQuota
    from vmtenancy.core.quota.tree import QuotaTree as QuotaTree
    from vmtenancy.core.quota.tree import ResourceQuota as ResourceQuota
    from vmtenancy.core.quota.tree import TenantQuota as TenantQuota
    from vmtenancy.core.requests import Admit as Admit
    from vmtenancy.core.requests import Demand as Demand
    from vmtenancy.core.requests import Tenure as Tenure
    from vmtenancy.core.requests import Wait as Wait
    from vmtenancy.core.requests import volumes as volumes
    from vmtenancy.errors import Problem as Problem
    from vmtenancy.errors import VmtError as VmtError

__version__ = "0.1.0"

_HOME = {
    "PARTS_PER_GPU": "vmtenancy.api.gpuclass",
    "decide": "vmtenancy.core.admission",
    **dict.fromkeys(("Admit", "Demand", "Tenure", "Wait", "volumes"), "vmtenancy.core.requests"),
    **dict.fromkeys(
        ("EvictionCost", "Ordering", "Policies", "VictimPolicy", "Way", "WorkLost"), "vmtenancy.core.policies"
    ),
    **dict.fromkeys(("BorrowWithinCohort", "PreemptionPolicy", "Preempts"), "vmtenancy.core.quota.policy"),
    **dict.fromkeys(("Explanation", "Raised", "explain"), "vmtenancy.core.explain.change"),
    "Start": "vmtenancy.core.explain.start",
    "Fleet": "vmtenancy.core.fleet.arrays",
    **dict.fromkeys(
        ("DeviceFacts", "Mode", "NodeFacts", "Offering", "Placement", "Pool", "Runtime"),
        "vmtenancy.core.fleet.model",
    ),
    "Resource": "vmtenancy.core.quota.resources",
    **dict.fromkeys(
        ("CohortQuota", "PoolQuota", "QuotaTree", "ResourceQuota", "TenantQuota"), "vmtenancy.core.quota.tree"
    ),
    **dict.fromkeys(("Problem", "VmtError"), "vmtenancy.errors"),
}

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604 (all of them are strings)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
