"""What the samples become is accepted by the real API server: our CRD, CDI's and KubeVirt's webhooks, by dry-run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from migrate_samples import ROOT, SAMPLES, converted

from vmtenancy.api.gpuallocation import Grant
from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.parsing import parse
from vmtenancy.render.catalog import parse_catalog
from vmtenancy.runtimes.kubevirt import VmInputs, objects
from vmtenancy.testing.cleanup import Snapshot
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.kubevirt import PCI_DEVICES, KubeVirt

pytestmark = [pytest.mark.cluster, pytest.mark.kubevirt]

NAMESPACE = "design"
CATALOG = parse_catalog({path.name: path.read_text() for path in (ROOT / "vm-templates").glob("*.yaml")})
PATHS = {
    "GpuVM": f"/apis/vmtenancy.io/v1alpha1/namespaces/{NAMESPACE}/gpuvms",
    "DataVolume": f"/apis/cdi.kubevirt.io/v1beta1/namespaces/{NAMESPACE}/datavolumes",
    "Secret": f"/api/v1/namespaces/{NAMESPACE}/secrets",
    "VirtualMachine": f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachines",
}


@pytest.fixture(scope="module")
def host(kubevirt: KubeVirt) -> Iterator[ControlPlane]:
    """KubeVirt with our GpuVM kind and a namespace."""
    cluster = kubevirt.cluster
    before = Snapshot.take(cluster)
    cluster.kubectl(
        "apply", "--server-side", "--force-conflicts", f"--filename={ROOT / 'crds' / 'gpuvms.yaml'}"
    )
    cluster.kubectl("wait", "--for=condition=Established", "crd/gpuvms.vmtenancy.io", "--timeout=30s")
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    yield cluster
    before.restore()


def accept(host: ControlPlane, obj: dict[str, Any]) -> dict[str, Any]:
    """The object as the API server would store it, with every field known."""
    path = f"{PATHS[obj['kind']]}?dryRun=All&fieldValidation=Strict"
    return host.request("POST", path, obj)  # type: ignore[no-any-return]


def rendered(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What the controller makes of a GpuVM with a grant, as one that is to run."""
    spec = {**manifest["spec"], "runStrategy": "Always"}
    metadata = {**manifest["metadata"], "uid": "3f1c1d0e-6f0a-4c57-9d5a-0a8b3c9d7e11"}
    vm = parse({**manifest, "metadata": metadata, "spec": spec})
    assert isinstance(vm, GpuVM)
    grants = [
        Grant.model_validate(
            {
                **{"class": gpu.class_, "pool": "p", "mode": "vm-passthrough", "parts": 10080},
                **{"resource": next(iter(PCI_DEVICES)), "count": gpu.count},
            }
        )
        for gpu in vm.spec.gpus
    ]
    return objects(vm, grants, VmInputs("design", CATALOG))


@pytest.mark.parametrize("name", SAMPLES)
def test_everything_is_accepted(host: ControlPlane, name: str) -> None:
    for conversion in converted(name):
        for obj in conversion.objects:
            # The CRD of NetworkAttachmentDefinitions is of the network plumbing group, and not part of KubeVirt.
            if obj["kind"] != "NetworkAttachmentDefinition":
                accept(host, obj)
        for obj in rendered(conversion.objects[0]):
            stored = accept(host, obj)
            assert stored["spec"]["template"]["spec"]["domain"]["firmware"] is not None
