"""What a precondition in a server-side apply is worth on the real API server: a late one changes nothing."""

from __future__ import annotations

import asyncio

import pytest

from vmtenancy.api.names import CONTROLLER_ACCOUNT, SYSTEM_NAMESPACE
from vmtenancy.core.ledger.head import Head
from vmtenancy.kube import errors
from vmtenancy.kube.cache import Cache
from vmtenancy.kube.client import Client
from vmtenancy.kube.executor import Executor
from vmtenancy.reconcile.kinds import KINDS, OURS, KindInfo
from vmtenancy.reconcile.ownership import lost_fields
from vmtenancy.reconcile.steps import NEVER, Absent, Chain, Delete, Granted, Object, Plan, Ref, Replace
from vmtenancy.reconcile.world import uid_of
from vmtenancy.testing.controller import install_into
from vmtenancy.testing.controlplane import ControlPlane

pytestmark = pytest.mark.cluster
CONFIG_MAPS, QUOTAS = KINDS["ConfigMap"], KINDS["ResourceQuota"]
MERGE = "application/merge-patch+json"


def config_map(name: str, version: str = "", uid: str = "", **data: str) -> Object:
    label, value = OURS.split("=")
    metadata = {"name": name, "namespace": "default", "labels": {label: value}}
    guard = {"resourceVersion": version, "uid": uid}
    metadata |= {key: value for key, value in guard.items() if value}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def version(obj: Object) -> str:
    return str(obj["metadata"]["resourceVersion"])


async def test_an_older_version_is_refused_whatever_it_says(client: Client) -> None:
    first = await client.apply(config_map("a", x="1"))
    second = await client.apply(config_map("a", version(first), uid_of(first), x="2"))
    for value in ("1", "2"):
        with pytest.raises(errors.ConflictError):
            await client.apply(config_map("a", version(first), uid_of(first), x=value))
    assert version(await client.get(CONFIG_MAPS, "default", "a")) == version(second)


async def test_the_version_that_is_stored_is_accepted_and_no_change_is_no_write(client: Client) -> None:
    first = await client.apply(config_map("a", x="1"))
    again = await client.apply(config_map("a", version(first), uid_of(first), x="1"))
    assert version(again) == version(first)


async def test_a_deleted_object_is_not_made_again(client: Client) -> None:
    """The version alone would not prevent that: where nothing is, it is ignored."""
    first = await client.apply(config_map("a", x="1"))
    await client.delete(CONFIG_MAPS, Ref("ConfigMap", "default", "a"))
    with pytest.raises(errors.ConflictError):
        await client.apply(config_map("a", version(first), uid_of(first), x="2"))
    with pytest.raises(errors.NotFoundError):
        await client.get(CONFIG_MAPS, "default", "a")


async def test_one_that_was_made_anew_is_not_written(client: Client) -> None:
    first = await client.apply(config_map("a", x="1"))
    await client.delete(CONFIG_MAPS, Ref("ConfigMap", "default", "a"))
    second = await client.apply(config_map("a", x="theirs"))
    with pytest.raises(errors.KubeError):
        await client.apply(config_map("a", version(first), uid_of(first), x="2"))
    assert version(await client.get(CONFIG_MAPS, "default", "a")) == version(second)


async def test_never_makes_an_object_and_never_writes_one(client: Client) -> None:
    first = await client.apply(config_map("a", NEVER, x="1"))
    with pytest.raises(errors.ConflictError):
        await client.apply(config_map("a", NEVER, x="2"))
    assert version(await client.get(CONFIG_MAPS, "default", "a")) == version(first)


async def test_the_cache_keeps_what_is_left_of_our_account(client: Client) -> None:
    """Kept is our own apply alone, and what a person writes or removes is no longer in it."""
    label, value = OURS.split("=")
    quota: Object = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "q", "namespace": "default", "labels": {label: value, "a": "1"}},
        "spec": {"hard": {"requests.nvidia.com/gpu": "2", "pods": "7"}},
    }
    cache = Cache()
    cache.wrote(await client.apply(quota))
    held = cache.world.objects["ResourceQuota"]["default", "q"]
    assert len(held["metadata"]["managedFields"]) == 1
    assert lost_fields(quota, held) == []
    path = "/api/v1/namespaces/default/resourcequotas/q"

    async def edit(patch: Object) -> list[str]:
        query = {"fieldManager": "kubectl-edit"}
        cache.wrote(await client.request("PATCH", path, body=patch, query=query, content_type=MERGE))
        held = cache.world.objects["ResourceQuota"]["default", "q"]
        assert [entry["manager"] for entry in held["metadata"]["managedFields"]] == ["vmtenancy"]
        return lost_fields(quota, held)

    assert await edit({"metadata": {"labels": {"theirs": "x"}}, "spec": {"hard": {"services": "3"}}}) == []
    assert await edit({"spec": {"hard": {"pods": "99"}}}) == ["spec.hard.pods"]
    assert await edit({"metadata": {"labels": {"a": None}}}) == ["metadata.labels.a", "spec.hard.pods"]
    cache.wrote(await client.apply(quota))
    assert lost_fields(quota, cache.world.objects["ResourceQuota"]["default", "q"]) == []


