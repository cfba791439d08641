"""Two tenants in a cohort, one with machines and one with a virtual cluster: what one borrows, the other takes back.

On the real KubeVirt and vCluster, in both directions: conditions, events and `explain` say what happens at each step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from audit import violations, writes_at_rest, writes_by_controller
from test_drift_and_nodes import events, ready
from test_story import vmtenancy
from test_unknown_names import API, gpu_vm

from vmtenancy import resources
from vmtenancy.api.names import ADMITTED_CONDITION
from vmtenancy.cli.explain_cmd import Answer, answer_for
from vmtenancy.reconcile.status import condition
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import World, is_deleting
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


def nominated_while(stage: ClusterStage, ref: Ref, victim: Ref, ending: Callable[[World], bool]) -> None:
    """It waits for `victim`, and says so, until that has ended in good order."""
    world = stage.wait(f"{ref} to be nominated", lambda world: reason(world, ref) == "Nominated")
    told = explained(world, ref)
    assert told.data["reason"] == "Nominated"
    assert "starts when what is being stopped has ended" in told.details
    assert told.data["start"]["earliest"] == told.data["start"]["latest"]
    assert str(victim) in (told.data["stops"] or told.data["message"] + str(_revoked(world)))
    stage.wait(f"{victim} to be stopped with its grace period", ending)


def _revoked(world: World) -> list[str]:
    return [
        f"{grant.owner_kind} {grant.owner_namespace}/{grant.owner_name}"
        for grant in View(world, 0.0).live
        if grant.revoked == "Preempted"
    ]


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
    stage.apply_inside(LAB, pod("train"))

    def shuts_down(world: World) -> bool:
        """The machine is told to stop, its instance ends with the grace period, and the pod is held back meanwhile."""
        instance = world.get("VirtualMachineInstance", LENT.namespace, LENT.name)
        if instance is None or not is_deleting(instance):
            return False
        assert not runs(train)(world)
        return bool(instance["metadata"]["deletionGracePeriodSeconds"])

    nominated_while(stage, train, LENT, shuts_down)
    world = stage.wait("the pod to run", lambda w: runs(train)(w) and reason(w, LENT) == "QuotaExceeded")
    assert borrowed(world, "vision") == "0"
    (told,) = events(virtualization, LENT, "Preempted")
    assert told == f"it makes room for {train} (priority 0)"
    assert events(virtualization, train, "Nominated")
    waits = json.loads(vmtenancy(virtualization, "explain", "gpuvm/lent", "-n", "vision", "-o", "json"))
    assert (waits["state"], waits["queue"]) == ("Waits", [{"pool": "h100", "position": 1}])
    assert waits["shortage"]["boundBy"] == "cohort research"
    assert {"holder": str(LAB), "gpus": "2"} in waits["shortage"]["holders"]
    assert waits["start"] is None, "nothing ends by itself"

    # The other way round: the virtual cluster borrows, a machine takes it back.
    stage.delete(LENT)
    stage.delete(OWN)
    more = host("more")
    stage.apply_inside(LAB, pod("more"))
    stage.wait("the second pod to borrow", lambda w: runs(more)(w) and borrowed(w, "llm") == "2")
    stage.apply(machine(BACK))

    def is_evicted(world: World) -> bool:
        """The pod is deleted with its grace period, and the machine does not run before it is gone."""
        found = world.find(more)
        if found is None or not is_deleting(found):
            return False
        assert not runs(BACK)(world)
        return bool(found["metadata"]["deletionGracePeriodSeconds"])

    nominated_while(stage, BACK, more, is_evicted)
    world = stage.wait("the machine to run", lambda w: runs(BACK)(w) and borrowed(w, "llm") == "0")
    assert world.find(more) is None
    assert runs(train)(world), "one is enough"
    assert events(virtualization, more, "Preempted") == [f"it makes room for {BACK} (priority 0)"]
    assert events(virtualization, BACK, "Nominated")
    assert "holds 2 x h100-80gb" in vmtenancy(virtualization, "explain", "gpuvm/back", "-n", "vision")
    assert violations(stage) == []
    assert writes_at_rest(virtualization) == [], "I7"
    assert not [e for e in writes_by_controller(virtualization) if "gracePeriodSeconds=0" in e["requestURI"]]
