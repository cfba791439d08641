"""Bringing a backup back: what would be written, then writing it while no controller can lead.

A backup restores what was *asked for*. Who holds which GPU is not taken from the file, which is old: the controller
sees what really runs, gives that its grants again, and the rest queues. So children that outlived their owner (a
VirtualMachine, the host namespace of a virtual cluster) are handed to the owner that was made anew for it, which
has another uid.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

from vmtenancy.api.names import (
    API_VERSION,
    CONTROLLER_ACCOUNT,
    CONTROLLER_LEASE,
    SYSTEM_NAMESPACE,
)
from vmtenancy.core.ledger.head import Head, take_over
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.kube.backup import Backup
from vmtenancy.kube.client import Client
from vmtenancy.kube.errors import ForbiddenError, KubeError, NotFoundError
from vmtenancy.kube.inheritance import find_orphans, hand_over, holds
from vmtenancy.kube.lease import DURATION_S, LEASES, Lease
from vmtenancy.kube.snapshot import read_world
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import LEDGER_NAME
from vmtenancy.reconcile.world import World, ref_of

#: What others refer to comes first: a GpuVM is never there before its tenant.
ORDER: Final = (
    *("GpuPool", "GpuClass", "GpuNode", "Cohort", "Tenant", "Namespace", "GpuGroup"),
    *("GpuReservation", "GpuVM", "VirtualCluster"),
)
_CONCURRENCY: Final = 16
_POLL_S: Final = 0.2

T = TypeVar("T")
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Change:
    """What one object of a backup means for a cluster. `paths` are the fields in which the cluster's differs."""

    action: Literal["create", "unchanged", "differs"]
    wanted: Object
    stored: Object | None = None
    paths: tuple[str, ...] = ()


def changes(backup: Backup, world: World) -> list[Change]:
    """Compare a backup with what a cluster has, in the order in which it is written."""
    by_age = sorted(backup.objects, key=lambda obj: str(obj["metadata"].get("creationTimestamp", "")))
    return [_change(obj, world.find(ref_of(obj))) for kind in ORDER for obj in by_age if obj["kind"] == kind]


def _change(saved: Object, stored: Object | None) -> Change:
    wanted = _wish(saved)
    if stored is None:
        return Change("create", wanted)
    if saved["kind"] == "Namespace":  # others write to it, too, and its tenant is the controller's business
        return Change("unchanged", wanted, stored)
    paths = tuple(_differing(_wish(stored), wanted))
    return Change("differs" if paths else "unchanged", wanted, stored, paths)


def _wish(obj: Object) -> Object:
    """What people decided of an object."""
    meta = obj["metadata"]
    metadata: Object = {"name": meta["name"]}
    if meta.get("namespace"):
        metadata["namespace"] = meta["namespace"]
    for part in ("labels", "annotations"):
        if meta.get(part):
            metadata[part] = dict(meta[part])
    if obj["kind"] == "Namespace" and metadata.get("labels"):
        metadata["labels"].pop("kubernetes.io/metadata.name", None)  # the API server sets it
    spec = {"spec": obj["spec"]} if "spec" in obj else {}
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": metadata, **spec}


