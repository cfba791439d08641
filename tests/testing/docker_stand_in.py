"""Docker as far as kind needs it to make one node, for machines without it.

`docker` is a script on PATH that hands its arguments to this process. There is one container: kind's node. What kind
does in it is done to a folder; `kubeadm init` starts the built control plane with the flags, the authority and the port
that kind's configuration of kubeadm and its mounts name. What this cannot show: the image, kubeadm itself, the kubelet.
"""

from __future__ import annotations

import json
import os
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from vmtenancy.reconcile.steps import Object
from vmtenancy.testing import build
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.process import Process

VERSION = "v1.36.1"
GATEWAY = "127.0.0.2"
"""An address of this machine that nothing uses by default."""

_CLIENT = f"""#!{sys.executable} -SE
import json, os, socket, sys
stdin = sys.stdin.read() if "-i" in sys.argv else ""
with socket.socket(socket.AF_UNIX) as link:
    link.connect(os.environ["DOCKER_STAND_IN"])
    link.sendall(json.dumps([sys.argv[1:], stdin]).encode() + b"\\n")
    answer = json.loads(link.makefile().read())
sys.stdout.write(answer["out"])
sys.stderr.write(answer["err"])
sys.exit(answer["rc"])
"""


class DockerError(Exception):
    """What docker, or a program in the container, says before it fails."""


class NodeControlPlane(ControlPlane):
    """What `kubeadm init` makes of its configuration."""

    def __init__(self, settings: Object, port: int, mounts: Mapping[str, Path]) -> None:
        super().__init__()
        self._settings = settings
        self._host_port = port
        self._mounts = mounts
        pki = self.data_dir / "pki"
        pki.mkdir()
        for name in ("ca.crt", "ca.key"):  # kubeadm goes on with an authority that it finds
            shutil.copy(mounts[f"/etc/kubernetes/pki/{name}"], pki)

    def _start_kubernetes(self, programs: Mapping[str, Path]) -> None:
        self.port = self._host_port
        self.kubeconfig = self.kubeconfig_for("kubernetes-admin", ["system:masters"])
        super()._start_kubernetes(programs)

    def spawn(self, name: str, command: Any, **options: Any) -> Process:
        if name == "kube-apiserver":
            mounted = {volume["mountPath"]: volume["hostPath"] for volume in self._settings["extraVolumes"]}
            for argument in self._settings["extraArgs"]:
                value = argument["value"]
                for inside, node_path in mounted.items():
                    if value == inside or value.startswith(f"{inside}/"):
                        value = str(self._mounts[node_path]) + value.removeprefix(inside)
                # The last one of a flag counts.
                command = [*command, f"--{argument['name']}={value}"]
        return super().spawn(name, command, **options)

    def _start_kwok(self, program: Path) -> None:
        """Not part of kind's node."""


