"""What the samples become is accepted by the real API server: our CRD, CDI's and KubeVirt's webhooks, by dry-run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes.client import ApiException
from migrate_samples import DATA, ROOT, SAMPLES, converted

from vmtenancy.api.gpuallocation import Grant
from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.parsing import parse
from vmtenancy.errors import VmtError
from vmtenancy.migrate.convert import READERS, Conversion, Wishes, convert
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


def accept_all(host: ControlPlane, conversion: Conversion) -> None:
    """The objects, and what the controller would make of them."""
    for obj in (*conversion.objects, *rendered(conversion.objects[0])):
        # The CRD of NetworkAttachmentDefinitions is of the network plumbing group, and not part of KubeVirt.
        if obj["kind"] != "NetworkAttachmentDefinition":
            accept(host, obj)


@pytest.mark.parametrize("name", SAMPLES)
def test_everything_is_accepted(host: ControlPlane, name: str) -> None:
    for conversion in converted(name):
        accept_all(host, conversion)


def test_kubevirt_is_really_asked(host: ControlPlane) -> None:
    machine = rendered(converted("libvirt")[0].objects[0])[-1]
    del machine["spec"]["template"]["spec"]["domain"]["features"]["smm"]
    with pytest.raises(ApiException, match="SecureBoot requires SMM"):
        accept(host, machine)


@pytest.mark.skipif(not DATA.is_dir(), reason="VMTENANCY_DATA has no vm-samples")
@pytest.mark.parametrize("source", READERS)
def test_what_real_descriptions_become_is_accepted(host: ControlPlane, source: str) -> None:
    for entry in json.loads((DATA / source / "index.json").read_text()):
        wishes = Wishes(namespace=NAMESPACE, default_class="some-gpu", stem="x")
        with contextlib.suppress(VmtError):
            for conversion in convert(source, (DATA / source / entry["file"]).read_bytes(), wishes):
                accept_all(host, conversion)
