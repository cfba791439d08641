"""The real vCluster on the real control plane: from the chart's objects to pods that run, and to nothing left."""

import base64
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from vcluster_chart import POOL, Kubectl, Object, chart, control_plane_values, gpu_pod, reached

from vmtenancy.api.names import CONTROLLER_USER, GATE
from vmtenancy.helm import Chart
from vmtenancy.testing import fleet
from vmtenancy.testing.cleanup import Snapshot
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.vcluster import NODE, VClusterRunner, can_run

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.vcluster,
    pytest.mark.skipif(can_run() is not None, reason=str(can_run())),
]

__all__ = ["chart"]


def gate_policies() -> list[Object]:
    """The gate in small: added on CREATE, and kept on UPDATE against everyone but the controller."""
    gates = "object.spec.?schedulingGates.orValue([])"
    add = f'Object{{spec: Object.spec{{schedulingGates: [Object.spec.schedulingGates{{name: "{GATE}"}}]}}}}'
    conditions = {
        "CREATE": ["object.spec.containers.exists(c, 'nvidia.com/gpu' in c.?resources.limits.orValue({}))"],
        "UPDATE": [
            f"oldObject.spec.?schedulingGates.orValue([]).exists(g, g.name == '{GATE}')",
            f"!{gates}.exists(g, g.name == '{GATE}')",
            f"request.userInfo.username != '{CONTROLLER_USER}'",
        ],
    }
    objects: list[Object] = []
    for operation, expressions in conditions.items():
        name = f"test-gate-{operation.lower()}"
        rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": [operation], "resources": ["pods"]}
        spec = {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "IfNeeded",
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"test-gated": "true"}},
                "resourceRules": [rule],
            },
            "matchConditions": [{"name": f"c{i}", "expression": e} for i, e in enumerate(expressions)],
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": add}}],
        }
        api = {"apiVersion": "admissionregistration.k8s.io/v1"}
        objects += [
            {**api, "kind": "MutatingAdmissionPolicy", "metadata": {"name": name}, "spec": spec},
            {
                **api,
                "kind": "MutatingAdmissionPolicyBinding",
                "metadata": {"name": name},
                "spec": {"policyName": name},
            },
        ]
    return objects


class Tenant:
    """A virtual cluster in a namespace of its own, applied from the chart as our controller does it."""

    def __init__(self, host: Kubectl, chart: Chart, name: str, folder: Path) -> None:
        self.host, self.name, self.namespace = host, name, f"vc-{name}"
        self.objects = chart.render(name, self.namespace, control_plane_values())
        self._kubeconfig = folder / f"{name}.yaml"

    def apply(self) -> None:
        # The chart's own pods keep to the baseline; tenants' pods have to.
        labels = {"test-gated": "true", "pod-security.kubernetes.io/enforce": "baseline"}
        self.host.apply(
            [
                {
                    "apiVersion": "v1",
                    "kind": "Namespace",
                    "metadata": {"name": self.namespace, "labels": labels},
                }
            ]
        )
        self.host.apply(self.objects)

    def pod(self) -> Object:
        return self.host.get("pod", f"{self.name}-0", "-n", self.namespace)  # type: ignore[no-any-return]

    def login(self) -> Kubectl:
        """Wait for the kubeconfig that users get and use it as it is."""
        secret = reached(
            "kubeconfig", lambda: self.host.get("secret", f"vc-{self.name}", "-n", self.namespace)
        )
        self._kubeconfig.write_bytes(base64.b64decode(secret["data"]["config"]))
        return Kubectl(self._kubeconfig)

    def delete(self) -> None:
        scoped = [o for o in self.objects if "namespace" not in o["metadata"]]
        self.host(
            "delete",
            "--wait=false",
            "--filename=-",
            stdin={"apiVersion": "v1", "kind": "List", "items": scoped},
        )
        self.host("delete", "namespace", self.namespace, "--wait=true", "--timeout=60s")


