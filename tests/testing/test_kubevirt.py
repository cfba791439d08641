"""Real virt-api and virt-controller, with the stand-ins for virt-handler and CDI, on nodes without machines."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes.client import ApiException

from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.kubevirt import FEATURE_GATES, KubeVirt
from vmtenancy.testing.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.kubevirt]

Object = dict[str, Any]
CreateFleet = Callable[[list[Object]], list[Object]]
NAMESPACE = "vision"
KUBEVIRT = f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}"
VMS = f"{KUBEVIRT}/virtualmachines"
VMIS = f"{KUBEVIRT}/virtualmachineinstances"
MIGRATIONS = f"{KUBEVIRT}/virtualmachineinstancemigrations"
CORE = f"/api/v1/namespaces/{NAMESPACE}"
DATA_VOLUMES = f"/apis/cdi.kubevirt.io/v1beta1/namespaces/{NAMESPACE}/datavolumes"
SUBRESOURCES = f"/apis/subresources.kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachines"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
LAUNCHERS = f"{CORE}/pods?labelSelector=kubevirt.io%3Dvirt-launcher"
PASSTHROUGH = "nvidia.com/GH100_H100_SXM5_80GB"
VGPU = "nvidia.com/NVIDIA_H100-20C"
GATE = "tests.vmtenancy.io/gate"
MERGE = "application/merge-patch+json"


def vm(name: str = "trainer", *, gpus: int = 0, device: str = PASSTHROUGH, **spec: Any) -> Object:
    devices = {
        "gpus": [{"name": f"gpu{i}", "deviceName": device} for i in range(gpus)],
        "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
        "interfaces": [{"name": "default", "masquerade": {}}],
    }
    domain = {"cpu": {"cores": 4}, "memory": {"guest": "8Gi"}, "devices": devices}
    root = {"name": "root", "containerDisk": {"image": "registry.example/ubuntu:24.04"}}
    template = {"spec": {"domain": domain, "networks": [{"name": "default", "pod": {}}], "volumes": [root]}}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name},
        "spec": {"runStrategy": "Always", "template": template, **spec},
    }


def get(cluster: ControlPlane, path: str) -> Object:
    """The object, or an empty one if there is none."""
    try:
        found: Object = cluster.request("GET", path)
    except ApiException as error:
        if error.status != 404:
            raise
        return {}
    return found


def running(cluster: ControlPlane, name: str = "trainer") -> Object:
    """The instance, once its machine is Running and ready."""

    def probe() -> Object | None:
        status = get(cluster, f"{VMS}/{name}").get("status", {})
        if status.get("printableStatus") == "Running" and status.get("ready"):
            return get(cluster, f"{VMIS}/{name}") or None
        return None

    return eventually(f"{name} is Running", probe, 60)


def launchers(cluster: ControlPlane) -> list[Object]:
    pods: list[Object] = cluster.request("GET", LAUNCHERS)["items"]
    return pods


def patch(cluster: ControlPlane, path: str, body: Object) -> Object:
    patched: Object = cluster.request("PATCH", path, body, content_type=MERGE)
    return patched


def at_rest(cluster: ControlPlane) -> None:
    """Wait until virt-controller has renewed its Lease three times and nothing of KubeVirt's was written."""

    def quiet() -> bool:
        writes = [json.loads(line) for line in cluster.audit_log.read_text().splitlines()]
        uris = [
            w["requestURI"]
            for w in writes
            if w["user"]["username"].startswith("system:serviceaccount:kubevirt")
        ]
        return len(uris) >= 3 and all("/leases/" in uri for uri in uris[-3:])

    eventually("KubeVirt is at rest", quiet)


def leftovers(cluster: ControlPlane) -> list[str]:
    """Everything that KubeVirt and CDI could leave in the namespace, and volumes anywhere."""
    paths = [
        VMS,
        VMIS,
        DATA_VOLUMES,
        f"{CORE}/pods",
        f"{CORE}/persistentvolumeclaims",
        f"{CORE}/secrets",
        "/api/v1/persistentvolumes",
        f"/apis/apps/v1/namespaces/{NAMESPACE}/controllerrevisions",
        f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets",
    ]
    return [f"{p}: {i['metadata']['name']}" for p in paths for i in cluster.request("GET", p)["items"]]


