"""Children that people change by hand, late applies, and children of owners that are gone."""

from __future__ import annotations

import copy
import dataclasses

import pytest
from lab import Lab, gpu_vm, virtual_cluster

from vmtenancy.api.names import APPLIED_ANNOTATION, FIELD_MANAGER, MANAGED_LABEL, OWNER_UID_LABEL
from vmtenancy.reconcile.memory import ConflictError, MemoryCluster
from vmtenancy.reconcile.ownership import fields_of, lost_fields, without_changed
from vmtenancy.reconcile.steps import Absent, Apply, Object, Ref
from vmtenancy.reconcile.world import annotations_of, uid_of

A = ("GpuVM", "vision", "a")
VM = ("VirtualMachine", "vision", "a")
LAB = ("VirtualCluster", "llm", "lab")
QUOTA = ("ResourceQuota", "vc-llm--lab", "vmtenancy-gpus")


def by_hand(lab: Lab, obj: tuple[str, str, str], labels: Object | None = None, **spec: object) -> None:
    """As `kubectl edit`: None removes."""
    old = lab.get(*obj)
    merged = {**(old["metadata"].get("labels") or {}), **(labels or {})}
    metadata = {
        **old["metadata"],
        "labels": {key: value for key, value in merged.items() if value is not None},
    }
    lab.cluster.replace({**old, "metadata": metadata, "spec": {**old["spec"], **spec}})


