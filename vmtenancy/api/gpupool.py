"""`GpuPool`: physical supply. Quota is given in GPUs of a pool, in whatever form they are sold."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vmtenancy.api.common import AGE, ApiModel, GpuAmount, Items, Kind, PrinterColumn, Status, Text
from vmtenancy.api.quantity import Quantity

ProductName = Annotated[
    str, Text(r"^[A-Za-z0-9][-A-Za-z0-9_. /]*$", 63, "a product name, for example NVIDIA-H100-80GB-HBM3")
]
LabelValue = Annotated[
    str, Text(r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", 63, "a label value of at most 63 characters")
]


class PoolSelector(ApiModel):
    """Which GPUs belong to a pool: those that every part given here matches; with no part, all."""

    products: Annotated[tuple[ProductName, ...], Items(most=32, unique=True)] = Field(
        default=(), description="Any of these products, as nodes report them; empty: any product."
    )
    min_memory: Quantity | None = Field(default=None, description="At least this much memory in each GPU.")
    node_labels: dict[str, LabelValue] = Field(
        default_factory=dict, max_length=32, description="Labels that the GPU's node carries."
    )


class GpuPoolSpec(ApiModel):
    """What supply the pool is."""

    selector: PoolSelector = Field(description="The GPUs of the pool.")


class GpuPoolStatus(Status):
    """The supply as seen."""

    gpus: Annotated[int, Field(ge=0)] = Field(default=0, description="GPUs that match the selector.")
    allocatable: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Of these, the healthy ones that are not cordoned."
    )
    allocated: GpuAmount = Field(default="0", description="GPUs granted, parts included.")


class GpuPool(Kind):
    """Physical supply: the GPUs that a selector matches."""

    plural: ClassVar = "gpupools"
    short_name: ClassVar = "gpool"
    columns: ClassVar = (
        PrinterColumn(name="GPUs", json_path=".status.gpus", type="integer"),
        PrinterColumn(name="Allocatable", json_path=".status.allocatable", type="integer"),
        PrinterColumn(name="Allocated", json_path=".status.allocated"),
        AGE,
    )

    kind: Literal["GpuPool"] = "GpuPool"
    spec: GpuPoolSpec
    status: GpuPoolStatus = GpuPoolStatus()