@pytest.fixture
def vms(kubevirt: KubeVirt, cluster: ControlPlane, gpu_fleet: CreateFleet) -> ControlPlane:
    """A cluster with KubeVirt, GPU nodes of both VM modes and a namespace."""
    resources = {PASSTHROUGH: 8}
    nodes = [gpu_node(n, mode="vm-passthrough", resources=resources) for n in ("whole-1", "whole-2")]
    nodes.append(gpu_node("shared-1", mode="vm-vgpu", resources={VGPU: 32}))
    gpu_fleet(nodes)
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    account = f"{CORE}/serviceaccounts/default"
    eventually("namespace is usable", lambda: get(cluster, account))
    return cluster


@pytest.fixture
def gate(vms: ControlPlane) -> Callable[[Object], bool]:
    """An admission policy that gates every launcher pod; returns a check that a pod has the gate."""
    mutation = (
        f'Object{{spec: Object.spec{{schedulingGates: [Object.spec.schedulingGates{{name: "{GATE}"}}]}}}}'
    )
    policy = {
        "metadata": {"name": "gate-launchers"},
        "spec": {
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
            "matchConditions": [
                {
                    "name": "launcher",
                    "expression": "object.metadata.?labels['kubevirt.io'].orValue('') == 'virt-launcher'",
                }
            ],
            "mutations": [
                {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": mutation}}
            ],
        },
    }
    vms.request("POST", f"{ADMISSION}/mutatingadmissionpolicies", policy)
    binding = {"metadata": {"name": "gate-launchers"}, "spec": {"policyName": "gate-launchers"}}
    vms.request("POST", f"{ADMISSION}/mutatingadmissionpolicybindings", binding)

    def gated(pod: Object) -> bool:
        return {"name": GATE} in pod["spec"].get("schedulingGates", [])

    probe = {
        "metadata": {"name": "probe", "labels": {"kubevirt.io": "virt-launcher"}},
        "spec": {"containers": [{"name": "main", "image": "registry.example/probe"}]},
    }
    dry_run = f"{CORE}/pods?dryRun=All"
    eventually("policy is enforced", lambda: gated(vms.request("POST", dry_run, probe)))
    return gated


def test_a_machine_with_two_gpus_runs_and_leaves_nothing(vms: ControlPlane) -> None:
    vms.request("POST", VMS, vm(gpus=2))
    instance = running(vms)
    assert instance["status"]["nodeName"] in ("whole-1", "whole-2")
    [pod] = launchers(vms)
    assert pod["metadata"]["ownerReferences"][0]["uid"] == instance["metadata"]["uid"]
    assert pod["metadata"]["labels"]["vm.kubevirt.io/name"] == "trainer"
    assert pod["spec"]["nodeName"] == instance["status"]["nodeName"]
    compute = next(c for c in pod["spec"]["containers"] if c["name"] == "compute")
    assert compute["resources"]["limits"][PASSTHROUGH] == "2"
    assert instance["status"]["interfaces"][0]["ipAddress"] == pod["status"]["podIP"]

    vms.request("DELETE", f"{VMS}/trainer")
    eventually("nothing is left", lambda: not leftovers(vms))


def test_a_vgpu_machine_runs_where_its_type_is(vms: ControlPlane) -> None:
    vms.request("POST", VMS, vm(gpus=1, device=VGPU))
    assert running(vms)["status"]["nodeName"] == "shared-1"


def test_stopping_ends_the_instance_and_its_pod(vms: ControlPlane) -> None:
    vms.request("POST", VMS, vm(gpus=1))
    first = running(vms)
    patch(vms, f"{VMS}/trainer", {"spec": {"runStrategy": "Halted"}})

    def stopped() -> bool:
        return not get(vms, f"{VMIS}/trainer") and not launchers(vms)

    eventually("instance and pod are gone", stopped)
    eventually("Stopped", lambda: get(vms, f"{VMS}/trainer")["status"]["printableStatus"] == "Stopped")
    patch(vms, f"{VMS}/trainer", {"spec": {"runStrategy": "Always"}})
    assert running(vms)["metadata"]["uid"] != first["metadata"]["uid"]


def test_restart_through_the_aggregated_api(vms: ControlPlane) -> None:
    vms.request("POST", VMS, vm(gpus=1))
    first = running(vms)["metadata"]["uid"]
    vms.kubectl("replace", "--raw", f"{SUBRESOURCES}/trainer/restart", "-f", "/dev/stdin", stdin="{}")
    eventually(
        "a new instance", lambda: get(vms, f"{VMIS}/trainer").get("metadata", {"uid": first})["uid"] != first
    )
    running(vms)


def test_a_lost_pod_is_replaced(vms: ControlPlane) -> None:
    vms.request("POST", VMS, vm(gpus=1))
    first = running(vms)["metadata"]["uid"]
    [pod] = launchers(vms)
    vms.request("DELETE", f"{CORE}/pods/{pod['metadata']['name']}")
    eventually(
        "a new instance", lambda: get(vms, f"{VMIS}/trainer").get("metadata", {"uid": first})["uid"] != first
    )
    running(vms)


def test_a_gated_launcher_lands_on_the_node_it_is_narrowed_to(
    vms: ControlPlane, gate: Callable[[Object], bool]
) -> None:
    vms.request("POST", VMS, vm(gpus=2))
    pod = eventually("a launcher", lambda: next(iter(launchers(vms)), None))
    assert gate(pod)
    path = f"{CORE}/pods/{pod['metadata']['name']}"

    def held() -> bool:
        conditions = get(vms, path)["status"].get("conditions", [])
        return any(c.get("reason") == "SchedulingGated" for c in conditions)

    eventually("the launcher is held", held)
    instance = eventually("the instance waits", lambda: get(vms, f"{VMIS}/trainer"))
    assert instance["status"].get("phase") in (None, "Pending", "Scheduling")
    affinity = pod["spec"]["affinity"]
    required = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    for term in required["nodeSelectorTerms"]:
        term.setdefault("matchExpressions", []).append(
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["whole-2"]}
        )
    patch(vms, path, {"spec": {"affinity": affinity}})
    patch(vms, path, {"spec": {"schedulingGates": None}})
    assert running(vms)["status"]["nodeName"] == "whole-2"