def test_a_machine_that_was_stopped_by_hand_runs_again(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    grants = lab.live_grants()
    by_hand(lab, VM, runStrategy="Halted")
    lab.settle()
    assert lab.get(*VM)["spec"]["runStrategy"] == "Always"
    assert lab.status(*A)["phase"] == "Running"
    assert lab.live_grants() == grants
    assert lab.events(*A).count("DriftRepaired") == 1
    (told,) = [event.message for event in lab.cluster.events if event.reason == "DriftRepaired"]
    assert told == "VirtualMachine vision/a: set again what was changed by hand: spec.runStrategy"


@pytest.mark.parametrize("value", ["someone else", None])
def test_a_label_of_ours_comes_back_and_theirs_stay(lab: Lab, value: str | None) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    by_hand(lab, VM, {MANAGED_LABEL: value, "theirs": "x"})
    lab.settle()
    labels = lab.get(*VM)["metadata"]["labels"]
    assert (labels[MANAGED_LABEL], labels["theirs"]) == ("vmtenancy", "x")


def test_a_quota_of_a_virtual_cluster_is_set_again(lab: Lab) -> None:
    lab.apply(virtual_cluster(guaranteed=1, most=2))
    lab.settle()
    by_hand(lab, QUOTA, hard={"requests.nvidia.com/gpu": "99"})
    lab.settle()
    assert lab.get(*QUOTA)["spec"]["hard"] == {"requests.nvidia.com/gpu": "2"}
    assert lab.events(*LAB).count("DriftRepaired") == 1


def test_it_is_repaired_every_time(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    for times in (1, 2, 3):
        by_hand(lab, VM, runStrategy="Halted")
        lab.settle()
        assert lab.events(*A).count("DriftRepaired") == times


def test_i7_where_something_insists_it_is_left_alone(lab: Lab) -> None:
    """A webhook that writes its own value after each of our applies must not make a loop."""
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    applied = []

    class Insisting(MemoryCluster):
        def apply(self, obj: Object, manager: str = "") -> Object:
            stored = MemoryCluster.apply(self, obj, manager)
            if obj["kind"] == "VirtualMachine":
                applied.append(obj)
                by_hand(lab, VM, runStrategy="Manual")
            return stored

    by_hand(lab, VM, runStrategy="Manual")
    before = lab.cluster
    lab.cluster = Insisting(
        **{field.name: getattr(before, field.name) for field in dataclasses.fields(before)}
    )
    lab.settle()
    assert len(applied) == 1
    assert lab.get(*VM)["spec"]["runStrategy"] == "Manual"


def test_nothing_is_applied_at_rest(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2), virtual_cluster())
    lab.settle()
    versions = {
        obj["metadata"]["resourceVersion"]
        for kind in ("VirtualMachine", "ResourceQuota")
        for obj in lab.cluster.world.of(kind)
    }
    lab.apply(gpu_vm("b", 1))
    lab.settle()
    after = {
        obj["metadata"]["resourceVersion"]
        for kind in ("VirtualMachine", "ResourceQuota")
        for obj in lab.cluster.world.of(kind)
    }
    assert versions < after


def test_a_secret_that_is_not_wanted_any_more_goes(lab: Lab) -> None:
    lab.apply(gpu_vm("a", sshKeys=[{"publicKey": "ssh-ed25519 AAAA ada"}]))
    lab.settle()
    assert lab.find("Secret", "vision", "a-cloudinit")
    lab.edit(*A, sshKeys=[])
    lab.settle()
    assert lab.find("Secret", "vision", "a-cloudinit") is None
    assert lab.status(*A)["phase"] == "Running"


# -- late applies -----------------------------------------------------------------------------------------------------


def planned_apply(lab: Lab, kind: str) -> Apply:
    """The apply of a kind that is planned next."""
    for _ in range(10):
        for chain in lab.plan().chains:
            for step in chain.steps:
                if isinstance(step, Apply) and step.object["kind"] == kind:
                    return step
        lab.reconcile()
    pytest.fail("no such apply")


def test_a_late_apply_of_an_older_machine_is_refused(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    lab.edit(*A, runStrategy="Halted")
    late = planned_apply(lab, "VirtualMachine")
    lab.settle()
    lab.edit(*A, runStrategy="Always")
    lab.settle()
    with pytest.raises(ConflictError):
        lab.cluster.run_step(late)


def test_a_late_apply_of_a_new_machine_is_refused_once_it_exists(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    late = planned_apply(lab, "VirtualMachine")
    lab.settle()
    with pytest.raises(ConflictError):
        lab.cluster.run_step(late)


def test_a_late_apply_does_not_make_a_deleted_machine_again(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    lab.edit(*A, runStrategy="Halted")
    late = planned_apply(lab, "VirtualMachine")
    lab.settle()
    lab.delete(*A)
    lab.settle()
    with pytest.raises(ConflictError):
        lab.cluster.run_step(late)


def test_a_late_namespace_of_a_virtual_cluster_that_is_gone_is_cleared_away(lab: Lab) -> None:
    lab.apply(virtual_cluster())
    late = planned_apply(lab, "Namespace")
    lab.settle()
    lab.delete(*LAB)
    lab.settle()
    lab.cluster.run_step(late)
    assert lab.find("Namespace", "", "vc-llm--lab")
    lab.settle()
    assert lab.find("Namespace", "", "vc-llm--lab") is None


def test_children_in_the_way_of_a_new_virtual_cluster_are_cleared_away(lab: Lab) -> None:
    """Those of one of the same name that is gone: without that the new one could never have its own."""
    lab.apply(virtual_cluster())
    late = planned_apply(lab, "Namespace")
    lab.settle()
    lab.delete(*LAB)
    lab.settle()
    lab.cluster.run_step(late)
    lab.apply(virtual_cluster())
    lab.settle()
    assert lab.status(*LAB)["phase"] == "Ready"
    home = lab.get("Namespace", "", "vc-llm--lab")
    assert home["metadata"]["labels"][OWNER_UID_LABEL] == uid_of(lab.get(*LAB))


def test_an_orphan_stays_while_its_owner_lives_unseen(lab: Lab) -> None:
    """A stale world must not delete a virtual cluster: the first step reads its owner."""
    lab.apply(virtual_cluster())
    lab.settle()
    owner = lab.get(*LAB)
    lab.cluster.world.remove(*LAB)
    (chain,) = [chain for chain in lab.plan().chains if "Namespace vc-llm--lab" in chain.why]
    lab.cluster.world.put(owner)
    assert chain.steps[0] == Absent(Ref(*LAB), uid_of(owner))
    assert not lab.run_chain(chain)
    assert lab.find("Namespace", "", "vc-llm--lab")


# -- the account of fields --------------------------------------------------------------------------------------------


APPLIED: Object = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {
        "name": "s",
        "namespace": "n",
        "labels": {"a": "1"},
        "annotations": {},
        "finalizers": ["x/y"],
    },
    "spec": {
        "ports": [{"port": 80, "name": "http"}, {"port": 81}],
        "selector": {"app": "s"},
        "externalIPs": None,
        "clusterIPs": ["10.0.0.1"],
    },
}
#: As the API server writes it.
ACCOUNT: Object = {
    "f:metadata": {"f:labels": {"f:a": {}}, "f:finalizers": {'v:"x/y"': {}}},
    "f:spec": {
        "f:ports": {
            'k:{"port":80,"protocol":"TCP"}': {".": {}, "f:port": {}, "f:name": {}},
            'k:{"port":81,"protocol":"TCP"}': {".": {}, "f:port": {}},
        },
        "f:selector": {},
        "f:clusterIPs": {},
    },
}


def stored(account: Object, manager: str = FIELD_MANAGER, operation: str = "Apply", **more: str) -> Object:
    entry = {"manager": manager, "operation": operation, "fieldsV1": account, **more}
    return {**APPLIED, "metadata": {**APPLIED["metadata"], "managedFields": [entry]}}


def without(*path: str) -> Object:
    account = copy.deepcopy(ACCOUNT)
    at = account
    for name in path[:-1]:
        at = at[name]
    del at[path[-1]]
    return account


def test_nothing_is_lost_of_a_whole_account() -> None:
    assert lost_fields(APPLIED, stored(ACCOUNT)) == []


@pytest.mark.parametrize(
    ("path", "lost"),
    [
        (("f:metadata", "f:labels", "f:a"), ["metadata.labels.a"]),
        (("f:metadata", "f:finalizers", 'v:"x/y"'), ["metadata.finalizers[0]"]),
        (("f:spec", "f:selector"), ["spec.selector"]),
        (("f:spec", "f:clusterIPs"), ["spec.clusterIPs"]),
        (("f:spec", "f:ports", 'k:{"port":81,"protocol":"TCP"}'), ["spec.ports[1]"]),
        (("f:spec", "f:ports", 'k:{"port":80,"protocol":"TCP"}', "f:name"), ["spec.ports[0].name"]),
        (("f:spec",), ["spec"]),
    ],
)
def test_each_kind_of_path_that_is_lost_is_named(path: tuple[str, ...], lost: list[str]) -> None:
    account = without(*path)
    if path[-1] == "f:a":
        account["f:metadata"]["f:labels"] = {"f:b": {}}
    if path[-1].startswith("v:"):
        account["f:metadata"]["f:finalizers"] = {'v:"other"': {}}
    assert lost_fields(APPLIED, stored(account)) == lost


@pytest.mark.parametrize(
    "entry", [{"manager": "kubectl"}, {"operation": "Update"}, {"subresource": "status"}]
)
def test_only_what_we_applied_is_ours(entry: dict[str, str]) -> None:
    assert lost_fields(APPLIED, stored(ACCOUNT, **entry)) == ["metadata", "spec"]


def test_the_model_of_the_account_agrees_with_itself() -> None:
    account = fields_of(APPLIED)
    assert lost_fields(APPLIED, stored(account)) == []
    changed = {**APPLIED, "spec": {**APPLIED["spec"], "selector": {"app": "other"}}}
    assert lost_fields(APPLIED, stored(without_changed(account, APPLIED, changed))) == ["spec.selector"]
    assert without_changed(account, APPLIED, APPLIED) == account


def test_the_mark_says_what_was_applied_last(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    clean = annotations_of(lab.get(*VM))[APPLIED_ANNOTATION]
    assert "-" not in clean
    by_hand(lab, VM, runStrategy="Halted")
    lab.settle()
    assert annotations_of(lab.get(*VM))[APPLIED_ANNOTATION] == clean
