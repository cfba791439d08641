"""`GpuGroup`: machines and pods that are admitted together or not at all."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vmtenancy.api.common import AGE, ApiModel, FreeText, Kind, PrinterColumn, Status

Members = Annotated[int, Field(ge=2, le=256)]


class GpuGroupSpec(ApiModel):
    """How many belong to it.

    GpuVMs join by `spec.group`, pods by the annotation `vmtenancy.io/group`; pods of a VirtualCluster join a group in
    the namespace of that.
    """

    members: Members = Field(
        description="So many have to be there; then all of them are admitted at once, or none."
    )


class GpuGroupStatus(Status):
    """How far it is. Condition `Admitted`; reasons `GroupIncomplete`, or why its members wait."""

    members: Annotated[int, Field(ge=0)] = Field(default=0, description="Members that are there.")
    admitted: Annotated[int, Field(ge=0)] = Field(default=0, description="Members that have their GPUs.")
    message: FreeText | None = Field(default=None, description="What it waits for.")


class GpuGroup(Kind):
    """All or nothing: its members get their GPUs at once, or none of them does."""

    plural: ClassVar = "gpugroups"
    short_name: ClassVar = "ggroup"
    namespaced: ClassVar = True
    name_is_label: ClassVar = True
    columns: ClassVar = (
        PrinterColumn(name="Wanted", json_path=".spec.members", type="integer"),
        PrinterColumn(name="Members", json_path=".status.members", type="integer"),
        PrinterColumn(name="Admitted", json_path=".status.admitted", type="integer"),
        AGE,
        PrinterColumn(name="Message", json_path=".status.message", priority=1),
    )

    kind: Literal["GpuGroup"] = "GpuGroup"
    spec: GpuGroupSpec
    status: GpuGroupStatus = GpuGroupStatus()
