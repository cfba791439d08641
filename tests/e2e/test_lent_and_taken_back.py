"""Two tenants in a cohort, one with machines and one with a virtual cluster: what one borrows, the other takes back.

On the real KubeVirt and vCluster, in both directions: conditions, events and `explain` say what happens at each step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from audit import violations, writes_at_rest
from test_drift_and_nodes import MERGE, events, ready
from test_story import vmtenancy
from test_unknown_names import API, gpu_vm

from vmtenancy import resources
from vmtenancy.api.names import ADMITTED_CONDITION, GPUVM_LABEL
from vmtenancy.cli.explain_cmd import Answer, answer_for
from vmtenancy.reconcile.status import condition
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import World, is_deleting, labels_of, ref_of
from vmtenancy.testing.cluster import Cluster
from vmtenancy.testing.controller import ControllerProcess
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.stage_cluster import ClusterStage
from vmtenancy.testing.story import PASSTHROUGH

pytestmark = [pytest.mark.cluster, pytest.mark.kubevirt, pytest.mark.vcluster]

LAB, HOME = Ref("VirtualCluster", "llm", "lab"), "vc-llm--lab"
OWN, LENT, BACK = (Ref("GpuVM", "vision", name) for name in ("own", "lent", "back"))


def tenants() -> list[Object]:
    """Two GPUs are each one's own; both take back what they lend."""
    quota = [{"pool": "h100", "nominal": 2}]
    return [
        {"apiVersion": API, "kind": "Cohort", "metadata": {"name": "research"}, "spec": {}},
        *(
            {
                "apiVersion": API,
                "kind": "Tenant",
                "metadata": {"name": name},
                "spec": {
                    "namespaces": [name],
                    "cohort": "research",
                    "quota": quota,
                    "preemption": {"reclaimWithinCohort": "Any"},
                },
            }
            for name in ("vision", "llm")
        ),
    ]


def machine(ref: Ref) -> Object:
    obj = gpu_vm(ref.name, "h100-80gb")
    obj["spec"]["gpus"][0]["count"] = 2
    return obj


def pod(name: str) -> Object:
    limits = {"nvidia.com/gpu": 2, "cpu": "1", "memory": "1Gi"}
    container = {"name": "main", "image": "registry.example/main:1", "resources": {"limits": limits}}
    meta = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [container]}}


def host(name: str) -> Ref:
    return Ref("Pod", HOME, f"{name}-x-default-x-lab")


def reason(world: World, ref: Ref) -> str:
    of = ADMITTED_CONDITION if ref.kind == "Pod" else "Admitted"
    found = condition(world.find(ref) or {}, of)
    return str(found["reason"]) if found else ""


def runs(ref: Ref) -> Callable[[World], bool]:
    return lambda world: ((world.find(ref) or {}).get("status") or {}).get("phase") == "Running"


def explained(world: World, ref: Ref) -> Answer:
    """What `vmtenancy explain` says of this very moment."""
    world.templates = resources.templates()
    obj = world.find(ref)
    assert obj is not None
    return answer_for(View(world, time.time()), obj)


def borrowed(world: World, tenant: str) -> str:
    (row,) = (world.get("Tenant", "", tenant) or {})["status"]["usage"]
    return str(row["borrowed"])


def linger(cluster: Cluster, pod: Object) -> None:
    """It takes its time to shut down: long enough to be looked at."""
    meta = pod["metadata"]
    annotations = {f"pod-delete.stage.kwok.x-k8s.io/{name}": "6s" for name in ("delay", "jitter-delay")}
    path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
    cluster.request("PATCH", path, {"metadata": {"annotations": annotations}}, content_type=MERGE)


