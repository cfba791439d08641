"""Leases: for how long a workload has its GPUs, and what a tenant gives and allows."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, ClassVar, Final

from pydantic import Field

from vmtenancy.api.common import ApiModel, Items, Rule, Text, Timestamp

#: Go's durations (`time.ParseDuration`, CEL's `duration()`), whole seconds, each length in few ways and none of 0.
Duration = Annotated[
    str,
    Text(
        r"^([1-9][0-9]{0,4}h([1-5]?[0-9]m)?([1-5]?[0-9]s)?|[1-9][0-9]{0,5}m([1-5]?[0-9]s)?|[1-9][0-9]{0,6}s)$",
        16,
        "a time above 0 in hours, minutes and seconds, for example 8h, 90m or 1h30m",
    ),
]
_INSTANT: Final = r"^20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"
Instant = Annotated[
    str,
    Text(
        _INSTANT,
        20,
        "a time in UTC in whole seconds, for example 2026-01-02T03:04:05Z",
    ),
]
_UNITS: Final = {"h": 3600, "m": 60, "s": 1}


def seconds_of(duration: str) -> int:
    """A `Duration` in seconds: `"1h30m"` is 5400."""
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9]+)([hms])", duration))


def is_instant(text: str) -> bool:
    """Whether it is an `Instant`, and there is such a day and time."""
    if not re.fullmatch(_INSTANT, text):
        return False
    try:
        datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return False
    return True


class Lease(ApiModel):
    """For how long it has its GPUs. Its time counts from its admission, or from `renewedAt` where that is later."""

    duration: Duration | None = Field(
        default=None,
        description="How long; unset: as the Tenant's `leases` say, and if they do not, for ever.",
    )
    warn_before: Annotated[tuple[Duration, ...], Items(most=8, unique=True)] = Field(
        default=("1h", "10m"),
        description="A warning (an event, and the condition LeaseEnding) so long before the end; "
        "those not shorter than the lease are left out.",
    )
    renewed_at: Instant | None = Field(
        default=None, description="When it was renewed last; one that had ended by then waits for GPUs again."
    )
    rules: ClassVar = (
        Rule(
            cel="!has(self.renewedAt) || !format.datetime().validate(self.renewedAt).hasValue()",
            holds=lambda self: self.renewed_at is None or is_instant(self.renewed_at),
            expected="a day and a time that there are",
            field="renewedAt",
            found="self.renewedAt",
        ),
    )


class TenantLeases(ApiModel):
    """Leases of the tenant's GpuVMs and VirtualClusters."""

    default: Duration | None = Field(
        default=None, description="How long one is that names no duration; unset: `maximum`."
    )
    maximum: Duration | None = Field(
        default=None,
        description="The longest time for which GPUs are held without a break, renewed or not. "
        "What asks for more is not admitted.",
    )
    rules: ClassVar = (
        Rule(
            cel="!has(self.default) || !has(self.maximum) || duration(self.default) <= duration(self.maximum)",
            holds=lambda self: (
                self.default is None
                or self.maximum is None
                or seconds_of(self.default) <= seconds_of(self.maximum)
            ),
            expected="at most maximum",
            field="default",
            found="self.default",
        ),
    )


class LeaseStatus(ApiModel):
    """The lease that runs, or that has ended."""

    started_at: Timestamp = Field(description="When it was admitted, or got a lease.")
    expires_at: Timestamp = Field(description="When it is stopped, or was.")
