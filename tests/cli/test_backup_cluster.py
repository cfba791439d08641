"""`export` and `import` on a real API server: one moment, nobody leads meanwhile, nothing half done."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vmtenancy.api.names import CONTROLLER_ACCOUNT, CONTROLLER_LEASE, SYSTEM_NAMESPACE
from vmtenancy.cli.main import app
from vmtenancy.errors import Code, VmtError
from vmtenancy.kube.backup import export
from vmtenancy.kube.client import Client
from vmtenancy.kube.errors import ExpiredError, NotFoundError
from vmtenancy.kube.lease import Lease
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.testing.cleanup import Snapshot
from vmtenancy.testing.controller import install_into
from vmtenancy.testing.controlplane import ControlPlane

pytestmark = pytest.mark.cluster
Run = Callable[..., str]


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    before = Snapshot.take(control_plane)
    install_into(control_plane.kubeconfig)
    yield control_plane
    before.restore()


@pytest.fixture
async def client(installed: ControlPlane) -> AsyncIterator[Client]:
    before = await asyncio.to_thread(Snapshot.take, installed)
    async with await Client.connect(installed.kubeconfig) as connected:
        yield connected
        account = await connected.as_service_account(SYSTEM_NAMESPACE, CONTROLLER_ACCOUNT)
        async with account:  # nobody else may delete it
            with suppress(NotFoundError):
                await account.delete(KINDS["GpuLedger"], Ref("GpuLedger", "", "fleet"))
    await asyncio.to_thread(before.restore)


@pytest.fixture
def run(installed: ControlPlane) -> Run:
    def invoke(*args: str) -> str:
        result = CliRunner().invoke(app, [*args, "--kubeconfig", str(installed.kubeconfig)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    return invoke


def obj(kind: str, name: str, spec: Object, namespace: str = "") -> Object:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": "vmtenancy.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def tenant(name: str, **spec: Any) -> Object:
    return obj("Tenant", name, {"namespaces": [name], **spec})


def machine(name: str, count: int = 1) -> Object:
    gpus = [{"class": "whole", "count": count}]
    return obj("GpuVM", name, {"gpus": gpus, "cpu": {"cores": 2}, "memory": "4Gi"}, "team")


async def filled(client: Client) -> None:
    """A tenant with a machine, in a namespace with a label of its own; there is no controller."""
    namespace = {"name": "team", "labels": {"pod-security.kubernetes.io/enforce": "baseline"}}
    await client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": namespace})
    await client.create(tenant("team"))
    await client.create(machine("vm"))


async def emptied(client: Client) -> None:
    for ref in (Ref("GpuVM", "team", "vm"), Ref("Tenant", "", "team")):
        await client.delete(KINDS[ref.kind], ref)


async def is_there(client: Client, kind: str, namespace: str, name: str) -> bool:
    try:
        await client.get(KINDS[kind], namespace, name)
    except NotFoundError:
        return False
    return True


@asynccontextmanager
async def led_by(client: Client, identity: str, duration_s: float = 3.0) -> AsyncIterator[Lease]:
    """Somebody holds the controllers' Lease, and at the end is killed: it is not given back."""
    lease = Lease(
        client, namespace=SYSTEM_NAMESPACE, name=CONTROLLER_LEASE, identity=identity, duration_s=duration_s
    )
    task = asyncio.create_task(lease.run())
    try:
        async with asyncio.timeout(30):
            while not lease.held():  # noqa: ASYNC110 - it is no event
                await asyncio.sleep(0.05)
        yield lease
    finally:
        task.cancel()


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def exported(run: Run, tmp_path: Path) -> Path:
    file = tmp_path / "backup"
    await asyncio.to_thread(run, "export", "-o", str(file))
    return file


