"""The real control plane does what the rest of the tests take for granted."""

import copy
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiException

from vmtenancy.testing import build
from vmtenancy.testing.cleanup import Snapshot
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.process import ProcessError
from vmtenancy.testing.waiting import eventually

pytestmark = pytest.mark.cluster

Object = dict[str, Any]
CreateFleet = Callable[[list[Object]], list[Object]]
NAMESPACE = "vision"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
GATE = "tests.vmtenancy.io/gate"


def pod(name: str, gpus: int = 1, resource: str = "nvidia.com/gpu") -> Object:
    limits = {"cpu": "1", "memory": "1Gi"} | ({resource: str(gpus)} if gpus else {})
    container = {"name": "main", "image": "registry.example/cuda:12", "resources": {"limits": limits}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container]},
    }


def config_map(name: str, owners: list[Object] | None = None) -> Object:
    metadata: Object = {"name": name, "ownerReferences": owners or []}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def get(cluster: ControlPlane, path: str) -> Object | None:
    try:
        found: Object = cluster.request("GET", path)
    except ApiException as error:
        if error.status != 404:
            raise
        return None
    return found


def running(cluster: ControlPlane, name: str) -> Object:
    def probe() -> Object | None:
        found = get(cluster, f"{PODS}/{name}")
        return found if found and found["status"].get("phase") == "Running" else None

    return eventually(f"pod {name} is Running", probe)


@pytest.fixture
def namespace(cluster: ControlPlane) -> str:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    cluster.request("POST", "/api/v1/namespaces", body)
    accounts = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
    eventually("service account made", lambda: get(cluster, accounts))
    return NAMESPACE


@pytest.fixture
def gate_policy(cluster: ControlPlane) -> None:
    """A MutatingAdmissionPolicy that gates pods with GPUs, in force."""
    asks = (
        "object.spec.containers.exists(c, has(c.resources.limits) && 'nvidia.com/gpu' in c.resources.limits)"
    )
    gates = f"Object{{spec: Object.spec{{schedulingGates: [Object.spec.schedulingGates{{name: '{GATE}'}}]}}}}"
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": "gate"},
        "spec": {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE"],
                        "resources": ["pods"],
                    }
                ]
            },
            "matchConditions": [{"name": "gpus", "expression": asks}],
            "mutations": [
                {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": gates}},
            ],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": "gate"},
        "spec": {"policyName": "gate"},
    }
    base = "/apis/admissionregistration.k8s.io/v1"
    cluster.request("POST", f"{base}/mutatingadmissionpolicies", policy)
    cluster.request("POST", f"{base}/mutatingadmissionpolicybindings", binding)

    def in_force() -> bool:
        probe = cluster.request("POST", "/api/v1/namespaces/default/pods?dryRun=All", pod("probe"))
        return "schedulingGates" in probe["spec"]

    eventually("policy in force", in_force)


def test_version_and_api_groups(control_plane: ControlPlane) -> None:
    assert control_plane.request("GET", "/version")["gitVersion"] == "v1.36.3"
    for served in ("resource.k8s.io/v1", "resource.k8s.io/v1beta1", "admissionregistration.k8s.io/v1"):
        assert control_plane.request("GET", f"/apis/{served}")["resources"]


def test_gpu_pod_is_scheduled_where_gpus_are(
    cluster: ControlPlane, gpu_fleet: CreateFleet, namespace: str
) -> None:
    vgpu = "nvidia.com/NVIDIA_H100-20C"
    nodes = gpu_fleet(
        [
            gpu_node("container-1", gpus=2),
            gpu_node("vgpu-1", mode="vm-vgpu", gpus=8, resources={vgpu: 32}),
            gpu_node("cpu-1", gpus=0, resources={}),
        ]
    )
    by_name = {n["metadata"]["name"]: n for n in nodes}
    assert by_name["container-1"]["status"]["allocatable"]["nvidia.com/gpu"] == "2"
    assert by_name["vgpu-1"]["status"]["allocatable"][vgpu] == "32"
    for name, asked in (("whole", pod("whole", 2)), ("slice", pod("slice", 1, vgpu))):
        cluster.request("POST", PODS, asked)
        running(cluster, name)
    assert running(cluster, "whole")["spec"]["nodeName"] == "container-1"
    assert running(cluster, "slice")["spec"]["nodeName"] == "vgpu-1"

    cluster.request("POST", PODS, pod("late", 1))
    waits = eventually("late is refused", lambda: _unschedulable(cluster, "late"))
    assert "Insufficient nvidia.com/gpu" in waits
    cluster.request("DELETE", f"{PODS}/whole")
    assert running(cluster, "late")["spec"]["nodeName"] == "container-1"


def _unschedulable(cluster: ControlPlane, name: str) -> str:
    conditions = cluster.request("GET", f"{PODS}/{name}")["status"].get("conditions", [])
    return next((c["message"] for c in conditions if c.get("reason") == "Unschedulable"), "")


def test_deleted_pod_takes_its_time(cluster: ControlPlane, gpu_fleet: CreateFleet, namespace: str) -> None:
    gpu_fleet([gpu_node("container-1")])
    cluster.request("POST", PODS, pod("short"))
    running(cluster, "short")
    asked = time.monotonic()
    cluster.request("DELETE", f"{PODS}/short")
    eventually("pod is gone", lambda: get(cluster, f"{PODS}/short") is None)
    assert time.monotonic() - asked >= 0.9


