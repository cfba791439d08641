"""The ledger is lost under a running controller: head, allocations, their kinds. What runs goes on, and is granted."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vmtenancy import resources
from vmtenancy.api.names import CONTROLLER_ACCOUNT, SYSTEM_NAMESPACE
from vmtenancy.kube.client import Client
from vmtenancy.reconcile import check
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.status import is_true
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.view import LEDGER_NAME, View
from vmtenancy.reconcile.world import World, uid_of
from vmtenancy.testing.controller import ControllerProcess, install_into
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.stage_cluster import ClusterStage
from vmtenancy.testing.waiting import eventually

pytestmark = pytest.mark.cluster
NAMES = ("one", "two")
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture
def stage(cluster: ControlPlane, tmp_path: Path) -> Iterator[ClusterStage]:
    """Two pods of a tenant that run with grants, and the controller."""
    install_into(cluster.kubeconfig)
    with (
        ControllerProcess(cluster.kubeconfig, tmp_path),
        ClusterStage(cluster.kubeconfig, "pods on KWOK") as stage,
    ):
        stage.add_nodes([gpu_node("n1", gpus=2)])
        for file in ("1-classes.yaml", "2-tenants.yaml"):
            for obj in resources.objects(resources.folder("quickstart") / file):
                stage.apply(obj)
        stage.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "llm"}})
        stage.wait("the tenant's label", lambda world: View(world, 0.0).tenant_of("llm") == "llm")
        stage.wait("the tenant", lambda world: is_true(world.get("Tenant", "", "llm") or {}, "Ready"))
        for name in NAMES:
            eventually("the pod to be accepted", partial(created, cluster, pod(name)))
        stage.wait("the pods to run with grants", are_granted)
        yield stage


def pod(name: str) -> Object:
    gpus = {"limits": {"nvidia.com/gpu": "1"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "llm"},
        "spec": {"containers": [{"name": "main", "image": "registry.example/train:1", "resources": gpus}]},
    }


def created(cluster: ControlPlane, obj: Object) -> bool:
    """Not before the namespace has its service account."""
    from kubernetes.client import ApiException

    try:
        cluster.request("POST", f"/api/v1/namespaces/{obj['metadata']['namespace']}/pods", obj)
    except ApiException as error:
        if error.status == 403:
            return False
        raise
    return True


def are_granted(world: World) -> bool:
    """All pods run, each recorded in a live grant, and the tenant's usage says so."""
    view = View(world, 0.0)
    pods = [world.get("Pod", "llm", name) for name in NAMES]
    usage = ((world.get("Tenant", "", "llm") or {}).get("status") or {}).get("usage") or [{}]
    return usage[0].get("allocated") == str(len(NAMES)) and all(
        pod is not None and pod["status"].get("phase") == "Running" and uid_of(pod) in view.live_by_pod
        for pod in pods
    )


def uids(world: World) -> set[str]:
    return {uid_of(pod) for pod in world.of("Pod") if pod["metadata"]["namespace"] == "llm"}


def head(world: World) -> tuple[int, int]:
    spec = (world.get("GpuLedger", "", LEDGER_NAME) or {"spec": {"epoch": 0, "sequence": 0}})["spec"]
    return spec["epoch"], spec["sequence"]


def is_sound(stage: ClusterStage, cluster: ControlPlane) -> None:
    stage.wait("nothing to be wrong", lambda world: not check(world))
    line = [
        sys.executable,
        "-m",
        "vmtenancy",
        "doctor",
        "-o",
        "json",
        "--kubeconfig",
        str(cluster.kubeconfig),
    ]
    told = subprocess.run(line, check=False, capture_output=True, text=True, timeout=60)
    assert (told.returncode, json.loads(told.stdout)) == (0, []), told.stdout


async def delete_head(cluster: ControlPlane) -> None:
    """As the controller's account: the policies let nobody else."""
    async with (
        await Client.connect(cluster.kubeconfig) as admin,
        await admin.as_service_account(SYSTEM_NAMESPACE, CONTROLLER_ACCOUNT) as controller,
    ):
        await controller.delete(KINDS["GpuLedger"], Ref("GpuLedger", "", LEDGER_NAME))


def remove_kinds(cluster: ControlPlane, *plurals: str) -> None:
    for plural in plurals:
        cluster.request("DELETE", f"{CRDS}/{plural}.vmtenancy.io")

    def names() -> set[str]:
        return {crd["metadata"]["name"] for crd in cluster.request("GET", CRDS)["items"]}

    gone = {f"{plural}.vmtenancy.io" for plural in plurals}
    eventually("the kinds to be gone", lambda: not gone & names())


def test_what_runs_outlives_the_ledger(cluster: ControlPlane, stage: ClusterStage, subtests: Any) -> None:
    running = uids(stage.world())

    with subtests.test("the head is deleted"):
        world = stage.world()
        before, grants = head(world), {uid_of(obj) for obj in world.of("GpuAllocation")}
        asyncio.run(delete_head(cluster))
        world = stage.wait("a new head", lambda world: head(world) > before)
        assert head(world)[0] > before[0]
        assert head(world)[1] >= before[1]
        is_sound(stage, cluster)
        assert {uid_of(obj) for obj in stage.world().of("GpuAllocation")} == grants
        assert uids(stage.world()) == running

    for lost in (
        ("gpuallocations",),
        ("gpuledgers", "gpuallocations"),
        ("gpupools", "gpuclasses", "tenants"),
    ):
        with subtests.test(f"without {', '.join(lost)} for a while"):
            before = head(stage.world())
            remove_kinds(cluster, *lost)
            assert uids(stage.world()) == running
            install_into(cluster.kubeconfig)
            for file in ("1-classes.yaml", "2-tenants.yaml") if "tenants" in lost else ():
                for obj in resources.objects(resources.folder("quickstart") / file):
                    if obj["kind"] != "Cohort":
                        stage.apply(obj)
            back = time.monotonic()
            stage.wait("the pods to have grants again", are_granted)
            assert time.monotonic() - back < 30.0
            is_sound(stage, cluster)
            assert uids(stage.world()) == running, "nobody was stopped"
            assert head(stage.world()) >= before
