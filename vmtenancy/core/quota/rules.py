"""What quota is given: to tenants, and to the cohorts that they share in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmtenancy.api.gpuclass import PARTS_PER_GPU
from vmtenancy.core.quota.policy import DEFAULT_FUNGIBILITY, NOBODY, Fungibility, PreemptionPolicy
from vmtenancy.core.quota.resources import Resource
from vmtenancy.errors import Code, Problem, VmtError


@dataclass(frozen=True, slots=True)
class PoolQuota:
    """Quota in one pool, in whole GPUs; None: no limit. `classes` caps units by class (tenants only).

    Raises VmtError for a negative number.
    """

    pool: str
    nominal: int
    borrowing_limit: int | None = None
    lending_limit: int | None = None
    classes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limits = {
            "nominal": self.nominal,
            "borrowingLimit": self.borrowing_limit,
            "lendingLimit": self.lending_limit,
            **{f"classes[{name}].limit": limit for name, limit in self.classes.items()},
        }
        _refuse_negative(f"quota[{self.pool}]", limits)

    @property
    def column(self) -> str:
        """What it is called in the tree."""
        return self.pool

    @property
    def unit(self) -> int:
        """What the tree counts for 1."""
        return PARTS_PER_GPU


@dataclass(frozen=True, slots=True)
class ResourceQuota:
    """Quota of one resource: millicores or bytes; None: no limit.

    Raises VmtError for a negative number.
    """

    resource: Resource
    nominal: int
    borrowing_limit: int | None = None
    lending_limit: int | None = None

    def __post_init__(self) -> None:
        limits = {
            "nominal": self.nominal,
            "borrowingLimit": self.borrowing_limit,
            "lendingLimit": self.lending_limit,
        }
        _refuse_negative(f"resources[{self.resource.label}]", limits)

    @property
    def column(self) -> str:
        """What it is called in the tree."""
        return self.resource

    @property
    def unit(self) -> int:
        """What the tree counts for 1."""
        return 1


@dataclass(frozen=True, slots=True)
class TenantQuota:
    """A tenant: its cohort (None: it shares with nobody) and its quota by pool; no other pool is open to
    it. `preemption` is whom its requests may stop. Of what is borrowed it may have `weight` times as much as one of
    weight 1, before it comes after that one. It is not limited in a resource that `resources` do not name, and what it
    takes of that is charged to nobody. `fungibility` is which of several classes its requests get.

    Raises VmtError for a weight that is not above 0.
    """

    name: str
    cohort: str | None = None
    quota: tuple[PoolQuota, ...] = ()
    preemption: PreemptionPolicy = NOBODY
    weight: int = 1
    resources: tuple[ResourceQuota, ...] = ()
    fungibility: Fungibility = DEFAULT_FUNGIBILITY

    def __post_init__(self) -> None:
        _refuse_weight(self.name, self.weight)


@dataclass(frozen=True, slots=True)
class CohortQuota:
    """A cohort: its parent (None: a root) and quota of its own that its members share; `weight` as of a tenant."""

    name: str
    parent: str | None = None
    quota: tuple[PoolQuota, ...] = ()
    weight: int = 1
    resources: tuple[ResourceQuota, ...] = ()

    def __post_init__(self) -> None:
        _refuse_weight(self.name, self.weight)


def _refuse_negative(path: str, limits: Mapping[str, int | None]) -> None:
    bad = [
        Problem(Code.INVALID_FIELD, f"{path}.{name}", "is negative", str(value), "at least 0")
        for name, value in limits.items()
        if value is not None and value < 0
    ]
    if bad:
        raise VmtError.of(bad)


def _refuse_weight(name: str, weight: int) -> None:
    if weight < 1:
        raise VmtError(
            Problem(
                Code.INVALID_FIELD, f"{name}.fairShare.weight", "is not above 0", str(weight), "at least 1"
            )
        )
