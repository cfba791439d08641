"""`VirtualCluster`: a tenant's own Kubernetes API (vCluster), with GPUs held for it and more when free."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from vmtenancy.api.common import (
    AGE,
    ApiModel,
    DnsLabel,
    FreeText,
    Items,
    Kind,
    ObjectName,
    PrinterColumn,
    Rule,
    Status,
    digits_of,
)
from vmtenancy.api.gpuvm import Priority
from vmtenancy.api.lease import Lease, LeaseStatus
from vmtenancy.api.overlay import Overlay, OwnedPath

_Units = Annotated[int, Field(ge=0, le=4096)]


class ElasticGpus(ApiModel):
    """GPUs of one class: held ones, and the most it can get."""

    class_: ObjectName = Field(alias="class", description="The GpuClass.")
    guaranteed: _Units = Field(default=0, description="Units held from creation on, used or not.")
    max: Annotated[int, Field(ge=1, le=4096)] = Field(
        description="The most units that its pods get at a time."
    )
    rules: ClassVar = (
        Rule(
            cel="!has(self.guaranteed) || self.max >= self.guaranteed",
            holds=lambda self: self.max >= self.guaranteed,
            expected="at least guaranteed",
            field="max",
            found=digits_of("self.max", 4),
        ),
    )


_BACKSTOP: Final = "it follows from spec.gpus"
_ISOLATION: Final = "it keeps tenants apart"
_RIGHTS: Final = "rights on the host are given by vmtenancy alone"
#: What would undo isolation, quota, or the way the kubeconfig is handed out.
OWNED_VALUES_PATHS: Final = (
    OwnedPath("exportKubeConfig", "object", "see status.kubeconfigSecret"),
    OwnedPath("policies.networkPolicy", "object", _ISOLATION),
    OwnedPath("policies.resourceQuota", "object", _BACKSTOP),
    OwnedPath("policies.limitRange", "object", _BACKSTOP),
    OwnedPath("sync.toHost.pods", "object", "every pod passes the gate"),
    OwnedPath("sync.toHost.namespaces", "object", _ISOLATION),
    OwnedPath("sync.fromHost", "object", _ISOLATION),
    OwnedPath("networking.replicateServices", "object", _ISOLATION),
    OwnedPath("rbac", "object", _RIGHTS),
    OwnedPath("controlPlane.advanced", "object", _RIGHTS),
    OwnedPath("controlPlane.hostPathMapper", "object", _ISOLATION),
    OwnedPath("controlPlane.statefulSet", "object", _ISOLATION),
    OwnedPath("plugins", "object", _RIGHTS),
    OwnedPath("integrations", "object", _RIGHTS),
    OwnedPath("experimental", "object", _RIGHTS),
)


class VirtualClusterSpec(ApiModel):
    """The virtual cluster that is wanted."""

    gpus: Annotated[tuple[ElasticGpus, ...], Items(most=8, least=1, keys=("class",))] = Field(
        description="Its GPUs, per class."
    )
    priority: Priority = Field(
        default=0, description="Higher goes first, among the waiting requests of all tenants."
    )
    lease: Lease | None = Field(
        default=None,
        description="For how long it has GPUs; then its pods with GPUs are stopped, until it is renewed.",
    )
    values: Annotated[dict[str, Any], Overlay(OWNED_VALUES_PATHS)] = Field(
        default_factory=dict,
        description="Overlay over the values of vCluster's chart, except for what vmtenancy sets.",
    )
    rules: ClassVar = (
        Rule(
            cel=(
                "self.gpus.size() == oldSelf.gpus.size() && self.gpus.all(g, "
                "oldSelf.gpus.exists(o, o.class == g.class && o.guaranteed == g.guaranteed))"
            ),
            holds=None,
            expected="the classes and guaranteed counts it was created with; max can change",
            field="gpus",
            found="'a change'",
        ),
    )


class ElasticUsage(ApiModel):
    """What it may have and has of one class."""

    class_: ObjectName = Field(alias="class", description="The GpuClass.")
    guaranteed: _Units = Field(description="Units held for it.")
    max: _Units = Field(description="The most units that its pods get.")
    used: _Units = Field(description="Units that its pods have now.")


class VirtualClusterStatus(Status):
    """Where it stands. Conditions `Admitted`, `Ready`, and with a lease `LeaseEnding`."""

    phase: Literal["Pending", "Provisioning", "Ready", "Degraded", "Deleting"] | None = Field(
        default=None, description="The stage of its life."
    )
    namespace: DnsLabel | None = Field(default=None, description="Its namespace on the host.")
    kubeconfig_secret: DnsLabel | None = Field(
        default=None, description="The Secret, in the namespace of this object, that has its kubeconfig."
    )
    gpus: Annotated[tuple[ElasticUsage, ...], Items(most=8, keys=("class",))] = Field(
        default=(), description="What it may have and has, per class."
    )
    lease: LeaseStatus | None = Field(default=None, description="Its lease.")
    queue_position: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Its place among what waits for the same pool; 1 is next."
    )
    message: FreeText | None = Field(default=None, description="What it waits for, or what is wrong.")


class VirtualCluster(Kind):
    """A virtual cluster with GPUs."""

    plural: ClassVar = "virtualclusters"
    short_name: ClassVar = "vcl"
    namespaced: ClassVar = True
    name_is_label: ClassVar = True
    columns: ClassVar = (
        PrinterColumn(name="Class", json_path=".spec.gpus[0].class"),
        PrinterColumn(name="Guaranteed", json_path=".spec.gpus[0].guaranteed", type="integer"),
        PrinterColumn(name="Max", json_path=".spec.gpus[0].max", type="integer"),
        PrinterColumn(name="Used", json_path=".status.gpus[0].used", type="integer"),
        PrinterColumn(name="Phase", json_path=".status.phase"),
        AGE,
        PrinterColumn(name="Expires", json_path=".status.lease.expiresAt", priority=1),
        PrinterColumn(name="Message", json_path=".status.message", priority=1),
    )

    kind: Literal["VirtualCluster"] = "VirtualCluster"
    spec: VirtualClusterSpec
    status: VirtualClusterStatus = VirtualClusterStatus()
