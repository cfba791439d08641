"""Sandboxes: alone on their network, in their root folder, and gone with whoever started them."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmtenancy.testing import sandbox
from vmtenancy.testing.process import Process, free_port
from vmtenancy.testing.waiting import eventually

needs_namespaces = pytest.mark.skipif(sandbox.missing() is not None, reason=str(sandbox.missing()))
HOST = ("bin", "lib", "lib64", "dev/null")
SHELL = {f"/{name}": Path("/", name).resolve() for name in HOST if Path("/", name).exists()}


@pytest.fixture
def network() -> Iterator[sandbox.Network]:
    made = sandbox.Network()
    yield made
    made.close()


def shell(network: sandbox.Network, folder: Path, script: str) -> Process:
    command = network.sandboxed(folder / "root", SHELL, ["/bin/sh", "-c", script])
    return Process("shell", command, log=folder / "log")


def test_without_root_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert sandbox.missing.__wrapped__() == "mount and network namespaces need root"


def test_without_the_tools_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "nsenter" in str(sandbox.missing.__wrapped__())


@needs_namespaces
def test_ports_inside_are_reached_only_where_exposed(network: sandbox.Network) -> None:
    outside = free_port()
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]
        network.reach(port)
        network.expose(port, outside)  # out to the network, and from there back to the service
        service.settimeout(10)
        with socket.create_connection(("127.0.0.1", outside), timeout=10) as caller:
            called, _ = service.accept()
            with called:
                caller.sendall(b"ping")
                assert called.recv(10) == b"ping"
                called.sendall(b"pong")
                assert caller.recv(10) == b"pong"
            assert caller.recv(10) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)


@needs_namespaces
def test_a_port_that_nobody_serves_ends_the_connection(network: sandbox.Network) -> None:
    outside = free_port()
    network.expose(8443, outside)
    with socket.create_connection(("127.0.0.1", outside), timeout=10) as caller:
        assert caller.recv(10) == b""


@needs_namespaces
def test_a_sandbox_has_its_own_root_and_processes(network: sandbox.Network, tmp_path: Path) -> None:
    process = shell(network, tmp_path, "echo pid=$$; echo /*")
    process.start()
    eventually("the end", lambda: not process.alive)
    places = sorted({"/proc", *(f"/{Path(name).parts[0]}" for name in HOST if f"/{name}" in SHELL)})
    assert (tmp_path / "log").read_text().splitlines() == ["pid=1", " ".join(places)]
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


@needs_namespaces
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_what_a_sandbox_started_ends_with_it(network: sandbox.Network, tmp_path: Path, how: str) -> None:
    nap = f"sleep 600.{tmp_path.stat().st_ino}"
    process = shell(network, tmp_path, f"{nap} & {nap} & wait")
    process.start()
    eventually("two naps", lambda: running(f"^{nap}$") == 2)
    if how == "kill":
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)  # as if whoever started it had been killed
    else:
        process.stop(grace_s=0)
    eventually("nobody napping", lambda: running(f"^{nap}$") == 0)
    process.stop()


def running(pattern: str) -> int:
    done = subprocess.run(["pgrep", "-fc", pattern], capture_output=True, text=True, check=False)
    return int(done.stdout)