def test_a_machine_deleted_while_its_launcher_is_gated_leaves_nothing(
    vms: ControlPlane, gate: Callable[[Object], bool]
) -> None:
    vms.request("POST", VMS, vm(gpus=1))
    assert gate(eventually("a launcher", lambda: next(iter(launchers(vms)), None)))
    vms.request("DELETE", f"{VMS}/trainer")
    eventually("nothing is left", lambda: not leftovers(vms))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec": {"runStrategy": "Sometimes"}}, "Invalid RunStrategy"),
        (
            {"spec": {"template": {"spec": {"domain": {"memory": {"hugepages": {"pageSize": "3Gi"}}}}}}},
            "hugepages",
        ),
        ({"spec": {"template": {"spec": {"volumes": []}}}}, "root"),
    ],
)
def test_what_only_virt_api_can_judge_is_refused(vms: ControlPlane, change: Object, message: str) -> None:
    bad = merged(vm(gpus=1), change)
    with pytest.raises(ApiException) as refused:
        vms.request("POST", VMS, bad)
    assert "virtualmachine-validator.kubevirt.io" in refused.value.body
    assert message in json.loads(refused.value.body)["message"]


def test_a_device_that_is_not_permitted_fails_on_the_instance(vms: ControlPlane) -> None:
    vms.request("POST", VMS, vm(gpus=1, device="nvidia.com/UNKNOWN"))

    def failure() -> str | None:
        conditions = get(vms, f"{VMS}/trainer").get("status", {}).get("conditions", [])
        return next((c["message"] for c in conditions if c["type"] == "Synchronized"), None)

    assert "nvidia.com/UNKNOWN is not permitted" in eventually("the failure is reported", failure)
    assert launchers(vms) == []