async def test_a_put_of_what_the_cache_holds_changes_nobodys_account(client: Client) -> None:
    await client.apply(config_map("a", x="1"))
    path = "/api/v1/namespaces/default/configmaps/a"
    await client.request(
        "PATCH", path, body={"data": {"y": "2"}}, query={"fieldManager": "me"}, content_type=MERGE
    )
    cache = Cache()
    cache.wrote(await client.get(CONFIG_MAPS, "default", "a"))
    held = cache.world.objects["ConfigMap"]["default", "a"]
    after = await client.replace({**held, "data": {**held["data"], "z": "3"}})
    managers = {(entry["manager"], entry["operation"]) for entry in after["metadata"]["managedFields"]}
    assert managers == {("vmtenancy", "Apply"), ("me", "Update"), ("vmtenancy", "Update")}


async def no_charts(_: object) -> list[Object]:
    return []


async def test_a_grant_that_the_head_no_longer_has_stops_the_chain(
    client: Client, cluster: ControlPlane
) -> None:
    """The live read before a gate is lifted, whatever the cache believes."""
    await asyncio.to_thread(install_into, cluster.kubeconfig)
    about = Ref("GpuLedger", "", "fleet")
    head = Head(epoch=3, holder="me").to_spec()
    ledger = {"apiVersion": "vmtenancy.io/v1alpha1", "kind": "GpuLedger", "metadata": {"name": about.name}}
    pod = await client.apply(config_map("pod"))
    cache = Cache()
    executor = Executor(client, cache, render=no_charts, may_write=lambda: True)

    async def let_go(epoch: int, name: str) -> int:
        lift = Replace({**pod, "data": {"gate": "lifted"}})
        [outcome] = await executor.execute(Plan((Chain("let go", (Granted(about, epoch, name), lift)),)))
        return outcome.done

    async with await client.as_service_account(SYSTEM_NAMESPACE, CONTROLLER_ACCOUNT) as controller:
        stored = await controller.create({**ledger, "spec": head})
        assert await let_go(2, "grant") == 0, "somebody has taken over"
        assert cache.world.find(about) is not None, "and the next plan knows it"
        await controller.replace({**stored, "spec": {**head, "released": ["grant"]}})
    assert await let_go(3, "grant") == 0, "it is released"
    assert await let_go(3, "other") == 2


async def test_what_still_exists_stops_the_chain(client: Client) -> None:
    """The live read before an orphan is deleted, whatever the cache believes."""
    owner = await client.apply(config_map("owner"))
    orphan = await client.apply(config_map("orphan"))
    about = Ref("ConfigMap", "default", "owner")
    cache = Cache()

    executor = Executor(client, cache, render=no_charts, may_write=lambda: True)
    delete = Delete(Ref("ConfigMap", "default", "orphan"), uid_of(orphan), version(orphan))

    async def clear(uid: str) -> int:
        [outcome] = await executor.execute(Plan((Chain("clear", (Absent(about, uid), delete)),)))
        return outcome.done

    assert await clear(uid_of(owner)) == 0
    assert cache.world.find(about) is not None, "and the next plan knows it"
    assert await clear("another") == 2
    with pytest.raises(errors.NotFoundError):
        await client.get(CONFIG_MAPS, "default", "orphan")


async def test_a_kind_that_is_missing_is_no_sign_of_absence(client: Client) -> None:
    with pytest.raises(errors.NotFoundError):
        await client.find(KindInfo("Thing", "nowhere.example/v1", "things"), Ref("Thing", "default", "lab"))
    assert await client.find(CONFIG_MAPS, Ref("ConfigMap", "default", "nothing")) is None
