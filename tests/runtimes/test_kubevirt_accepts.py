"""What is rendered meets the real KubeVirt: accepted by virt-api, stable when applied again, and observed."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime_samples import Object, catalog, example, grant

from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.parsing import parse
from vmtenancy.runtimes import kubevirt as runtime
from vmtenancy.runtimes.kubevirt import VmInputs, VmObservation
from vmtenancy.testing import fleet
from vmtenancy.testing.cleanup import Snapshot
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.kubevirt import MEDIATED_DEVICES, PCI_DEVICES, KubeVirt
from vmtenancy.testing.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.kubevirt]

CATALOG = catalog()
NAMESPACE = "render"
CRDS = Path(__file__).parents[2] / "crds"
DEVICES = {"passthrough": next(iter(PCI_DEVICES)), "vgpu": next(iter(MEDIATED_DEVICES))}
GPUVMS = f"/apis/vmtenancy.io/v1alpha1/namespaces/{NAMESPACE}/gpuvms"
PATHS = {
    "Secret": f"/api/v1/namespaces/{NAMESPACE}/secrets",
    "VirtualMachine": f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachines",
    "VirtualMachineInstance": f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachineinstances",
    "Pod": f"/api/v1/namespaces/{NAMESPACE}/pods",
}


@pytest.fixture(scope="module")
def host(kubevirt: KubeVirt) -> Iterator[ControlPlane]:
    """KubeVirt, our GpuVM kind, a namespace and one GPU node per kind of device."""
    cluster = kubevirt.cluster
    before = Snapshot.take(cluster)
    cluster.kubectl("apply", "--server-side", "--force-conflicts", f"--filename={CRDS / 'gpuvms.yaml'}")
    cluster.kubectl("wait", "--for=condition=Established", "crd/gpuvms.vmtenancy.io", "--timeout=30s")
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    modes: list[tuple[str, fleet.Mode]] = [("passthrough", "vm-passthrough"), ("vgpu", "vm-vgpu")]
    fleet.create(
        cluster, [fleet.gpu_node(kind, mode=mode, resources={DEVICES[kind]: 8}) for kind, mode in modes]
    )
    yield cluster
    # KubeVirt ends its machines itself while it is asked to; without their owners nothing makes them anew.
    cluster.kubectl("delete", "gpuvms,virtualmachines", "--all", f"--namespace={NAMESPACE}", "--timeout=60s")
    before.restore()


def stored(host: ControlPlane, template: str, name: str, **spec: Any) -> GpuVM:
    """The template's example, as the API server has it."""
    manifest = example(template)
    manifest["metadata"] = {"name": name, "namespace": NAMESPACE}
    manifest["spec"] |= spec
    found = parse(host.request("POST", GPUVMS, manifest))
    assert isinstance(found, GpuVM)
    return found


def rendered(vm: GpuVM, device: str) -> list[Object]:
    count = sum(request.count for request in vm.spec.gpus)
    return runtime.objects(vm, [grant(DEVICES[device], count)], VmInputs("vision", CATALOG))


def apply(host: ControlPlane, obj: Object, options: str = "") -> Object:
    path = f"{PATHS[obj['kind']]}/{obj['metadata']['name']}?fieldManager=vmtenancy&force=true{options}"
    return host.request("PATCH", path, obj, content_type="application/apply-patch+yaml")  # type: ignore[no-any-return]


def holds(found: Any, wanted: Any) -> bool:
    """Whether all that is wanted is there, as it was written."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            key in found and holds(found[key], wanted[key]) for key in wanted
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(holds, found, wanted))
    return bool(found == wanted)


@pytest.mark.parametrize("device", list(DEVICES))
@pytest.mark.parametrize("template", sorted(CATALOG))
def test_each_template_with_each_device_is_accepted_and_stays(
    host: ControlPlane, template: str, device: str
) -> None:
    vm = stored(host, template, f"{template}-{device}", runStrategy="Halted")
    for obj in rendered(vm, device):
        apply(host, obj, "&dryRun=All")
        first = apply(host, copy.deepcopy(obj))
        assert holds(first, obj), "the API server or virt-api has rewritten what was applied"

        def unchanged(obj: Object = obj) -> bool:
            # virt-controller writes the status now and then; our apply must not be what writes.
            before = host.request("GET", f"{PATHS[obj['kind']]}/{obj['metadata']['name']}")
            after = apply(host, copy.deepcopy(obj))
            return bool(before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"])

        eventually("an apply that writes nothing", unchanged, 20)
        again = apply(host, copy.deepcopy(obj))
        assert again["metadata"].get("generation") == first["metadata"].get("generation")


def observed(host: ControlPlane, vm: GpuVM) -> VmObservation:
    children = {
        kind: [
            obj
            for obj in host.request("GET", PATHS[kind])["items"]
            if vm.metadata.name in obj["metadata"]["name"]
        ]
        for kind in ("VirtualMachine", "VirtualMachineInstance", "Pod")
    }
    return runtime.observe(vm, children)


def seen_if(
    host: ControlPlane, vm: GpuVM, condition: Callable[[VmObservation], bool]
) -> VmObservation | None:
    found = observed(host, vm)
    return found if condition(found) else None


def test_a_life_is_observed_from_start_to_stop(host: ControlPlane) -> None:
    vm = stored(host, "default", "alive")
    assert observed(host, vm).phase == "Pending"
    (obj,) = rendered(vm, "passthrough")
    apply(host, obj)
    seen: list[VmObservation] = []

    def running() -> VmObservation | None:
        seen.append(observed(host, vm))
        return seen[-1] if seen[-1].ready else None

    found = eventually("a running machine", running, 60)
    assert (found.phase, found.node, found.holding, found.message) == ("Running", "passthrough", True, "")
    assert {observation.phase for observation in seen} <= {"Starting", "Running"}
    pods = host.request("GET", PATHS["Pod"])["items"]
    (launcher,) = [pod for pod in pods if pod["metadata"]["name"].startswith("virt-launcher-alive-")]
    assert launcher["metadata"]["labels"].items() >= obj["metadata"]["labels"].items()
    limits = [container["resources"].get("limits", {}) for container in launcher["spec"]["containers"]]
    assert {DEVICES["passthrough"]: "2"}.items() <= limits[0].items()

    # Without a grant it is stopped, and what it held is free only once the pod is gone.
    (halted,) = runtime.objects(vm, [], VmInputs("vision", CATALOG))
    apply(host, halted)
    first = observed(host, vm)
    assert (first.phase, first.holding) == ("Stopping", True)
    stopped = eventually("nothing held", lambda: seen_if(host, vm, lambda found: not found.holding), 60)
    assert (stopped.phase, stopped.node, stopped.failed) == ("Stopped", "", False)


def test_a_device_that_is_not_permitted_is_a_failure_with_kubevirts_words(host: ControlPlane) -> None:
    vm = stored(host, "default", "refused")
    (obj,) = runtime.objects(vm, [grant("nvidia.com/UNKNOWN")], VmInputs("vision", CATALOG))
    apply(host, obj)
    found = eventually("a failure", lambda: seen_if(host, vm, lambda found: found.failed), 60)
    assert found.phase == "Failed"
    assert "nvidia.com/UNKNOWN" in found.message
