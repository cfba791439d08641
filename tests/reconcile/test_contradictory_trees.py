"""Edits that are valid one by one and contradict each other: the part concerned alone degrades, and says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from lab import Lab, add_node, gpu_class, gpu_vm, manifest, small_lab, tenant

from vmtenancy.reconcile.status import condition
from vmtenancy.testing.fleet import gpu_node

A100 = "nvidia.com/GA100_A100_SXM4_80GB"
Edits = Callable[[Lab], None]


@pytest.fixture
def lab() -> Lab:
    """As always, with `research` below `company`, and a third tenant that has a pool and a cohort of its own."""
    found = small_lab()
    add_node(
        found, gpu_node("old", mode="vm-passthrough", gpus=4, product="NVIDIA-A100", resources={A100: 4})
    )
    found.apply(
        manifest("GpuPool", "h100", {"selector": {"products": ["NVIDIA-H100-80GB-HBM3"]}}),
        manifest("GpuPool", "a100", {"selector": {"products": ["NVIDIA-A100"]}}),
        gpu_class("old", pool="a100", passthrough=A100),
        manifest("Cohort", "company", {"quota": [{"pool": "h100", "nominal": 1}]}),
        manifest("Cohort", "research", {"parent": "company"}),
        manifest("Cohort", "apart", {}),
        tenant("third", 0, cohort="apart", quota=[{"pool": "a100", "nominal": 2}]),
        tenant("fourth", 0, cohort="apart", quota=[{"pool": "a100", "nominal": 2}]),
    )
    found.settle()
    found.apply(gpu_vm("a", 2), gpu_vm("x", 2, of="old", namespace="third"))
    found.settle()
    assert len(found.live_grants()) == 2
    found.quota_just_decided = False
    return found


@dataclass
class Case:
    """`edits` make a contradiction; each of `told` (kind, name) has this reason and these words in its condition.

    `more` is how many more GPUs the tenant vision gets then: 1 of its own, and 1 borrowed where it still can.
    """

    edits: Edits
    told: dict[tuple[str, str], tuple[str, tuple[str, ...]]]
    more: int
    repair: Edits


def _cohort(name: str, **spec: object) -> Edits:
    return lambda lab: lab.apply(manifest("Cohort", name, spec))


def _delete(kind: str, name: str) -> Edits:
    return lambda lab: lab.delete(kind, "", name)


CYCLE = ("VMT-Q003: spec.parent: cohorts form a cycle", "research → company → research")
H100 = manifest("GpuPool", "h100", {"selector": {"products": ["NVIDIA-H100-80GB-HBM3"]}})
CASES = {
    "a cohort's parent is put below it": Case(
        _cohort("company", parent="research", quota=[{"pool": "h100", "nominal": 1}]),
        {
            ("Cohort", "research"): ("CohortCycle", CYCLE),
            ("Cohort", "company"): ("CohortCycle", ("VMT-Q003: spec.parent", "company → research → company")),
        },
        2,
        _cohort("company", quota=[{"pool": "h100", "nominal": 1}]),
    ),
    "a longer circle": Case(
        lambda lab: lab.apply(
            manifest("Cohort", "top", {"parent": "research"}),
            manifest("Cohort", "company", {"parent": "top", "quota": [{"pool": "h100", "nominal": 1}]}),
        ),
        {
            ("Cohort", "research"): ("CohortCycle", ("research → company → top → research",)),
            ("Cohort", "top"): ("CohortCycle", ("VMT-Q003",)),
            ("Cohort", "company"): ("CohortCycle", ("VMT-Q003",)),
        },
        2,
        _cohort("top"),
    ),
    "a parent is removed": Case(
        _delete("Cohort", "company"),
        {
            ("Cohort", "research"): (
                "ParentNotFound",
                ("VMT-A004: spec.parent", "this one is a root", "company"),
            )
        },
        2,
        _cohort("company", quota=[{"pool": "h100", "nominal": 1}]),
    ),
    "a cohort with tenants is removed": Case(
        _delete("Cohort", "research"),
        {
            ("Tenant", "vision"): (
                "CohortNotFound",
                ("VMT-A004: spec.cohort", "nothing is borrowed", "research"),
            ),
            ("Tenant", "llm"): ("CohortNotFound", ("VMT-A004: spec.cohort",)),
        },
        1,
        _cohort("research", parent="company"),
    ),
    "a pool that quota names is removed": Case(
        _delete("GpuPool", "h100"),
        {
            ("Tenant", "vision"): (
                "PoolNotFound",
                ("VMT-A004: spec.quota[0].pool", "found h100", "one of a100"),
            ),
            ("Tenant", "llm"): ("PoolNotFound", ("VMT-A004: spec.quota[0].pool",)),
            ("Cohort", "company"): ("PoolNotFound", ("VMT-A004: spec.quota[0].pool", "found h100")),
            ("GpuClass", "whole"): ("PoolNotFound", ("VMT-A004: spec.pool", "found h100")),
            ("GpuClass", "quarter"): ("PoolNotFound", ("VMT-A004: spec.pool", "found h100")),
        },
        0,
        lambda lab: lab.apply(H100),
    ),
    "a class that a limit names is removed": Case(
        lambda lab: (
            lab.edit(
                "Tenant",
                "",
                "vision",
                quota=[
                    {
                        "pool": "h100",
                        "nominal": 3,
                        "borrowingLimit": 1,
                        "classes": [{"name": "quarter", "limit": 1}],
                    }
                ],
            ),
            lab.delete("GpuClass", "", "quarter"),
        )[1],
        {
            ("Tenant", "vision"): (
                "ClassNotFound",
                ("VMT-A004: spec.quota[0].classes[0].name", "found quarter"),
            )
        },
        2,
        lambda lab: lab.apply(tenant("vision", 3, 1)),
    ),
    "a tenant lends more than it has, past the schema": Case(
        lambda lab: lab.edit("Tenant", "", "llm", quota=[{"pool": "h100", "nominal": 1, "lendingLimit": 2}]),
        {
            ("Tenant", "llm"): (
                "Invalid",
                ("VMT-A001: spec.quota[0].lendingLimit", "found 2", "at most nominal"),
            )
        },
        2,
        lambda lab: lab.apply(tenant("llm", 3, 1)),
    ),
    "a tenant weighs nothing, past the schema": Case(
        lambda lab: lab.edit("Tenant", "", "llm", fairShare={"weight": 0}),
        {("Tenant", "llm"): ("Invalid", ("VMT-A001: spec.fairShare.weight", "found 0"))},
        2,
        lambda lab: lab.edit("Tenant", "", "llm", fairShare={"weight": 1}),
    ),
}


def ready(lab: Lab, kind: str, name: str) -> tuple[str, str]:
    found = condition(lab.get(kind, "", name), "Ready")
    assert found is not None
    return found["reason"], found["message"]


@pytest.mark.parametrize("name", CASES)
def test_the_part_concerned_alone_degrades_and_says_so(lab: Lab, name: str) -> None:
    case = CASES[name]
    kinds = ("Tenant", "Cohort", "GpuPool", "GpuClass")
    case.edits(lab)
    lab.settle()
    for (kind, of), (reason, words) in case.told.items():
        found = ready(lab, kind, of)
        assert found[0] == reason
        for word in words:
            assert word in found[1]
        assert lab.events(kind, "", of).count(reason) == 1
    wrong = {
        (kind, obj["metadata"]["name"])
        for kind in kinds
        for obj in lab.cluster.world.of(kind)
        if ready(lab, kind, obj["metadata"]["name"])[0] != "Ready"
    }
    assert wrong == set(case.told), "nobody else"

    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running", "what runs goes on"
    assert lab.status("GpuVM", "third", "x")["phase"] == "Running"
    lab.apply(gpu_vm("y", 2, of="old", namespace="third"))
    lab.settle()
    assert lab.status("GpuVM", "third", "y")["phase"] == "Running", "others borrow as before"
    lab.apply(*(gpu_vm(f"b{i}", 1, priority=-i) for i in range(3)))
    lab.settle()
    running = [i for i in range(3) if lab.status("GpuVM", "vision", f"b{i}")["phase"] == "Running"]
    assert len(running) == case.more

    case.repair(lab)
    lab.settle()
    assert all(ready(lab, kind, of)[0] == "Ready" for kind, of in case.told)
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"


def test_where_nobody_has_quota_every_request_waits_and_says_why() -> None:
    lab = small_lab()
    lab.apply(
        *(tenant(name, 0, quota=[]) for name in ("vision", "llm")), gpu_vm("a"), gpu_vm("b", namespace="llm")
    )
    lab.settle()
    for namespace, name in (("vision", "a"), ("llm", "b")):
        assert lab.reason("GpuVM", namespace, name, of="Admitted") == "NoQuota"
    lab.apply(tenant("vision", 3, 1))
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"
