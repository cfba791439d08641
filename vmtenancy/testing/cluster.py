"""A cluster for tests, wherever its Kubernetes runs: identities, clients, and the programs that run beside it.

There are no machines behind it: KWOK plays the kubelets of nodes that carry the annotation
``kwok.x-k8s.io/node: fake`` (see ``fleet.py``).
"""

import base64
import functools
import json
import shutil
import ssl
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import yaml

from vmtenancy.testing import build
from vmtenancy.testing.pki import LOOPBACK, Authority, KeyPair, signing_key
from vmtenancy.testing.process import Process, free_port

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

ACCOUNTS_SERVED = "/api/v1/namespaces/default/serviceaccounts/default"

# What KubeVirt 1.7 reads of DRA is v1beta1; the rest of the API is what 1.36 serves by default.
RUNTIME_CONFIG = {"resource.k8s.io/v1beta1": "true"}

# Only writes, and only once they are done: enough to prove that nothing is written at rest. Those to the ledger with
# what they wrote: `vmtenancy.testing.history` rebuilds from them which grant was live when.
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "omitManagedFields": True,
    "rules": [
        {"level": "None", "verbs": ["get", "list", "watch"]},
        {
            "level": "RequestResponse",
            "resources": [
                {
                    "group": "vmtenancy.io",
                    "resources": ["gpuledgers", "gpuallocations", "gpuallocations/status"],
                }
            ],
        },
        {"level": "Metadata"},
    ],
}