@pytest.fixture(scope="module")
def host(control_plane: ControlPlane) -> Iterator[Kubectl]:
    """The host: two GPU nodes that tenants may see, one that they may not, and the gate."""
    before = Snapshot.take(control_plane)
    kubectl = Kubectl(control_plane.kubeconfig)
    nodes = [fleet.gpu_node(f"gpu-{i}", labels=POOL) for i in range(2)]
    fleet.create(control_plane, [*nodes, fleet.gpu_node("other")])
    kubectl.apply(gate_policies())
    yield kubectl
    before.restore()


@pytest.fixture(scope="module")
def runner(control_plane: ControlPlane, host: Kubectl) -> Iterator[VClusterRunner]:
    with VClusterRunner(control_plane) as running:
        yield running


@pytest.fixture(scope="module")
def lab(
    host: Kubectl, chart: Chart, runner: VClusterRunner, tmp_path_factory: pytest.TempPathFactory
) -> Tenant:
    tenant = Tenant(host, chart, "lab", tmp_path_factory.mktemp("lab"))
    tenant.apply()
    return tenant


@pytest.fixture(scope="module")
def inside(lab: Tenant) -> Kubectl:
    kubectl = lab.login()
    reached("service account", lambda: kubectl.get("serviceaccount", "default"))
    return kubectl


def host_pod(lab: Tenant, name: str) -> Object:
    return lab.host.get("pod", f"{name}-x-default-x-{lab.name}", "-n", lab.namespace)  # type: ignore[no-any-return]


def gates(pod: Object) -> list[str]:
    return [g["name"] for g in pod["spec"].get("schedulingGates", [])]


def test_the_chart_renders_what_is_expected(chart: Chart) -> None:
    objects = chart.render("lab", "vc-lab", control_plane_values())
    scoped = {(o["kind"], o["metadata"]["name"]) for o in objects if "namespace" not in o["metadata"]}
    assert scoped == {("ClusterRole", "vc-lab-v-vc-lab"), ("ClusterRoleBinding", "vc-lab-v-vc-lab")}
    assert {o["metadata"].get("namespace", "vc-lab") for o in objects} == {"vc-lab"}
    assert sorted({o["kind"] for o in objects}) == [
        "ClusterRole",
        "ClusterRoleBinding",
        "NetworkPolicy",
        "Role",
        "RoleBinding",
        "Secret",
        "Service",
        "ServiceAccount",
        "StatefulSet",
    ]


def test_the_kubeconfig_of_the_secret_works_and_shows_the_selected_nodes(inside: Kubectl) -> None:
    assert json.loads(inside("get", "--raw=/version"))["gitVersion"] == "v1.36.3"
    names = reached("nodes", lambda: [n["metadata"]["name"] for n in inside.get("nodes")["items"]])
    assert sorted(names) == ["gpu-0", "gpu-1"]


def test_a_gpu_pod_is_gated_until_the_controller_lifts_the_gate(
    lab: Tenant, inside: Kubectl, control_plane: ControlPlane
) -> None:
    inside.apply([gpu_pod("train", 2)])
    pod = reached("host pod", lambda: host_pod(lab, "train"))
    assert pod["metadata"]["labels"]["vcluster.loft.sh/managed-by"] == "lab"

    def told() -> bool:
        conditions = inside.get("pod", "train", "-n", "default")["status"].get("conditions", [])
        return any(c.get("reason") == "SchedulingGated" for c in conditions)

    reached("SchedulingGated inside", told)
    # The syncer has copied the virtual pod's gates (none) over ours, and the policy has put ours back.
    pod = host_pod(lab, "train")
    assert gates(pod) == [GATE]
    strangers = Kubectl(control_plane.kubeconfig)
    drop = json.dumps({"spec": {"schedulingGates": None}})
    strangers("patch", "pod", pod["metadata"]["name"], "-n", lab.namespace, "--type=merge", f"--patch={drop}")
    assert gates(host_pod(lab, "train")) == [GATE]

    controller = Kubectl(control_plane.kubeconfig_for(CONTROLLER_USER, ["system:masters"]))
    placed = {"spec": {"schedulingGates": None, "nodeSelector": {"kubernetes.io/hostname": "gpu-1"}}}
    controller(
        "patch",
        "pod",
        pod["metadata"]["name"],
        "-n",
        lab.namespace,
        "--type=merge",
        f"--patch={json.dumps(placed)}",
    )

    def running() -> Object | None:
        found = inside.get("pod", "train", "-n", "default")
        return found if found["status"]["phase"] == "Running" else None

    found = reached("Running inside", running)
    assert found["spec"]["nodeName"] == "gpu-1"
    assert host_pod(lab, "train")["spec"]["nodeName"] == "gpu-1"
    inside("delete", "pod", "train", "-n", "default", "--timeout=30s")
    left = f"-lvcluster.loft.sh/managed-by={lab.name},vcluster.loft.sh/namespace=default"
    reached("host pod gone", lambda: not lab.host.get("pod", "-n", lab.namespace, left)["items"])


