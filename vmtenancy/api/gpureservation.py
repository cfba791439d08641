"""`GpuReservation`: quota that is held for a window, now or in the future."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vmtenancy.api.common import AGE, ApiModel, FreeText, Kind, ObjectName, PrinterColumn, Rule, Status
from vmtenancy.api.lease import Instant, is_instant


def _is_a_time(field: str, name: str) -> Rule:
    return Rule(
        cel=f"!format.datetime().validate(self.{name}).hasValue()",
        holds=lambda self: is_instant(getattr(self, field)),
        expected="a day and a time that there are",
        field=name,
        found=f"self.{name}",
    )


class GpuReservationSpec(ApiModel):
    """What is held, and when. It never changes: a GpuReservation is replaced by another."""

    class_: ObjectName = Field(alias="class", description="The GpuClass.")
    count: Annotated[int, Field(ge=1, le=4096)] = Field(description="Units of it.")
    start: Instant = Field(description="From when on they are held; in the past: from now on.")
    end: Instant = Field(description="Until when; then what draws on them is stopped.")
    rules: ClassVar = (
        _is_a_time("start", "start"),
        _is_a_time("end", "end"),
        # Times of one form, in UTC: the later one is the greater text.
        Rule(
            cel="self.start < self.end",
            holds=lambda self: self.start < self.end,
            expected="after start",
            field="end",
            found="self.end",
        ),
        Rule(
            cel="self == oldSelf",
            holds=None,
            expected="no change: make another one, and delete this one",
            found="'a changed spec'",
        ),
    )


class GpuReservationStatus(Status):
    """Where it stands. Condition `Admitted`; reasons `Scheduled`, `ReservationConflict`, `Ended`, or why it waits."""

    phase: Literal["Scheduled", "Pending", "Active", "Ended"] | None = Field(
        default=None, description="The stage of its life."
    )
    used: Annotated[int, Field(ge=0)] = Field(default=0, description="Units that GpuVMs draw on it now.")
    message: FreeText | None = Field(default=None, description="What it waits for, or what is wrong.")


class GpuReservation(Kind):
    """Quota of a tenant that is held for a window: GpuVMs that name it draw on it, and nobody else."""

    plural: ClassVar = "gpureservations"
    short_name: ClassVar = "gres"
    namespaced: ClassVar = True
    name_is_label: ClassVar = True
    columns: ClassVar = (
        PrinterColumn(name="Class", json_path=".spec.class"),
        PrinterColumn(name="Count", json_path=".spec.count", type="integer"),
        PrinterColumn(name="Used", json_path=".status.used", type="integer"),
        PrinterColumn(name="Start", json_path=".spec.start"),
        PrinterColumn(name="End", json_path=".spec.end"),
        PrinterColumn(name="Phase", json_path=".status.phase"),
        AGE,
        PrinterColumn(name="Message", json_path=".status.message", priority=1),
    )

    kind: Literal["GpuReservation"] = "GpuReservation"
    spec: GpuReservationSpec
    status: GpuReservationStatus = GpuReservationStatus()
