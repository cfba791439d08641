"""The doctor: each finding shows where it should, and a world at rest has none."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Lab, add_node, gpu_pod, gpu_vm, namespace, virtual_cluster
from test_adopt import foreign_pod, machine, running
from test_recovery import altered, bound, busy, lose_grants, unjudged

from vmtenancy.api.names import TENANT_LABEL
from vmtenancy.reconcile import doctor
from vmtenancy.reconcile.doctor import Finding, Installation, Severity, diagnose, lasting, mend
from vmtenancy.reconcile.view import LEDGER_NAME
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.story import PASSTHROUGH

__all__ = ["busy"]
GOOD = Installation(gate_holds=True, leader="controller-1")


def findings(lab: Lab, installation: Installation = GOOD) -> dict[str, Finding]:
    return {
        f"{found.code} {found.about}": found
        for found in diagnose(lab.cluster.world, lab.cluster.now, installation)
    }


def test_a_world_at_rest_has_no_findings(busy: Lab) -> None:
    assert findings(busy) == {}
    assert mend(busy.cluster.world, busy.cluster.now, GOOD) == []


def test_foreign_pods_are_told_with_the_command_that_adopts_them(lab: Lab) -> None:
    foreign_pod(lab, 2)
    lab.apply(namespace("monitoring"))
    lab.cluster.world.put(bound(lab.cluster.create(gpu_pod("dcgm", namespace="monitoring")), "pods-2"))
    running(lab, machine())
    found = findings(lab)
    pod = found["VMT-X101 Pod llm/foreign"]
    assert pod.message == "runs with 2 x nvidia.com/gpu on pods-1 without a grant"
    assert pod.remedy == "`vmtenancy adopt pod/foreign -n llm`"
    outside = found["VMT-X102 Pod monitoring/dcgm"]
    assert outside.severity is Severity.NOTICE
    [launcher] = [found[key] for key in found if key.startswith("VMT-X101 Pod vision/virt-launcher-old")]
    assert launcher.remedy == "`vmtenancy adopt vm/old -n vision`"


def test_fix_adopts_pods_of_tenants_and_leaves_machines_to_adopt(lab: Lab) -> None:
    foreign_pod(lab)
    running(lab, machine())
    chains = mend(lab.cluster.world, lab.cluster.now, GOOD)
    assert [chain.why for chain in chains] == ["adopt Pod llm/foreign"]
    for chain in chains:
        for step in chain.steps:
            lab.cluster.run_step(step)
    unjudged(lab)
    assert "VMT-X101 Pod llm/foreign" not in findings(lab)
    assert mend(lab.cluster.world, lab.cluster.now, GOOD) == []


def test_what_can_not_be_recovered_is_told(busy: Lab) -> None:
    lose_grants(busy, "a")
    facts = busy.get("GpuNode", "", "machines")
    altered(busy, {**facts, "status": {**facts["status"], "gpus": facts["status"]["gpus"][:1]}})
    unjudged(busy)
    found = findings(busy)
    assert "fewer GPUs that no grant names" in found["VMT-X103 GpuVM vision/a"].message


def _void(lab: Lab) -> None:
    grant = lab.grant("GpuVM", "vision", "a")
    assert grant
    meta = {**grant["metadata"], "name": "void", "uid": "void"}
    lab.cluster.world.put({**grant, "metadata": meta, "status": {}})
    lab.cluster.now += 100


def _twice(lab: Lab) -> None:
    grant = lab.grant("GpuVM", "vision", "a")
    assert grant
    lab.cluster.world.put({**grant, "metadata": {**grant["metadata"], "name": "twice", "uid": "twice"}})


def _no_node(lab: Lab) -> None:
    lab.cluster.world.remove("Node", "", "machines")


def _two_providers(lab: Lab) -> None:
    node = gpu_node("both", mode="vm-passthrough", gpus=2, resources={PASSTHROUGH: 2, "nvidia.com/gpu": 2})
    add_node(lab, node)


def _stuck(lab: Lab) -> None:
    lab.delete("GpuVM", "vision", "a")
    lab.cluster.now += 1000


def _by_hand(lab: Lab) -> None:
    vm = lab.get("VirtualMachine", "vision", "a")
    altered(lab, vm, runStrategy="Manual")


def _no_label(lab: Lab) -> None:
    home = lab.get("Namespace", "", "vision")
    altered(lab, {**home, "metadata": {**home["metadata"], "labels": {}}, "spec": {}})


def _stray_label(lab: Lab) -> None:
    lab.apply(namespace("stray", **{TENANT_LABEL: "vision"}))


def _left_over(lab: Lab) -> None:
    for kind in ("GpuVM", "VirtualMachine", "VirtualMachineInstance"):
        lab.cluster.world.remove(kind, "vision", "a")
    lab.cluster.world.remove("Pod", "vision", lab.pods("vision")[0]["metadata"]["name"])


def _over_use(lab: Lab) -> None:
    lab.edit("Tenant", "", "vision", quota=[{"pool": "h100", "nominal": 1, "borrowingLimit": 0}])


def _head_behind(lab: Lab) -> None:
    altered(lab, lab.get("GpuLedger", "", LEDGER_NAME), sequence=0, epoch=0)


def _generation(lab: Lab) -> None:
    vm = lab.get("GpuVM", "vision", "a")
    lab.cluster.world.put({**vm, "status": {**vm["status"], "observedGeneration": 99}})


def _released(lab: Lab) -> None:
    ledger, grant = lab.get("GpuLedger", "", LEDGER_NAME), lab.grant("GpuVM", "vision", "a")
    assert grant
    altered(lab, ledger, released=[grant["metadata"]["name"]])


def _elsewhere(lab: Lab) -> None:
    pod = lab.pods("vision")[0]
    altered(lab, pod, nodeName="slices")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_twice, "VMT-X001 I1"),
        (_over_use, "VMT-X002 I2"),
        (_elsewhere, "VMT-X003 I3"),
        (_released, "VMT-X004 I4"),
        (_head_behind, "VMT-X005 I5"),
        (_left_over, "VMT-X009 I9"),
        (_generation, "VMT-X012 I12"),
        (_void, "VMT-X104 GpuAllocation void"),
        (_no_node, "VMT-X105 GpuVM vision/a"),
        (_two_providers, "VMT-X106 Node both"),
        (_stuck, "VMT-X107 GpuVM vision/a"),
        (_by_hand, "VMT-X108 GpuVM vision/a"),
        (_no_label, "VMT-X109 Namespace vision"),
        (_stray_label, "VMT-X109 Namespace stray"),
    ],
)
def test_each_disagreement_is_found(lab: Lab, spoil: Callable[[Lab], None], expected: str) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    assert findings(lab) == {}
    spoil(lab)
    found = findings(lab)
    assert expected in found
    assert found[expected].remedy


def test_a_machine_as_it_should_be_is_not_called_changed(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2), gpu_vm("slice", of="quarter"), gpu_vm("stopped", runStrategy="Halted"))
    lab.apply(gpu_vm("waits", 4, namespace="llm"), virtual_cluster("lab"))
    lab.settle()
    assert findings(lab) == {}


def test_the_installation_is_judged_too(lab: Lab) -> None:
    role = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "role"}}
    policy = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "policy"}}
    seen = Installation(missing=(role,), changed=(policy,), gate_holds=False, leader="")
    assert list(findings(lab, seen)) == [
        "VMT-X201 ConfigMap role",
        "VMT-X202 ConfigMap policy",
        "VMT-X203 MutatingAdmissionPolicy gate.vmtenancy.io",
        "VMT-X204 Lease vmtenancy-controller",
    ]
    whys = [chain.why for chain in mend(lab.cluster.world, lab.cluster.now, seen)]
    assert whys == ["install ConfigMap role", "install ConfigMap policy"]


def test_only_what_two_looks_show_is_told(lab: Lab) -> None:
    first = [Finding("VMT-X101", "Pod a", "on n1", ""), Finding("VMT-X104", "x", "", "")]
    second = [Finding("VMT-X101", "Pod a", "on n2", ""), Finding("VMT-X105", "x", "", "")]
    assert lasting(first, second) == second[:1]


def test_every_code_is_documented() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "doctor.md").read_text()
    documented = re.findall(r"^\| `(VMT-X\d+)`", text, re.MULTILINE)
    assert documented == sorted(set(documented))
    source = Path(str(doctor.__file__)).read_text()
    assert {code for code in documented if code > "VMT-X1"} == set(re.findall(r"VMT-X[12]\d\d", source))
