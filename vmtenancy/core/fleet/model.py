"""Facts about the fleet, and grants on it, as plain immutable values.

Units: quota and devices in integer parts of `PARTS_PER_GPU`, cpu in millicores, memory in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Mode(StrEnum):
    """What a node's GPUs are for: the values of `nvidia.com/gpu.workload.config`. It belongs to the whole
    node.
    """

    CONTAINER = "container"
    PASSTHROUGH = "vm-passthrough"
    VGPU = "vm-vgpu"


class Runtime(StrEnum):
    """What will use the devices: a virtual machine, a pod, or a virtual cluster that holds its guarantee."""

    VM = "Vm"
    POD = "Pod"
    HOLD = "Hold"


#: The node modes whose devices a runtime can use. What a virtual cluster holds is for its pods.
MODES: Mapping[Runtime, tuple[Mode, ...]] = {
    Runtime.VM: (Mode.PASSTHROUGH, Mode.VGPU),
    Runtime.POD: (Mode.CONTAINER,),
    Runtime.HOLD: (Mode.CONTAINER,),
}


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One physical GPU. `id` is its PCI address, or `gpu-<i>` where that is not known; unique on its node."""

    id: str
    healthy: bool = True
    cordoned: bool = False


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is known of one node.

    `capacity` is the allocatable count by extended resource; `cpu` (millicores) and `memory` (bytes) are what
    is left for workloads that the ledger knows. `gpu_memory` is in bytes per GPU. `mode` None: not known, so
    nothing is placed there.
    """

    name: str
    mode: Mode | None
    schedulable: bool = True
    product: str = ""
    gpu_memory: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[DeviceFacts, ...] = ()
    capacity: Mapping[str, int] = field(default_factory=dict)
    cpu: int = 0
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Pool:
    """A selector over nodes: any of `products` (empty: any), at least `min_memory` bytes per GPU, all
    labels.
    """

    name: str
    products: frozenset[str] = frozenset()
    min_memory: int = 0
    node_labels: Mapping[str, str] = field(default_factory=dict)

    def matches(self, node: NodeFacts) -> bool:
        """Whether the node's GPUs are of this pool."""
        return (
            (not self.products or node.product in self.products)
            and node.gpu_memory >= self.min_memory
            and all(node.labels.get(key) == value for key, value in self.node_labels.items())
        )


@dataclass(frozen=True, slots=True)
class Offering:
    """What one unit of a class is: `parts` of a GPU of `pool`, under the extended resource named per node
    mode.
    """

    name: str
    pool: str
    parts: int
    resources: Mapping[Mode, str]


@dataclass(frozen=True, slots=True)
class DeviceGrant:
    """`count` units of one offering: `devices` has one device id per unit (one id twice: two vGPUs of one
    GPU).

    `parts` is the sum over all units. A device plugin pins the count, not the device: there, the ids say how
    the grant is counted until the kubelet's choice is observed.
    """

    offering: str
    pool: str
    count: int
    mode: Mode
    resource: str
    devices: tuple[str, ...]
    parts: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Devices of one node for one workload, with the cpu (millicores) and memory (bytes) that it takes
    there.
    """

    node: str
    grants: tuple[DeviceGrant, ...]
    cpu: int = 0
    memory: int = 0