def test_resource_quota_holds_the_next_pod_back(cluster: ControlPlane, namespace: str) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus"},
        "spec": {"hard": {"requests.nvidia.com/gpu": "2"}},
    }
    path = f"/api/v1/namespaces/{namespace}/resourcequotas"
    cluster.request("POST", path, quota)
    eventually("quota counted", lambda: cluster.request("GET", f"{path}/gpus")["status"].get("used"))
    cluster.request("POST", PODS, pod("first", 2))
    with pytest.raises(ApiException) as refused:
        cluster.request("POST", PODS, pod("second", 1))
    assert refused.value.status == 403
    assert "exceeded quota: gpus" in json.loads(refused.value.body)["message"]


@pytest.mark.usefixtures("gate_policy")
def test_policy_gates_pods_with_gpus_until_released(
    cluster: ControlPlane, gpu_fleet: CreateFleet, namespace: str
) -> None:
    gpu_fleet([gpu_node("container-1"), gpu_node("container-2")])
    cluster.request("POST", PODS, pod("plain", 0))
    cluster.request("POST", PODS, pod("gpu", 1))
    running(cluster, "plain")
    gated = cluster.request("GET", f"{PODS}/gpu")
    assert gated["spec"]["schedulingGates"] == [{"name": GATE}]
    assert gated["status"]["conditions"][0]["reason"] == "SchedulingGated"
    released = copy.deepcopy(gated)
    released["spec"]["nodeSelector"] = {"kubernetes.io/hostname": "container-2"}
    del released["spec"]["schedulingGates"]
    cluster.request("PUT", f"{PODS}/gpu", released)
    assert running(cluster, "gpu")["spec"]["nodeName"] == "container-2"


def test_garbage_collector_follows_owners(cluster: ControlPlane, namespace: str) -> None:
    owner = cluster.request("POST", CONFIG_MAPS, config_map("owner"))
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    cluster.request("POST", CONFIG_MAPS, config_map("owned", [reference]))
    cluster.request("DELETE", f"{CONFIG_MAPS}/owner")
    eventually("dependent is gone", lambda: get(cluster, f"{CONFIG_MAPS}/owned") is None)


def test_users_are_subject_to_rbac(cluster: ControlPlane, namespace: str) -> None:
    mine = cluster.kubeconfig_for("ada", ["team-vision"])
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "editors"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "team-vision"}],
    }
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings"
    cluster.request("POST", path, binding)

    def may(verb: str, where: str) -> bool:
        kubectl = [build.resolve("kubectl"), f"--kubeconfig={mine}", f"--namespace={where}"]
        asked = [*kubectl, "auth", "can-i", verb, "pods"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == "yes"

    eventually("binding in force", lambda: may("create", namespace))
    assert not may("create", "default")


def test_service_account_tokens_are_accepted(cluster: ControlPlane, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = cluster.request("POST", path, request)["status"]["token"]
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token},
    }
    status = cluster.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)["status"]
    assert status["user"]["username"] == f"system:serviceaccount:{namespace}:default"


def test_audit_log_holds_writes_only(cluster: ControlPlane, namespace: str) -> None:
    cluster.request("POST", CONFIG_MAPS, config_map("audited"))
    cluster.request("GET", f"{CONFIG_MAPS}/audited")

    def entries() -> list[Object]:
        lines = cluster.audit_log.read_text().splitlines()
        events = [json.loads(line) for line in lines if '"audited"' in line]
        return [e for e in events if e["objectRef"].get("name") == "audited"]

    written = eventually("request is in the log", entries)
    assert [e["verb"] for e in written] == ["create"]
    assert written[0]["user"]["username"] == "admin"


def test_restore_removes_all_that_came_since(control_plane: ControlPlane) -> None:
    before = Snapshot.take(control_plane)
    control_plane.request("POST", "/api/v1/nodes", gpu_node("container-1"))
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    control_plane.request("POST", "/api/v1/namespaces", body)
    stuck = config_map("stuck")
    stuck["metadata"]["finalizers"] = ["tests.vmtenancy.io/nobody"]
    control_plane.request("POST", CONFIG_MAPS, stuck)
    control_plane.request("POST", "/api/v1/namespaces/default/configmaps", config_map("stray"))
    before.restore()
    assert get(control_plane, f"/api/v1/namespaces/{NAMESPACE}") is None
    assert get(control_plane, "/api/v1/nodes/container-1") is None
    assert get(control_plane, "/api/v1/namespaces/default/configmaps/stray") is None
    # The namespace can be used again at once, and nothing of the old one shines through.
    control_plane.request("POST", "/api/v1/namespaces", body)
    assert get(control_plane, f"{CONFIG_MAPS}/stuck") is None
    before.restore()


def test_stop_leaves_no_process_and_no_file() -> None:
    with ControlPlane() as cluster:
        names = {p.name for p in cluster.processes}
        pids = [p.pid for p in cluster.processes]
        folder = cluster.data_dir
    assert {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"} <= names
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not folder.exists()


def test_failed_start_shows_the_log_and_leaves_nothing() -> None:
    broken = ControlPlane(feature_gates={"NoSuchGate": True})
    because = r"(?s)kube-apiserver exited \(1\).*unrecognized feature gate: NoSuchGate"
    with pytest.raises(ProcessError, match=because):
        broken.start()
    assert not broken.processes
    assert not broken.data_dir.exists()
