"""VirtualCluster to chart values and objects, and back to an observation."""

import base64
import copy
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime_samples import UID, Object, assert_golden, virtual_cluster

from vmtenancy.api import names
from vmtenancy.api.virtualcluster import OWNED_VALUES_PATHS, VirtualCluster, VirtualClusterStatus
from vmtenancy.errors import Code, VmtError
from vmtenancy.runtimes import vcluster
from vmtenancy.runtimes.base import Runtime
from vmtenancy.runtimes.vc_values import ALLOWED_VALUES
from vmtenancy.runtimes.vcluster import VcInputs, VcObservation

RUNTIME: Runtime[VirtualCluster, VcInputs, VcObservation] = vcluster
HOME = "vc-llm--lab"
RESOURCES = {"h100": "nvidia.com/gpu"}


def made(kind: str, name: str = "vc-lab", **fields: Any) -> Object:
    metadata = {"name": name, "labels": {"release": "lab"}}
    if not kind.startswith("Cluster"):
        metadata["namespace"] = HOME
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **fields}


def binding(kind: str, role: str, name: str = "vc-lab", /, **subject: Any) -> Object:
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind.removesuffix("Binding"), "name": role}
    subjects = [{"kind": "ServiceAccount", "name": "vc-lab", "namespace": HOME, **subject}]
    return made(kind, name, roleRef=ref, subjects=subjects)