def taken_back(stage: ClusterStage, taker: Ref, victim: Ref, pod: Ref) -> World:
    """The taker is nominated while the pod of its victim ends in good order, and runs when that is gone."""
    world = stage.wait(
        f"{taker} to be nominated and {victim} to be stopped",
        lambda world: (
            reason(world, taker) == "Nominated" and is_deleting(world.find(pod) or {"metadata": {}})
        ),
    )
    assert (world.find(pod) or {})["metadata"]["deletionGracePeriodSeconds"] > 0
    assert not runs(taker)(world)
    grants = {(grant.owner_kind, grant.owner_name): grant for grant in View(world, 0.0).live}
    assert grants[victim.kind, victim.name].revoked == "Preempted", "it holds its GPUs until it is gone"
    told = explained(world, taker)
    assert told.data["reason"] == "Nominated"
    assert "starts when what is being stopped has ended" in told.details
    return stage.wait(f"{taker} to run", lambda world: runs(taker)(world) and world.find(pod) is None)


def test_each_takes_back_what_the_other_borrowed(
    virtualization: Cluster,
    controller: ControllerProcess,
    stage: ClusterStage,
    manifests: dict[str, list[Object]],
) -> None:
    stage.add_nodes(
        [
            gpu_node("machines", mode="vm-passthrough", gpus=4, resources={PASSTHROUGH: 4}),
            gpu_node("pods", gpus=4),
        ]
    )
    for obj in [*manifests["1-classes.yaml"], *tenants()]:
        stage.apply(obj)
    cluster = {"gpus": [{"class": "h100-80gb", "guaranteed": 0, "max": 4}]}
    meta = {"name": LAB.name, "namespace": LAB.namespace}
    stage.apply({"apiVersion": API, "kind": LAB.kind, "metadata": meta, "spec": cluster})
    stage.apply(machine(OWN))
    stage.wait("the first machine", runs(OWN))
    stage.apply(machine(LENT))
    world = stage.wait(
        "all to run", lambda w: runs(LENT)(w) and ready(LAB)(w) and borrowed(w, "vision") == "2"
    )

    # The virtual cluster's pod takes back what the machine borrowed.
    train = host("train")
    (launcher,) = [p for p in world.of("Pod") if labels_of(p).get(GPUVM_LABEL) == LENT.name]
    linger(virtualization, launcher)
    stage.apply_inside(LAB, pod("train"))
    taken_back(stage, train, LENT, ref_of(launcher))
    world = stage.wait("the machine to wait again", lambda w: reason(w, LENT) == "QuotaExceeded")
    assert borrowed(world, "vision") == "0"
    (told,) = events(virtualization, LENT, "Preempted")
    assert told == f"it makes room for {train} (priority 0)"
    assert events(virtualization, train, "Nominated")
    waits = json.loads(vmtenancy(virtualization, "explain", "gpuvm/lent", "-n", "vision", "-o", "json"))
    assert (waits["state"], waits["queue"]) == ("Waits", [{"pool": "h100", "position": 1}])
    assert waits["shortage"]["boundBy"] == "cohort research"
    assert {"holder": str(LAB), "holds": "2"} in waits["shortage"]["holders"]
    assert waits["start"] is None, "nothing ends by itself"

    # The other way round: the virtual cluster borrows, a machine takes it back.
    stage.delete(LENT)
    stage.delete(OWN)
    more = host("more")
    stage.apply_inside(LAB, pod("more"))
    world = stage.wait("the second pod to borrow", lambda w: runs(more)(w) and borrowed(w, "llm") == "2")
    linger(virtualization, world.find(more) or {})
    stage.apply(machine(BACK))
    taken_back(stage, BACK, more, more)
    world = stage.wait("llm to have what is its own", lambda w: borrowed(w, "llm") == "0")
    assert runs(train)(world), "one is enough"
    assert events(virtualization, more, "Preempted") == [f"it makes room for {BACK} (priority 0)"]
    assert events(virtualization, BACK, "Nominated")
    assert "holds 2 x h100-80gb" in vmtenancy(virtualization, "explain", "gpuvm/back", "-n", "vision")
    assert violations(stage) == []
    assert writes_at_rest(virtualization) == [], "I7"
