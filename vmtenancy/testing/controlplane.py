"""A real Kubernetes control plane on loopback: etcd, kube-apiserver, its controllers and scheduler, and KWOK.

There are no machines behind it (see ``cluster.py``). Everything else is the real program.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vmtenancy.testing.cluster import ACCOUNTS_SERVED, Cluster
from vmtenancy.testing.process import Process, ProcessError, free_port, http_ok, paused

SERVICE_CIDR = "10.96.0.0/16"
BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok", "kubectl")
START_DEADLINE_S = 90.0


class ControlPlane(Cluster):
    """Started with ``with ControlPlane() as cluster``, or ``start()`` and ``stop()``; see `Cluster`.

    ``without_controllers`` names controllers of kube-controller-manager that do not run.
    """

    binaries = BINARIES

    def __init__(
        self, data_dir: Path | None = None, *, without_controllers: Sequence[str] = (), **settings: Any
    ) -> None:
        super().__init__(data_dir, **settings)
        self._controllers = ",".join(["*", *(f"-{name}" for name in without_controllers)])

    def restart(self, *names: str, between: Callable[[], None] = lambda: None) -> None:
        """Stop programs of these names (``kube-apiserver``, ...), call ``between``, and start them again.

        They stop in the reverse order of their start and are started in order; returns once the API server is ready.
        Raises ``ProcessError``.
        """
        chosen = [process for process in self.processes if process.name in names]
        for process in reversed(chosen):
            process.stop()
        between()
        for process in chosen:
            process.start()
            if process.name == "kube-apiserver":
                self._wait(process, "/readyz", "ready")

    def save_storage(self, folder: Path) -> None:
        """Copy etcd's data to ``folder``, which must not exist, as it is at one moment; nothing is restarted.

        etcd stands still for the copy, so what is copied is what a killed etcd would find.
        """
        (etcd,) = (process for process in self.processes if process.name == "etcd")
        with paused(etcd):
            shutil.copytree(self._storage, folder)

    def restore_storage(self, folder: Path) -> None:
        """Bring back the data that ``save_storage`` copied, and with it the revision of that time.

        Every program of Kubernetes is restarted, as the guide to restoring etcd has it; programs of others (KubeVirt,
        our controller) go on. Returns once the API server is ready. Raises ``ProcessError``.
        """

        def swap() -> None:
            shutil.rmtree(self._storage)
            shutil.copytree(folder, self._storage)

        self.restart(*BINARIES, between=swap)

    @property
    def _storage(self) -> Path:
        return self.data_dir / "etcd"

    def _start_kubernetes(self, programs: Mapping[str, Path]) -> None:
        self._start_storage(programs)
        self._start_api_server(programs)
        self._start_clients(programs)

    def _start_storage(self, programs: Mapping[str, Path]) -> None:
        self.etcd_url, peer = f"https://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        self.spawn(
            "etcd",
            [
                programs["etcd"],
                f"--data-dir={self._storage}",
                f"--listen-client-urls={self.etcd_url}",
                f"--advertise-client-urls={self.etcd_url}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                f"--cert-file={self.etcd_pair.cert}",
                f"--key-file={self.etcd_pair.key}",
                f"--trusted-ca-file={self.etcd_ca.cert}",
                "--client-cert-auth",
                "--unsafe-no-fsync",  # nothing here has to survive a power cut
                "--log-level=warn",
            ],
        )

    def _start_api_server(self, programs: Mapping[str, Path]) -> None:
        enabled = ",".join(f"{k}={v}" for k, v in self._runtime_config.items())
        server = self.spawn(
            "kube-apiserver",
            [
                programs["kube-apiserver"],
                f"--etcd-servers={self.etcd_url}",
                f"--etcd-cafile={self.etcd_ca.cert}",
                f"--etcd-certfile={self.etcd_pair.cert}",
                f"--etcd-keyfile={self.etcd_pair.key}",
                "--bind-address=127.0.0.1",
                f"--secure-port={self.port}",
                # The address of the "kubernetes" Service may not be a loopback one, and nobody routes to it.
                "--endpoint-reconciler-type=none",
                f"--tls-cert-file={self.serving.cert}",
                f"--tls-private-key-file={self.serving.key}",
                f"--client-ca-file={self.ca}",
                "--authorization-mode=RBAC",
                "--allow-privileged=true",
                f"--service-cluster-ip-range={SERVICE_CIDR}",
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                f"--service-account-key-file={self.service_account_key.cert}",
                f"--service-account-signing-key-file={self.service_account_key.key}",
                # Aggregated APIs (KubeVirt's subresources) learn the caller's identity through these. Their
                # Service is of type ExternalName, which --enable-aggregator-routing would refuse.
                f"--requestheader-client-ca-file={self.front_proxy_ca.cert}",
                "--requestheader-allowed-names=front-proxy-client",
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                f"--proxy-client-cert-file={self.front_proxy.cert}",
                f"--proxy-client-key-file={self.front_proxy.key}",
                f"--runtime-config={enabled}",
                f"--audit-policy-file={self._write_audit_policy()}",
                f"--audit-log-path={self.audit_log}",
                *self._gate_flags(),
            ],
        )
        self._wait(server, "/readyz", "ready")

    def _start_clients(self, programs: Mapping[str, Path]) -> None:
        fast = ["--kube-api-qps=500", "--kube-api-burst=1000"]
        common = [f"--kubeconfig={self.kubeconfig}", "--leader-elect=false", "--secure-port=0", *fast]
        manager = self.spawn(
            "kube-controller-manager",
            [
                programs["kube-controller-manager"],
                *common,
                f"--service-account-private-key-file={self.service_account_key.key}",
                f"--root-ca-file={self.ca}",
                f"--controllers={self._controllers}",
                "--concurrent-namespace-syncs=20",
                *self._gate_flags(),
            ],
        )
        self.spawn("kube-scheduler", [programs["kube-scheduler"], *common, *self._gate_flags()])
        self._start_kwok(programs["kwok"])
        # Pods are refused until the controllers have made their namespace's service account.
        self._wait(manager, ACCOUNTS_SERVED, "serving accounts")

    def _gate_flags(self) -> list[str]:
        gates = ",".join(f"{k}={str(v).lower()}" for k, v in self._feature_gates.items())
        return [f"--feature-gates={gates}"] if gates else []

    def _wait(self, process: Process, path: str, what: str) -> None:
        """Wait for a GET on ``path`` to succeed, blaming the program that is down if it never does."""
        try:
            process.wait_ready(http_ok(self.url + path, self.ssl_context), START_DEADLINE_S, what)
        except ProcessError:
            for other in self.processes:
                if other is not process and not other.alive:
                    other.wait_ready(lambda: False, 0, what)
            raise
