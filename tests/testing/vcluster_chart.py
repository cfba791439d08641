"""vCluster's chart as an administrator would install it, and kubectl for both sides."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from vmtenancy.helm import Chart
from vmtenancy.testing import build
from vmtenancy.testing.vcluster import SCHEDULING
from vmtenancy.testing.waiting import eventually

Object = dict[str, Any]
T = TypeVar("T")
POOL = {"pool.example/gpu": "shared"}


def control_plane_values() -> Object:
    """Chart values for a tenant on shared GPU nodes: no tenant may touch nodes, quota is a backstop."""
    return {
        "controlPlane": {
            # Without it the syncer creates no pod at all: it waits for the address of a DNS service.
            "coredns": {"enabled": True, "deployment": {"image": "registry.example/coredns:1.12"}},
            # The syncer writes an annotation into this map and panics if there is none.
            "service": {"annotations": {"vmtenancy.io/virtual-cluster": "lab"}},
            "statefulSet": {
                "image": {"registry": "registry.example", "repository": "vcluster", "tag": "0.30.0"},
                "scheduling": dict(SCHEDULING),
            },
        },
        "sync": {
            "fromHost": {"nodes": {"enabled": True, "selector": {"labels": POOL}}},
            # Else a pod's token stands in an annotation for all who may read pods.
            "toHost": {"pods": {"useSecretsForSATokens": True}},
        },
        "networking": {"advanced": {"proxyKubelets": {"byIP": False, "byHostname": False}}},
        # Of the host the syncer sees nodes; what the chart gives by default includes everybody's pods.
        "rbac": {
            "clusterRole": {
                "overwriteRules": [
                    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}
                ]
            },
            "enableVolumeSnapshotRules": {"enabled": False},
        },
        # The chart's quota keeps its default limits beside ours, and its own pod fails them.
        "policies": {
            "resourceQuota": {"enabled": False},
            "limitRange": {"enabled": False},
            "networkPolicy": {"enabled": True},
        },
        "telemetry": {"enabled": False},
    }


def reached(what: str, probe: Callable[[], T | None]) -> T:
    """The first true answer; what is not there yet is no answer."""

    def tried() -> T | None:
        with contextlib.suppress(subprocess.CalledProcessError, KeyError):
            return probe()
        return None

    return eventually(what, tried, 120)


class Kubectl:
    """A cluster as seen through one kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        self._command = [str(build.resolve("kubectl")), f"--kubeconfig={kubeconfig}"]

    def __call__(self, *args: str, stdin: object = None) -> Any:
        text = None if stdin is None else json.dumps(stdin)
        done = subprocess.run([*self._command, *args], input=text, capture_output=True, text=True, check=True)
        return json.loads(done.stdout) if "-ojson" in args else done.stdout

    def apply(self, objects: list[Object]) -> None:
        self(
            "apply",
            "--server-side",
            "--filename=-",
            stdin={"apiVersion": "v1", "kind": "List", "items": objects},
        )

    def get(self, *args: str) -> Any:
        return self("get", "-ojson", *args)


def gpu_pod(name: str, gpus: int) -> Object:
    container = {
        "name": "main",
        "image": "registry.example/cuda",
        "resources": {"limits": {"nvidia.com/gpu": gpus, "cpu": "1", "memory": "1Gi"}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
    }


@pytest.fixture(scope="module")
def chart() -> Chart:
    folder = build.module_dir("vcluster", "github.com/loft-sh/vcluster", "chart")
    return Chart(folder, helm=build.resolve("helm"), kube_version="v1.36.3")
