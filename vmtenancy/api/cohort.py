"""`Cohort`: a node of the quota tree. Members borrow what others of the cohort do not use."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vmtenancy.api.common import AGE, ApiModel, Items, Kind, ObjectName, PrinterColumn, Rule, Status
from vmtenancy.api.quantity import Amount

#: Whole GPUs.
Gpus = Annotated[int, Field(ge=0, le=1_000_000)]


class PoolQuota(ApiModel):
    """Quota in one pool, in whole GPUs."""

    pool: ObjectName = Field(description="The GpuPool.")
    nominal: Gpus = Field(description="GPUs that are its own.")
    borrowing_limit: Gpus | None = Field(
        default=None, description="At most this many more, from what others do not use; unset: no limit."
    )
    lending_limit: Gpus | None = Field(
        default=None, description="At most this many of its unused GPUs are lent to others; unset: no limit."
    )


class ResourceQuota(ApiModel):
    """Quota of cpu, memory or storage: of what has GPUs."""

    name: Literal["cpu", "memory", "storage"] = Field(description="The resource.")
    nominal: Amount = Field(description="How much is its own.")
    borrowing_limit: Amount | None = Field(
        default=None, description="At most this much more, from what others do not use; unset: no limit."
    )
    lending_limit: Amount | None = Field(
        default=None,
        description="At most this much of what it does not use is lent to others; unset: no limit.",
    )


class FairShare(ApiModel):
    """Whose turn it is, among requests of one priority, when several want to borrow."""

    weight: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1,
        description="It may borrow this many times what one of weight 1 has borrowed, before it comes after that one.",
    )


class CohortSpec(ApiModel):
    """Place in the tree, and quota of the cohort itself beside that of its members."""

    parent: ObjectName | None = Field(default=None, description="The cohort above; unset: a root.")
    quota: Annotated[tuple[PoolQuota, ...], Items(most=64, keys=("pool",))] = Field(
        default=(), description="Quota that any member may borrow, per pool."
    )
    resources: Annotated[tuple[ResourceQuota, ...], Items(most=3, keys=("name",))] = Field(
        default=(),
        description="Quota of cpu, memory and storage that any member which is limited in it may borrow.",
    )
    fair_share: FairShare = Field(
        default=FairShare(), description="Its place among the other members of the cohort above."
    )


class CohortStatus(Status):
    """Whether the cohort stands in a tree. Condition `Ready`; reasons `ParentNotFound`, `CohortCycle`."""


class Cohort(Kind):
    """A node of the quota tree."""

    plural: ClassVar = "cohorts"
    short_name: ClassVar = "gcohort"
    columns: ClassVar = (
        PrinterColumn(name="Parent", json_path=".spec.parent"),
        PrinterColumn(name="Ready", json_path='.status.conditions[?(@.type=="Ready")].status'),
        AGE,
    )
    rules: ClassVar = (
        Rule(
            cel="!has(self.spec.parent) || self.spec.parent != self.metadata.name",
            holds=lambda self: self.spec.parent != self.metadata.name,
            expected="another cohort: a cohort is not its own parent",
            field="spec.parent",
            found="self.spec.parent",
        ),
    )

    kind: Literal["Cohort"] = "Cohort"
    spec: CohortSpec = CohortSpec()
    status: CohortStatus = CohortStatus()