async def test_a_file_is_written_whole_or_not_at_all(client: Client, run: Run, tmp_path: Path) -> None:
    await filled(client)
    file = await exported(run, tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    assert names_in(tmp_path) == ["backup"]
    kinds = [json.loads(line)["kind"] for line in file.read_text().splitlines()]
    assert kinds == ["Backup", "Tenant", "GpuVM", "Namespace", "BackupEnd"]
    header = json.loads(file.read_text().splitlines()[0])
    assert header["kubernetes"].startswith("v1.")
    assert header["cluster"] == (await client.get(KINDS["Namespace"], "", "kube-system"))["metadata"]["uid"]
    streamed = await asyncio.to_thread(run, "export")
    assert len(streamed.splitlines()) >= 5
    assert streamed.startswith('{"apiVersion":"vmtenancy.io/v1alpha1","kind":"Backup"')
    with pytest.raises(VmtError, match="can not be written"):
        await asyncio.to_thread(run, "export", "-o", str(tmp_path / "no" / "backup"))


async def test_all_kinds_are_read_at_one_moment(client: Client) -> None:
    await filled(client)
    lines: list[bytes] = []
    changed = asyncio.Event()

    def write(line: bytes) -> None:
        lines.append(line)
        if b'"kind":"Tenant"' in line:
            changed.set()

    original = client.pages

    async def pages(info: Any, **options: Any) -> AsyncIterator[tuple[list[Object], str]]:
        if info.kind == "GpuVM":  # after tenants were read, before machines are
            assert changed.is_set()
            await emptied(client)
            await client.create(machine("later"))
        async for page in original(info, **options):
            yield page

    client.pages = pages  # type: ignore[method-assign,assignment]
    counts = await export(client, write, program="test")
    assert counts == {"Tenant": 1, "GpuVM": 1, "Namespace": 1}
    assert any(b'"name":"vm"' in line for line in lines)
    assert not any(b'"name":"later"' in line for line in lines)


async def test_an_export_that_fails_leaves_no_file(
    client: Client, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: Any, **__: Any) -> AsyncIterator[Object]:
        raise ExpiredError("the version is compacted")
        yield

    await filled(client)
    monkeypatch.setattr(Client, "pages", failing)
    with pytest.raises(VmtError, match="compacted"):
        await asyncio.to_thread(run, "export", "-o", str(tmp_path / "backup"))
    assert names_in(tmp_path) == []


async def test_a_line_is_a_manifest(
    client: Client, run: Run, tmp_path: Path, installed: ControlPlane
) -> None:
    await filled(client)
    file = await exported(run, tmp_path)
    before = await client.get(KINDS["GpuVM"], "team", "vm")
    await client.delete(KINDS["GpuVM"], Ref("GpuVM", "team", "vm"))
    (line,) = (line for line in file.read_text().splitlines() if json.loads(line)["kind"] == "GpuVM")
    assert "created" in await asyncio.to_thread(installed.kubectl, "apply", "-f", "-", stdin=line)
    after = await client.get(KINDS["GpuVM"], "team", "vm")
    assert after["spec"] == before["spec"]
    assert after["metadata"]["uid"] != before["metadata"]["uid"]


async def test_more_than_a_page(client: Client) -> None:
    for number in range(5):
        await client.create(tenant(f"t{number}"))
    _, version = await client.list_all(KINDS["Tenant"])
    sizes, names = [], []
    async for page, at in client.pages(KINDS["Tenant"], at=version, limit=2):
        assert at == version
        sizes.append(len(page))
        names += [found["metadata"]["name"] for found in page]
        if len(sizes) == 1:
            await client.create(tenant("t-later"))
            await client.delete(KINDS["Tenant"], Ref("Tenant", "", "t4"))
    assert sizes == [2, 2, 1]
    assert names == [f"t{number}" for number in range(5)]


async def test_refused_while_a_controller_leads(client: Client, run: Run, tmp_path: Path) -> None:
    await filled(client)
    file = await exported(run, tmp_path)
    await emptied(client)
    async with led_by(client, "controller-7"):
        started = time.monotonic()
        with pytest.raises(
            VmtError, match=r"a controller leads .found controller-7.*stop every controller"
        ) as found:
            await asyncio.to_thread(run, "import", str(file), "--yes")
        assert found.value.code is Code.BACKUP
        assert time.monotonic() - started < 8, "it is told soon, not after the time that a dead one has"
        assert not await is_there(client, "Tenant", "", "team"), "nothing was written"
    # It was killed: its Lease runs out, and then the import goes on.
    await asyncio.to_thread(run, "import", str(file), "--yes")
    assert await is_there(client, "GpuVM", "team", "vm")
    ledger = await client.get(KINDS["GpuLedger"], "", "fleet")
    assert ledger["spec"]["epoch"] == 1, "a controller that was paused can not commit any more"
    async with led_by(client, "controller-8"):
        pass  # the Lease was given back


async def test_what_differs_stays_unless_told_otherwise(client: Client, run: Run, tmp_path: Path) -> None:
    await filled(client)
    file = await exported(run, tmp_path)
    stored = await client.get(KINDS["Tenant"], "", "team")
    stored["spec"]["namespaces"] = ["team", "more"]
    stored["metadata"]["labels"] = {"by": "hand"}
    await client.replace(stored)
    told = await asyncio.to_thread(run, "import", str(file), "--yes")
    assert "Tenant team differs and stays (--overwrite changes it): metadata.labels, spec.namespaces" in told
    assert (await client.get(KINDS["Tenant"], "", "team"))["spec"]["namespaces"] == ["team", "more"]
    await asyncio.to_thread(run, "import", str(file), "--yes", "--overwrite")
    stored = await client.get(KINDS["Tenant"], "", "team")
    assert stored["spec"]["namespaces"] == ["team"]
    assert "labels" not in stored["metadata"]
    assert "0 missing, 0 different, 3 unchanged" in await asyncio.to_thread(run, "import", str(file), "--yes")


async def test_what_the_api_server_refuses_is_told_before_anything_is_written(
    client: Client, run: Run, tmp_path: Path
) -> None:
    """The GPUs of a running machine can not be changed, so it can not be overwritten."""
    await filled(client)
    await client.create(tenant("other"))
    file = await exported(run, tmp_path)
    await client.delete(KINDS["GpuVM"], Ref("GpuVM", "team", "vm"))
    await client.delete(KINDS["Tenant"], Ref("Tenant", "", "other"))
    await client.create(machine("vm", 2))
    with pytest.raises(VmtError, match=r"spec.*gpus"):
        await asyncio.to_thread(run, "import", str(file), "--yes", "--overwrite")
    assert not await is_there(client, "Tenant", "", "other"), "nothing was written"


async def test_without_a_yes_nothing_is_written(client: Client, run: Run, tmp_path: Path) -> None:
    await filled(client)
    file = await exported(run, tmp_path)
    await emptied(client)
    asked = await asyncio.to_thread(run, "import", str(file))
    assert "Write this?" in asked
    assert not await is_there(client, "Tenant", "", "team")
    assert not await is_there(client, "GpuLedger", "", "fleet")
    assert "Tenant team will be created" in await asyncio.to_thread(run, "import", str(file), "--dry-run")
    assert not await is_there(client, "Tenant", "", "team")


async def test_on_another_cluster_namespaces_come_back_with_their_labels(
    client: Client, run: Run, tmp_path: Path
) -> None:
    await filled(client)
    file = await exported(run, tmp_path)
    await emptied(client)
    moved = tmp_path / "moved"
    # The same file, as if the namespace had another name: this cluster never had it.
    lines = [line.replace('"team"', '"crew"') for line in file.read_text().splitlines()[:-1]]
    moved.write_text("\n".join([*lines, _trailer(lines)]) + "\n")
    await asyncio.to_thread(run, "import", str(moved), "--yes")
    home = await client.get(KINDS["Namespace"], "", "crew")
    assert home["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"
    assert await is_there(client, "GpuVM", "crew", "vm")


def _trailer(lines: list[str]) -> str:

    digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    return json.dumps({"kind": "BackupEnd", "documents": len(lines) - 1, "sha256": digest})