def test_a_machine_on_a_data_volume(vms: ControlPlane) -> None:
    source = {"registry": {"url": "docker://registry.example/ubuntu:24.04"}}
    disk = {
        "metadata": {"name": "trainer-root"},
        "spec": {"source": source, "storage": {"resources": {"requests": {"storage": "20Gi"}}}},
    }
    machine = vm(gpus=1, dataVolumeTemplates=[disk])
    machine["spec"]["template"]["spec"]["volumes"] = [
        {"name": "root", "dataVolume": {"name": "trainer-root"}}
    ]
    vms.request("POST", VMS, machine)
    running(vms)
    volume = get(vms, f"{DATA_VOLUMES}/trainer-root")
    assert volume["status"]["phase"] == "Succeeded"
    claim = get(vms, f"{CORE}/persistentvolumeclaims/trainer-root")
    assert claim["status"]["phase"] == "Bound"
    assert claim["status"]["capacity"]["storage"] == "20Gi"
    [pod] = launchers(vms)
    assert {"claimName": "trainer-root"} in [v.get("persistentVolumeClaim") for v in pod["spec"]["volumes"]]

    vms.request("DELETE", f"{VMS}/trainer")
    eventually("nothing is left", lambda: not leftovers(vms), 60)


def test_applying_a_machine_again_changes_nothing(vms: ControlPlane) -> None:
    def apply(item: Object) -> str:
        path = f"{VMS}/trainer?fieldManager=vmtenancy"
        applied = vms.request("PATCH", path, item, content_type="application/apply-patch+yaml")
        return str(applied["metadata"]["resourceVersion"])

    machine = vm(gpus=2)
    apply(machine)
    running(vms)
    at_rest(vms)
    version = get(vms, f"{VMS}/trainer")["metadata"]["resourceVersion"]
    assert apply(machine) == version
    machine["spec"]["template"]["spec"]["domain"]["memory"]["guest"] = "8192Mi"
    assert apply(machine) == version


def test_at_rest_only_leases_are_written(vms: ControlPlane) -> None:
    vms.request("POST", VMS, vm(gpus=1))
    running(vms)
    at_rest(vms)


def test_live_migration_of_a_machine_without_gpus(vms: ControlPlane) -> None:
    machine = vm()
    # Not from a containerDisk: its digest is read from the containers, and nobody pulls images here.
    machine["spec"]["template"]["spec"]["volumes"] = [{"name": "root", "emptyDisk": {"capacity": "2Gi"}}]
    vms.request("POST", VMS, machine)
    source = running(vms)["status"]["nodeName"]
    migration = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstanceMigration",
        "metadata": {"name": "away"},
        "spec": {"vmiName": "trainer"},
    }
    vms.request("POST", MIGRATIONS, migration)
    eventually(
        "the migration succeeded",
        lambda: get(vms, f"{MIGRATIONS}/away").get("status", {}).get("phase") == "Succeeded",
        60,
    )
    instance = running(vms)
    assert instance["status"]["nodeName"] != source
    by_phase = {p["status"]["phase"]: p["spec"]["nodeName"] for p in launchers(vms)}
    assert by_phase == {"Running": instance["status"]["nodeName"], "Succeeded": source}


def test_the_controller_restarts_when_a_feature_gate_needs_it(kubevirt: KubeVirt, vms: ControlPlane) -> None:
    controller = next(p for p in vms.processes if p.name == "virt-controller")
    before = controller.pid
    vms.request("POST", VMS, vm(gpus=1))
    running(vms)
    kubevirt.set_feature_gates([*FEATURE_GATES, "GPUsWithDRA"])
    try:
        eventually("a new virt-controller", lambda: controller.pid not in (None, before))
        vms.request("POST", VMS, vm("second", gpus=1))
        running(vms, "second")
        running(vms)
    finally:
        kubevirt.set_feature_gates(FEATURE_GATES)


def merged(base: Object, change: Object) -> Object:
    """JSON merge patch."""
    out = dict(base)
    for key, value in change.items():
        out[key] = merged(out.get(key, {}), value) if isinstance(value, dict) else value
    return out
