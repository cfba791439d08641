"""A real vCluster that was installed without vmtenancy is taken in: its pods go on, and new ones pass the gate."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from vcluster_chart import POOL, Kubectl, chart, control_plane_values, gpu_pod, reached

from vmtenancy import resources
from vmtenancy.helm import Chart
from vmtenancy.reconcile import check
from vmtenancy.reconcile.pods import is_gated
from vmtenancy.reconcile.status import is_true
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import World, uid_of
from vmtenancy.testing.controller import ControllerProcess, install_into
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.stage_cluster import ClusterStage
from vmtenancy.testing.vcluster import VClusterRunner, can_run

__all__ = ["chart"]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.vcluster,
    pytest.mark.skipif(can_run() is not None, reason=str(can_run())),
]


@pytest.fixture
def stage(cluster: ControlPlane, tmp_path: Path) -> Iterator[ClusterStage]:
    install_into(cluster.kubeconfig)
    with (
        VClusterRunner(cluster),
        ControllerProcess(cluster.kubeconfig, tmp_path),
        ClusterStage(cluster.kubeconfig, "the real vCluster") as stage,
    ):
        yield stage


def on_host(world: World, name: str) -> Object:
    return world.get("Pod", "llm", f"{name}-x-default-x-lab") or {}


def runs(world: World, name: str) -> bool:
    return (on_host(world, name).get("status") or {}).get("phase") == "Running"


def test_its_pods_go_on_and_new_ones_pass_the_gate(
    cluster: ControlPlane, stage: ClusterStage, chart: Chart, tmp_path: Path
) -> None:
    host = Kubectl(cluster.kubeconfig)
    stage.add_nodes([gpu_node("gpu-1", gpus=4, labels=POOL)])
    stage.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "llm"}})
    host.apply(chart.render("lab", "llm", control_plane_values()))
    secret = reached("its kubeconfig", lambda: host("get", "secret", "vc-lab", "-n", "llm", "-ojson"))
    inside = Kubectl(kubeconfig_of(secret, tmp_path))
    reached("service account", lambda: inside.get("serviceaccount", "default"))
    inside.apply([gpu_pod("one", 1), gpu_pod("two", 2)])
    before = stage.wait("its pods to run", lambda world: runs(world, "one") and runs(world, "two"))

    for file in ("1-classes.yaml", "2-tenants.yaml"):
        for obj in resources.objects(resources.folder("quickstart") / file):
            stage.apply(obj)
    stage.wait("the tenant", lambda world: is_true(world.get("Tenant", "", "llm") or {}, "Ready"))
    line = [sys.executable, "-m", "vmtenancy", "adopt", "vcluster/lab", "-n", "llm"]
    done = subprocess.run(
        [*line, "--kubeconfig", str(cluster.kubeconfig)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is taken in") == 2
    inside.apply([gpu_pod("three", 1), gpu_pod("four", 4)])
    world = stage.wait("a new pod to run", lambda world: runs(world, "three"))
    assert is_gated(on_host(world, "four")), "it has to wait"
    granted = {uid for grant in View(world, 0.0).live for uid in grant.pod_uids}
    assert granted == {uid_of(on_host(world, name)) for name in ("one", "two", "three")}
    for name in ("one", "two"):
        assert uid_of(on_host(world, name)) == uid_of(on_host(before, name))
    assert check(stage.world()) == []

    inside("delete", "pods", "--all", "--wait=false")
    stage.wait("all GPUs to be given back", lambda world: not list(world.of("GpuAllocation")))


def kubeconfig_of(secret: Object, folder: Path) -> Path:
    path = folder / "lab.yaml"
    path.write_bytes(base64.b64decode(secret["data"]["config"]))
    return path
