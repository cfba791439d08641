"""The agent as a process: what it publishes and when, what it costs, what it tells Prometheus."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pci_tree
import pytest
from gpunode_server import GpuNodeServer
from nvml_library import StandIn, address, board
from typer.testing import CliRunner

from vmtenancy.agent.agent import Agent
from vmtenancy.agent.publisher import Publisher, same
from vmtenancy.api import parse
from vmtenancy.cli.main import app
from vmtenancy.errors import VmtError
from vmtenancy.kube.plain import PlainClient, connection

LONG_S = 3600.0


@contextmanager
def running(
    agent: Agent, publisher: Publisher, interval_s: float = LONG_S, heartbeat: Path | None = None
) -> Iterator[None]:
    thread = threading.Thread(target=agent.run, args=(publisher, interval_s, heartbeat), daemon=True)
    thread.start()
    yield
    agent.stop()
    thread.join(30.0)
    assert not thread.is_alive()


def publisher_of(kubeconfig: Path) -> Publisher:
    return Publisher(PlainClient(connection(kubeconfig)), "node-1")


def run(*arguments: str) -> str:
    """What the command prints."""
    environment = {"NODE_NAME": None}
    done = CliRunner().invoke(app, ["agent", *arguments], env=environment, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


# -- publishing -------------------------------------------------------------------------------------------------------


def test_creates_then_applies_then_writes_nothing_at_rest(
    nvml: StandIn, server: GpuNodeServer, kubeconfig: Path, agent: Agent
) -> None:
    publisher = publisher_of(kubeconfig)
    with running(agent, publisher, 0.01):
        server.wait_for(20)
    path = "/apis/vmtenancy.io/v1alpha1/gpunodes"
    assert server.requests[:3] == [
        ("GET", f"{path}/node-1"),
        ("POST", f"{path}?fieldManager=vmtenancy-agent"),
        ("PATCH", f"{path}/node-1/status?fieldManager=vmtenancy-agent&force=true"),
    ]
    assert set(server.requests[3:]) == {("GET", f"{path}/node-1")}
    assert len(server.writes) == publisher.writes == 2
    assert len(parse(server.stored or {}).to_dict()["status"]["gpus"]) == 8


def test_power_and_clocks_are_no_facts(
    nvml: StandIn, server: GpuNodeServer, kubeconfig: Path, agent: Agent
) -> None:
    with running(agent, publisher_of(kubeconfig), 0.01):
        server.wait_for(5)
        nvml.answer(
            board() | {"*.power": 700000, "*.utilization": 100, "*.used": 1 << 36, "*.temperature": 80}
        )
        server.wait_for(len(server.requests) + 5)
    assert len(server.writes) == 2


def test_a_change_is_written_once(
    nvml: StandIn, server: GpuNodeServer, kubeconfig: Path, agent: Agent
) -> None:
    with running(agent, publisher_of(kubeconfig), 0.01):
        server.wait_for(5)
        nvml.answer(board() | {"3.remapFailed": 1})
        server.wait_for(len(server.requests) + 8)
    assert len(server.writes) == 3
    sick = [gpu["pciAddress"] for gpu in server.writes[2]["status"]["gpus"] if not gpu["healthy"]]
    assert sick == [address(3)]


def test_an_xid_is_published_when_it_comes_and_outlives_the_agent(
    nvml: StandIn, server: GpuNodeServer, kubeconfig: Path, agent: Agent
) -> None:
    """The interval is an hour: only the event can bring it."""
    with running(agent, publisher_of(kubeconfig)):
        server.wait_for(3)
        nvml.report(6, 79)
        server.wait_for(5)
    (sick,) = (gpu for gpu in server.writes[2]["status"]["gpus"] if not gpu["healthy"])
    assert (sick["pciAddress"], sick["reasons"]) == (
        address(6),
        [{"reason": "XidError", "message": "XID 79"}],
    )
    successor = Agent(sysfs_root=agent.sysfs_root, boot_id="one")
    try:
        with running(successor, publisher_of(kubeconfig), 0.01):
            server.wait_for(len(server.requests) + 5)
    finally:
        successor.nvml.close()
    assert len(server.writes) == 3


def test_refused_writes_are_tried_again(
    nvml: StandIn, server: GpuNodeServer, kubeconfig: Path, agent: Agent
) -> None:
    server.refuse = 403
    heartbeat = kubeconfig.parent / "heartbeat"
    with running(agent, publisher_of(kubeconfig), 0.01, heartbeat):
        server.wait_for(3)
        assert heartbeat.exists(), "who can not write is alive"
        server.refuse = 0
        server.wait_for(len(server.requests) + 4)
    assert server.stored is not None
    assert agent.counts.failed_writes >= 3


def test_what_the_server_fills_in_is_no_change() -> None:
    status = {"mode": "", "gpus": [{"healthy": True, "peers": [{"pciAddress": "a"}]}]}
    stored = {
        "gpus": [{"healthy": True, "peers": [{"pciAddress": "a", "ancestor": "", "nvLinks": 0}]}],
        "conditions": [],
    }
    assert same(status, stored)
    for change in (
        {**stored, "mode": "container"},
        {"gpus": [{"healthy": False, "peers": stored["gpus"][0]["peers"]}]},
        {"gpus": []},
        {"gpus": [{**stored["gpus"][0], "uuid": "GPU-1"}]},
    ):
        assert not same(status, change)


# -- the command ------------------------------------------------------------------------------------------------------


def test_once(nvml: StandIn, tmp_path: Path) -> None:
    pci_tree.passthrough(tmp_path / "sys")
    nvml.answer({"init": "!9"})
    node = json.loads(
        run("--once", "-o", "json", "--node-name", "node-1", "--sysfs-root", str(tmp_path / "sys"))
    )
    parse(node)
    assert node["metadata"] == {"name": "node-1"}
    assert node["status"]["mode"] == "vm-passthrough"
    assert [gpu["product"] for gpu in node["status"]["gpus"]] == ["NVIDIA-H100-80GB-HBM3"] * 3
    assert {gpu["driver"] for gpu in node["status"]["gpus"]} == {"vfio-pci"}


def test_once_as_a_table(nvml: StandIn) -> None:
    mig = {"0.mig": 1, "0.profile.0": "19 7 1 0,1,2,3,4,5,6 MIG 1g.10gb", "0.instances.19": "7:4,8:5"}
    nvml.answer(board(2) | {"1.remapFailed": 1} | mig)
    assert run("--once", "--node-name", "node-1").splitlines() == [
        "node-1: mode container, NVML Answers",
        "driver 570.86.15, CUDA 12.8, 2 GPUs",
        "  0000:1b:00.0  NVIDIA-H100-80GB-HBM3          81559Mi  nvidia      healthy",
        "    GPU-5e2c9a10-0f6b-4f6e-9c47-0d9a7a7c0b00, compute capability 9.0, NUMA node 0, module 1, MIG 2x1g.10gb, "
        "fabric Completed, clique 0, NVLink to 1 GPUs",
        "  0000:43:00.0  NVIDIA-H100-80GB-HBM3          81559Mi  nvidia      "
        "RowRemapFailure: a row of its memory could not be remapped: the GPU has to be replaced",
        "    GPU-5e2c9a10-0f6b-4f6e-9c47-0d9a7a7c0b01, compute capability 9.0, NUMA node 0, module 2, "
        "fabric Completed, clique 0, NVLink to 1 GPUs",
    ]


def test_without_a_node_name() -> None:
    with pytest.raises(VmtError, match="VMT-A001: --node-name: the agent has to know its node"):
        run()


@pytest.mark.parametrize("mode", ["--once", "--metrics-port=0"])
def test_a_node_name_that_can_not_be(mode: str) -> None:
    """It would become a part of the path that is asked for."""
    with pytest.raises(
        VmtError, match=r'VMT-A001: --node-name: invalid value \(found "\.\./x"\); expected a DNS name'
    ):
        run(mode, "--node-name=../x")


def test_a_heartbeat_that_can_not_be_written(kubeconfig: Path, tmp_path: Path) -> None:
    where = ["--node-name=node-1", f"--kubeconfig={kubeconfig}", "--metrics-port=0"]
    with pytest.raises(VmtError, match="VMT-A001: --heartbeat: No such file or directory"):
        run(*where, f"--heartbeat={tmp_path}/no/heartbeat")


def test_a_tree_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(VmtError, match=f"VMT-A001: --sysfs-root: holds no PCI tree .found {tmp_path}."):
        run("--once", f"--sysfs-root={tmp_path}")


def test_costs_and_metrics(nvml: StandIn, server: GpuNodeServer, kubeconfig: Path) -> None:
    """Resident memory of both processes, what is loaded, own time for eight GPUs, and the end by SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-X", "importtime", "-m", "vmtenancy", "agent", "--node-name", "node-1"]
    command += ["--kubeconfig", str(kubeconfig), "--metrics-port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        server.wait_for(3)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            page = answer.read().decode()
        resident = resident_kib(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
    assert len(resident) == 2
    assert sum(resident.values()) <= 90 * 1024, resident
    loaded = set(re.findall(r"\| +(\w+)$", log, re.M))
    assert "typer" in loaded
    assert not loaded & {"numpy", "kopf", "kubernetes", "aiohttp", "rich", "pynvml", "prometheus_client"}
    values = dict(re.findall(r"^(\w+)(?:\{gpu=\"0000:1b:00.0\"\})? (\S+)$", page, re.M))
    assert float(values["vmtenancy_gpu_power_watts"]) == 95
    assert float(values["vmtenancy_gpu_temperature_celsius"]) == 34
    assert float(values["vmtenancy_gpu_sm_clock_hertz"]) == 345e6
    assert float(values["vmtenancy_gpu_utilization_ratio"]) == 0.07
    assert float(values["vmtenancy_gpu_memory_used_bytes"]) == 1 << 30
    assert (values["vmtenancy_agent_nvml_up"], values["vmtenancy_agent_nvml_starts_total"]) == ("1.0", "1.0")
    assert page.count("\nvmtenancy_gpu_power_watts{") == 8


def resident_kib(parent: int) -> dict[int, int]:
    """Resident memory of a process and its children, by pid."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        fields = dict(re.findall(r"^(Pid|PPid|VmRSS):\s+(\d+)", text, re.M))
        if str(parent) in (fields["Pid"], fields["PPid"]) and "VmRSS" in fields:
            found[int(fields["Pid"])] = int(fields["VmRSS"])
    return found


def test_one_look_at_eight_gpus_takes_little_of_our_own_time(nvml: StandIn, agent: Agent) -> None:
    status = agent.look()
    before = agent.counts.own_seconds
    looks = [agent.look(status) for _ in range(10)]
    assert looks == [status] * 10
    assert (agent.counts.own_seconds - before) / 10 <= 0.050