class Docker:
    """`with Docker(monkeypatch)`: until its end, `docker` on PATH is the stand-in, for child processes too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vmtenancy-docker-"))
        self.run: list[str] = []
        """Arguments of `docker run`, empty while there is no container."""
        self.kubeadm: dict[str, Object] = {}
        """What kind told kubeadm, by kind."""
        self.control_plane: NodeControlPlane | None = None
        self._patch = monkeypatch
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        script = self.folder / "bin" / "docker"
        script.parent.mkdir()
        script.write_text(_CLIENT)
        script.chmod(0o755)
        address = str(self.folder / "docker.sock")
        self._server = socketserver.ThreadingUnixStreamServer(address, _handler(self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._patch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        self._patch.setenv("DOCKER_STAND_IN", address)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._remove()
        shutil.rmtree(self.folder)

    def answer(self, arguments: list[str], stdin: str) -> str:
        """What docker prints. Raises `DockerError`."""
        match arguments:
            case ["-v"]:
                return "Docker version 0 (stand-in)\n"
            case ["info", "--format", "{{json .}}"]:
                return json.dumps({"CgroupDriver": "systemd", "CgroupVersion": "2", "SecurityOptions": []})
            case ["info", *_]:
                return "\n"
            case ["network", "ls", *_]:
                return "0123456789ab\n"
            case ["network", "inspect", "kind"]:
                pools = [
                    {"Subnet": "fc00::/64", "Gateway": "fc00::1"},
                    {"Subnet": "127.0.0.0/8", "Gateway": GATEWAY},
                ]
                return json.dumps([{"Name": "kind", "IPAM": {"Config": pools}}])
            case ["inspect", "--type=image", _]:
                return "[]"
            case ["run", *_]:
                self.run = arguments
                return f"{self.name}\n"
            case ["logs", "-f", _]:
                return "Reached target Multi-User System.\n"
            case ["ps", *_] if not self.run:
                return ""
            case ["ps", *_]:
                return f"{self.name if '{{.Names}}' in arguments else self.name.removesuffix('-control-plane')}\n"
            case ["inspect", _, template, _]:
                return f"{self._field(template)}\n"
            case ["exec", "--privileged", *rest]:
                return self._exec(rest[rest.index(self.name) + 1 :], stdin)
            case ["rm", "-f", "-v", self.name]:
                self._remove()
                return ""
        raise DockerError(f"docker: not known to the stand-in: {arguments}")

    @property
    def name(self) -> str:
        """Of the container; empty while there is none."""
        return self.run[self.run.index("--name") + 1] if self.run else ""

    @property
    def mounts(self) -> dict[str, Path]:
        """Folders and files of this machine by their path in the container."""
        given = [
            argument.removeprefix("--volume=") for argument in self.run if argument.startswith("--volume=")
        ]
        return {inside: Path(outside) for outside, inside in (mount.split(":")[:2] for mount in given)}

    def _field(self, template: str) -> str:
        """One field of `docker inspect` of the container."""
        if "NetworkSettings.Ports" in template:
            (published,) = (a.removeprefix("--publish=") for a in self.run if a.startswith("--publish="))
            address, _, port = published.removesuffix(":6443/TCP").rpartition(":")
            return f"{address}\t{port}"
        if "NetworkSettings.Networks" in template:
            return "172.18.0.2,"
        return "control-plane" if "io.x-k8s.kind.role" in template else ""

    def _exec(self, command: list[str], stdin: str) -> str:
        match command:
            case ["mkdir", "-p", path]:
                self._outside(path).mkdir(parents=True, exist_ok=True)
            case ["cp", "/dev/stdin", path]:
                self._outside(path).write_text(stdin)
            case ["cat", "/kind/version"]:
                return f"{VERSION}\n"
            case ["cat", path] if self._outside(path).exists():
                return self._outside(path).read_text()
            case ["kubeadm", "init", config, *_]:
                self._init(self._outside(config.removeprefix("--config=")))
            case ["kubectl", kubeconfig, *rest]:
                inside = kubeconfig.removeprefix("--kubeconfig=")
                line = [build.resolve("kubectl"), f"--kubeconfig={self._outside(inside)}", *rest]
                done = subprocess.run(line, input=stdin, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise DockerError(done.stderr)
                return done.stdout
            case _:
                raise DockerError(f"no such file or program in the stand-in's container: {command}")
        return ""

    def _outside(self, path: str) -> Path:
        return self.mounts.get(path) or self.folder / "container" / path.lstrip("/")

    def _init(self, path: Path) -> None:
        self.kubeadm = {part["kind"]: part for part in yaml.safe_load_all(path.read_text())}
        _, port = self._field("NetworkSettings.Ports").split("\t")
        settings = self.kubeadm["ClusterConfiguration"]["apiServer"]
        self.control_plane = NodeControlPlane(settings, int(port), self.mounts).start()
        admin = self._outside("/etc/kubernetes/admin.conf")
        admin.parent.mkdir(parents=True)
        admin.write_text(self.control_plane.kubeconfig.read_text())
        # As its kubelet would register it; without a network for pods it never is ready.
        taint = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
        node = {"metadata": {"name": self.name}, "spec": {"taints": [taint]}}
        node["spec"]["taints"].append(
            {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
        )
        node["metadata"]["labels"] = {"node.kubernetes.io/exclude-from-external-load-balancers": ""}
        self.control_plane.request("POST", "/api/v1/nodes", node)

    def _remove(self) -> None:
        if self.control_plane:
            self.control_plane.stop()
        self.run, self.control_plane = [], None


def _handler(docker: Docker) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            arguments, stdin = json.loads(self.rfile.readline())
            answer: dict[str, Any] = {"rc": 0, "out": "", "err": ""}
            try:
                answer["out"] = docker.answer(arguments, stdin)
            except Exception as error:
                answer |= {"rc": 1, "err": f"{type(error).__name__}: {error}\n"}
            self.wfile.write(json.dumps(answer).encode())

    return Handler
