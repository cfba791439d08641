"""`GpuNode`: what the agent saw on one node, and what is wanted of it. Named as its node."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vmtenancy.api.common import (
    AGE,
    ApiModel,
    FreeText,
    Items,
    Kind,
    PciAddress,
    PrinterColumn,
    Reason,
    Status,
    Text,
    Timestamp,
    Uid,
)
from vmtenancy.api.gpupool import ProductName
from vmtenancy.api.quantity import Quantity

#: What the GPUs of a node are for: the values of NVIDIA's node label `nvidia.com/gpu.workload.config`.
NodeMode = Literal["container", "vm-passthrough", "vm-vgpu"]

MOST_GPUS = 64
DriverName = Annotated[
    str, Text(r"^[A-Za-z0-9][-A-Za-z0-9_]*$", 63, "the name of a kernel driver, for example vfio-pci")
]
Version = Annotated[str, Text(r"^[0-9A-Za-z][0-9A-Za-z.+_-]*$", 63, "a version, for example 570.86.15")]
#: As NVML and the vGPU manager name them: `1g.10gb+me`, `NVIDIA A40-8Q`.
TypeName = Annotated[str, Text(r"^[A-Za-z0-9][-A-Za-z0-9_.+ /]*$", 63, "a name, for example 1g.10gb")]
Small = Annotated[int, Field(ge=0, le=65535)]


class GpuNodeSpec(ApiModel):
    """What is wanted of the node."""

    cordoned_devices: Annotated[tuple[PciAddress, ...], Items(most=64, unique=True)] = Field(
        default=(), description="GPUs that get no new grants; what runs on them stays."
    )


class GpuTrouble(ApiModel):
    """One reason why a GPU is not healthy."""

    reason: Reason = Field(
        description="GpuLost, InvalidFacts, NoUsableDriver, NvmlSilent, ResetRequired, RetiredPagesPending, "
        "RowRemapFailure or XidError."
    )
    message: FreeText = Field(default="", description="The same for people.")


class MigProfile(ApiModel):
    """A GPU instance profile that the GPU offers."""

    name: TypeName = Field(description="For example 1g.10gb.")
    id: Small = Field(description="NVML's id of the profile.")
    most: Small = Field(description="How many such instances the GPU takes when it is empty.")
    size: Small = Field(default=0, description="Memory slices that one takes.")
    starts: Annotated[tuple[Small, ...], Items(most=16)] = Field(
        default=(), description="Memory slices at which one may start."
    )


class MigInstance(ApiModel):
    """A GPU instance that exists."""

    id: Small = Field(description="NVML's id of the GPU instance.")
    profile: TypeName = Field(description="Its profile.")
    start: Small = Field(description="Its first memory slice.")
    size: Small = Field(description="Memory slices that it takes.")
    uuids: Annotated[tuple[Uid, ...], Items(most=8)] = Field(
        default=(), description="Of the MIG devices (compute instances) on it."
    )


class GpuMig(ApiModel):
    """Multi-Instance GPU."""

    enabled: bool = Field(description="Whether the GPU is in MIG mode.")
    pending: bool = Field(description="Whether it will be after its next reset.")
    profiles: Annotated[tuple[MigProfile, ...], Items(most=32, keys=("id",))] = Field(
        default=(), description="What it can be split into."
    )
    instances: Annotated[tuple[MigInstance, ...], Items(most=16, keys=("id",))] = Field(
        default=(), description="What it is split into."
    )


class VgpuType(ApiModel):
    """A vGPU type of the GPU."""

    name: TypeName = Field(description="For example NVIDIA A40-8Q.")
    creatable: bool = Field(default=False, description="Whether one more can be made now.")
    active: Small = Field(default=0, description="How many exist.")


class VirtualFunctions(ApiModel):
    """SR-IOV."""

    total: Small = Field(description="How many the GPU can have.")
    enabled: Small = Field(description="How many there are.")


class PcieLink(ApiModel):
    """The link to the GPU. Its speed now is a metric: idle GPUs lower it."""

    width: Small | None = Field(default=None, description="Lanes in use.")
    max_width: Small | None = Field(default=None, description="Lanes that the GPU has.")
    max_speed: Annotated[str, Field(max_length=32)] = Field(
        default="", description="Of the GPU, for example 32.0 GT/s PCIe."
    )


class GpuFabric(ApiModel):
    """The GPU's place in an NVLink fabric that the Fabric Manager runs."""

    state: Literal["NotStarted", "InProgress", "Completed"] = Field(description="How far it is registered.")
    cluster: Uid | None = Field(default=None, description="uuid of the fabric; none on a single node.")
    clique: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = Field(
        default=None, description="GPUs of one clique reach each other over NVLink."
    )


class GpuPeer(ApiModel):
    """How one GPU reaches another of its node."""

    pci_address: PciAddress = Field(description="The other one.")
    ancestor: Literal["Internal", "Single", "Multiple", "HostBridge", "Node", "System", ""] = Field(
        default="",
        description="The closest that both hang on: one board, one PCIe switch, several, a host bridge, a NUMA node, "
        "the interconnect between them; empty: not known.",
    )
    nv_links: Small = Field(default=0, description="NVLinks between them, through switches too.")


