"""GPU nodes without machines: manifests of nodes as GPU, device and KubeVirt operators would leave them.

KWOK (part of ``Cluster``) makes them Ready and plays their kubelets.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from vmtenancy.testing.waiting import eventually

if TYPE_CHECKING:
    from vmtenancy.testing.cluster import Cluster

Node = dict[str, Any]
Mode = Literal["container", "vm-passthrough", "vm-vgpu"]

# Devices that KubeVirt's own device plugins offer: as many as there can be pods on a node.
_KUBEVIRT_DEVICES = {f"devices.kubevirt.io/{name}": "1k" for name in ("kvm", "tun", "vhost-net")}


def gpu_node(
    name: str,
    *,
    mode: Mode = "container",
    product: str = "NVIDIA-H100-80GB-HBM3",
    family: str = "hopper",
    gpus: int = 8,
    gpu_memory_mib: int = 81559,
    cpu: int = 128,
    memory: str = "1Ti",
    resources: Mapping[str, int] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Node:
    """A Node manifest with ``gpus`` physical GPUs of ``product`` in one mode.

    ``resources`` are the extended resources that its device plugin offers, by count: in container mode
    ``{"nvidia.com/gpu": gpus}`` when left out; in the VM modes it has to be given (the passthrough device's
    or the vGPU type's resource name). ``gpu_memory_mib`` is per GPU, ``memory`` a quantity, ``cpu`` cores.
    ``labels`` are added to those of GPU feature discovery, node feature discovery and KubeVirt.
    Raises ``ValueError`` when a VM mode has no resources.
    """
    if resources is None:
        if mode != "container":
            raise ValueError(
                f"gpu_node({name!r}, mode={mode!r}): resources names what the node offers to VMs"
            )
        resources = {"nvidia.com/gpu": gpus}
    offered = {
        "cpu": str(cpu),
        "memory": memory,
        "ephemeral-storage": "4Ti",
        "pods": "250",
        **_KUBEVIRT_DEVICES,
        **{resource: str(count) for resource, count in resources.items()},
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
                "feature.node.kubernetes.io/pci-10de.present": "true",
                "nvidia.com/gpu.present": "true",
                "nvidia.com/gpu.product": product,
                "nvidia.com/gpu.family": family,
                "nvidia.com/gpu.count": str(gpus),
                "nvidia.com/gpu.memory": str(gpu_memory_mib),
                "nvidia.com/gpu.workload.config": mode,
                "kubevirt.io/schedulable": "true",
                "kubevirt.io/cpumanager": "true",
                "machine-type.node.kubevirt.io/q35": "true",
                **(labels or {}),
            },
        },
        "status": {"capacity": offered, "allocatable": offered},
    }


def create(cluster: "Cluster", nodes: Iterable[Node], *, deadline_s: float = 30.0) -> list[Node]:
    """Create nodes and wait until the scheduler may use them all; returns them as they are then, by name.

    Raises ``TimeoutError`` after ``deadline_s`` seconds.
    """
    wanted = {cluster.request("POST", "/api/v1/nodes", node)["metadata"]["name"] for node in nodes}

    def ready() -> list[Node] | None:
        there = cluster.request("GET", "/api/v1/nodes")["items"]
        ours = [node for node in there if node["metadata"]["name"] in wanted and _schedulable(node)]
        return ours if len(ours) == len(wanted) else None

    return eventually(f"schedulable: {', '.join(sorted(wanted))}", ready, deadline_s)


def _schedulable(node: Node) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and not node["spec"].get("taints")
