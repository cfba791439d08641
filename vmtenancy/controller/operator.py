"""The controller process. kopf owns its life cycle: signals, start-up, clean-up, the liveness probe.

What it observes comes through our own reflectors, see `docs/adr/0002-kopf-and-reflectors.md`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kopf

from vmtenancy.api.names import CONTROLLER_ACCOUNT, CONTROLLER_LEASE, SYSTEM_NAMESPACE
from vmtenancy.controller.allocator import Planner
from vmtenancy.controller.engine import Engine
from vmtenancy.controller.metrics import Metrics
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.helm.chart import Chart
from vmtenancy.kube.client import Client
from vmtenancy.kube.executor import Render
from vmtenancy.kube.lease import DURATION_S, Lease
from vmtenancy.reconcile.planner import plan
from vmtenancy.reconcile.steps import Object, RenderChart
from vmtenancy.reconcile.world import BIND_DEADLINE_S, World

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run. Ports of 0 are not opened.

    `act_as_account`: the connection is an administrator's, and the controller's service account is to be used
    (outside of a cluster: the admission policies know the controller by this account). `chart` is vCluster's,
    `chart_values` are the administrator's for all virtual clusters.
    """

    kubeconfig: Path | None = None
    context: str | None = None
    act_as_account: bool = False
    namespace: str = SYSTEM_NAMESPACE
    lease_name: str = CONTROLLER_LEASE
    lease_duration_s: float = DURATION_S
    bind_deadline_s: float = BIND_DEADLINE_S
    templates: Mapping[str, str] = field(default_factory=dict)
    chart: Path | None = None
    chart_values: Mapping[str, Any] = field(default_factory=dict)
    helm: Path | None = None
    health_port: int = 8080
    metrics_port: int = 9090


class Controller:
    """One process: everything that runs in it, and the order in which it starts and stops."""

    def __init__(self, options: Options, planner: Planner = plan) -> None:
        self.identity = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self.metrics = Metrics()
        self._options, self._planner = options, planner
        self._stack = AsyncExitStack()
        self._stop = asyncio.Event()
        self._error: BaseException | None = None

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises what the process can not go on with."""
        registry = kopf.OperatorRegistry()
        kopf.on.startup(registry=registry)(self._start)
        kopf.on.login(registry=registry)(self._login)
        kopf.on.probe(registry=registry, id="allocator")(self._probe)
        kopf.on.cleanup(registry=registry)(self._clean_up)
        health = f"http://0.0.0.0:{self._options.health_port}/healthz" if self._options.health_port else None
        try:
            await kopf.operator(
                registry=registry,
                clusterwide=True,
                standalone=True,
                liveness_endpoint=health,
                stop_flag=self._stop,
            )
        except Exception:
            if self._error is None:
                raise
        if self._error is not None:
            raise self._error

    # -- kopf's handlers -------------------------------------------------------------------------------------

    async def _start(self, settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.scanning.disabled = True  # nothing is handled through kopf, so it need not watch CRDs
        settings.posting.enabled = False
        try:
            await self._start_parts()
        except BaseException as error:
            self._error = error
            await self._clean_up()
            # kopf retries a handler that raises; this one ends the process, with the reason.
            raise kopf.PermanentError(str(error)) from error

    async def _login(self, **_: Any) -> kopf.ConnectionInfo:
        to = self._client.configuration
        authorization = await to.get_api_key_with_prefix("BearerToken") or ""
        scheme, _space, token = authorization.partition(" ")
        return kopf.ConnectionInfo(
            server=to.host,
            ca_path=to.ssl_ca_cert,
            insecure=not to.verify_ssl,
            scheme=scheme or None,
            token=token or None,
            certificate_path=to.cert_file,
            private_key_path=to.key_file,
            trust_env=bool((to.client_session_kwargs or {}).get("trust_env")),
        )

    async def _probe(self, **_: Any) -> str:
        if self._engine.allocator.stuck():
            raise kopf.PermanentError("one round of the allocator does not end")
        return "leader" if self._lease.held() else "standby"

    async def _clean_up(self, **_: Any) -> None:
        await self._stack.aclose()
        self._stop.set()  # kopf waits 5 s for the task that waits for this

    # -- the parts -------------------------------------------------------------------------------------------

    async def _start_parts(self) -> None:
        """Start everything; the stack stops it in the reverse order."""
        options, enter = self._options, self._stack.enter_async_context
        if options.metrics_port:
            self._stack.enter_context(self.metrics.serving(options.metrics_port))
        client = await enter(await Client.connect(options.kubeconfig, options.context))
        if options.act_as_account:
            client = await enter(await client.as_service_account(options.namespace, CONTROLLER_ACCOUNT))
        self._client = client
        version = await client.request("GET", "/version")
        world = World(
            identity=self.identity,
            templates=options.templates,
            vcluster_values=options.chart_values,
            bind_deadline=options.bind_deadline_s,
        )
        self._lease = Lease(
            client,
            namespace=options.namespace,
            name=options.lease_name,
            identity=self.identity,
            duration_s=options.lease_duration_s,
            on_change=self._led,
            on_rewind=self._rewound,
        )
        self._engine = Engine(
            client,
            world,
            render=chart_renderer(options, version["gitVersion"]),
            leads=self._lease.held,
            planner=self._planner,
            metrics=self.metrics,
        )
        # The engine stops first: chains in hand need the Lease until their end.
        self._stack.push_async_callback(self._lease.release)
        self._background(self._lease.run())
        await enter(self._engine)
        self._background(self._engine.failed())

    def _led(self, held: bool) -> None:
        self._engine.allocator.leadership(held)

    def _rewound(self) -> None:
        self._engine.cache.rewind()

    def _background(self, work: Any) -> asyncio.Task[None]:
        """Run for as long as the process does; the process ends with the error if it fails."""
        task: asyncio.Task[None] = asyncio.create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()):
                log.critical("the controller can not go on", exc_info=error)
                self._error = error
                self._stop.set()

        async def cancel() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

        task.add_done_callback(ended)
        self._stack.push_async_callback(cancel)
        return task


def chart_renderer(options: Options, kube_version: str) -> Render:
    """Renders vCluster's chart with Helm in a worker thread; without a chart, every rendering is an error."""
    if options.chart is None:
        return _no_chart
    chart = Chart(options.chart, helm=options.helm, kube_version=kube_version)

    async def render(step: RenderChart) -> Iterable[Object]:
        return await asyncio.to_thread(chart.render, step.release, step.namespace, step.values)

    return render


async def _no_chart(_: RenderChart) -> Iterable[Object]:
    raise VmtError(
        Problem(
            Code.HELM,
            "",
            "this controller was started without vCluster's chart",
            expected="--vcluster-chart, or VMTENANCY_VCLUSTER_CHART",
        )
    )
