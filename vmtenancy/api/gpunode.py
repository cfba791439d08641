"""`GpuNode`: what the agent saw on one node, and what is wanted of it. Named as its node."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vmtenancy.api.common import AGE, ApiModel, Items, Kind, PciAddress, PrinterColumn, Status, Uid
from vmtenancy.api.gpupool import ProductName
from vmtenancy.api.quantity import Quantity

#: What the GPUs of a node are for: the values of NVIDIA's node label `nvidia.com/gpu.workload.config`.
NodeMode = Literal["container", "vm-passthrough", "vm-vgpu"]


class GpuNodeSpec(ApiModel):
    """What is wanted of the node."""

    cordoned_devices: Annotated[tuple[PciAddress, ...], Items(most=64, unique=True)] = Field(
        default=(), description="GPUs that get no new grants; what runs on them stays."
    )


class ObservedGpu(ApiModel):
    """One GPU as seen."""

    pci_address: PciAddress = Field(description="Its identity on the node.")
    uuid: Uid | None = Field(default=None, description="As NVML reports it; unknown while bound to vfio-pci.")
    product: ProductName = Field(description="For example NVIDIA-H100-80GB-HBM3.")
    memory: Quantity = Field(description="Memory of the GPU.")
    healthy: bool = Field(description="False: it gets no grants.")


class GpuNodeStatus(Status):
    """What the agent saw; written by the agent alone."""

    gpus: Annotated[tuple[ObservedGpu, ...], Items(most=64, keys=("pciAddress",))] = Field(
        default=(), description="The GPUs of the node."
    )
    mode: Literal["container", "vm-passthrough", "vm-vgpu", ""] = Field(
        default="", description="What they are set up for; empty: not known."
    )


class GpuNode(Kind):
    """The GPUs of one node."""

    plural: ClassVar = "gpunodes"
    short_name: ClassVar = "gnode"
    name_length: ClassVar = 253
    columns: ClassVar = (
        PrinterColumn(name="Mode", json_path=".status.mode"),
        PrinterColumn(name="Product", json_path=".status.gpus[0].product"),
        AGE,
    )

    kind: Literal["GpuNode"] = "GpuNode"
    spec: GpuNodeSpec = GpuNodeSpec()
    status: GpuNodeStatus = GpuNodeStatus()
