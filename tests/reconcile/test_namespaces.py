"""Which tenant owns a namespace: given, taken, reserved, moved and left."""

from __future__ import annotations

import pytest
from lab import Lab, gpu_pod, gpu_vm, namespace, tenant, virtual_cluster

from vmtenancy.api.names import PROBE_PREFIX, TENANT_LABEL
from vmtenancy.reconcile.world import labels_of

A = ("GpuVM", "shared", "a")


def owner(lab: Lab, name: str) -> str:
    return labels_of(lab.get("Namespace", "", name)).get(TENANT_LABEL, "")


def with_shared(lab: Lab, *names: str) -> None:
    """Let the tenants of these names, and no other, list the namespace `shared`."""
    for name in ("vision", "llm"):
        lab.apply(tenant(name, 3, 1, namespaces=[name, "shared"] if name in names else [name]))


def test_missing_ones_are_made_and_present_ones_keep_their_labels(lab: Lab) -> None:
    lab.apply(namespace("shared", team="blue"))
    with_shared(lab, "vision")
    lab.settle()
    assert labels_of(lab.get("Namespace", "", "shared")) == {"team": "blue", TENANT_LABEL: "vision"}
    assert owner(lab, "llm") == "llm"


def test_the_first_tenant_has_it_and_the_other_is_told(lab: Lab) -> None:
    with_shared(lab, "vision")
    lab.settle()
    with_shared(lab, "vision", "llm")
    lab.settle()
    assert owner(lab, "shared") == "vision"
    assert lab.reason("Tenant", "", "llm") == "NamespaceTaken"
    assert "belongs to tenant vision" in lab.status("Tenant", "", "llm")["conditions"][0]["message"]
    assert lab.reason("Tenant", "", "vision") == "Ready"
    assert lab.events("Tenant", "", "llm") == ["NamespaceTaken"]


@pytest.mark.parametrize("reserved", ["kube-system", "kube-public", "kubevirt", "cdi", "vmtenancy-system"])
def test_namespaces_of_the_cluster_are_nobodys(lab: Lab, reserved: str) -> None:
    lab.apply(tenant("vision", 3, 1, namespaces=["vision", reserved]), namespace(reserved))
    lab.settle()
    assert lab.reason("Tenant", "", "vision") == "NamespaceReserved"
    assert owner(lab, reserved) == ""


def test_one_of_a_virtual_cluster_can_not_be_claimed(lab: Lab) -> None:
    lab.apply(virtual_cluster())
    lab.settle()
    lab.apply(tenant("vision", 3, 1, namespaces=["vision", "vc-llm--lab"]))
    lab.settle()
    assert lab.reason("Tenant", "", "vision") == "NamespaceTaken"
    assert owner(lab, "vc-llm--lab") == "llm"


def test_it_moves_at_once_when_nothing_is_granted_in_it(lab: Lab) -> None:
    with_shared(lab, "vision")
    lab.settle()
    with_shared(lab, "llm")
    lab.settle()
    assert owner(lab, "shared") == "llm"
    lab.apply(gpu_vm("a", namespace="shared"))
    lab.settle()
    assert lab.status("Tenant", "", "llm")["usage"][0]["allocated"] == "1"


def test_it_moves_only_once_the_last_grant_in_it_is_released(lab: Lab) -> None:
    with_shared(lab, "vision")
    lab.settle()
    lab.apply(gpu_vm("a", namespace="shared"))
    lab.settle()
    with_shared(lab, "llm")
    lab.settle()
    assert owner(lab, "shared") == "vision"
    assert lab.reason("Tenant", "", "llm") == "NamespaceTaken"
    assert "still has grants of tenant vision" in lab.status("Tenant", "", "llm")["conditions"][0]["message"]
    lab.edit(*A, runStrategy="Halted")
    lab.settle()
    assert owner(lab, "shared") == "llm"
    lab.edit(*A, runStrategy="Always")
    lab.settle()
    assert lab.grant(*A)["spec"]["tenant"] == "llm"  # type: ignore[index]


def test_one_that_no_tenant_lists_any_more_is_left_unlabelled(lab: Lab) -> None:
    with_shared(lab, "vision")
    lab.settle()
    lab.apply(gpu_vm("a", namespace="shared"))
    lab.settle()
    with_shared(lab)
    lab.settle()
    assert owner(lab, "shared") == "vision"  # what runs in it is charged to somebody
    lab.delete(*A)
    lab.settle()
    assert owner(lab, "shared") == ""
    lab.apply(gpu_vm("a", namespace="shared"))
    lab.settle()
    assert lab.reason(*A, of="Admitted") == "NoTenant"


def test_a_deleted_tenant_leaves_its_namespaces_without_label(lab: Lab) -> None:
    lab.delete("Tenant", "", "vision")
    lab.settle()
    assert owner(lab, "vision") == ""
    assert lab.find("Namespace", "", "vision") is not None


def test_a_deleted_tenant_keeps_what_runs_and_gets_nothing_new(lab: Lab) -> None:
    lab.apply(gpu_vm("a", namespace="vision"))
    lab.settle()
    lab.delete("Tenant", "", "vision")
    lab.apply(gpu_vm("b", namespace="vision"), gpu_pod("p", namespace="vision"))
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"
    assert lab.reason("GpuVM", "vision", "b", of="Admitted") == "TenantNotFound"
    assert lab.reason("Pod", "vision", "p", of="vmtenancy.io/Admitted") == "TenantNotFound"
    lab.delete("GpuVM", "vision", "a")
    lab.settle()
    assert owner(lab, "vision") == ""


def test_a_namespace_that_is_going_is_left_alone(lab: Lab) -> None:
    held = namespace("shared")
    held["metadata"]["finalizers"] = ["example.com/theirs"]
    lab.apply(held)
    lab.delete("Namespace", "", "shared")
    with_shared(lab, "vision")
    lab.settle()
    assert owner(lab, "shared") == ""


def test_deleting_the_namespace_releases_what_was_granted_in_it(lab: Lab) -> None:
    lab.apply(
        gpu_vm("a", 2), gpu_pod("p", namespace="vision"), virtual_cluster(guaranteed=1, namespace="vision")
    )
    lab.settle()
    lab.delete("Namespace", "", "vision")
    lab.settle()
    assert not list(lab.cluster.world.of("GpuAllocation"))
    assert lab.find("Namespace", "", "vc-vision--lab") is None
    assert owner(lab, "vision") == "vision"  # the tenant lists it still, so it is made again


def test_a_namespace_in_which_install_tries_the_policies_keeps_its_label(lab: Lab) -> None:
    """Else an upgrade beside a running controller waits in vain for its own policies."""
    lab.apply(
        namespace(f"{PROBE_PREFIX}1", **{TENANT_LABEL: "probe"}),
        namespace("stray", **{TENANT_LABEL: "probe"}),
    )
    lab.settle()
    assert owner(lab, f"{PROBE_PREFIX}1") == "probe"
    assert owner(lab, "stray") == ""