def _differing(stored: Any, wanted: Any, path: str = "") -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted({*stored, *wanted}):
            yield from _differing(stored.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif stored != wanted:
        yield path


# -- writing ---------------------------------------------------------------------------------------------------


async def survey(client: Client, backup: Backup) -> list[Change]:
    """Compare with the cluster as it is now. Raises `KubeError`."""
    return changes(backup, await read_world(client, ORDER))


def pending(found: Iterable[Change], *, overwrite: bool = False) -> list[Change]:
    """Those to write: what is missing, and what differs with `overwrite`."""
    return [c for c in found if c.action == "create" or (c.action == "differs" and overwrite)]


async def check(client: Client, todo: Iterable[Change]) -> None:
    """Have the API server judge every write without doing it. Raises `VmtError` with all that it refuses.

    What would be in a namespace that is not there yet can not be judged, and namespaces are the controller's to write.
    """

    async def refusal(change: Change) -> Problem | None:
        try:
            await _write(client, change, dry_run=True)
        except NotFoundError:
            return None
        except KubeError as error:
            return error.problems[0]
        return None

    found = await _each((change for change in todo if change.wanted["kind"] != "Namespace"), refusal)
    if problems := [problem for problem in found if problem]:
        raise VmtError.of(problems)


async def restore(
    client: Client, backup: Backup, *, overwrite: bool = False, tell: Tell = lambda line: None
) -> None:
    """Write what is missing, and what differs with `overwrite`; `tell` gets one line for each write.

    `client` is an administrator's. Asked again after a failure, it goes on where it was. Raises `VmtError` while a
    controller leads, and `KubeError`.
    """
    async with (
        await client.as_service_account(SYSTEM_NAMESPACE, CONTROLLER_ACCOUNT) as account,
        leading(account) as lease,
    ):
        todo = pending(await survey(client, backup), overwrite=overwrite)
        if not todo and not (await find_orphans(client, backup)).children:
            return
        await check(client, todo)
        await _fence(account, Head.from_spec(backup.head) if backup.head else Head(), lease.identity)

        async def write(change: Change) -> None:
            _still_leading(lease)
            await _write(account if change.wanted["kind"] == "Namespace" else client, change)
            tell(f"{ref_of(change.wanted)} {'created' if change.stored is None else 'changed'}")

        for kind in ORDER:
            await _each((change for change in todo if change.wanted["kind"] == kind), write)
            if kind == "GpuNode":
                await _bring_back_facts(client, backup, tell)
        orphans = await find_orphans(client, backup)
        for held in holds(backup, orphans.heirs):
            await account.replace(held, status=True)
        for child in orphans.children:
            _still_leading(lease)
            await hand_over(account if child["kind"] == "Namespace" else client, child, orphans)
            tell(f"{ref_of(child)} handed over")


async def _write(client: Client, change: Change, *, dry_run: bool = False) -> None:
    if change.stored is None:
        await client.create(change.wanted, dry_run=dry_run)
        return
    metadata = {
        name: part
        for name, part in change.stored["metadata"].items()
        if name not in ("labels", "annotations")
    }
    await client.replace({**change.wanted, "metadata": metadata | change.wanted["metadata"]}, dry_run=dry_run)


async def _each(changes: Iterable[Change], work: Callable[[Change], Awaitable[T]]) -> list[T]:
    """Some at a time, begun in order, so that who came first is older again. Raises `VmtError` with all problems."""
    slots = asyncio.Semaphore(_CONCURRENCY)

    async def one(change: Change) -> T | VmtError:
        async with slots:
            try:
                return await work(change)
            except VmtError as error:
                return error

    done = await asyncio.gather(*map(one, changes))
    if problems := [
        problem for result in done if isinstance(result, VmtError) for problem in result.problems
    ]:
        raise VmtError.of(dict.fromkeys(problems))
    return [result for result in done if not isinstance(result, VmtError)]


# -- nobody else decides meanwhile -----------------------------------------------------------------------------


@asynccontextmanager
async def leading(account: Client) -> AsyncIterator[Lease]:
    """Hold the controllers' Lease: one that starts meanwhile stands by. Raises `VmtError` where one leads already."""
    lease = Lease(
        account,
        namespace=SYSTEM_NAMESPACE,
        name=CONTROLLER_LEASE,
        identity=f"import-{uuid.uuid4().hex[:8]}",
    )
    before = await _lease(account)
    task = asyncio.create_task(lease.run())
    try:
        await _until_held(account, lease, before)
        yield lease
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await lease.release()


async def _until_held(account: Client, lease: Lease, before: Object) -> None:
    """Wait for a holder that is gone; one that renews leads."""
    version = (before.get("metadata") or {}).get("resourceVersion")
    end = time.monotonic() + ((before.get("spec") or {}).get("leaseDurationSeconds") or 0) + DURATION_S
    while not lease.held():
        await asyncio.sleep(_POLL_S)
        now = await _lease(account)
        holder = (now.get("spec") or {}).get("holderIdentity") or ""
        renewed = now.get("metadata", {}).get("resourceVersion") != version
        if (renewed and holder not in ("", lease.identity)) or time.monotonic() > end:
            expected = "none: stop every controller, import, start them again"
            raise VmtError(Problem(Code.BACKUP, "", "a controller leads", holder or "the Lease", expected))


async def _lease(account: Client) -> Object:
    try:
        return await account.get(LEASES, SYSTEM_NAMESPACE, CONTROLLER_LEASE)
    except NotFoundError:
        return {}


def _still_leading(lease: Lease) -> None:
    if not lease.held():
        message = "the Lease was lost on the way: some of it is written, import the rest again"
        raise VmtError(Problem(Code.BACKUP, "", message))


async def _fence(account: Client, saved: Head, identity: str) -> None:
    """Take the ledger over, as every new leader does, so that a controller that was paused can not grant anything.

    Epoch and sequence go on above those of the file: names of grants are made of both and never used again.
    """
    try:
        stored = await account.get(KINDS["GpuLedger"], "", LEDGER_NAME)
    except NotFoundError:
        stored = None
    now = Head.from_spec(stored["spec"]) if stored else Head()
    above = replace(now, epoch=max(now.epoch, saved.epoch), sequence=max(now.sequence, saved.sequence))
    spec = take_over(above, identity).to_spec()
    if stored:
        await account.replace({**stored, "spec": spec})
    else:
        metadata = {"name": LEDGER_NAME}
        await account.create(
            {"apiVersion": API_VERSION, "kind": "GpuLedger", "metadata": metadata, "spec": spec}
        )


async def _bring_back_facts(client: Client, backup: Backup, tell: Tell) -> None:
    """What each node's agent saw last, until it says more: else the devices of what runs would have other names."""
    stored = await read_world(client, ("GpuNode",))
    for saved in backup.objects:
        now = stored.find(ref_of(saved)) if saved["kind"] == "GpuNode" else None
        if now and saved.get("status") and not now.get("status"):
            try:
                await client.replace({**now, "status": saved["status"]}, status=True)
            except ForbiddenError:
                tell(
                    f"{ref_of(saved)}: only its agent may say what it has; start agents before the controller"
                )
