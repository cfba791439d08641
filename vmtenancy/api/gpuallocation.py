"""`GpuAllocation`: the record of one grant; nothing until the ledger's head has committed its name."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vmtenancy.api.common import (
    AGE,
    ApiModel,
    DeviceId,
    DnsLabel,
    DnsSubdomain,
    FreeText,
    Generation,
    Items,
    Kind,
    ObjectName,
    PrinterColumn,
    Reason,
    ResourceName,
    Rule,
    Timestamp,
    Uid,
)
from vmtenancy.api.gpunode import NodeMode
from vmtenancy.api.gpurequest import GrantedGpus
from vmtenancy.api.quantity import Quantity


class Owner(ApiModel):
    """Whom the grant is for."""

    kind: Literal["GpuVM", "VirtualCluster", "GpuReservation", "Pod"] = Field(description="Its kind.")
    namespace: DnsLabel = Field(description="Its namespace.")
    name: DnsSubdomain = Field(description="Its name.")
    uid: Uid = Field(description="Its uid: an object made anew under the same name holds nothing.")


class Grant(ApiModel):
    """Units of one class."""

    class_: ObjectName = Field(alias="class", description="The GpuClass.")
    pool: ObjectName = Field(description="The GpuPool that is charged.")
    count: Annotated[int, Field(ge=1, le=4096)] = Field(description="Units of the class.")
    mode: NodeMode = Field(description="The node mode that delivers it.")
    resource: ResourceName = Field(description="The extended resource that delivers it.")
    devices: Annotated[tuple[DeviceId, ...], Items(most=4096)] = Field(
        default=(), description="The devices, one per unit; empty for a hold."
    )
    parts: Annotated[int, Field(ge=0)] = Field(description="Parts charged to the pool; 10080 are one GPU.")


class GpuAllocationSpec(ApiModel):
    """The grant; it never changes."""

    ledger: ObjectName = Field(description="The GpuLedger that commits it.")
    epoch: Annotated[int, Field(ge=0)] = Field(description="Epoch of the controller that wrote it.")
    owner: Owner = Field(description="Whom the grant is for.")
    tenant: DnsLabel = Field(description="The Tenant that is charged.")
    parent: DnsSubdomain | None = Field(
        default=None,
        description="The hold that it draws on: of the VirtualCluster of a pod, or the GpuReservation of a GpuVM.",
    )
    node: Annotated[str, Field(max_length=253)] = Field(
        default="", description="The node that has the devices; empty: a hold, which charges quota alone."
    )
    grants: Annotated[tuple[Grant, ...], Items(most=8, least=1, keys=("class",))] = Field(
        description="What is granted, per class."
    )
    cpu: Quantity | None = Field(
        default=None, description="Processor that it takes of the node, as it was asked for then."
    )
    memory: Quantity | None = Field(
        default=None, description="Memory that it takes of the node, as it was asked for then."
    )
    storage: Quantity | None = Field(
        default=None,
        description="Size of its volumes, as it was asked for then; set where its tenant's storage is limited.",
    )
    preemptible: bool = Field(
        default=True, description="Whether it may be taken back to make room, as its owner said then."
    )
    promised_at: Timestamp | None = Field(
        default=None,
        description="When others were stopped for it, if they were: its place counts from then on.",
    )
    rules: ClassVar = (
        Rule(
            cel="self == oldSelf",
            holds=None,
            expected="no change: a grant is replaced by another, never edited",
            found="'a changed spec'",
        ),
    )


class Promised(GrantedGpus):
    """What a request gets for which this grant is taken back."""

    request: FreeText = Field(description="The request, by kind, namespace and name.")


class Revoked(ApiModel):
    """Why a grant is taken back before its owner gave it up."""

    reason: Reason = Field(description="Why, as one word for programs.")
    message: FreeText = Field(default="", description="Why, as a sentence for people.")
    at: Timestamp = Field(description="When.")
    pod_uid: Uid | None = Field(
        default=None,
        alias="podUID",
        description="A pod that may still bind: only once it is gone the grant is taken back.",
    )
    since: Timestamp | None = Field(
        default=None,
        description="From then on it is taken back; until then its owner may save its work. Unset: at once.",
    )
    preemptor: FreeText | None = Field(
        default=None, description="The request that it makes room for, by kind, namespace and name."
    )
    promised: Annotated[tuple[Promised, ...], Items(most=2048, keys=("request", "class"))] = Field(
        default=(),
        description="What that one, and the others of its group, get where they would do with more than one thing.",
    )


class GpuAllocationStatus(ApiModel):
    """What became of the grant."""

    sequence: Generation | None = Field(
        default=None, description="The commit of the ledger that made it live."
    )
    pod_uids: Annotated[tuple[Uid, ...], Items(most=64, unique=True)] = Field(
        default=(), alias="podUIDs", description="Pods that were let through the gate with it."
    )
    let_go_at: Timestamp | None = Field(
        default=None, description="When the last of these pods was; from then on it has to bind in time."
    )
    revoked: Revoked | None = Field(default=None, description="Set when the grant is taken back.")


class GpuAllocation(Kind):
    """The record of one grant; written by the controller alone."""

    plural: ClassVar = "gpuallocations"
    short_name: ClassVar = "galloc"
    name_length: ClassVar = 253
    columns: ClassVar = (
        PrinterColumn(name="Tenant", json_path=".spec.tenant"),
        PrinterColumn(name="Kind", json_path=".spec.owner.kind"),
        PrinterColumn(name="Namespace", json_path=".spec.owner.namespace"),
        PrinterColumn(name="Owner", json_path=".spec.owner.name"),
        PrinterColumn(name="Node", json_path=".spec.node"),
        PrinterColumn(name="Class", json_path=".spec.grants[0].class"),
        PrinterColumn(name="Count", json_path=".spec.grants[0].count", type="integer"),
        AGE,
    )

    kind: Literal["GpuAllocation"] = "GpuAllocation"
    spec: GpuAllocationSpec
    status: GpuAllocationStatus = GpuAllocationStatus()
