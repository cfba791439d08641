"""What is rendered meets the real chart, API server and vCluster: accepted, stable, and observed."""

import base64
import copy
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime_samples import Object, virtual_cluster

from vmtenancy.errors import VmtError
from vmtenancy.helm import Chart
from vmtenancy.runtimes import vcluster
from vmtenancy.runtimes.vcluster import VcInputs, VcObservation
from vmtenancy.testing import build, fleet
from vmtenancy.testing.cleanup import Snapshot
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.vcluster import SCHEDULING, VClusterRunner, can_run
from vmtenancy.testing.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.vcluster]

COREDNS = {"coredns": {"deployment": {"image": "registry.example/coredns:1.12"}}}
VC = virtual_cluster("lab", "llm", values={"controlPlane": COREDNS})
HOME = vcluster.host_namespace("llm", "lab")
#: What an administrator sets: here, that control planes run on the stand-in's node.
DEFAULTS = {"controlPlane": {"statefulSet": {"scheduling": dict(SCHEDULING)}}}
RESOURCES = {"h100": "nvidia.com/gpu"}


@pytest.fixture(scope="module")
def chart() -> Chart:
    folder = build.module_dir("vcluster", "github.com/loft-sh/vcluster", "chart")
    return Chart(folder, helm=build.resolve("helm"), kube_version="v1.36.3")


def rendered(chart: Chart, defaults: Any = DEFAULTS) -> list[Object]:
    values = vcluster.chart_values(VC, defaults)
    objects = chart.render(vcluster.release_name(VC), HOME, values)
    return vcluster.objects(VC, (), VcInputs("llm", objects, RESOURCES))


def test_the_charts_objects_pass_the_policy_and_read_nothing_but_nodes(chart: Chart) -> None:
    objects = rendered(chart)
    (role,) = [obj for obj in objects if obj["kind"] == "ClusterRole"]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]
    assert [
        obj["kind"] for obj in objects if obj["kind"] in ("ResourceQuota", "LimitRange", "NetworkPolicy")
    ] == [*("ResourceQuota", "NetworkPolicy", "NetworkPolicy", "NetworkPolicy")]


@pytest.mark.parametrize(
    ("defaults", "why"),
    [
        ({"rbac": {"clusterRole": {"overwriteRules": None}}}, "too many rights on the whole cluster"),
        ({"sync": {"toHost": {"namespaces": {"enabled": True}}}}, "too many rights on the whole cluster"),
        ({"controlPlane": {"ingress": {"enabled": True}}}, "Ingress"),
        (
            {
                "experimental": {
                    "deploy": {"host": {"manifests": "kind: Pod\napiVersion: v1\nmetadata: {name: p}"}}
                }
            },
            "Pod",
        ),
    ],
)
def test_what_the_chart_would_make_beyond_the_host_namespace_is_refused(
    chart: Chart, defaults: Any, why: str
) -> None:
    with pytest.raises(VmtError, match=why):
        rendered(chart, defaults)


def test_unknown_values_are_refused_by_the_charts_schema(chart: Chart) -> None:
    odd = virtual_cluster(values={"sync": {"toHost": {"services": {"enabled": "sometimes"}}}})
    with pytest.raises(VmtError, match="VMT-H001"):
        chart.render("lab", HOME, vcluster.chart_values(odd))


@pytest.fixture(scope="module")
def host(control_plane: ControlPlane, chart: Chart) -> Iterator[ControlPlane]:
    """The virtual cluster applied on a host with two GPU nodes and the runner of its control plane."""
    if reason := can_run():
        pytest.skip(reason)
    before = Snapshot.take(control_plane)
    fleet.create(control_plane, [fleet.gpu_node("gpu-0"), fleet.gpu_node("gpu-1")])
    with VClusterRunner(control_plane):
        for obj in rendered(chart):
            apply(control_plane, obj)
        yield control_plane
        control_plane.kubectl("delete", "namespace", HOME, "--timeout=60s")
        before.restore()


def path_of(obj: Object) -> str:
    group = obj["apiVersion"]
    plural = obj["kind"].lower() + ("" if obj["kind"].endswith("s") else "s")
    plural = plural.removesuffix("ys") + "ies" if plural.endswith("ys") else plural
    prefix = f"/api/{group}" if "/" not in group else f"/apis/{group}"
    namespace = obj["metadata"].get("namespace")
    return f"{prefix}/{f'namespaces/{namespace}/' if namespace else ''}{plural}/{obj['metadata']['name']}"


def apply(host: ControlPlane, obj: Object) -> Object:
    path = f"{path_of(obj)}?fieldManager=vmtenancy&force=true&fieldValidation=Strict"
    body = copy.deepcopy(obj)
    return host.request("PATCH", path, body, content_type="application/apply-patch+yaml")  # type: ignore[no-any-return]


