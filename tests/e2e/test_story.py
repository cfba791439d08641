"""The main job on the real programs, with the invariants checked after every scene."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from audit import violations, writes_at_rest

from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.testing.cluster import Cluster
from vmtenancy.testing.controller import ControllerProcess
from vmtenancy.testing.stage_cluster import ClusterStage
from vmtenancy.testing.story import leftovers, tell
from vmtenancy.testing.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.kubevirt, pytest.mark.vcluster]

Manifests = dict[str, list[Object]]
LAB = Ref("VirtualCluster", "llm", "lab")


def test_the_story_on_the_real_programs(
    virtualization: Cluster, controller: ControllerProcess, stage: ClusterStage, manifests: Manifests
) -> None:
    titles = []
    for scene in tell(stage, manifests):
        titles.append(scene.title)
        assert violations(stage) == [], scene.title
        assert writes_at_rest(virtualization) == [], f"I7 after: {scene.title}"
        if scene.title.startswith("A pod with two GPUs"):
            inside = eventually(
                "the pod inside to be Running",
                lambda: _running(stage.get_inside(LAB, Ref("Pod", "default", "finetune"))),
            )
            (outside,) = [p for p in scene.world.of("Pod") if p["metadata"]["name"].startswith("finetune-x-")]
            assert inside["spec"]["nodeName"] == outside["spec"]["nodeName"]
        if scene.title.startswith("A request over quota"):
            message = scene.decided[0]
            assert "pool h100: needs 4 GPUs, 2.75 free" in message
            assert "held by GpuVM vision/trainer 2" in message
            assert writes_at_rest(virtualization, quiet=10.0) == [], "I7"
            assert "would be admitted now with 2 x h100-80gb" in vmtenancy(
                virtualization, "explain", "gpuvm/sweep", "--namespace", "vision"
            )
            assert "QuotaExceeded" not in vmtenancy(
                virtualization, "explain", "gpuvm/trainer", "-n", "vision"
            )
            rows = json.loads(vmtenancy(virtualization, "get", "--output", "json"))
            assert {row["name"]: row["phase"] for row in rows if row["kind"] == "GpuVM"} == {
                "trainer": "Running",
                "workstation": "Running",
                "sweep": "Pending",
            }
            assert "vision h100: ███· 2.25 of 4 GPUs" in vmtenancy(virtualization, "fleet")
    assert len(titles) == 8
    assert leftovers(stage.world()) == []


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("A virtual machine with two whole GPUs", marks=pytest.mark.nightly),
        "A virtual cluster with",
        pytest.param("Room is made", marks=pytest.mark.nightly),
    ],
)
def test_a_killed_controller_goes_on(
    controller: ControllerProcess, stage: ClusterStage, manifests: Manifests, victim: str
) -> None:
    def during(title: str) -> None:
        if title.startswith(victim):
            controller.kill_and_restart()

    for scene in tell(stage, manifests, during=during):
        assert violations(stage) == [], scene.title
        owners = [obj["spec"]["owner"]["uid"] for obj in scene.world.of("GpuAllocation")]
        assert len(owners) == len(set(owners)), "nothing is granted twice"
    (ledger,) = stage.world().of("GpuLedger")
    assert ledger["spec"]["released"] == [] or leftovers(stage.world()) == []


def vmtenancy(cluster: Cluster, command: str, *arguments: str) -> str:
    """What the command line prints, as a person runs it."""
    line = [sys.executable, "-m", "vmtenancy", command, *arguments, "--kubeconfig", str(cluster.kubeconfig)]
    return subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout


def _running(pod: Object) -> Object | None:
    return pod if pod["status"].get("phase") == "Running" else None
