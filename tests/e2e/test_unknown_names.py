"""What only a look-up can tell is shown at once, with code and field: one condition, one event, and then quiet."""

from __future__ import annotations

import json

import pytest
from audit import writes_at_rest

from vmtenancy.reconcile.status import condition
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.world import World
from vmtenancy.testing.cluster import Cluster
from vmtenancy.testing.controller import ControllerProcess
from vmtenancy.testing.stage_cluster import ClusterStage
from vmtenancy.testing.story import quickstart_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.kubevirt, pytest.mark.vcluster]

API = "vmtenancy.io/v1alpha1"


def gpu_vm(name: str, gpu_class: str, template: str = "default") -> Object:
    return {
        "apiVersion": API,
        "kind": "GpuVM",
        "metadata": {"name": name, "namespace": "vision"},
        "spec": {
            "template": {"name": template},
            "gpus": [{"class": gpu_class, "count": 1}],
            "cpu": {"cores": 2},
            "memory": "4Gi",
            "disks": [{"name": "root", "image": {"containerDisk": "registry.example/os:1"}}],
        },
    }


def contradictory() -> list[Object]:
    """What no schema can refuse: cohorts in a circle, a pool that is not there, reservations that overlap."""

    def of(kind: str, name: str, spec: Object, namespace: str = "") -> Object:
        meta = {"name": name} | ({"namespace": namespace} if namespace else {})
        return {"apiVersion": API, "kind": kind, "metadata": meta, "spec": spec}

    quota = [{"pool": "h100", "nominal": 1}, {"pool": "no-such-pool", "nominal": 1}]
    window = {"start": "2097-03-02T08:00:00Z", "end": "2097-03-02T18:00:00Z"}
    return [
        of("Cohort", "left", {"parent": "right"}),
        of("Cohort", "right", {"parent": "left"}),
        of("Tenant", "strange", {"namespaces": ["strange"], "quota": quota}),
        of("GpuReservation", "first", {"class": "h100-80gb", "count": 3, **window}, "vision"),
        of("GpuReservation", "second", {"class": "h100-80gb", "count": 3, **window}, "vision"),
    ]


def test_unknown_names_are_told_once(
    virtualization: Cluster,
    controller: ControllerProcess,
    stage: ClusterStage,
    manifests: dict[str, list[Object]],
) -> None:
    stage.add_nodes(quickstart_nodes()[2:3])
    for obj in [*manifests["1-classes.yaml"], *manifests["2-tenants.yaml"]]:
        stage.apply(obj)
    stage.apply(
        {
            "apiVersion": API,
            "kind": "GpuClass",
            "metadata": {"name": "stray"},
            "spec": {"pool": "no-such-pool", "delivery": {"passthrough": {"resource": "nvidia.com/X"}}},
        }
    )
    for obj in contradictory():
        stage.apply(obj)
    stage.apply(gpu_vm("no-class", "h200"))
    stage.apply(gpu_vm("no-template", "h100-80gb", "no-such-template"))

    expected = {
        Ref("GpuClass", "", "stray"): ("Ready", "PoolNotFound", "VMT-A004: spec.pool: no such GpuPool"),
        Ref("Tenant", "", "strange"): ("Ready", "PoolNotFound", "VMT-A004: spec.quota[1].pool"),
        Ref("Cohort", "", "left"): ("Ready", "CohortCycle", "VMT-Q003: spec.parent"),
        Ref("Cohort", "", "right"): ("Ready", "CohortCycle", "(found right → left → right)"),
        Ref("GpuReservation", "vision", "second"): ("Admitted", "ReservationConflict", "VMT-T002: spec"),
        Ref("GpuVM", "vision", "no-class"): ("Admitted", "UnknownClass", "h200"),
        Ref("GpuVM", "vision", "no-template"): ("Admitted", "CannotRender", "no-such-template"),
    }

    def told(world: World) -> bool:
        found = {ref: condition(world.find(ref) or {}, kind) for ref, (kind, _, _) in expected.items()}
        return all(
            (seen := found[ref]) is not None and seen["reason"] == reason and name in seen["message"]
            for ref, (_, reason, name) in expected.items()
        )

    stage.wait("each to say what it does not find", told, timeout=30)
    assert writes_at_rest(virtualization) == [], "no retry storm"
    events = json.loads(virtualization.kubectl("get", "events", "--all-namespaces", "--output=json"))["items"]
    for ref, (_, reason, _) in expected.items():
        about = [
            event
            for event in events
            if event["involvedObject"]["name"] == ref.name and event["reason"] == reason
        ]
        assert len(about) == 1, ref