def observed(host: ControlPlane) -> VcObservation:
    base = f"namespaces/{HOME}"
    paths = {
        "Namespace": f"/api/v1/namespaces?fieldSelector=metadata.name%3D{HOME}",
        "StatefulSet": f"/apis/apps/v1/{base}/statefulsets",
        "Pod": f"/api/v1/{base}/pods",
        "Secret": f"/api/v1/{base}/secrets",
    }
    return vcluster.observe(VC, {kind: host.request("GET", path)["items"] for kind, path in paths.items()})


class Inside:
    """kubectl with the kubeconfig that users get."""

    def __init__(self, kubeconfig: Path) -> None:
        self._command = [str(build.resolve("kubectl")), f"--kubeconfig={kubeconfig}"]

    def __call__(self, *args: str, stdin: Any = None) -> str:
        text = None if stdin is None else json.dumps(stdin)
        return subprocess.run(
            [*self._command, *args], input=text, capture_output=True, text=True, check=True
        ).stdout


@pytest.fixture(scope="module")
def inside(host: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Inside:
    seen: list[VcObservation] = []

    def ready() -> VcObservation | None:
        seen.append(observed(host))
        return seen[-1] if seen[-1].ready else None

    found = eventually("a ready virtual cluster", ready, 120)
    assert {observation.phase for observation in seen} <= {"Provisioning", "Ready"}
    secret = vcluster.kubeconfig_secret(VC, found.kubeconfig)
    kubeconfig = tmp_path_factory.mktemp("inside") / "kubeconfig"
    kubeconfig.write_bytes(base64.b64decode(secret["data"]["config"]))
    kubectl = Inside(kubeconfig)

    def default_account() -> bool:
        try:
            return bool(kubectl("get", "serviceaccount", "default", "-oname"))
        except subprocess.CalledProcessError:
            return False

    eventually("the default service account", default_account, 60)
    return kubectl


def gpu_pod(name: str, gpus: int, **container: Any) -> Object:
    limits = {"nvidia.com/gpu": gpus, "cpu": "1", "memory": "1Gi"}
    main = {"name": "main", "image": "registry.example/cuda", "resources": {"limits": limits}, **container}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [main]}}


def host_pod(host: ControlPlane, name: str) -> Object | None:
    pods = host.request("GET", f"/api/v1/namespaces/{HOME}/pods")["items"]
    return next((pod for pod in pods if pod["metadata"]["name"].startswith(f"{name}-x-default-x-")), None)


def test_applying_again_writes_nothing(host: ControlPlane, chart: Chart, inside: Inside) -> None:
    for obj in rendered(chart):

        def unchanged(obj: Object = obj) -> bool:
            before = host.request("GET", path_of(obj))["metadata"]["resourceVersion"]
            return bool(apply(host, obj)["metadata"]["resourceVersion"] == before)

        eventually(f"an apply of {obj['kind']} {obj['metadata']['name']} that writes nothing", unchanged, 20)


def test_the_kubeconfig_names_the_virtual_cluster(inside: Inside) -> None:
    assert inside("config", "current-context").strip() == "llm/lab"


def test_a_pod_runs_and_its_node_is_the_only_one_shown(host: ControlPlane, inside: Inside) -> None:
    inside("create", "--filename=-", stdin=gpu_pod("train", 2))

    def running() -> Object | None:
        found: Object = json.loads(inside("get", "pod", "train", "-ojson"))
        return found if found["status"]["phase"] == "Running" else None

    node = eventually("a running pod", running, 60)["spec"]["nodeName"]
    assert node in ("gpu-0", "gpu-1")
    shown = json.loads(inside("get", "nodes", "-ojson"))["items"]
    assert [item["metadata"]["name"] for item in shown] == [node]
    assert shown[0]["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert not shown[0]["status"].get("images")


def test_the_quota_is_a_backstop_and_privileged_pods_stay_out(host: ControlPlane, inside: Inside) -> None:
    inside("create", "--filename=-", stdin=gpu_pod("many", 7))
    inside("create", "--filename=-", stdin=gpu_pod("root", 1, securityContext={"privileged": True}))

    def told(name: str, words: str) -> bool:
        return words in inside("get", "events", f"--field-selector=involvedObject.name={name}", "-ojson")

    eventually("refused by the quota", lambda: told("many", "exceeded quota: vmtenancy-gpus"), 60)
    eventually("refused by pod security", lambda: told("root", "violates PodSecurity"), 60)
    assert host_pod(host, "many") is None
    assert host_pod(host, "root") is None


def test_its_rights_are_enough(host: ControlPlane, inside: Inside) -> None:
    log = (host.logs / f"vcluster-{HOME}-{vcluster.release_name(VC)}-0.log").read_text()
    assert [
        line
        for line in log.splitlines()
        if "cannot" in line and "forbidden" in line and "PodSecurity" not in line
    ] == []