class ObservedGpu(ApiModel):
    """One GPU as seen. What is not known is left out."""

    pci_address: PciAddress = Field(description="Its identity on the node.")
    uuid: Uid | None = Field(default=None, description="As NVML reports it; unknown while bound to vfio-pci.")
    serial: Uid | None = Field(default=None, description="Of the board.")
    product: ProductName = Field(description="For example NVIDIA-H100-80GB-HBM3.")
    pci_id: (
        Annotated[str, Text(r"^[0-9a-f]{4}:[0-9a-f]{4}$", 9, "vendor:device, for example 10de:2330")] | None
    ) = Field(
        default=None, description="PCI vendor and device, as KubeVirt's permittedHostDevices select by."
    )
    memory: Quantity | None = Field(default=None, description="Memory of the GPU.")
    architecture: (
        Annotated[str, Text(r"^[A-Z][A-Za-z0-9]*$", 32, "an architecture, for example Hopper")] | None
    ) = Field(default=None, description="For example Hopper.")
    compute_capability: Annotated[str, Text(r"^[0-9]{1,2}\.[0-9]$", 4, "for example 9.0")] | None = Field(
        default=None, description="For example 9.0."
    )
    healthy: bool = Field(description="False: it gets no grants.")
    reasons: Annotated[tuple[GpuTrouble, ...], Items(most=16, keys=("reason",))] = Field(
        default=(), description="Why it is not healthy."
    )
    nvml_seen_at: Timestamp | None = Field(
        default=None,
        description="Set where the facts that only NVML knows are kept from before: when it told them last.",
    )
    driver: DriverName | None = Field(default=None, description="The kernel driver that is bound to it.")
    numa_node: Small | None = Field(default=None, description="The NUMA node it hangs on.")
    module_id: Small | None = Field(default=None, description="Its place on the baseboard, as NVML counts.")
    iommu_group: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="What is in one group can only be passed through together."
    )
    iommu_group_members: Annotated[tuple[PciAddress, ...], Items(most=64)] = Field(
        default=(), description="Other devices of the group, bridges left out."
    )
    companions: Annotated[tuple[PciAddress, ...], Items(most=7)] = Field(
        default=(), description="Other functions of the same card: audio, USB."
    )
    pcie: PcieLink | None = Field(default=None, description="Its link.")
    virtual_functions: VirtualFunctions | None = Field(default=None, description="SR-IOV; none: it has none.")
    virtualization: Literal["None", "Passthrough", "Vgpu", "HostVgpu", "HostVsga"] | None = Field(
        default=None,
        description="As NVML calls it; HostVgpu: it is split into vGPUs, Passthrough: this node is a VM.",
    )
    vgpu_types: Annotated[tuple[VgpuType, ...], Items(most=256, keys=("name",))] = Field(
        default=(), description="vGPU types that the GPU supports."
    )
    mig: GpuMig | None = Field(default=None, description="None: the GPU can not be split by MIG.")
    fabric: GpuFabric | None = Field(default=None, description="None: it is in no NVLink fabric.")
    peers: Annotated[tuple[GpuPeer, ...], Items(most=MOST_GPUS, keys=("pciAddress",))] = Field(
        default=(), description="How it reaches the other GPUs of the node."
    )


class GpuNodeStatus(Status):
    """What the agent saw; written by the agent alone."""

    gpus: Annotated[tuple[ObservedGpu, ...], Items(most=MOST_GPUS, keys=("pciAddress",))] = Field(
        default=(), description="The GPUs of the node."
    )
    mode: Literal["container", "vm-passthrough", "vm-vgpu", ""] = Field(
        default="", description="What they are set up for; empty: not known, or several at once."
    )
    driver_version: Version | None = Field(default=None, description="Of NVIDIA's kernel driver.")
    cuda_version: Version | None = Field(default=None, description="The newest CUDA that the driver runs.")
    nvml_version: Version | None = Field(default=None, description="Of NVML.")
    boot_id: Uid | None = Field(default=None, description="Of the node's kernel: marks end with a boot.")


class GpuNode(Kind):
    """The GPUs of one node."""

    plural: ClassVar = "gpunodes"
    short_name: ClassVar = "gnode"
    name_length: ClassVar = 253
    columns: ClassVar = (
        PrinterColumn(name="Mode", json_path=".status.mode"),
        PrinterColumn(name="Product", json_path=".status.gpus[0].product"),
        PrinterColumn(name="NVML", json_path='.status.conditions[?(@.type=="NvmlAnswers")].reason'),
        PrinterColumn(name="Unhealthy", json_path=".status.gpus[?(@.healthy==false)].pciAddress"),
        PrinterColumn(name="Driver", json_path=".status.driverVersion", priority=1),
        PrinterColumn(name="CUDA", json_path=".status.cudaVersion", priority=1),
        AGE,
    )

    kind: Literal["GpuNode"] = "GpuNode"
    spec: GpuNodeSpec = GpuNodeSpec()
    status: GpuNodeStatus = GpuNodeStatus()