def test_the_syncer_has_the_charts_rights_and_they_are_enough(
    lab: Tenant, inside: Kubectl, control_plane: ControlPlane
) -> None:
    writers = {
        json.loads(line)["user"]["username"]
        for line in control_plane.audit_log.read_text().splitlines()
        if f"/namespaces/{lab.namespace}/secrets" in line
    }
    assert f"system:serviceaccount:{lab.namespace}:vc-lab" in writers
    log = (control_plane.logs / f"vcluster-{lab.namespace}-lab-0.log").read_text()
    assert [line for line in log.splitlines() if "forbidden" in line.lower()] == []


def test_the_control_plane_pod_comes_back_with_its_data(lab: Tenant, inside: Kubectl) -> None:
    inside("create", "configmap", "kept", "--from-literal=a=b", "-n", "default")
    before = lab.pod()["metadata"]["uid"]
    lab.host("delete", "pod", "lab-0", "-n", lab.namespace, "--timeout=30s")
    reached("another pod", lambda: lab.pod()["metadata"]["uid"] != before)
    assert reached("data", lambda: inside.get("configmap", "kept", "-n", "default"))["data"] == {"a": "b"}


def test_a_second_tenant_is_ready_when_its_api_answers_and_leaves_nothing(
    lab: Tenant,
    inside: Kubectl,
    chart: Chart,
    runner: VClusterRunner,
    control_plane: ControlPlane,
    tmp_path: Path,
) -> None:
    tenant = Tenant(lab.host, chart, "second", tmp_path)
    tenant.apply()
    pod = reached("a bound pod", lambda: tenant.pod() if tenant.pod()["spec"]["nodeName"] == NODE else None)
    uid = pod["metadata"]["uid"]
    worker = reached("a worker", lambda: runner.workers.get(uid))

    def ready() -> bool:
        status = lab.host.get("statefulset", "second", "-n", tenant.namespace)["status"]
        return bool(status.get("readyReplicas"))

    assert not ready()
    reached("ready", ready)
    log = control_plane.logs / "vcluster-vc-second-second-0.log"
    assert "Serving securely on [::]:8443" in log.read_text()
    second = tenant.login()
    second.apply([gpu_pod("other", 1)])
    name = "other-x-default-x-second"
    reached("a gate", lambda: gates(lab.host.get("pod", name, "-n", tenant.namespace)) == [GATE])
    with pytest.raises(subprocess.CalledProcessError, match="returned non-zero"):
        inside.get("pod", "other", "-n", "default")

    assert {"vcluster", "kube-apiserver"} <= set(programs_of("second-0"))
    tenant.delete()
    reached("the worker to end", lambda: not worker.is_alive() and uid not in runner.workers)
    assert programs_of("second-0") == []
    kinds = "namespaces,persistentvolumes,clusterroles,clusterrolebindings"
    reached("nothing left", lambda: "second" not in lab.host("get", kinds, "-oyaml"))


def programs_of(pod: str) -> list[str]:
    """Running programs that were given a pod's name."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"POD_NAME={pod}\0".encode() in environment.read_bytes():
                found.append((environment.parent / "comm").read_text().strip())
    return found
