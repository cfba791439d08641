"""The agent as a process: what it publishes and when, what it costs, what it tells Prometheus."""

from __future__ import annotations

import base64
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
from typing import Any

import gpunode_server
import nvml_library
import pci_tree
import pytest
import yaml
from gpunode_server import GpuNodeServer
from nvml_library import StandIn, address, board
from typer.testing import CliRunner

from vmtenancy.agent.agent import Agent
from vmtenancy.agent.daemonset import daemonset
from vmtenancy.agent.publisher import Publisher, same
from vmtenancy.api import parse
from vmtenancy.cli.main import app
from vmtenancy.errors import VmtError
from vmtenancy.kube import errors
from vmtenancy.kube.plain import PlainClient, connection
from vmtenancy.testing.pki import Authority

LONG_S = 3600.0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml_library.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(library: Path, tmp_path: Path) -> Iterator[StandIn]:
    with nvml_library.using(library, tmp_path) as stand_in:
        yield stand_in


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GpuNodeServer]:
    with gpunode_server.serving(tmp_path / "pki") as server:
        yield server


@pytest.fixture
def kubeconfig(server: GpuNodeServer, tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("first\n")
    path = tmp_path / "kubeconfig"
    config = {
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "current-context": "c",
        "clusters": [
            {"name": "k", "cluster": {"server": server.url, "certificate-authority": str(server.authority)}}
        ],
        "users": [{"name": "u", "user": {"tokenFile": "token"}}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(sysfs_root=tmp_path / "no-sys", boot_id="one")
    yield agent
    agent.nvml.close()


@contextmanager
def running(agent: Agent, publisher: Publisher, interval_s: float = LONG_S) -> Iterator[None]:
    thread = threading.Thread(target=agent.run, args=(publisher, interval_s), daemon=True)
    thread.start()
    yield
    agent.stop()
    thread.join(30.0)
    assert not thread.is_alive()


def publisher_of(kubeconfig: Path) -> Publisher:
    return Publisher(PlainClient(connection(kubeconfig)), "node-1")


def run(*arguments: str) -> str:
    """What the command prints."""
    done = CliRunner().invoke(app, ["agent", *arguments], catch_exceptions=False)
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
    with running(agent, publisher_of(kubeconfig), 0.01):
        server.wait_for(3)
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


# -- the client -------------------------------------------------------------------------------------------------------


def test_tokens_are_read_anew(server: GpuNodeServer, kubeconfig: Path) -> None:
    publisher = publisher_of(kubeconfig)
    assert publisher.published() is None
    (kubeconfig.parent / "token").write_text("second")
    publisher.published()
    assert server.tokens == ["first", "second"]


def test_errors_are_those_of_the_other_client(server: GpuNodeServer, kubeconfig: Path) -> None:
    client = PlainClient(connection(kubeconfig))
    server.refuse = 403
    with pytest.raises(errors.ForbiddenError, match="VMT-K001: GET /x: refused"):
        client.get("/x")
    server.refuse = 500
    with pytest.raises(errors.UnknownOutcomeError):
        client.create("/x", {}, "me")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        kubeconfig.write_text(
            kubeconfig.read_text().replace(server.url, f"https://127.0.0.1:{free.getsockname()[1]}")
        )
        with pytest.raises(errors.UnavailableError, match="refused"):
            PlainClient(connection(kubeconfig)).get("/x")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "contexts: []", "{contexts: [{name: c}], current-context: c}", "contexts: [", "a: \x00"],
)
def test_a_kubeconfig_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(errors.KubeError, match="no usable kubeconfig"):
        connection(path)


def changed(path: Path, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> Path:
    """The kubeconfig with other fields of its cluster and user."""
    config = yaml.safe_load(path.read_text())
    config["clusters"][0]["cluster"] |= cluster or {}
    config["users"][0]["user"] |= user or {}
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize(
    ("cluster", "user", "said"),
    [
        ({}, {"as": "admin", "as-groups": ["system:masters"]}, "its user has as, as-groups, which"),
        ({}, {"username": "a", "password": "b"}, "its user has password, username, which"),
        ({}, {"exec": {"command": "c"}}, "its user has exec, which"),
        (
            {},
            {"client-certificate-data": "YQ==", "client-key": "key"},
            "its user needs client-certificate and",
        ),
        ({"proxy-url": "http://proxy"}, {}, "its cluster has proxy-url, which"),
        ({"tls-server-name": "k8s"}, {}, "its cluster has tls-server-name, which"),
        ({"server": "http://127.0.0.1:1"}, {}, "its user has tokenFile, and its server is http://"),
        ({"server": "127.0.0.1:1"}, {}, "its server is not https://HOST:PORT"),
        ({"server": "https://me:word@127.0.0.1:1"}, {}, "its server is not https://HOST:PORT"),
    ],
)
def test_what_a_kubeconfig_says_is_done_or_refused(
    kubeconfig: Path, cluster: dict[str, Any], user: dict[str, Any], said: str
) -> None:
    with pytest.raises(errors.KubeError, match=re.escape(said)):
        connection(changed(kubeconfig, cluster, user))


def test_fields_that_say_nothing_are_no_harm(server: GpuNodeServer, kubeconfig: Path) -> None:
    quiet = {"as": "", "as-groups": [], "exec": None, "extensions": [{"name": "e", "extension": {}}]}
    client = PlainClient(connection(changed(kubeconfig, {"disable-compression": True}, quiet)))
    server.stored = {"kind": "GpuNode"}
    assert client.get("/x") == server.stored
    without = changed(kubeconfig, {"server": "http://127.0.0.1:1"}, {"tokenFile": ""})
    assert connection(without).token_file is None


def test_only_the_authority_that_is_named_is_trusted(server: GpuNodeServer, kubeconfig: Path) -> None:
    trusted = [one["subject"] for one in connection(kubeconfig).tls.get_ca_certs()]
    assert trusted == [((("commonName", "authority"),),)]
    other = Authority(kubeconfig.parent / "other", "other").cert
    with pytest.raises(errors.UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        PlainClient(connection(changed(kubeconfig, {"certificate-authority": str(other)}))).get("/x")
    inline = base64.b64encode(server.authority.read_bytes()).decode()
    both = connection(changed(kubeconfig, {"certificate-authority-data": inline}))
    assert [one["subject"] for one in both.tls.get_ca_certs()] == trusted, "what is inline goes first"


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


def test_without_a_node_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_NAME", raising=False)
    with pytest.raises(VmtError, match="VMT-A001: --node-name: the agent has to know its node"):
        run()


@pytest.mark.parametrize("mode", ["--once", "--metrics-port=0"])
def test_a_node_name_that_can_not_be(mode: str) -> None:
    """It would become a part of the path that is asked for."""
    with pytest.raises(
        VmtError, match=r'VMT-A001: --node-name: invalid value \(found "\.\./x"\); expected a DNS name'
    ):
        run(mode, "--node-name=../x")


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


def test_metrics_leave_out_what_can_not_be(nvml: StandIn, agent: Agent) -> None:
    nvml.answer(board(2) | {"0.power": "!3", "1.temperature": "!15", "1.utilization": "!999"})
    page = agent.page()
    assert re.findall(r"vmtenancy_gpu_power_watts\{gpu=\"(.*)\"\}", page) == [address(1)]
    assert re.findall(r"vmtenancy_gpu_temperature_celsius\{gpu=\"(.*)\"\}", page) == [address(0)]


# -- where it runs ----------------------------------------------------------------------------------------------------


def terms(obj: dict[str, Any]) -> list[tuple[str, list[str]]]:
    affinity = obj["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    found = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return [(one["key"], one["values"]) for term in found for one in term["matchExpressions"]]


def test_nodes_of_the_daemonset() -> None:
    assert terms(daemonset("a")) == [
        ("feature.node.kubernetes.io/pci-10de.present", ["true"]),
        ("nvidia.com/gpu.present", ["true"]),
    ]
    assert terms(daemonset("a", [("gpu", "yes")])) == [("gpu", ["yes"])]


def test_its_script_finds_a_driver_that_comes_later(library: Path, tmp_path: Path) -> None:
    """The container's command, on a folder that plays its root: no library at first, then a driver container's."""
    (container,) = daemonset("a")["spec"]["template"]["spec"]["containers"]
    path = container["env"][1]["value"].replace("/run/nvml", f"{tmp_path}/run/nvml")
    script = (
        container["command"][2]
        .replace("/run/nvml", f"{tmp_path}/run/nvml")
        .replace("/host", f"{tmp_path}/host")
    )
    program = tmp_path / "bin" / "vmtenancy"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", script],
        capture_output=True,
        text=True,
        env={"PATH": f"{program.parent}:/usr/bin:/bin"},
        check=True,
    )
    assert done.stdout.split() == ["agent", "--sysfs-root", f"{tmp_path}/host/sys"]
    load = [sys.executable, "-c", "import ctypes; ctypes.CDLL('libnvidia-ml.so.1')"]
    environment = {"LD_LIBRARY_PATH": path}
    assert subprocess.run(load, env=environment, capture_output=True, check=False).returncode == 1
    there = tmp_path / "host/run/nvidia/driver/usr/lib/x86_64-linux-gnu"
    there.mkdir(parents=True)
    (there / "libnvidia-ml.so.1").symlink_to(library / "libnvidia-ml.so.1")
    assert subprocess.run(load, env=environment, check=False).returncode == 0


def test_a_selector_needs_an_image_and_a_value() -> None:
    for arguments in (["--agent-selector=a=b"], ["--agent-image=a", "--agent-selector=a"]):
        assert CliRunner().invoke(app, ["install", *arguments]).exit_code == 2