def chart() -> list[Object]:
    """What the chart makes, as far as the policy looks at it, in an order that is not ours."""
    nodes = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}
    return [
        made("StatefulSet", "lab"),
        made("Service", "lab"),
        binding("RoleBinding", "vc-lab"),
        made("Role", rules=[{"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}]),
        binding("ClusterRoleBinding", "vc-lab-v-vc-llm--lab"),
        made("ClusterRole", "vc-lab-v-vc-llm--lab", rules=[nodes]),
        made("Secret", "vc-config-lab"),
        made("ServiceAccount"),
    ]


def inputs(objects: list[Object] | None = None, resources: Mapping[str, str] = RESOURCES) -> VcInputs:
    return VcInputs("llm", chart() if objects is None else objects, resources)


def objects(vc: VirtualCluster, given_: VcInputs) -> list[Object]:
    return vcluster.objects(vc, (), given_)


def test_what_we_make() -> None:
    assert_golden("virtual-cluster", objects(virtual_cluster(), inputs([])))


def test_values() -> None:
    vc = virtual_cluster(
        values={"controlPlane": {"proxy": {"extraSANs": ["lab.example"]}}, "telemetry": {"enabled": True}}
    )
    defaults = {
        "controlPlane": {"statefulSet": {"image": {"registry": "registry.example"}}},
        "policies": None,
    }
    assert_golden("values", [{"kind": "Values", **vcluster.chart_values(vc, defaults)}])


def test_apply_order_labels_and_nothing_changed_in_place() -> None:
    given_ = chart()
    before = copy.deepcopy(given_)
    found = objects(virtual_cluster(), inputs(given_))
    assert given_ == before
    assert [obj["kind"] for obj in found] == [
        *("Namespace", "ResourceQuota", "NetworkPolicy", "NetworkPolicy", "NetworkPolicy"),
        *("ClusterRole", "ClusterRoleBinding", "ServiceAccount", "Role", "RoleBinding"),
        *("Secret", "Service", "StatefulSet"),
    ]
    for obj in found:
        labels = obj["metadata"]["labels"]
        assert labels[names.OWNER_UID_LABEL] == UID
        assert labels[names.MANAGED_LABEL] == names.MANAGED_BY
        assert labels[names.TENANT_LABEL] == "llm"
        cluster_wide = obj["kind"] == "Namespace" or obj["kind"].startswith("Cluster")
        assert obj["metadata"].get("namespace") == (None if cluster_wide else HOME)
    assert found[-1]["metadata"]["labels"]["release"] == "lab"


def test_the_quota_is_the_maximum_of_each_resource() -> None:
    gpus = [{"class": "h100", "max": 8}, {"class": "l40s", "max": 4}, {"class": "mig", "max": 14}]
    resources = {"h100": "nvidia.com/gpu", "l40s": "nvidia.com/gpu", "mig": "nvidia.com/mig-1g.10gb"}
    quota = objects(virtual_cluster(gpus=gpus), inputs(resources=resources))[1]
    assert quota["spec"]["hard"] == {"requests.nvidia.com/gpu": "12", "requests.nvidia.com/mig-1g.10gb": "14"}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (made("Pod"), "objects of this kind"),
        (made("Namespace"), "objects of this kind"),
        (made("NetworkPolicy"), "objects of this kind"),
        (made("ClusterRole", rules=[{"resources": ["nodes"], "verbs": ["patch"]}]), "too many rights"),
        (made("ClusterRole", rules=[{"resources": ["secrets"], "verbs": ["get"]}]), "too many rights"),
        (made("ClusterRole", rules=[{"resources": ["*"], "verbs": ["get"]}]), "too many rights"),
        (made("ClusterRole", rules=[{"resources": ["nodes"], "verbs": ["*"]}]), "too many rights"),
        (made("ClusterRole", rules=[{"nonResourceURLs": ["*"], "verbs": ["get"]}]), "too many rights"),
        (binding("ClusterRoleBinding", "cluster-admin"), "not the chart's own"),
        (binding("RoleBinding", "admin"), "not the chart's own"),
        (binding("RoleBinding", "vc-lab", kind="User"), "gives rights to someone else"),
        (binding("RoleBinding", "vc-lab", namespace="other"), "gives rights to someone else"),
        (
            {**made("Secret"), "metadata": {"name": "s", "namespace": "other"}},
            "is not in namespace vc-llm--lab",
        ),
    ],
)
def test_what_reaches_beyond_the_host_namespace_is_refused(bad: Object, why: str) -> None:
    with pytest.raises(VmtError, match=why) as caught:
        objects(virtual_cluster(), inputs([*chart(), bad]))
    assert caught.value.code is Code.OUTPUT_REFUSED


def test_an_object_without_a_namespace_gets_the_host_namespace() -> None:
    bare = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
    found = objects(virtual_cluster(), inputs([bare]))[-1]
    assert found["metadata"]["namespace"] == HOME


@pytest.mark.parametrize("path", [owned.path for owned in OWNED_VALUES_PATHS])
def test_no_owned_path_is_allowed(path: str) -> None:
    assert not any(path == allowed or path.startswith(f"{allowed}.") for allowed in ALLOWED_VALUES)


@pytest.mark.parametrize(
    "path",
    [
        "controlPlane.backingStore.etcd.deploy.statefulSet.persistence.addVolumes",
        "controlPlane.distro.k8s.image.repository",
        "controlPlane.distro.k8s.scheduler.enabled",
        "controlPlane.ingress.enabled",
        "controlPlane.service.spec",
        "controlPlane.coredns.enabled",
        "controlPlane.coredns.deploymentX",
        "privateNodes.enabled",
        "sync.toHost.customResources",
        "sync.toHost.ingresses",
        "sync.toHost.networkPolicies.enabled",
        "sync.toHost.persistentVolumes",
        "unknown",
    ],
)
def test_values_that_are_not_a_tenants_are_refused(path: str) -> None:
    values: Any = True
    for key in reversed(path.split(".")):
        values = {key: values}
    with pytest.raises(VmtError, match=f"VMT-A003: spec.values.{path}: is not a tenant's to set"):
        vcluster.chart_values(virtual_cluster(values=values))


@pytest.mark.parametrize("path", ALLOWED_VALUES)
def test_values_that_are_a_tenants_arrive(path: str) -> None:
    values: Any = ["x"]
    for key in reversed(path.split(".")):
        values = {key: values}
    found: Any = vcluster.chart_values(virtual_cluster(values=values))
    for key in path.split("."):
        found = found[key]
    assert "x" in found


dns = st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,12}[a-z0-9])?\Z") | st.from_regex(r"\A[ab](-?-?[ab]){0,3}\Z")


@given(st.lists(st.tuples(dns, dns), unique=True, min_size=2, max_size=20))
def test_host_namespaces_and_what_the_chart_names_after_them_are_distinct(
    pairs: list[tuple[str, str]],
) -> None:
    found = set()
    for namespace, name in pairs:
        home = vcluster.host_namespace(namespace, name)
        release = vcluster.release_name(virtual_cluster(name, namespace))
        assert release[0].isalpha()
        # The chart cuts at 63.
        role = f"vc-{release}-v-{home}"
        assert len(role) <= 63
        assert home.removeprefix("vc-")[-1] != "-"
        found.add(role)
    assert len({vcluster.host_namespace(*pair) for pair in pairs}) == len(found) == len(pairs)


