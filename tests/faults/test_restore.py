"""All state is lost and brought back from a file, or etcd goes back to an older snapshot: what runs goes on running.

Real are etcd, the API server, the scheduler, kube-controller-manager and KWOK. Each test has a control plane of its
own: the programs of others would not survive that history is rewound under them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from api_scenarios import HOME, inside, pod
from arena import Arena, arena, arena_plane
from end_states import differences, end_state
from lab import described, gpu_vm, nodes, virtual_cluster
from typer.testing import CliRunner

from vmtenancy.api.names import ALLOCATION_ANNOTATION, GROUP
from vmtenancy.cli.main import app
from vmtenancy.kube.client import Client
from vmtenancy.kube.lease import Lease
from vmtenancy.reconcile import World, check
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.world import owner_uids, ref_of, uid_of
from vmtenancy.testing.controller import ControllerProcess, install_into
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.stage_cluster import ClusterStage
from vmtenancy.testing.waiting import eventually

pytestmark = pytest.mark.cluster

OURS = tuple(kind for kind, info in KINDS.items() if info.api_version.startswith(GROUP))
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    with arena_plane() as running:
        yield running


@pytest.fixture
async def at_work(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Arena]:
    """A fleet with two machines, of which one waits, a virtual cluster with a pod, and a pod of a tenant."""
    async with arena(plane, tmp_path) as made:
        await made.create(
            gpu_vm("a", 2), gpu_vm("keys", of="quarter", sshKeys=[{"publicKey": "ssh-ed25519 AAAA ada"}])
        )
        await made.create(virtual_cluster(guaranteed=1, most=2), pod("p"))
        await made.rest()
        await made.create(inside("q"), gpu_vm("waits", 3))
        await made.rest()
        yield made


def running_pods(world: World) -> dict[str, str]:
    """Uids of the pods that run with GPUs, by name."""
    return {
        str(ref_of(found)): uid_of(found)
        for found in world.of("Pod")
        if found["status"].get("phase") == "Running" and not found["metadata"].get("deletionTimestamp")
    }


def vmtenancy(cluster: ControlPlane, *args: str) -> str:
    result = CliRunner().invoke(app, [*args, "--kubeconfig", str(cluster.kubeconfig)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


async def lose_everything(cluster: ControlPlane, arena: Arena) -> None:
    """The CRDs of vmtenancy are deleted, and with them all its objects; what was made for them stays.

    That is what `kubectl delete --cascade=orphan` leaves, and the removal of finalizers by hand.
    """
    world = arena.history.snapshot()
    owners = {uid_of(obj) for kind in ("GpuVM", "VirtualCluster") for obj in world.of(kind)}
    for objects in world.objects.values():
        for obj in objects.values():
            if owners & set(owner_uids(obj)):
                await arena.patch(*_name(obj), {"metadata": {"ownerReferences": None}})
    for kind in ("GpuVM", "VirtualCluster"):
        for obj in world.of(kind):
            await arena.patch(*_name(obj), {"metadata": {"finalizers": None}})
    for kind in OURS:
        name = f"{KINDS[kind].plural}.{GROUP}"
        await arena.client.request("DELETE", f"{CRDS}/{name}")
    remaining = await asyncio.to_thread(
        eventually,
        "the CRDs to be gone",
        lambda: not any(item["spec"]["group"] == GROUP for item in cluster.request("GET", CRDS)["items"]),
    )
    assert remaining


def _name(obj: Object) -> tuple[str, str, str]:
    ref = ref_of(obj)
    return ref.kind, ref.namespace, ref.name


async def test_lost_and_brought_back_with_the_same_pods_running(
    plane: ControlPlane, at_work: Arena, tmp_path: Path
) -> None:
    before = await at_work.rest()
    assert check(before) == []
    pods, wanted = running_pods(before), end_state(before)
    assert {name.split("/")[0] for name in pods} == {"Pod vision", "Pod llm", f"Pod {HOME}"}
    file = tmp_path / "backup"
    print(await asyncio.to_thread(vmtenancy, plane, "export", "-o", str(file)))
    assert "ssh-ed25519" in file.read_text(), "it is in a spec"
    assert not any(json.loads(line)["kind"] == "Secret" for line in file.read_text().splitlines())

    at_work.controller.kill()
    await lose_everything(plane, at_work)
    await asyncio.to_thread(install_into, plane.kubeconfig)
    print(await asyncio.to_thread(vmtenancy, plane, "import", str(file), "--dry-run"))
    assert not (await at_work.client.list_all(KINDS["Tenant"]))[0], "a dry run writes nothing"
    print(await asyncio.to_thread(vmtenancy, plane, "import", str(file), "--yes"))
    again = await asyncio.to_thread(vmtenancy, plane, "import", str(file), "--yes")
    assert "0 missing, 0 different" in again
    assert "created" not in again
    assert "handed over" not in again

    at_work.replace_controller()
    after = await at_work.rest()
    found = [text for text in at_work.history.violations() if text.startswith("I1")]
    assert found == [], "no GPU is granted twice, at any moment"
    assert check(after) == []
    assert running_pods(after) == pods, "nothing was restarted"
    assert unexpected(wanted, after) == []


#: A grant that was given for what runs does not say when its pod's gate was lifted, nor what it was called before.
TOLD_OTHERWISE = (".status.letGoAt", ".spec.parent", f".metadata.annotations.{ALLOCATION_ANNOTATION}")


def unexpected(wanted: Mapping[str, Object], world: World) -> list[str]:
    """Where a world differs from the one that was lost."""
    found = differences(wanted, end_state(world))
    return [text for text in found if not text.partition(": expected ")[0].endswith(TOLD_OTHERWISE)]


async def test_etcd_goes_back_under_running_controllers(
    plane: ControlPlane, at_work: Arena, tmp_path: Path
) -> None:
    """Grants made since are gone, released ones are back, and so are pods, machines and versions."""
    before = await at_work.rest()
    pods, wanted = running_pods(before), end_state(before)
    async with lease_of(plane) as rewinds:
        await asyncio.to_thread(plane.save_storage, tmp_path / "etcd")
        await at_work.create(gpu_vm("new", of="quarter"))
        await at_work.delete(Ref("GpuVM", "vision", "a"), Ref("Pod", "llm", "p"))
        other = await at_work.rest()
        assert running_pods(other).keys() - pods.keys(), "the one that waited runs"
        assert not rewinds
        await age(plane, 1000)
        await asyncio.to_thread(plane.restore_storage, tmp_path / "etcd")
        after = await at_work.rest()
        assert rewinds == ["went back"], "the Lease tells it, too"
    assert check(after) == []
    assert running_pods(after) == pods
    assert unexpected(wanted, after) == []
    assert [text for text in at_work.history.violations() if text.startswith("I1")] == []
    assert at_work.controller.identity != head_of(after)["holder"], "it goes on as another"

    at_work.replace_controller()
    again = await at_work.rest()
    assert unexpected(wanted, again) == []
    await at_work.delete(Ref("GpuVM", "vision", "a"))
    last = await at_work.rest()
    assert check(last) == []
    assert last.get("GpuVM", "vision", "waits")["status"]["phase"] == "Running"
    assert at_work.history.violations() == []


def head_of(world: World) -> Object:
    (ledger,) = world.of("GpuLedger")
    spec: Object = ledger["spec"]
    return spec


async def age(cluster: ControlPlane, writes: int) -> None:
    """Let the data's revision go on, as it does between a backup and its use."""
    async with await Client.connect(cluster.kubeconfig) as client:
        meta = {"name": "age", "namespace": "default"}
        made = await client.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
        for number in range(writes):
            made = await client.replace({**made, "data": {"number": str(number)}})


