"""Runs the chains of a plan on the Kubernetes API."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from vmtenancy.api.names import GROUP, MANAGED_BY
from vmtenancy.core.ledger.head import Head
from vmtenancy.errors import VmtError
from vmtenancy.kube import errors
from vmtenancy.kube.backoff import Backoff
from vmtenancy.kube.cache import Cache
from vmtenancy.kube.client import Client, micro_time
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import (
    Absent,
    Apply,
    Chain,
    Create,
    Delete,
    Emit,
    Granted,
    Object,
    Plan,
    RenderChart,
    Replace,
    Step,
)
from vmtenancy.reconcile.world import ref_of, uid_of

log = logging.getLogger(__name__)

Render = Callable[[RenderChart], Awaitable[Iterable[Object]]]
"""Renders a chart without blocking the event loop; raises `VmtError`."""

CONCURRENCY: Final = 16
_REREADS: Final = 3
#: After these the stored object is not what the plan knew.
_STALE: Final = (
    errors.ConflictError,
    errors.AlreadyExistsError,
    errors.UnknownOutcomeError,
    errors.NotFoundError,
)


class StoppedError(VmtError):
    """Not run: the process is stopping, or leads no longer."""

    def __init__(self) -> None:
        super().__init__(errors.KubeError("stopped before this step").problems[0])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one chain.

    How many of its steps were done, and the error that stopped it, if one did.
    """

    chain: Chain
    done: int
    error: VmtError | None = None


class Executor:
    """Writes to the cluster, and puts every answer into the cache before the next plan can be made."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        *,
        render: Render,
        may_write: Callable[[], bool],
        instance: str = "",
        on_step: Callable[[str, str], None] = lambda kind, outcome: None,
        on_event: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`may_write` is asked before every step: false once leadership is lost, however long a pause took.

        `instance` names this process in Events. `on_step` gets the kind of step and `ok` or the error's class
        name, `on_event` the reason of each Event that was written.
        """
        self._client, self._cache, self._render = client, cache, render
        self._may_write, self._on_step, self._on_event = may_write, on_step, on_event
        self._instance = instance or MANAGED_BY
        self._stopping = False
        self.waiting = 0
        """Chains that have not begun."""

    def stop(self) -> None:
        """Begin no further chain; those begun go on."""
        self._stopping = True

    async def execute(self, plan: Plan) -> Sequence[Outcome]:
        """Run every chain, some at a time; the steps of a chain in order, up to its first failure.

        Raises nothing but cancellation: every failure is in the outcome of its chain.
        """
        slots = asyncio.Semaphore(CONCURRENCY)
        self.waiting = len(plan.chains)

        async def run(chain: Chain) -> Outcome:
            async with slots:
                self.waiting -= 1
                return Outcome(chain, 0, StoppedError()) if self._stopping else await self._run(chain)

        return await asyncio.gather(*map(run, plan.chains))

    async def _run(self, chain: Chain) -> Outcome:
        for done, step in enumerate(chain.steps):
            if not self._may_write():
                return Outcome(chain, done, StoppedError())
            try:
                await self._step(step)
            except VmtError as error:
                self._on_step(type(step).__name__, type(error).__name__)
                if isinstance(step, Emit):  # telling people is no reason to stop
                    log.warning("event %s not written: %s", step.reason, error)
                    continue
                if isinstance(error, _STALE):
                    await self._reread(step)
                return Outcome(chain, done, error)
            self._on_step(type(step).__name__, "ok")
            if isinstance(step, Emit):
                self._on_event(step.reason)
        return Outcome(chain, len(chain.steps))

    async def _step(self, step: Step) -> None:
        match step:
            case Create(obj):
                self._cache.wrote(await self._client.create(obj))
            case Apply(obj):
                self._cache.wrote(await self._client.apply(obj))
            case Replace(obj, status):
                self._cache.wrote(await self._client.replace(obj, status=status))
            case Delete():
                await self._delete(step)
            case Absent(ref, uid):
                found = await self._client.find(KINDS[ref.kind], ref)
                if found is not None and uid_of(found) == uid:
                    self._cache.wrote(found)
                    raise errors.ConflictError(f"{ref} still exists")
            case Granted(ledger, epoch, name):
                found = await self._client.get(KINDS[ledger.kind], ledger.namespace, ledger.name)
                if not Head.from_spec(found["spec"]).still_grants(epoch, name):
                    self._cache.wrote(found)
                    raise errors.ConflictError(f"{ledger} does not grant {name} any more")
            case Emit():
                await self._client.create(event_of(step, self._instance))
            case RenderChart(key):
                try:
                    self._cache.charted(key, await self._render(step))
                except VmtError as error:
                    self._cache.charted(key, error=str(error))

    async def _delete(self, step: Delete) -> None:
        try:
            left = await self._client.delete(
                KINDS[step.ref.kind], step.ref, uid=step.uid, version=step.resource_version
            )
        except errors.NotFoundError:
            left = None
        if left is None:
            self._cache.gone(step.ref, step.uid)
        else:
            self._cache.wrote(left)

    async def _reread(self, step: Step) -> None:
        """Read what the step was about, so that the next plan starts from what is stored now."""
        match step:
            case Create(obj) | Apply(obj) | Replace(obj):
                ref, api_version = ref_of(obj), obj["apiVersion"]
            case Delete(ref):
                api_version = KINDS[ref.kind].api_version
            case _:
                return
        held = self._cache.world.find(ref) if ref.kind in KINDS else None
        backoff = Backoff()
        for _ in range(_REREADS):
            try:
                info = await self._client.kind(api_version, ref.kind)
                self._cache.wrote(await self._client.get(info, ref.namespace, ref.name))
                return
            except errors.NotFoundError:
                if held is not None:
                    self._cache.gone(ref, uid_of(held))
                return
            except errors.KubeError as error:
                log.info("%s can not be read again: %s", ref, error)
                await asyncio.sleep(backoff.next_s())


def event_of(step: Emit, instance: str) -> Object:
    """The `events.k8s.io/v1` Event of a step. Those on cluster-scoped objects live in `default`."""
    about = step.about
    meta = about["metadata"]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": f"{meta['name'][:200]}.{uuid.uuid4().hex[:16]}",
            "namespace": meta.get("namespace") or "default",
        },
        "eventTime": micro_time(),
        "reportingController": f"{GROUP}/controller",
        "reportingInstance": instance[:128],
        "action": step.reason,
        "reason": step.reason,
        "note": step.message.encode()[:1024].decode(errors="ignore"),
        "type": "Warning" if step.warning else "Normal",
        "regarding": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "namespace": meta.get("namespace", ""),
            "name": meta["name"],
            "uid": uid_of(about),
            "resourceVersion": meta.get("resourceVersion", ""),
        },
    }