class KubectlError(subprocess.CalledProcessError):
    """kubectl failed; the message holds what it said."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stderr.strip()}"


class Cluster(ABC):
    """Started with ``with`` its subclass, or ``start()`` and ``stop()``.

    ``data_dir`` keeps certificates, data and logs (``<data_dir>/logs/<program>.log``); without it a temporary
    folder is used and removed on stop. ``feature_gates`` and ``runtime_config`` add to the defaults.
    """

    binaries: ClassVar[tuple[str, ...]]
    """Programs that have to be there before it is started."""
    host = "127.0.0.1"
    """Address of this machine for the API server: where it finds the webhooks of programs beside it."""

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        feature_gates: Mapping[str, bool] | None = None,
        runtime_config: Mapping[str, str] | None = None,
    ) -> None:
        self._temporary = data_dir is None
        self.data_dir = data_dir or Path(tempfile.mkdtemp(prefix="vmtenancy-"))
        self.processes: list[Process] = []
        self._feature_gates = dict(feature_gates or {})
        self._runtime_config = {**RUNTIME_CONFIG, **(runtime_config or {})}

    def start(self) -> Self:
        """Build what is missing, start everything and wait until pods can be created.

        Raises ``BuildError`` or ``ProcessError`` (with the last lines of the log that says why); what was
        started is stopped then.
        """
        try:
            programs = {name: build.resolve(name) for name in self.binaries}
            self._make_pki()
            self.port = free_port()
            self.kubeconfig = self.kubeconfig_for("admin", ["system:masters"])
            self._start_kubernetes(programs)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop every program; a temporary data folder is removed. Safe to call twice."""
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            process.stop(grace_s=1.0)  # the data is thrown away: no reason to wait for open watches
        self.processes.clear()
        if self._temporary:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _start_kubernetes(self, programs: Mapping[str, Path]) -> None:
        """Start etcd, the API server (at ``port``, with certificates of ``cluster_ca``), its controllers and scheduler.

        Also KWOK, by ``_start_kwok``; returns once the default service account is served.
        """

    # -- what its users need ------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The API server's base URL."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        """PEM file of the authority that signed the API server's certificate and all clients'."""
        return self.cluster_ca.cert

    @property
    def audit_log(self) -> Path:
        """One JSON object per line for each request that was no read (``audit.k8s.io/v1``; bodies for the ledger)."""
        return self.logs / "audit.log"

    @property
    def logs(self) -> Path:
        """Folder of the programs' logs."""
        return self.data_dir / "logs"

    def kubeconfig_for(self, user: str, groups: Iterable[str] = ()) -> Path:
        """A self-contained kubeconfig of ``user``, a member of ``groups``, by client certificate."""
        groups = list(groups)
        stem = "".join(c if c.isalnum() or c in "-." else "_" for c in "_".join([user, *groups]))
        pair = self.cluster_ca.issue(f"client-{stem}", user, organizations=groups)
        path = self.data_dir / "kubeconfigs" / f"{stem}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(self._kubeconfig(user, pair)))
        return path

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        """Run kubectl as admin and return what it prints. Raises ``KubectlError``."""
        command = [str(build.resolve("kubectl")), f"--kubeconfig={self.kubeconfig}", *args]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise KubectlError(done.returncode, args, done.stdout, done.stderr)
        return done.stdout

    @functools.cached_property
    def client(self) -> "ApiClient":
        """A client of the official ``kubernetes`` package, as admin."""
        from kubernetes import client, config

        configuration = client.Configuration()
        config.load_kube_config(str(self.kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]
        configuration.proxy = None  # the server is on loopback
        return client.ApiClient(configuration)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        accept: str = "application/json",
        content_type: str = "application/json",
    ) -> Any:
        """One request as admin, JSON in and out. Raises ``kubernetes.client.ApiException``."""
        from kubernetes.client import ApiException

        headers = {"Accept": accept, "Content-Type": content_type}
        answer = self.client.call_api(method, self.url + path, headers, body)
        text: bytes = answer.read()  # type: ignore[no-untyped-call]
        if answer.status >= 300:
            raise ApiException.from_response(http_resp=answer, body=text.decode(), data=None)
        return json.loads(text)

    @functools.cached_property
    def ssl_context(self) -> ssl.SSLContext:
        """TLS for plain HTTP clients, as admin."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.admin.cert, self.admin.key)
        return context

    def spawn(self, name: str, command: Sequence[str | Path], **options: Any) -> Process:
        """Start one more program that belongs to this control plane (stopped with it, logged beside it).

        ``options`` are those of ``Process`` but ``log``.
        """
        process = Process(name, command, log=self.logs / f"{name}.log", **options)
        self.processes.append(process)
        process.start()
        return process

    def _make_pki(self) -> None:
        pki = self.data_dir / "pki"
        self.cluster_ca = Authority(pki, "ca")
        self.front_proxy_ca = Authority(pki, "front-proxy-ca")
        self.etcd_ca = Authority(pki, "etcd-ca")
        service = "kubernetes.default.svc"
        hosts = [*LOOPBACK, service, f"{service}.cluster.local", "kubernetes", "10.96.0.1"]
        self.serving = self.cluster_ca.issue("apiserver", "kube-apiserver", hosts=hosts)
        self.admin = self.cluster_ca.issue("admin", "admin", organizations=["system:masters"])
        self.front_proxy = self.front_proxy_ca.issue("front-proxy", "front-proxy-client")
        self.etcd_pair = self.etcd_ca.issue("etcd", "etcd", hosts=LOOPBACK)
        self.service_account_key = signing_key(pki, "service-account")

    def _kubeconfig(self, user: str, pair: KeyPair) -> dict[str, Any]:
        def data(path: Path) -> str:
            return base64.b64encode(path.read_bytes()).decode()

        name = "vmtenancy"
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
            "clusters": [
                {"name": name, "cluster": {"server": self.url, "certificate-authority-data": data(self.ca)}}
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate-data": data(pair.cert),
                        "client-key-data": data(pair.key),
                    },
                }
            ],
        }

    def _write_audit_policy(self) -> Path:
        path = self.data_dir / "audit-policy.yaml"
        path.write_text(yaml.safe_dump(_AUDIT_POLICY))
        return path

    def _start_kwok(self, program: Path) -> None:
        upstream = build.module_dir("kwok", "sigs.k8s.io/kwok", "kustomize/stage")
        stages = [
            upstream / "node/fast/node-initialize.yaml",
            upstream / "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
            upstream / "pod/fast/pod-ready.yaml",
            upstream / "pod/general/pod-complete.yaml",
            build.COMPONENTS / "kwok" / "pod-delete.yaml",
        ]
        flags = [
            f"--kubeconfig={self.kubeconfig}",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-lease-duration-seconds=40",
            "--cidr=10.244.0.0/16",
            "--node-ip=10.0.0.1",
            *(f"--config={stage}" for stage in stages),
        ]
        self.spawn("kwok", [program, *flags])
