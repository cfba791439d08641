"""Puts the CRDs, the admission policies and the roles into a cluster, in the order that leaves no gap.

Kinds first, then policies and roles, and "installed" is only said once the API server was seen to enforce
them: a policy takes effect some tenths of a second after it was created, and pods slip through until then.
With several API servers only the one that answers is seen.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from enum import StrEnum
from functools import partial
from typing import Any, Final

from vmtenancy.api.names import (
    API_VERSION,
    CONTROLLER_ACCOUNT,
    GATE,
    PROBE_PREFIX,
    SYSTEM_NAMESPACE,
    TENANT_LABEL,
)
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.kube import errors
from vmtenancy.kube.client import Client
from vmtenancy.kube.reflector import CRDS
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.world import ref_of

Tell = Callable[[str], None]

DEADLINE_S: Final = 60.0
_POLL_S: Final = 0.1
_NOT_YET: Final = (
    errors.ConflictError,
    errors.ForbiddenError,
    errors.NotFoundError,
    errors.UnavailableError,
)
#: While one of these exists, removing the kinds would pull the ledger from under running workloads.
_IN_USE: Final = ("GpuVM", "VirtualCluster", "GpuAllocation", "Tenant")


async def install(
    client: Client,
    crds: Iterable[Object],
    manifests: Iterable[Object],
    *,
    tell: Tell = lambda line: None,
    dry_run: bool = False,
) -> None:
    """Apply everything, again if need be, and wait until it works. `tell` gets one line per object.

    With `dry_run` the API server checks what it can and nothing is written. Raises `KubeError`, and
    `VmtError` where something does not come into force within a minute.
    """
    crds, manifests = list(crds), list(manifests)
    for crd in crds:
        await _apply(client, crd, tell, dry_run)
    if not dry_run:
        await _until("the kinds to be served", [partial(_is_served, client, crd) for crd in crds])
    for obj in manifests:
        await _apply(client, obj, tell, dry_run)
    if not dry_run:
        await wait_enforced(client)
        tell("the admission policies are enforced")


async def uninstall(
    client: Client, crds: Iterable[Object], manifests: Iterable[Object], *, tell: Tell = lambda line: None
) -> None:
    """Remove what `install` applied, in the reverse order.

    Raises `VmtError` while there are workloads, grants or tenants (the controller gives tenants' namespaces
    back when they are deleted), and `KubeError`.
    """
    await _refuse_while_in_use(client)
    for obj in [*reversed(list(manifests)), *reversed(list(crds))]:
        ref = ref_of(obj)
        try:
            await client.delete(await client.kind(obj["apiVersion"], ref.kind), ref)
        except errors.NotFoundError:
            continue
        tell(f"{ref} deleted")


async def _refuse_while_in_use(client: Client) -> None:
    problems = []
    for kind in _IN_USE:
        try:
            items, _ = await client.list_all(KINDS[kind])
        except errors.NotFoundError:
            continue
        if items:
            names = ", ".join(str(ref_of(item)) for item in items[:5]) + (", …" if len(items) > 5 else "")
            message = f"{len(items)} of kind {kind} still exist"
            problems.append(Problem(Code.CLUSTER, "", message, names, "none: delete them first"))
    if problems:
        raise VmtError.of(problems)


class State(StrEnum):
    """How an object compares with what is stored."""

    MISSING = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


async def state_of(client: Client, obj: Object, *, write: bool = False) -> State:
    """How applying `obj` changes what is stored; done too with `write`. Raises `KubeError`.

    Without it what can not be tried, since its namespace or its kind is not there, is missing.
    """
    ref = ref_of(obj)
    before: Object | None = None
    try:
        info = await client.kind(obj["apiVersion"], ref.kind)
        with suppress(errors.NotFoundError):
            before = await client.get(info, ref.namespace, ref.name)
        after = await client.apply(obj, dry_run=not write)
    except errors.NotFoundError:
        if write:
            raise
        return State.MISSING
    if before is None:
        return State.MISSING
    return State.UNCHANGED if _content(before) == _content(after) else State.CHANGED


async def _apply(client: Client, obj: Object, tell: Tell, dry_run: bool) -> None:
    state = await state_of(client, obj, write=not dry_run)
    would = "would be " if dry_run and state is not State.UNCHANGED else ""
    tell(f"{ref_of(obj)} {would}{state}")


def _content(obj: Object) -> Object:
    """An object without what the server counts: in a dry run, versions tell nothing."""
    counted = ("resourceVersion", "generation", "managedFields")
    return {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k not in counted}}


async def _is_served(client: Client, crd: Object) -> bool:
    stored = await client.get(CRDS, "", crd["metadata"]["name"])
    conditions = (stored.get("status") or {}).get("conditions") or ()
    established = any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
    if established:
        await client.list_all(KINDS[crd["spec"]["names"]["kind"]])  # served a moment later
    return established


# -- are the policies enforced? ------------------------------------------------------------------------------


async def wait_enforced(client: Client) -> None:
    """Wait until the policies were seen at work, on a namespace made for it that looks like a tenant's.

    `client` is an administrator's. Raises `VmtError` after a minute, with what was not seen.
    """
    name = f"{PROBE_PREFIX}{uuid.uuid4().hex[:8]}"
    async with await client.as_service_account(SYSTEM_NAMESPACE, CONTROLLER_ACCOUNT) as controller:
        namespace = _object("v1", "Namespace", name, labels={TENANT_LABEL: name})
        await _retried(lambda: controller.create(namespace), "the controller's account to make a namespace")
        try:
            await client.create(_object("v1", "ServiceAccount", "probe", namespace=name))
            await _until("the admission policies to be enforced", _checks(client, name))
        finally:
            await controller.delete(KINDS["Namespace"], ref_of(namespace))


def _checks(client: Client, namespace: str) -> list[Callable[[], Awaitable[bool]]]:
    """One check for every policy that an administrator can meet."""
    pod = _pod(namespace, "probe")
    ledger = _object(API_VERSION, "GpuLedger", namespace) | {
        "spec": {"epoch": 1, "holder": "", "sequence": 0}
    }
    taken = _object("v1", "Namespace", namespace, labels={TENANT_LABEL: "probe"})

    async def gated() -> bool:
        return _is_gated(await client.create(pod, dry_run=True))

    async def stays_gated() -> bool:
        stored = await _kept(client, pod)
        loosened = {**stored, "spec": {k: v for k, v in stored["spec"].items() if k != "schedulingGates"}}
        return _is_gated(await client.replace(loosened, dry_run=True))

    return [
        gated,
        stays_gated,
        lambda: _refused(client.create(ledger, dry_run=True)),
        lambda: _refused(client.apply(taken, dry_run=True)),
    ]


async def _kept(client: Client, pod: Object) -> Object:
    """The probe pod itself, which the gate keeps from ever running."""
    try:
        return await client.create(pod)
    except errors.AlreadyExistsError:
        return await client.get(KINDS["Pod"], pod["metadata"]["namespace"], pod["metadata"]["name"])


def _pod(namespace: str, account: str) -> Object:
    """A pod with a GPU, as nobody should be able to run it."""
    container = {
        "name": "probe",
        "image": "registry.example/probe",
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }
    spec = {"serviceAccountName": account, "automountServiceAccountToken": False, "containers": [container]}
    return _object("v1", "Pod", "probe", namespace=namespace) | {"spec": spec}


async def gates_pods(client: Client, namespace: str) -> bool | None:
    """Whether a pod with GPUs would be gated, or refused by a policy of ours; None where something else refuses it."""
    try:
        return _is_gated(await client.create(_pod(namespace, "default"), dry_run=True))
    except (errors.ForbiddenError, errors.InvalidError) as error:
        return True if "vmtenancy.io' with binding" in str(error) else None


def _is_gated(pod: Mapping[str, Any]) -> bool:
    return any(gate["name"] == GATE for gate in pod["spec"].get("schedulingGates") or ())


async def _refused(attempt: Awaitable[Object]) -> bool:
    """Whether an attempt was refused by one of our policies."""
    try:
        await attempt
    except (errors.ForbiddenError, errors.InvalidError) as error:
        return "vmtenancy.io' with binding" in str(error)
    return False


def _object(
    api_version: str, kind: str, name: str, *, namespace: str = "", labels: Mapping[str, str] | None = None
) -> Object:
    meta: Object = {"name": name, "labels": dict(labels or {})}
    if namespace:
        meta["namespace"] = namespace
    return {"apiVersion": api_version, "kind": kind, "metadata": meta}


async def _until(what: str, checks: Iterable[Callable[[], Awaitable[bool]]]) -> None:
    """Wait for each check in turn; a refusal by the API server counts as not yet. Raises `VmtError`.

    So does a conflict: a controller that runs writes to the probe's objects too.
    """
    end = time.monotonic() + DEADLINE_S
    for check in checks:
        reason = ""
        while True:
            try:
                if await check():
                    break
            except _NOT_YET as error:
                reason = f": {error}"
            if time.monotonic() > end:
                raise VmtError(
                    Problem(Code.CLUSTER, "", f"waited {DEADLINE_S:g} s in vain for {what}{reason}")
                )
            await asyncio.sleep(_POLL_S)


async def _retried(attempt: Callable[[], Awaitable[Object]], what: str) -> None:
    async def done() -> bool:
        await attempt()
        return True

    await _until(what, [done])
