"""One pod of a virtual cluster's control plane, run as the real program in a sandbox."""

import base64
import datetime as dt
import hashlib
import logging
import shutil
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from vmtenancy.testing.cluster import Cluster
from vmtenancy.testing.informer import Object, key_of
from vmtenancy.testing.pki import LOOPBACK, Authority
from vmtenancy.testing.process import Process, ProcessError, http_ok
from vmtenancy.testing.sandbox import Network

PROXY_PORT: Final = 8443

_ETCD_PORT = 2379
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_TOKEN_S = 24 * 3600
_TOKEN_RENEWAL_S = 3600.0
_RETRY_S = 0.5
_PROBE_S = 0.1
_PROBE_READY_S = 2.0

log = logging.getLogger(__name__)


class PodWorker(threading.Thread):
    """What a kubelet does for one pod: prepares what it needs, runs it, reports on it until `stop`.

    ``port`` of this machine leads to the pod's API. ``data`` is the folder behind its data volume, ``folder``
    is the pod's own and goes with it. ``programs`` are paths by name.
    """

    def __init__(
        self,
        cluster: Cluster,
        pod: Object,
        *,
        port: int,
        folder: Path,
        data: Path,
        programs: Mapping[str, Path],
    ) -> None:
        self.namespace, self.pod_name = key_of(pod)
        super().__init__(name=f"vcluster-{self.namespace}-{self.pod_name}", daemon=True)
        self._cluster = cluster
        self._pod = pod
        self._port = port
        self._folder = folder
        self._data = data
        self._programs = programs
        self._address = _pod_address(pod["metadata"]["uid"])
        self._since = _now()
        self._reported: tuple[bool, int, Object] | None = None
        self._ended = threading.Event()

    def stop(self) -> None:
        """Stop its programs and remove its folder; returns when they are gone."""
        self._ended.set()
        self.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self) -> None:
        """Try until it runs: what it needs may not be there yet."""
        while not self._ended.is_set():
            try:
                self._run()
            except (ApiException, HTTPError, OSError, ProcessError, yaml.YAMLError) as error:
                log.warning("%s: %s", self.name, error)
                reason = {"reason": "CreateContainerError", "message": str(error)[:500]}
                self._report(False, 0, {"waiting": reason})
                self._ended.wait(_RETRY_S)

    def _run(self) -> None:
        root = self._folder / "root"
        certificates = self._write_configuration(root)
        renew_at = self._write_token(root)
        network = Network()
        etcd = self._etcd(network, certificates)
        vcluster = self._vcluster(network, root, certificates)
        ready = http_ok(f"https://127.0.0.1:{self._port}/readyz", _unverified())
        try:
            network.reach(self._cluster.port)
            network.expose(PROXY_PORT, self._port)
            etcd.start()
            vcluster.start()
            state = {"running": {"startedAt": _now()}}
            healthy = False
            while not self._ended.wait(_PROBE_READY_S if healthy else _PROBE_S):
                healthy = ready()
                self._report(healthy, vcluster.restarts, state)
                if time.monotonic() > renew_at:
                    renew_at = self._write_token(root)
        finally:
            for process in (vcluster, etcd):
                process.stop(grace_s=0)  # all state is in etcd, whose log survives being killed
            network.close()

    def _write_configuration(self, root: Path) -> Path:
        """The root folder's files, and a folder with etcd's certificates; returns the latter."""
        certificates = self._folder / "etcd-pki"
        pair = Authority(certificates, "ca").issue("etcd", "etcd", hosts=LOOPBACK)
        release = self._pod["metadata"]["labels"]["release"]
        secret = self._cluster.request("GET", self._path("secrets", f"vc-config-{release}"))
        values = yaml.safe_load(base64.b64decode(secret["data"]["config.yaml"]))
        tls = {"caFile": "ca.crt", "certFile": pair.cert.name, "keyFile": pair.key.name}
        external = {
            "enabled": True,
            "endpoint": f"127.0.0.1:{_ETCD_PORT}",
            "tls": {key: f"/etcd-pki/{name}" for key, name in tls.items()},
        }
        store = {"etcd": {"external": external}, "database": {"embedded": {"enabled": False}}}
        here = {
            "controlPlane": {"backingStore": store},
            "exportKubeConfig": {"server": f"https://127.0.0.1:{self._port}"},
            "telemetry": {"enabled": False},
        }
        for path, text in {
            "var/lib/vcluster/config.yaml": yaml.safe_dump(_merged(values, here)),
            "etc/hosts": "127.0.0.1 localhost\n",
        }.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        for path in ("tmp", "pki"):
            (root / path).mkdir(exist_ok=True)
        for path in ("data", "etcd"):
            (self._data / path).mkdir(parents=True, exist_ok=True)
        return certificates

    def _write_token(self, root: Path) -> float:
        """The pod's service account, as its volume holds it; returns when to do it again (monotonic, s)."""
        pod = {"apiVersion": "v1", "kind": "Pod", "name": self.pod_name, "uid": self._pod["metadata"]["uid"]}
        request = {"spec": {"audiences": [], "expirationSeconds": _TOKEN_S, "boundObjectRef": pod}}
        account = self._path("serviceaccounts", self._pod["spec"]["serviceAccountName"])
        token = self._cluster.request("POST", f"{account}/token", request)["status"]["token"]
        folder = root / _ACCOUNT.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text(token)
        (folder / "ca.crt").write_bytes(self._cluster.ca.read_bytes())
        (folder / "namespace").write_text(self.namespace)
        return time.monotonic() + _TOKEN_RENEWAL_S

    def _etcd(self, network: Network, certificates: Path) -> Process:
        url, peer = f"https://127.0.0.1:{_ETCD_PORT}", f"http://127.0.0.1:{_ETCD_PORT + 1}"
        command: list[str | Path] = [
            self._programs["etcd"],
            f"--data-dir={self._data / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            f"--cert-file={certificates / 'etcd.crt'}",
            f"--key-file={certificates / 'etcd.key'}",
            f"--trusted-ca-file={certificates / 'ca.crt'}",
            "--client-cert-auth",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]
        log_file = self._cluster.logs / f"{self.name}-etcd.log"
        return Process(f"{self.name}-etcd", network.command(command), log=log_file, restart=True)

    def _vcluster(self, network: Network, root: Path, certificates: Path) -> Process:
        kubernetes = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
        binds = {
            "/vcluster": self._programs["vcluster"],
            **{f"/binaries/{name}": self._programs[name] for name in kubernetes},
            "/data": self._data / "data",
            "/etcd-pki": certificates,
            "/dev/null": Path("/dev/null"),
        }
        return Process(
            self.name,
            network.sandboxed(root, binds, ["/vcluster", "start"]),
            log=self._cluster.logs / f"{self.name}.log",
            env=self._environment(),
            restart=True,
        )

    def _environment(self) -> dict[str, str]:
        fields = {
            "metadata.name": self.pod_name,
            "metadata.namespace": self.namespace,
            "spec.nodeName": self._pod["spec"]["nodeName"],
            "status.podIP": self._address,
            "status.hostIP": self._address,
        }
        given = {
            entry["name"]: entry["value"]
            if "value" in entry
            else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            for entry in self._pod["spec"]["containers"][0].get("env", [])
        }
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/",
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._cluster.port),
            **given,
        }

    def _path(self, plural: str, name: str) -> str:
        return f"/api/v1/namespaces/{self.namespace}/{plural}/{name}"

    def _report(self, ready: bool, restarts: int, state: Object) -> None:
        """Write the pod's status if it is not what was last written."""
        if (ready, restarts, state) == self._reported:
            return
        word = {"status": str(ready), "lastTransitionTime": _now()}
        condition = {"status": "True", "lastTransitionTime": self._since}
        status = {
            "phase": "Running" if "running" in state else "Pending",
            "startTime": self._since,
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "conditions": [
                {"type": "Initialized", **condition},
                {"type": "ContainersReady", **word},
                {"type": "Ready", **word},
            ],
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": "",
                    "ready": ready,
                    "started": ready,
                    "restartCount": restarts,
                    "state": state,
                }
                for container in self._pod["spec"]["containers"]
            ],
        }
        try:
            self._cluster.request(
                "PATCH",
                self._path("pods", self.pod_name) + "/status",
                {"status": status},
                content_type="application/strategic-merge-patch+json",
            )
        except (ApiException, HTTPError) as error:
            log.warning("%s: %s", self.name, error)
        else:
            self._reported = (ready, restarts, state)


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with changes laid over them, as Helm merges a values file."""
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        both = isinstance(change, Mapping) and isinstance(old, Mapping)
        merged[key] = _merged(old, change) if both and old is not None else change
    return merged


def _pod_address(uid: str) -> str:
    """An address for the pod's status, beside those that KWOK gives; nothing listens there."""
    high, low = hashlib.sha256(uid.encode()).digest()[:2]
    return f"10.245.{high}.{low or 1}"


def _unverified() -> ssl.SSLContext:
    """The kubelet does not verify the certificate of what it probes either."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