def test_names_people_can_read_and_long_ones() -> None:
    assert vcluster.host_namespace("llm", "lab") == HOME
    assert vcluster.host_namespace("a--b", "c") != vcluster.host_namespace("a", "b--c")
    long = vcluster.host_namespace("n" * 63, "v" * 63)
    assert (len(long), long[:6]) == (41, "vc-nnn")
    assert vcluster.release_name(virtual_cluster("lab")) == "lab"
    assert vcluster.release_name(virtual_cluster("1lab")).startswith("v")
    assert vcluster.kubeconfig_source(virtual_cluster("lab")) == "vc-lab"


def home(phase: str = "Active") -> Object:
    return {"kind": "Namespace", "metadata": {"name": HOME}, "status": {"phase": phase}}


def plane(ready: int = 1, name: str = "lab") -> Object:
    return {
        "kind": "StatefulSet",
        "metadata": {"name": name},
        "status": {"readyReplicas": ready} if ready else {},
    }


def source(text: str = "kind: Config", name: str = "vc-lab") -> Object:
    data = {"config": base64.b64encode(text.encode()).decode(), "client-key": "eA=="}
    return {"kind": "Secret", "metadata": {"name": name}, "data": data}


def control_pod(**status: Any) -> Object:
    return {"kind": "Pod", "metadata": {"name": "lab-0", "labels": {"release": "lab"}}, "status": status}


WAITING = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
UNPLACED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"}


@pytest.mark.parametrize(
    ("children", "phase", "message"),
    [
        ((), "Pending", ""),
        ((home("Terminating"), plane(), source()), "Deleting", ""),
        ((home(),), "Provisioning", "its control plane is not ready"),
        ((home(), plane(0), control_pod(phase="Pending")), "Provisioning", "its control plane is not ready"),
        ((home(), plane()), "Provisioning", "its kubeconfig is awaited"),
        ((home(), plane(), source(name="other")), "Provisioning", "its kubeconfig is awaited"),
        ((home(), plane(), source()), "Ready", ""),
        ((home(), plane(0), source()), "Provisioning", "its control plane is not ready"),
        ((home(), plane(1, "lab-etcd"), source()), "Provisioning", "its control plane is not ready"),
        (
            (home(), control_pod(containerStatuses=[WAITING])),
            "Provisioning",
            "pod lab-0: ImagePullBackOff: no such image",
        ),
        (
            (home(), control_pod(initContainerStatuses=[WAITING])),
            "Provisioning",
            "pod lab-0: ImagePullBackOff: no such image",
        ),
        (
            (home(), control_pod(conditions=[UNPLACED])),
            "Provisioning",
            "pod lab-0 can not be placed: no room",
        ),
    ],
)
def test_phases(children: tuple[Object, ...], phase: str, message: str) -> None:
    by_kind: dict[str, list[Object]] = {}
    for obj in children:
        by_kind.setdefault(obj["kind"], []).append(obj)
    found = vcluster.observe(virtual_cluster(), by_kind)
    assert (found.phase, found.message, found.ready) == (phase, message, phase == "Ready")
    assert found.holding is bool(children)
    assert found.failed is ("pod lab-0" in message)


@pytest.mark.parametrize("before", ["Ready", "Degraded"])
def test_what_was_ready_and_is_not_any_more_is_degraded(before: str) -> None:
    status = VirtualClusterStatus.model_validate({"phase": before})
    vc = virtual_cluster().model_copy(update={"status": status})
    found = vcluster.observe(vc, {"Namespace": [home()], "StatefulSet": [plane(0)], "Secret": [source()]})
    assert (found.phase, found.message) == ("Degraded", "its control plane is not ready")
    assert found.kubeconfig


def test_it_holds_until_its_last_pod_has_finished() -> None:
    pod = {"metadata": {"name": "p"}, "status": {"phase": "Running"}}
    assert vcluster.observe(virtual_cluster(), {"Pod": [pod]}).holding
    assert not vcluster.observe(virtual_cluster(), {"Pod": [{**pod, "status": {"phase": "Failed"}}]}).holding


def test_the_kubeconfig_is_copied_beside_the_virtual_cluster() -> None:
    vc = virtual_cluster()
    found = vcluster.observe(
        vc, {"Namespace": [home()], "StatefulSet": [plane()], "Secret": [source("a: ü")]}
    )
    secret = vcluster.kubeconfig_secret(vc, found.kubeconfig)
    assert (secret["metadata"]["namespace"], secret["metadata"]["name"]) == (
        "llm",
        vcluster.kubeconfig_name(vc),
    )
    assert secret["metadata"]["ownerReferences"][0]["uid"] == UID
    assert secret["data"] == {"config": source("a: ü")["data"]["config"]}
    json.dumps(secret)
