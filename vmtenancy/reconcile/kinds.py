"""Every kind of object that the controller observes or writes, and how much of it is watched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vmtenancy.api.names import API_VERSION, MANAGED_BY, MANAGED_LABEL

#: Children that only we make are watched by our label: a cluster's other ConfigMaps and Roles never reach us.
OURS: Final = f"{MANAGED_LABEL}={MANAGED_BY}"


@dataclass(frozen=True, slots=True)
class KindInfo:
    """How one kind is reached.

    `selector` and `fields` narrow the watch (label and field selectors). `optional`: the kind may be missing on a
    cluster (KubeVirt or CDI not installed), which is not an error.
    """

    kind: str
    api_version: str
    plural: str
    namespaced: bool = True
    selector: str = ""
    fields: str = ""
    optional: bool = False


def _table(*infos: KindInfo) -> Mapping[str, KindInfo]:
    return {info.kind: info for info in infos}


_RBAC = "rbac.authorization.k8s.io/v1"

KINDS: Final[Mapping[str, KindInfo]] = _table(
    KindInfo("GpuPool", API_VERSION, "gpupools", namespaced=False),
    KindInfo("GpuClass", API_VERSION, "gpuclasses", namespaced=False),
    KindInfo("GpuNode", API_VERSION, "gpunodes", namespaced=False),
    KindInfo("Cohort", API_VERSION, "cohorts", namespaced=False),
    KindInfo("Tenant", API_VERSION, "tenants", namespaced=False),
    KindInfo("GpuVM", API_VERSION, "gpuvms"),
    KindInfo("VirtualCluster", API_VERSION, "virtualclusters"),
    KindInfo("GpuGroup", API_VERSION, "gpugroups"),
    KindInfo("GpuReservation", API_VERSION, "gpureservations"),
    KindInfo("GpuAllocation", API_VERSION, "gpuallocations", namespaced=False),
    KindInfo("GpuLedger", API_VERSION, "gpuledgers", namespaced=False),
    KindInfo("Node", "v1", "nodes", namespaced=False),
    KindInfo("Namespace", "v1", "namespaces", namespaced=False),
    KindInfo("Pod", "v1", "pods"),
    # Helm's releases and token Secrets are large or private and never ours.
    KindInfo(
        "Secret",
        "v1",
        "secrets",
        fields="type!=kubernetes.io/service-account-token,type!=helm.sh/release.v1",
    ),
    KindInfo("VirtualMachine", "kubevirt.io/v1", "virtualmachines", optional=True),
    KindInfo("VirtualMachineInstance", "kubevirt.io/v1", "virtualmachineinstances", optional=True),
    KindInfo("StatefulSet", "apps/v1", "statefulsets", selector=OURS),
    KindInfo("Deployment", "apps/v1", "deployments", selector=OURS),
    KindInfo("Service", "v1", "services", selector=OURS),
    KindInfo("ConfigMap", "v1", "configmaps", selector=OURS),
    KindInfo("ServiceAccount", "v1", "serviceaccounts", selector=OURS),
    KindInfo("ResourceQuota", "v1", "resourcequotas", selector=OURS),
    KindInfo("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies", selector=OURS),
    KindInfo("Role", _RBAC, "roles", selector=OURS),
    KindInfo("RoleBinding", _RBAC, "rolebindings", selector=OURS),
    KindInfo("ClusterRole", _RBAC, "clusterroles", namespaced=False, selector=OURS),
    KindInfo("ClusterRoleBinding", _RBAC, "clusterrolebindings", namespaced=False, selector=OURS),
)
