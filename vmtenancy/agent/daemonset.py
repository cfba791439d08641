"""The DaemonSet that runs the agent on nodes with GPUs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from vmtenancy.agent import METRICS_PORT
from vmtenancy.api.names import AGENT_ACCOUNT, AGENT_NAMESPACE

#: Labels of nodes with GPUs, by node feature discovery and by NVIDIA's GPU Operator: one of them is enough.
GPU_NODES: Final = (
    ("feature.node.kubernetes.io/pci-10de.present", "true"),
    ("nvidia.com/gpu.present", "true"),
)
#: Where drivers put `libnvidia-ml.so.1`: distributions, then NVIDIA's driver containers.
_LIBRARY_FOLDERS: Final = tuple(
    f"{root}/usr/{folder}"
    for root in ("/host", "/host/run/nvidia/driver")
    for folder in ("lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "lib64")
)
_LINKS: Final = "/run/nvml"
#: Links to nothing are passed over by the loader until a driver is there. Whole folders of the host would bring its C
#: library along.
_SCRIPT: Final = (
    f"n=0; for folder in {' '.join(_LIBRARY_FOLDERS)}; do n=$((n+1)); mkdir -p {_LINKS}/$n; "
    f"ln -sfn $folder/libnvidia-ml.so.1 {_LINKS}/$n/libnvidia-ml.so.1; done; "
    f"exec vmtenancy agent --sysfs-root /host/sys --heartbeat {_LINKS}/heartbeat"
)
#: A round may take long: each of 16 GPUs that hang costs its deadline and a new start of NVML (40 s), then three
#: requests may time out. What is asked over the network could be kept busy by anyone, and the agent be killed for it.
_ALIVE_S: Final = 1200
_ALIVE: Final = f"test $(($(date +%s) - $(stat -c %Y {_LINKS}/heartbeat))) -lt {_ALIVE_S}"


def daemonset(image: str, nodes: Iterable[tuple[str, str]] = GPU_NODES) -> dict[str, Any]:
    """The object. `nodes` are labels with their values: a node with any of them runs the agent."""
    labels = {"app.kubernetes.io/name": "vmtenancy-agent", "app.kubernetes.io/part-of": "vmtenancy"}
    library_path = ":".join(f"{_LINKS}/{n}" for n in range(1, len(_LIBRARY_FOLDERS) + 1))
    container = {
        "name": "agent",
        "image": image,
        "command": ["sh", "-c", _SCRIPT],
        "env": [
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "LD_LIBRARY_PATH", "value": library_path},
        ],
        "livenessProbe": {
            "exec": {"command": ["sh", "-c", _ALIVE]},
            "initialDelaySeconds": 60,
            "periodSeconds": 60,
            "timeoutSeconds": 10,
        },
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
        "resources": {"requests": {"cpu": "10m", "memory": "96Mi"}, "limits": {"memory": "192Mi"}},
        "securityContext": {"privileged": True, "readOnlyRootFilesystem": True},
        "volumeMounts": [
            {"name": "links", "mountPath": _LINKS},
            {"name": "dev", "mountPath": "/dev"},
            {"name": "sys", "mountPath": "/host/sys", "readOnly": True},
            {"name": "usr", "mountPath": "/host/usr", "readOnly": True},
            _driver_mount(),
        ],
    }
    terms = [
        {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]} for key, value in nodes
    ]
    affinity = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    }
    spec = {
        "serviceAccountName": AGENT_ACCOUNT,
        "priorityClassName": "system-node-critical",
        "tolerations": [{"operator": "Exists"}],
        "affinity": affinity,
        "containers": [container],
        "volumes": [
            {"name": "links", "emptyDir": {}},
            {"name": "dev", "hostPath": {"path": "/dev"}},
            {"name": "sys", "hostPath": {"path": "/sys"}},
            {"name": "usr", "hostPath": {"path": "/usr"}},
            {"name": "driver", "hostPath": {"path": "/run/nvidia", "type": "DirectoryOrCreate"}},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "vmtenancy-agent", "namespace": AGENT_NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": labels["app.kubernetes.io/name"]}},
            "updateStrategy": {"rollingUpdate": {"maxUnavailable": "10%"}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def _driver_mount() -> dict[str, Any]:
    # Driver containers mount their root there after we have started.
    return {
        "name": "driver",
        "mountPath": "/host/run/nvidia",
        "readOnly": True,
        "mountPropagation": "HostToContainer",
    }