@asynccontextmanager
async def lease_of(cluster: ControlPlane) -> AsyncIterator[list[str]]:
    """Hold a Lease; the list says when it was seen to go back."""
    rewinds: list[str] = []
    async with await Client.connect(cluster.kubeconfig) as client:
        lease = Lease(
            client,
            namespace="default",
            name="test",
            identity="test",
            duration_s=3.0,
            on_rewind=lambda: rewinds.append("went back"),
        )
        task = asyncio.create_task(lease.run())
        try:
            async with asyncio.timeout(30):
                while not lease.held():  # noqa: ASYNC110 - it is no event
                    await asyncio.sleep(0.05)
            yield rewinds
        finally:
            task.cancel()


@pytest.mark.nightly
def test_etcd_goes_back_under_a_controller_with_a_lease(plane: ControlPlane, tmp_path: Path) -> None:
    """The program itself, which nobody restarts."""
    install_into(plane.kubeconfig)
    with (
        ControllerProcess(plane.kubeconfig, tmp_path) as process,
        ClusterStage(plane.kubeconfig, "real") as stage,
    ):
        stage.add_nodes(list(nodes()))
        for obj in [*described(), pod("kept", 2)]:
            stage.apply(obj)
        before = stage.wait("a pod to run", lambda world: len(running_pods(world)) == 1)
        epoch = head_of(before)["epoch"]
        plane.save_storage(tmp_path / "etcd")
        stage.apply(pod("lost"))
        stage.delete(Ref("Pod", "llm", "kept"))
        stage.wait("the other pod to run", lambda world: [*running_pods(world)] == ["Pod llm/lost"])
        asyncio.run(age(plane, 1000))
        plane.restore_storage(tmp_path / "etcd")
        after = stage.wait(
            "another term, with what ran before",
            lambda world: head_of(world)["epoch"] > epoch and running_pods(world) == running_pods(before),
        )
        assert check(after) == []
        assert "went back" in process.process.tail(200)
        stage.apply(pod("next"))
        last = stage.wait("a new pod to run", lambda world: len(running_pods(world)) == 2)
        assert check(last) == []
