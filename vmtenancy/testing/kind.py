"""The same cluster on kind: Kubernetes in a Docker container, everything else as on the built control plane.

etcd, API server, controllers and scheduler are those of kind's node image. KWOK, KubeVirt, vCluster and the stand-ins
run on this machine beside it, so the API server has to reach this machine: at the gateway of Docker's network. The
certificate authority is ours and given to kubeadm, so that users and service accounts get their certificates as on the
built control plane. Needs Linux, a Docker daemon of this machine, and root, to whom the audit log belongs.
"""

import ipaddress
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pytest_kind import KindCluster

from vmtenancy.testing.cluster import ACCOUNTS_SERVED, Cluster
from vmtenancy.testing.process import ProcessError, http_ok
from vmtenancy.testing.waiting import eventually

NETWORK: Final = "kind"

_DEADLINE_S = 120.0
_PKI = "/etc/kubernetes/pki"
_AUDIT_POLICY = "/etc/kubernetes/audit-policy.yaml"
_AUDIT_FOLDER = "/var/log/kubernetes"
# What kind adds that would be scheduled onto machines that do not exist, or provide volumes on them.
_UNWANTED = ("storageclass/standard", "namespace/local-path-storage")


def missing() -> str | None:
    """Why there can be no kind cluster here (the reason to skip a test with), or None."""
    try:
        done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "Docker is not running: no docker on PATH"
    if done.returncode != 0:
        return f"Docker is not running: {done.stderr.strip()}"
    return None


class KindControlPlane(Cluster):
    """Started with ``with KindControlPlane() as cluster``, or ``start()`` and ``stop()``; see `Cluster`.

    Kubernetes' version is that of the default image of kind's pinned version.
    """

    binaries = ("kind", "kubectl", "kwok")
    _kind: KindCluster | None = None

    def stop(self) -> None:
        """Delete the container and stop what runs beside it. Safe to call twice."""
        kind, self._kind = self._kind, None
        try:
            if kind:
                kind.delete()
                shutil.rmtree(kind.path)
        finally:
            super().stop()

    def _start_kubernetes(self, programs: Mapping[str, Path]) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        config = self.data_dir / "kind.yaml"
        config.write_text(yaml.safe_dump(self._config()))
        # A name of its own: pytest-kind would go on with what a killed run left under the same name.
        self._kind = KindCluster(
            f"vmtenancy-{self.port}",
            kubeconfig=self.data_dir / "kubeconfigs" / "kind.yaml",
            kind_path=programs["kind"],
            kubectl_path=programs["kubectl"],
        )
        try:
            self._kind.create(config)
        except subprocess.CalledProcessError as error:
            raise ProcessError(f"no kind cluster: {error}") from error
        self.host = _gateway()
        self.kubectl("delete", *_UNWANTED, "--ignore-not-found", "--wait=false")
        self._start_kwok(programs["kwok"])
        served = http_ok(self.url + ACCOUNTS_SERVED, self.ssl_context)
        eventually("the default service account is served", served, _DEADLINE_S)

    def _config(self) -> dict[str, Any]:
        """kind's configuration (``kind.x-k8s.io/v1alpha4``)."""
        mounts = {
            f"{_PKI}/ca.crt": self.cluster_ca.pair.cert,
            f"{_PKI}/ca.key": self.cluster_ca.pair.key,
            _AUDIT_POLICY: self._write_audit_policy(),
            _AUDIT_FOLDER: self.logs,
        }
        flags = {
            "audit-policy-file": _AUDIT_POLICY,
            "audit-log-path": f"{_AUDIT_FOLDER}/{self.audit_log.name}",
        }
        volumes = [
            {"name": "audit-policy", **_volume(_AUDIT_POLICY), "pathType": "File", "readOnly": True},
            {"name": "audit-log", **_volume(_AUDIT_FOLDER), "pathType": "Directory"},
        ]
        api_server = [
            *(
                _add("/apiServer/extraArgs/-", {"name": name, "value": value})
                for name, value in flags.items()
            ),
            _add("/apiServer/extraVolumes", volumes),
        ]
        return {
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "kind": "Cluster",
            # Without a network of pods the container's node is not ready, and nothing is placed on it.
            "networking": {
                "apiServerAddress": "127.0.0.1",
                "apiServerPort": self.port,
                "ipFamily": "ipv4",
                "disableDefaultCNI": True,
                "kubeProxyMode": "none",
            },
            "runtimeConfig": dict(self._runtime_config),
            "featureGates": self._feature_gates,
            "nodes": [
                {
                    "role": "control-plane",
                    "extraMounts": [
                        {"hostPath": str(host.absolute()), "containerPath": inside}
                        for inside, host in mounts.items()
                    ],
                }
            ],
            "kubeadmConfigPatchesJSON6902": [
                _patch("ClusterConfiguration", api_server),
                _patch("InitConfiguration", [_add("/skipPhases/-", "addon/coredns")]),
            ],
        }


def _add(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


def _patch(kind: str, operations: list[dict[str, Any]]) -> dict[str, str]:
    return {"group": "kubeadm.k8s.io", "version": "v1beta4", "kind": kind, "patch": json.dumps(operations)}


def _volume(path: str) -> dict[str, str]:
    return {"hostPath": path, "mountPath": path}


def _gateway() -> str:
    """This machine's IPv4 address in Docker's network for kind. Raises ``ProcessError``."""
    done = subprocess.run(
        ["docker", "network", "inspect", NETWORK], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        for network in json.loads(done.stdout):
            for pool in network["IPAM"]["Config"]:
                if (address := pool.get("Gateway")) and ipaddress.ip_address(address).version == 4:
                    return str(address)
    raise ProcessError(
        f"Docker's network {NETWORK} has no IPv4 gateway: {done.stderr.strip() or done.stdout}"
    )
