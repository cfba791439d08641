"""The agent on the real API server: where it runs, what it may write, and that it writes nothing at rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nvml_library
import pytest
import yaml
from nvml_library import address, board
from typer.testing import CliRunner

from vmtenancy.agent.agent import Agent
from vmtenancy.agent.daemonset import daemonset
from vmtenancy.agent.publisher import Publisher
from vmtenancy.agent.publisher import gpu_node as gpu_node_of
from vmtenancy.api import parse
from vmtenancy.api.names import AGENT_ACCOUNT, AGENT_NAMESPACE, AGENT_USER
from vmtenancy.cli.main import app
from vmtenancy.kube import errors
from vmtenancy.kube.plain import PlainClient, connection
from vmtenancy.testing.cluster import KubectlError
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.waiting import eventually

pytestmark = pytest.mark.cluster

Object = dict[str, Any]
Fleet = Callable[[Iterable[Object]], list[Object]]


def plain_node(name: str) -> Object:
    node = gpu_node(name)
    labels = node["metadata"]["labels"]
    node["metadata"]["labels"] = {
        key: value for key, value in labels.items() if "gpu" not in key and "10de" not in key
    }
    return node


def installed(cluster: ControlPlane) -> None:
    """Everything of ours, with the agent, and its policy in force."""
    root = Path(__file__).parents[2]
    cluster.kubectl("apply", "--server-side", "-f", str(root / "crds"))
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/gpunodes.vmtenancy.io")
    cluster.kubectl("apply", "--server-side", "-f", str(root / "deploy" / "manifests"))
    made = json.dumps(daemonset("registry.example/vmtenancy:1"))
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=made)
    eventually("observations in force", lambda: refused(cluster))


def refused(cluster: ControlPlane) -> bool:
    """Whether the agent's account, on no node, is refused."""
    anywhere = ["create", "--dry-run=server", f"--as={AGENT_USER}", "-f", "-"]
    try:
        cluster.kubectl(*anywhere, stdin=json.dumps(gpu_node_of("anywhere", {})))
    except KubectlError as error:
        return "observations.vmtenancy.io" in str(error)
    return False


def agents(cluster: ControlPlane) -> list[Object]:
    pods = json.loads(cluster.kubectl("get", "pods", f"--namespace={AGENT_NAMESPACE}", "-o", "json"))["items"]
    return [pod for pod in pods if pod["spec"].get("nodeName")]


def kubeconfig_of(cluster: ControlPlane, pod: Object, folder: Path) -> Path:
    """The account of an agent's pod, with the token that a kubelet would give it."""
    bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod['metadata']['name']}"]
    token = cluster.kubectl("create", "token", AGENT_ACCOUNT, f"--namespace={AGENT_NAMESPACE}", *bound)
    (folder / "token").write_text(token)
    config = {
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "current-context": "c",
        "clusters": [
            {"name": "k", "cluster": {"server": cluster.url, "certificate-authority": str(cluster.ca)}}
        ],
        "users": [{"name": "u", "user": {"tokenFile": "token"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def test_each_gpu_node_tells_of_itself_alone(cluster: ControlPlane, gpu_fleet: Fleet, tmp_path: Path) -> None:
    gpu_fleet([gpu_node("gpu-1"), gpu_node("gpu-2"), plain_node("plain")])
    installed(cluster)
    pods = eventually(
        "an agent on each GPU node", lambda: found if len(found := agents(cluster)) == 2 else None
    )
    assert {pod["spec"]["nodeName"] for pod in pods} == {"gpu-1", "gpu-2"}
    (pod,) = (pod for pod in pods if pod["spec"]["nodeName"] == "gpu-1")
    client = PlainClient(connection(kubeconfig_of(cluster, pod, tmp_path)))
    agent = Agent(sysfs_root=tmp_path / "no-sys", boot_id="one")
    try:
        with nvml_library.using(nvml_library.build(tmp_path / "nvml"), tmp_path) as nvml:
            publisher = Publisher(client, "gpu-1")
            assert publisher.published() is None
            assert publisher.publish(agent.look(), None)
            stored = stored_node(cluster)
            assert len(parse(stored).to_dict()["status"]["gpus"]) == 8
            before = publisher.published()
            assert before == stored["status"]
            assert not publisher.publish(agent.look(before), before), (
                "at rest, with what the server filled in"
            )
            nvml.answer(board() | {"3.remapFailed": 1, "4.fabric": "!3"})
            assert publisher.publish(agent.look(before), before)
            after = stored_node(cluster)["status"]["gpus"]
            assert [gpu["pciAddress"] for gpu in after if not gpu["healthy"]] == [address(3)]
            assert [gpu["pciAddress"] for gpu in after if "fabric" not in gpu] == [address(4)]
            row = cluster.kubectl("get", "gpunode", "gpu-1", "-o", "wide", "--no-headers").split()
            shown = [
                "gpu-1",
                "container",
                "NVIDIA-H100-80GB-HBM3",
                "Answers",
                address(3),
                "570.86.15",
                "12.8",
            ]
            assert row[:-1] == shown
            with pytest.raises(errors.ForbiddenError, match="found gpu-2 written by the agent on node gpu-1"):
                Publisher(client, "gpu-2").publish(agent.look(), None)
    finally:
        agent.nvml.close()
        client.close()


def stored_node(cluster: ControlPlane) -> Object:
    found: Object = json.loads(cluster.kubectl("get", "gpunode", "gpu-1", "-o", "json"))
    return found


def test_install_makes_the_daemonset(cluster: ControlPlane) -> None:
    arguments = [
        "install",
        "--dry-run",
        f"--kubeconfig={cluster.kubeconfig}",
        "--agent-image=registry.example/a:1",
    ]
    done = CliRunner().invoke(app, [*arguments, "--agent-selector=gpu=yes"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "DaemonSet vmtenancy-agents/vmtenancy-agent would be created" in done.stdout.splitlines()
