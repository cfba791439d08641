"""`Tenant`: who may hold how many GPUs, and which namespaces are theirs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vmtenancy.api.cohort import FairShare, Gpus, PoolQuota, ResourceQuota
from vmtenancy.api.common import (
    AGE,
    ApiModel,
    DnsLabel,
    GpuAmount,
    Items,
    Kind,
    ObjectName,
    PrinterColumn,
    Rule,
    Share,
    Status,
    digits_of,
)
from vmtenancy.api.gpuvm import Priority
from vmtenancy.api.lease import Duration, TenantLeases
from vmtenancy.api.quantity import Amount, parse_quantity


class ClassLimit(ApiModel):
    """A cap on one class."""

    name: ObjectName = Field(description="The GpuClass.")
    limit: Gpus = Field(description="At most this many units of the class at a time.")


class TenantQuota(PoolQuota):
    """A tenant's quota in one pool, in whole GPUs."""

    classes: Annotated[tuple[ClassLimit, ...], Items(most=64, keys=("name",))] = Field(
        default=(), description="Caps on classes of the pool; a class that is not listed has none of its own."
    )
    rules: ClassVar = (
        Rule(
            cel="!has(self.lendingLimit) || self.lendingLimit <= self.nominal",
            holds=lambda self: self.lending_limit is None or self.lending_limit <= self.nominal,
            expected="at most nominal: only what is its own can be lent",
            field="lendingLimit",
            found=digits_of("self.lendingLimit", 7),
        ),
    )


class TenantResourceQuota(ResourceQuota):
    """A tenant's quota of cpu, memory or storage: of what has GPUs."""

    rules: ClassVar = (
        Rule(
            cel="!has(self.lendingLimit) || "
            "quantity(string(self.lendingLimit)).compareTo(quantity(string(self.nominal))) <= 0",
            holds=lambda self: (
                self.lending_limit is None
                or parse_quantity(self.lending_limit) <= parse_quantity(self.nominal)
            ),
            expected="at most nominal: only what is its own can be lent",
            field="lendingLimit",
            found="string(self.lendingLimit)",
        ),
    )


class BorrowWithinCohort(ApiModel):
    """Whether a request that would borrow may stop what others have borrowed."""

    policy: Literal["Never", "LowerPriority"] = Field(
        default="Never", description="Which workloads, of those that `reclaimWithinCohort` allows."
    )
    max_priority_threshold: Priority | None = Field(
        default=None, description="Only workloads of at most this priority; unset: of any that is lower."
    )
    rules: ClassVar = (
        Rule(
            cel="!has(self.maxPriorityThreshold) || self.policy != 'Never'",
            holds=lambda self: self.max_priority_threshold is None or self.policy != "Never",
            expected="none with the policy Never",
            field="maxPriorityThreshold",
        ),
    )


class MinRunTime(ApiModel):
    """For how long, from when they got their GPUs, workloads of the tenant are not stopped to make room."""

    within_tenant: Duration | None = Field(
        default=None, description="For requests of the tenant itself; unset: they may be at any time."
    )
    within_cohort: Duration | None = Field(
        default=None, description="For requests of other tenants; unset: they may be at any time."
    )


class Preemption(ApiModel):
    """Which workloads are stopped, gracefully, to make room for a request of the tenant that does not fit.

    What a VirtualCluster is guaranteed, and what its pods draw on that, is never taken. The names are Kueue's.
    """

    within_tenant: Literal["Never", "LowerPriority", "LowerOrNewerEqualPriority"] = Field(
        default="Never",
        description="Workloads of the tenant itself; those of equal priority only if they were made later.",
    )
    reclaim_within_cohort: Literal["Never", "LowerPriority", "Any"] = Field(
        default="Never",
        description="Workloads of tenants that have borrowed, as long as this one stays within its nominal quota.",
    )
    borrow_within_cohort: BorrowWithinCohort = Field(
        default=BorrowWithinCohort(),
        description="Workloads of tenants that have borrowed, even if this one borrows itself then.",
    )
    fair_share_within_cohort: Literal["Never", "LowerPriority", "LowerOrEqualPriority"] = Field(
        default="Never",
        description="Workloads of tenants that have borrowed more by their weights, where shares are fairer "
        "afterwards, even if this one borrows itself then.",
    )
    min_run_time: MinRunTime = Field(
        default=MinRunTime(), description="For how long the tenant's own workloads are left alone."
    )
    notice: Duration | None = Field(
        default=None,
        description="How long before they are stopped the tenant's own workloads are told so; unset: they are stopped "
        "at once, with the grace period of their pods.",
    )
    rules: ClassVar = (
        Rule(
            cel="!has(self.borrowWithinCohort) || self.borrowWithinCohort.policy == 'Never' "
            "|| self.reclaimWithinCohort != 'Never'",
            holds=lambda self: (
                self.borrow_within_cohort.policy == "Never" or self.reclaim_within_cohort != "Never"
            ),
            expected="Never where reclaimWithinCohort is Never: who takes nothing back takes nothing to borrow it",
            field="borrowWithinCohort.policy",
            found="self.borrowWithinCohort.policy",
        ),
    )


