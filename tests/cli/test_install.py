from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from vmtenancy import resources
from vmtenancy.errors import VmtError
from vmtenancy.kube import errors
from vmtenancy.kube.client import Client
from vmtenancy.kube.install import install, uninstall
from vmtenancy.kube.snapshot import read_world
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.testing.controlplane import ControlPlane

pytestmark = pytest.mark.cluster


def manifests() -> list[Object]:
    return list(resources.objects(resources.folder("manifests")))


def crds() -> list[Object]:
    return list(resources.objects(resources.folder("crds")))


@pytest.fixture
async def client(cluster: ControlPlane) -> AsyncIterator[Client]:
    async with await Client.connect(cluster.kubeconfig) as connected:
        yield connected


async def test_installs_and_an_upgrade_to_the_same_changes_nothing(client: Client) -> None:
    first: list[str] = []
    await install(client, crds(), manifests(), tell=first.append)
    assert "MutatingAdmissionPolicy gate.vmtenancy.io created" in first
    assert first[-1] == "the admission policies are enforced"
    again: list[str] = []
    await install(client, crds(), manifests(), tell=again.append)
    assert {line.rsplit(" ", 1)[1] for line in again[:-1]} == {"unchanged"}
    assert not (await read_world(client)).objects["GpuVM"]


async def test_once_installed_no_pod_slips_through(client: Client) -> None:
    """The first pods after `install` returns are gated, without a pause."""
    await install(client, crds(), manifests())
    async with await client.as_service_account("vmtenancy-system", "vmtenancy-controller") as controller:
        labels = {"vmtenancy.io/tenant": "t"}
        meta = {"name": "slip", "labels": labels}
        await controller.create({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a", "namespace": "slip"}}
    await client.create(account)

    async def gates(number: int) -> list[Object]:
        gpus = {"limits": {"nvidia.com/gpu": "1"}}
        pod = await client.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"p{number}", "namespace": "slip"},
                "spec": {
                    "serviceAccountName": "a",
                    "containers": [{"name": "c", "image": "registry.example/c", "resources": gpus}],
                },
            }
        )
        found: list[Object] = pod["spec"].get("schedulingGates") or []
        return found

    found = await asyncio.gather(*map(gates, range(30)))
    assert all(names == [{"name": "vmtenancy.io/allocation"}] for names in found)


async def test_a_dry_run_writes_nothing(client: Client) -> None:
    lines: list[str] = []
    await install(client, crds(), manifests(), tell=lines.append, dry_run=True)
    assert "MutatingAdmissionPolicy gate.vmtenancy.io would be created" in lines
    info = await client.kind("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy")
    with pytest.raises(errors.NotFoundError):
        await client.get(info, "", "gate.vmtenancy.io")


async def test_a_manifest_that_the_server_refuses_is_one_error(client: Client) -> None:
    broken = manifests()[0] | {"nonsense": True}
    with pytest.raises(errors.KubeError, match="nonsense"):
        await install(client, [], [broken])


async def test_uninstall_is_refused_while_there_are_tenants_and_removes_all_otherwise(client: Client) -> None:
    await install(client, crds(), manifests())
    tenant = {
        "apiVersion": "vmtenancy.io/v1alpha1",
        "kind": "Tenant",
        "metadata": {"name": "t"},
        "spec": {"namespaces": ["t"], "quota": []},
    }
    await client.create(tenant)
    with pytest.raises(VmtError, match="1 of kind Tenant still exist"):
        await uninstall(client, crds(), manifests())
    await client.delete(KINDS["Tenant"], Ref("Tenant", "", "t"))
    # The kinds stay: on this shared control plane the next test needs them, and the garbage collector is slow
    # to learn them anew.
    lines: list[str] = []
    await uninstall(client, [], manifests(), tell=lines.append)
    assert "Namespace vmtenancy-system deleted" in lines
    for obj in manifests():
        info = await client.kind(obj["apiVersion"], obj["kind"])
        if obj["kind"] == "Namespace":
            continue  # it goes in its own time
        with suppress(errors.NotFoundError):
            await client.get(info, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
            pytest.fail(f"{obj['kind']} {obj['metadata']['name']} is still there")
    await uninstall(client, [], manifests())
