"""Values of vCluster's chart, and the names that follow from a VirtualCluster.

The chart is that of github.com/loft-sh/vcluster v0.30.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from vmtenancy.api import names
from vmtenancy.api.virtualcluster import VirtualCluster
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.render.merge import merge

#: What a tenant may set: everything at and below these paths. The rest decides who gets rights or room on the host
#: (volumes, images and service accounts of the control plane, what is read from the host, what is written there), so
#: it is a list of what is harmless: a new version of the chart adds nothing to it.
ALLOWED_VALUES: Final = (
    # Not `enabled`: v0.30 copies no pod to the host before it finds the address of a DNS service.
    "controlPlane.coredns.deployment",
    "controlPlane.coredns.overwriteConfig",
    "controlPlane.distro.k8s.image.tag",
    "controlPlane.distro.k8s.version",
    "controlPlane.proxy.extraSANs",
    "logging",
    "networking.advanced.clusterDomain",
    "sync.toHost.configMaps",
    "sync.toHost.endpointSlices",
    "sync.toHost.endpoints",
    "sync.toHost.persistentVolumeClaims",
    "sync.toHost.podDisruptionBudgets",
    "sync.toHost.secrets",
    "sync.toHost.serviceAccounts",
    "sync.toHost.services",
    "telemetry",
)

# The chart cuts the names of its cluster-scoped objects, `vc-<release>-v-<namespace>`, at 63 characters. Release and
# namespace stay below that together, or two virtual clusters could share one ClusterRole.
_MAX_RELEASE: Final = 16
_MAX_NAMESPACE: Final = 41


def host_namespace(namespace: str, name: str) -> str:
    """Return the host namespace of VirtualCluster `namespace/name`: a DNS label of at most 41 characters.

    `vc-<namespace>--<name>` where that is short and can be read in one way only, else with a digest in place of
    what is too much; these have no double dash, so that no two pairs get the same one.
    """
    plain = f"vc-{namespace}--{name}"
    if len(plain) <= _MAX_NAMESPACE and plain.count("--") == 1:
        return plain
    digest = _digest(f"{namespace}/{name}", 16)
    kept = f"{namespace}-{name}"[: _MAX_NAMESPACE - len("vc--") - len(digest)]
    while "--" in kept:
        kept = kept.replace("--", "-")
    return f"vc-{kept.strip('-')}-{digest}"


def release_name(vc: VirtualCluster) -> str:
    """Return the Helm release, from which the chart derives all names in the host namespace, also of Services.

    The VirtualCluster's name where it is short and starts with a letter, as a Service's name has to.
    """
    name = vc.metadata.name
    if len(name) <= _MAX_RELEASE and name[0].isalpha():
        return name
    return f"v{_digest(name, 12)}"


def kubeconfig_source(vc: VirtualCluster) -> str:
    """Return the name of the Secret, in the host namespace, that vCluster writes its kubeconfig to."""
    return f"vc-{release_name(vc)}"


def kubeconfig_name(vc: VirtualCluster) -> str:
    """Return the name of the Secret, beside the VirtualCluster, that its users get the kubeconfig from."""
    return f"{vc.metadata.name}-kubeconfig"


def chart_values(vc: VirtualCluster, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the chart's values, the later over the earlier: ours, `defaults`, the user's, and what is owned.

    `defaults` are the administrator's for all virtual clusters and may set anything but what is owned (images from a
    mirror, where control planes run, their storage). Raises `VmtError` (OWNED_PATH) for each path of the user's that
    is not in `ALLOWED_VALUES`.
    """
    problems = [
        Problem(Code.OWNED_PATH, f"spec.values.{path}", "is not a tenant's to set", expected=_EXPECTED)
        for path in _paths(vc.spec.values)
        if not any(path == allowed or path.startswith(f"{allowed}.") for allowed in ALLOWED_VALUES)
    ]
    if problems:
        raise VmtError.of(problems)
    values: dict[str, Any] = merge(merge(_BASE, defaults or {}), vc.spec.values)
    return merge(values, _owned(vc, values))  # type: ignore[no-any-return]


_EXPECTED: Final = "one of " + ", ".join(ALLOWED_VALUES)

_BASE: Final[Mapping[str, Any]] = {
    "controlPlane": {
        # The build without the vendor's closed parts.
        "statefulSet": {"image": {"repository": "loft-sh/vcluster-oss"}},
    },
    # Nodes are shown once a pod of the virtual cluster is there, without the images that others use.
    "sync": {
        "fromHost": {"nodes": {"enabled": True, "clearImageStatus": True}},
        # Else tokens of the virtual cluster, good for years, stand in annotations of host pods.
        "toHost": {"pods": {"useSecretsForSATokens": True}},
    },
    # The chart would add reading all pods of the host and the kubelets' API, which only metrics of nodes need.
    "rbac": {
        "clusterRole": {
            "overwriteRules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]
        }
    },
    "networking": {"advanced": {"proxyKubelets": {"byHostname": False, "byIP": False}}},
    "telemetry": {"enabled": False},
}


def _owned(vc: VirtualCluster, values: Mapping[str, Any]) -> dict[str, Any]:
    namespace = host_namespace(vc.metadata.namespace, vc.metadata.name)
    host = f"{release_name(vc)}.{namespace}.svc"
    control_plane = values["controlPlane"]
    others = [name for name in control_plane.get("proxy", {}).get("extraSANs", ()) if name != host]
    return {
        "controlPlane": {
            "proxy": {"extraSANs": [host, *others]},
            # v0.30 writes into the Service's annotations and panics where there are none.
            "service": {"annotations": {names.VIRTUAL_CLUSTER_LABEL: vc.metadata.name}},
        },
        "exportKubeConfig": {
            "context": f"{vc.metadata.namespace}/{vc.metadata.name}",
            "server": f"https://{host}",
        },
        # We make these ourselves; the chart's would merge its own limits into them.
        "policies": {
            "limitRange": {"enabled": False},
            "networkPolicy": {"enabled": False},
            "resourceQuota": {"enabled": False},
        },
    }


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The paths of all leaves."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _paths(value, f"{path}.")
        else:
            yield path


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
