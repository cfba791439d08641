"""Names that other programs see: API group, labels, annotations, the gate, field owners.

They are part of the public API: changing one breaks objects that exist.
"""

from __future__ import annotations

from typing import Final

GROUP: Final = "vmtenancy.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

#: The scheduling gate that holds every pod with GPUs in a tenant's namespaces until it has a grant.
GATE: Final = f"{GROUP}/allocation"

#: Namespaces that `install` makes for a moment, to see the policies at work.
PROBE_PREFIX: Final = "vmtenancy-probe-"
#: Namespace label: the tenant that owns it. Only the controller may set it (admission policy).
TENANT_LABEL: Final = f"{GROUP}/tenant"
#: On host namespaces and children of a VirtualCluster: its name, and the namespace it is declared in.
VIRTUAL_CLUSTER_LABEL: Final = f"{GROUP}/virtual-cluster"
VIRTUAL_CLUSTER_NAMESPACE_LABEL: Final = f"{GROUP}/virtual-cluster-namespace"
#: On children of a GpuVM (VirtualMachine, VMI, launcher pod): its name. For people; the code trusts uids.
GPUVM_LABEL: Final = f"{GROUP}/gpuvm"
#: On every object that the controller made.
MANAGED_LABEL: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "vmtenancy"
#: The uid of the GpuVM or VirtualCluster that a child belongs to: children in another namespace can not have
#: an owner reference.
OWNER_UID_LABEL: Final = f"{GROUP}/owner-uid"
#: Digest of what was last applied, so that an unchanged child is not written again (I7).
APPLIED_ANNOTATION: Final = f"{GROUP}/applied"
#: Pod annotation and label that name the allocation it was bound with.
ALLOCATION_ANNOTATION: Final = f"{GROUP}/allocation"
#: Takes in what runs without a grant. On a Pod: any value. On a GpuVM: the uid of the VirtualMachine of its name. Only
#: those may set it who may `adopt` gpuallocations (admission policy).
ADOPT_ANNOTATION: Final = f"{GROUP}/adopt"
#: On a GpuVM that came from another platform: a JSON list of devices that nobody has mapped. It does not start while
#: there is one.
UNRESOLVED_ANNOTATION: Final = f"{GROUP}/unresolved-devices"
#: On a GpuVM that came from another platform: a JSON list of what could not be kept, and where it came from.
NOT_KEPT_ANNOTATION: Final = f"{GROUP}/not-kept"
MIGRATED_ANNOTATION: Final = f"{GROUP}/migrated-from"
#: A pod may name the GpuGroup that it belongs to; of a virtual cluster, one in the namespace of that.
GROUP_ANNOTATION: Final = f"{GROUP}/group"
#: A pod may name the class that it wants where several would deliver the same resource.
CLASS_ANNOTATION: Final = f"{GROUP}/class"
#: On a GpuVM or Pod, set by who owns it: when its work was saved last, as 2026-01-02T03:04:05Z.
CHECKPOINTED_ANNOTATION: Final = f"{GROUP}/checkpointed-at"
#: Keeps a GpuVM or VirtualCluster until its devices are free and its children are gone.
FINALIZER: Final = f"{GROUP}/release"

#: Conditions on pods: whether it has a grant, and whether its node still has what was granted.
ADMITTED_CONDITION: Final = f"{GROUP}/Admitted"
DEGRADED_CONDITION: Final = f"{GROUP}/Degraded"

FIELD_MANAGER: Final = "vmtenancy"
SYSTEM_NAMESPACE: Final = "vmtenancy-system"
CONTROLLER_ACCOUNT: Final = "vmtenancy-controller"
#: Who holds this Lease of the system namespace leads.
CONTROLLER_LEASE: Final = CONTROLLER_ACCOUNT
CONTROLLER_USER: Final = f"system:serviceaccount:{SYSTEM_NAMESPACE}:{CONTROLLER_ACCOUNT}"

#: Node label by which NVIDIA's GPU Operator is told what a node's GPUs are for.
WORKLOAD_CONFIG_LABEL: Final = "nvidia.com/gpu.workload.config"
PRODUCT_LABEL: Final = "nvidia.com/gpu.product"
MEMORY_LABEL: Final = "nvidia.com/gpu.memory"
COUNT_LABEL: Final = "nvidia.com/gpu.count"

#: Extended resources that are GPUs: a pod that asks for one in a tenant's namespace is gated.
GPU_RESOURCE_PREFIXES: Final = (
    "nvidia.com/",
    "amd.com/",
    "gpu.intel.com/",
    "deviceclass.resource.kubernetes.io/",
)

#: Node agents act as this service account.
AGENT_NAMESPACE: Final = "vmtenancy-agents"
AGENT_ACCOUNT: Final = "vmtenancy-agent"
AGENT_USER: Final = f"system:serviceaccount:{AGENT_NAMESPACE}:{AGENT_ACCOUNT}"
