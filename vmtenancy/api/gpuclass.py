"""`GpuClass`: what tenants ask for: which pool it consumes, how much of a GPU, how it is delivered."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from vmtenancy.api.common import (
    AGE,
    ApiModel,
    Kind,
    ObjectName,
    PrinterColumn,
    ResourceName,
    Rule,
    Status,
    Text,
)
from vmtenancy.api.names import GPU_RESOURCE_PREFIXES

#: Shares are counted in integer parts of a GPU, so that sums are exact. Divisible by 1 to 10, 12, 14 to 16,
#: 20, 21, 24, 28, 32, 35, 48: the denominators that MIG profiles, vGPU types and time-slicing give rise to.
PARTS_PER_GPU: Final = 10080

Share = Annotated[
    str, Text(r"^(1|[1-9][0-9]{0,4}/[1-9][0-9]{0,4})$", 11, 'a share of a GPU: "1", "1/4", "3/7"')
]


def share_parts(share: str) -> int | None:
    """Integer parts of `PARTS_PER_GPU` that `share` is; None where it is above 1 or not exact."""
    numerator, _, denominator = share.partition("/")
    num, den = int(numerator), int(denominator or 1)
    if num > den or PARTS_PER_GPU % den:
        return None
    return num * (PARTS_PER_GPU // den)


_PREFIXES = ", ".join(GPU_RESOURCE_PREFIXES)
_STARTS = " || ".join(f"self.resource.startsWith('{prefix}')" for prefix in GPU_RESOURCE_PREFIXES)


class Delivery(ApiModel):
    """How the class reaches one kind of workload."""

    resource: ResourceName = Field(
        description="Extended resource of the device plugin; for virtual machines the KubeVirt device too."
    )
    # The gate holds pods by the prefixes of what they ask for: a class outside of them would not be held.
    rules: ClassVar = (
        Rule(
            cel=_STARTS,
            holds=lambda self: self.resource.startswith(GPU_RESOURCE_PREFIXES),
            expected=f"a resource that starts with one of {_PREFIXES}: only these are gated",
            field="resource",
            found="self.resource",
        ),
    )


class Deliveries(ApiModel):
    """The ways in which a class can be delivered."""

    container: Delivery | None = Field(default=None, description="To pods, on nodes in container mode.")
    passthrough: Delivery | None = Field(
        default=None, description="To virtual machines as a whole GPU, on nodes in vm-passthrough mode."
    )
    vgpu: Delivery | None = Field(
        default=None, description="To virtual machines as a vGPU, on nodes in vm-vgpu mode."
    )
    rules: ClassVar = (
        Rule(
            cel="has(self.container) || has(self.passthrough) || has(self.vgpu)",
            holds=lambda self: any((self.container, self.passthrough, self.vgpu)),
            expected="at least one of container, passthrough, vgpu",
            found="'none of them'",
        ),
        Rule(
            cel="!(has(self.passthrough) && has(self.vgpu))",
            holds=lambda self: not (self.passthrough and self.vgpu),
            expected="at most one of passthrough and vgpu: a virtual machine gets a class in one way",
            found="'both'",
        ),
    )


class GpuClassSpec(ApiModel):
    """What one unit of the class is."""

    pool: ObjectName = Field(description="The GpuPool whose GPUs it consumes.")
    share: Share = Field(
        default="1",
        description=f"How much of a GPU one unit takes; the denominator divides {PARTS_PER_GPU}.",
    )
    delivery: Deliveries = Field(description="How it is delivered, per kind of workload.")
    rules: ClassVar = (
        Rule(
            cel=(
                "self.share == '1' || !self.share.matches('^[0-9]+/[0-9]+$') || "
                f"({PARTS_PER_GPU} % int(self.share.split('/')[1]) == 0 && "
                "int(self.share.split('/')[0]) <= int(self.share.split('/')[1]))"
            ),
            holds=lambda self: share_parts(self.share) is not None,
            expected=f"a share of at most 1 whose denominator divides {PARTS_PER_GPU}, for example 1/4",
            field="share",
            found="self.share",
        ),
        Rule(
            cel="!has(self.delivery.passthrough) || self.share == '1'",
            holds=lambda self: self.delivery.passthrough is None or self.share == "1",
            expected='share "1": passthrough hands over a whole GPU',
            field="share",
            found="self.share",
        ),
    )

    @property
    def parts(self) -> int:
        """Integer parts of `PARTS_PER_GPU` that one unit takes."""
        parts = share_parts(self.share)
        assert parts is not None  # noqa: S101 (the rule above)
        return parts


class GpuClassStatus(Status):
    """Whether the class can be granted. Condition `Ready`; reason `PoolNotFound`."""


class GpuClass(Kind):
    """An offering: what tenants ask for, and what it costs of which pool."""

    plural: ClassVar = "gpuclasses"
    short_name: ClassVar = "gclass"
    columns: ClassVar = (
        PrinterColumn(name="Pool", json_path=".spec.pool"),
        PrinterColumn(name="Share", json_path=".spec.share"),
        PrinterColumn(name="Ready", json_path='.status.conditions[?(@.type=="Ready")].status'),
        AGE,
    )

    kind: Literal["GpuClass"] = "GpuClass"
    spec: GpuClassSpec
    status: GpuClassStatus = GpuClassStatus()