class ClassFungibility(ApiModel):
    """When the next class is tried for a GpuVM that names alternatives, as by Kueue's flavorFungibility.

    A class that has room without borrowing and without stopping others is always taken at once. Of all classes that
    were tried, one that has room is taken before one for which others are stopped.
    """

    when_can_borrow: Literal["Borrow", "TryNextClass"] = Field(
        default="Borrow",
        description="Of a class that has room if it borrows: take it, or try the next first.",
    )
    when_can_preempt: Literal["Preempt", "TryNextClass"] = Field(
        default="TryNextClass",
        description="Of a class that has room once others have ended: wait for it, or try the next first.",
    )


class TenantSpec(ApiModel):
    """Namespaces and quota."""

    namespaces: Annotated[tuple[DnsLabel, ...], Items(most=64, least=1, unique=True)] = Field(
        description="Namespaces of the tenant; missing ones are made. A namespace has one tenant."
    )
    cohort: ObjectName | None = Field(
        default=None, description="The Cohort that it borrows from and lends to."
    )
    quota: Annotated[tuple[TenantQuota, ...], Items(most=64, keys=("pool",))] = Field(
        default=(), description="Quota per pool; none in a pool that is not listed."
    )
    resources: Annotated[tuple[TenantResourceQuota, ...], Items(most=3, keys=("name",))] = Field(
        default=(),
        description="Quota of cpu, memory and storage for what has GPUs; no limit of a resource that is not listed.",
    )
    preemption: Preemption = Field(
        default=Preemption(), description="What may be stopped to make room for its requests."
    )
    class_fungibility: ClassFungibility = Field(
        default=ClassFungibility(),
        description="Which of several classes its GpuVMs get that name alternatives.",
    )
    leases: TenantLeases = Field(
        default=TenantLeases(), description="For how long its GpuVMs and VirtualClusters have their GPUs."
    )
    fair_share: FairShare = Field(
        default=FairShare(), description="Its place among the other members of its cohort."
    )


class PoolUsage(ApiModel):
    """What a tenant holds in one pool."""

    pool: ObjectName = Field(description="The GpuPool.")
    allocated: GpuAmount = Field(description="GPUs held, parts included.")
    nominal: Gpus = Field(description="GPUs of its own.")
    borrowed: GpuAmount = Field(default="0", description="Of the GPUs held, those above nominal.")


class ResourceUsage(ApiModel):
    """What a tenant holds of one resource."""

    name: Literal["cpu", "memory", "storage"] = Field(description="The resource.")
    used: Amount = Field(description="How much it holds.")
    nominal: Amount = Field(description="How much is its own.")
    borrowed: Amount = Field(default=Amount("0"), description="Of what it holds, the part above nominal.")


class TenantStatus(Status):
    """Whether the tenant is set up, and what it holds.

    Condition `Ready`; reasons `NamespaceTaken`, `PoolNotFound`, `ClassNotFound`, `CohortNotFound`.
    """

    usage: Annotated[tuple[PoolUsage, ...], Items(most=64, keys=("pool",))] = Field(
        default=(), description="What it holds, per pool."
    )
    resources: Annotated[tuple[ResourceUsage, ...], Items(most=3, keys=("name",))] = Field(
        default=(), description="What it holds of the resources that it is limited in."
    )
    fair_share: Share | None = Field(
        default=None,
        description="Its dominant share, by its weight: what it has borrowed of all that its cohort could give it, in "
        "the pool or resource where that is the most. Whoever has less goes first.",
    )


class Tenant(Kind):
    """A team or customer: its namespaces and its quota."""

    plural: ClassVar = "tenants"
    short_name: ClassVar = "gtenant"
    name_is_label: ClassVar = True
    columns: ClassVar = (
        PrinterColumn(name="Cohort", json_path=".spec.cohort"),
        PrinterColumn(name="Allocated", json_path=".status.usage[0].allocated"),
        PrinterColumn(name="Ready", json_path='.status.conditions[?(@.type=="Ready")].status'),
        AGE,
    )

    kind: Literal["Tenant"] = "Tenant"
    spec: TenantSpec
    status: TenantStatus = TenantStatus()
