"""A controller in a thread of this process, which can be killed at any moment."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from vmtenancy import resources
from vmtenancy.api.names import CONTROLLER_ACCOUNT, SYSTEM_NAMESPACE
from vmtenancy.controller.engine import Engine
from vmtenancy.kube.client import Client
from vmtenancy.kube.errors import UnavailableError, UnknownOutcomeError
from vmtenancy.reconcile.planner import plan
from vmtenancy.reconcile.steps import Object, Plan, RenderChart
from vmtenancy.reconcile.world import World
from vmtenancy.testing.simulated import simulated_chart

_numbers = itertools.count(1)
_TEMPLATES = resources.templates()
_RETRY_S: Final = 0.5


class InProcessController:
    """What `vmtenancy controller` runs, without a process and a Lease: it leads from its start to its end.

    `kubeconfig` is an administrator's; it acts as the controller's service account. Charts are rendered by
    `simulated_chart`. Each has an identity of its own.
    """

    def __init__(self, kubeconfig: Path, on_plan: Callable[[], None] = lambda: None) -> None:
        """`on_plan` is called in the controller's thread after each plan that it made."""
        self.identity = f"controller-{next(_numbers)}"
        self.last: tuple[World, Plan] | None = None
        """The last plan, and the world it was made for."""
        self.died_of: BaseException | None = None
        self._kubeconfig, self._on_plan = kubeconfig, on_plan
        self._alive = True
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.identity, daemon=True)

    def start(self) -> None:
        """Returns at once."""
        self._thread.start()

    def kill(self) -> None:
        """From here on it sends nothing and does not wait for answers; returns once it is gone."""
        self._alive = False
        if self._running.wait(10):
            with suppress(RuntimeError):  # its loop is closed: it is gone already
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.died_of = error
            self._on_plan()

    async def _live(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._running.set()
        world = World(identity=self.identity, templates=_TEMPLATES)
        async with await Client.connect(self._kubeconfig) as admin, await _its_client(admin) as client:
            engine = Engine(client, world, render=render, leads=lambda: self._alive, planner=self._planned)
            await engine.__aenter__()  # not `async with`: one that is killed ends nothing in good order
            try:
                await engine.failed()
            finally:
                others = asyncio.all_tasks() - {self._task}
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)

    def _planned(self, world: World, now: float) -> Plan:
        found = plan(world, now)
        self.last = world, found
        self._on_plan()
        return found


async def _its_client(admin: Client) -> Client:
    """Its account is asked for until the API server answers: it may start while faults strike."""
    while True:
        with suppress(UnavailableError, UnknownOutcomeError):
            return await admin.as_service_account(SYSTEM_NAMESPACE, CONTROLLER_ACCOUNT)
        await asyncio.sleep(_RETRY_S)


async def render(step: RenderChart) -> Iterable[Object]:
    """What stands for Helm."""
    return simulated_chart(step)
