"""Two real controller processes that contend for one Lease, each behind a proxy of its own.

One is stopped (SIGSTOP) at a chosen write for longer than its Lease, and the write stays under way. The other takes
over and comes to rest; then the first wakes up, and its write arrives.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from arena import REST_S, Arena
from lab import gpu_vm

from vmtenancy import resources
from vmtenancy.kube.client import Client
from vmtenancy.reconcile import Plan, World, check, plan
from vmtenancy.reconcile.steps import Ref
from vmtenancy.reconcile.view import LEDGER_NAME
from vmtenancy.testing.controller import ControllerProcess
from vmtenancy.testing.faults import Call, Delay, FaultProxy, Rule, paused

LEASE_S: Final = 3.0
_START_S: Final = 60.0
_TEMPLATES: Final = resources.templates()

#: Where a controller is stopped: the resource and subresource of the write that it was about to make.
MOMENTS: Final[dict[str, tuple[str, str]]] = {
    "the allocation": ("gpuallocations", ""),
    "the head": ("gpuledgers", ""),
    "the record in the allocation": ("gpuallocations", "status"),
    "the machine": ("virtualmachines", ""),
    "the gate": ("pods", ""),
    "the status": ("gpuvms", "status"),
    "any time": ("", ""),
}


@dataclass(slots=True)
class Try:
    """One pause. `takeover_s`: from the stop of the one to the other's first write of the head."""

    moment: str
    takeover_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Side:
    """One of the two."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        folder.mkdir()
        self.proxy = FaultProxy(kubeconfig, folder)
        self._folder = folder

    def start(self) -> None:
        self.proxy.__enter__()
        self.controller = ControllerProcess(
            self.proxy.kubeconfig, self._folder, name=self._folder.name, lease_duration_s=LEASE_S
        )
        self.controller.process.start()

    def stop(self) -> None:
        self.controller.process.stop()
        self.proxy.__exit__(None, None, None)

    def commits(self) -> list[Call]:
        """Its writes of the head that the API server took."""
        return [
            call
            for call in self.proxy.writes()
            if call.resource == "gpuledgers" and call.status is not None and call.status < 300
        ]

    def says(self, text: str) -> bool:
        """Whether its log has it."""
        return text in self.controller.process.log.read_text(errors="replace")


class AllSeeing:
    """Stands where an arena has its controller: what one that has seen everything would still do."""

    identity = "the leader"
    died_of = None

    def __init__(self, world: Callable[[], World]) -> None:
        self._world = world

    @property
    def last(self) -> tuple[World, Plan]:
        world = self._world()
        head = world.get("GpuLedger", "", LEDGER_NAME)
        seen = replace(world, identity=head["spec"]["holder"] if head else "", templates=_TEMPLATES)
        return seen, plan(seen, time.time())


class Pair(Arena):
    """An arena whose controllers are two processes."""

    def __init__(self, client: Client, proxy: FaultProxy, kubeconfig: Path, folder: Path) -> None:
        super().__init__(client, proxy)
        self.controller: Any = AllSeeing(self.history.snapshot)
        self._sides = (Side(kubeconfig, folder / "one"), Side(kubeconfig, folder / "two"))

    def start(self) -> None:
        """Start both."""
        for side in self._sides:
            side.start()

    def stop(self) -> None:
        """End both."""
        for side in self._sides:
            side.stop()

    def writes(self) -> list[Call]:
        """All that either of them wrote so far, Leases too."""
        return [call for side in self._sides for call in side.proxy.writes(leases=True)]

    async def act(self) -> bool:
        """One turn of what is played around them. Whether there was anything to do."""
        return await self._act(self.history.snapshot())

    def leader(self) -> Side:
        """The one that has the ledger."""
        head = self.history.snapshot().get("GpuLedger", "", LEDGER_NAME)
        holder = head["spec"]["holder"] if head else "nobody"
        (leads,) = [side for side in self._sides if side.says(holder)]
        return leads

    async def pause_at(self, moment: str, chance: random.Random) -> Try:
        """Ask for a machine, stop the leader at a moment of the answer, and wake it when the other has done all."""
        done = Try(moment)
        # On a busy machine the Lease may have changed hands by itself: whoever makes the write is the one to stop.
        rules = [side.proxy.add(Rule(_write_of(*MOMENTS[moment]), Delay(math.inf))) for side in self._sides]
        await self.create(gpu_vm("a", 3))
        await self._until(lambda: any(rule.struck for rule in rules), f"a write: {moment}")
        first, other = self._sides if rules[0].struck else self._sides[::-1]
        other.proxy.clear()
        commits = len(other.commits())
        if moment == "any time":
            await asyncio.sleep(chance.uniform(0.0, 0.5))
        stopping = paused(first.controller.process)
        await asyncio.to_thread(stopping.__enter__)
        try:
            stopped = time.monotonic()
            if chance.random() < 0.7:  # the devices go to another one meanwhile
                await self.delete(Ref("GpuVM", "vision", "a"))
                await self.create(gpu_vm("b", chance.randint(2, 4)))
            await self._until(lambda: len(other.commits()) > commits, "the other to take over", REST_S)
            done.takeover_s = time.monotonic() - stopped
            await self.rest()
        finally:
            await asyncio.to_thread(stopping.__exit__, None, None, None)
        taken, leases = len(first.commits()), _leases(first)
        if chance.random() < 0.5:  # its write arrives when it is awake already
            await self._until(lambda: _leases(first) > leases, "the first to wake up")
        first.proxy.clear()
        await self._until(lambda: _leases(first) > leases, "the first to ask for the Lease")
        world = await self.rest()
        if len(first.commits()) != taken and self.leader() is not first:
            done.wrong.append("the one that woke up late has written the head")
        done.wrong += [*violations(self), *map(str, check(world))]
        await self.delete(Ref("GpuVM", "vision", "a"), Ref("GpuVM", "vision", "b"))
        world = await self.rest()
        done.wrong += [*violations(self), *map(str, check(world))]
        return done

    async def _until(self, ready: Callable[[], bool], what: str, within_s: float = _START_S) -> None:
        """Wait for something at a proxy while everything around acts."""
        end = time.monotonic() + within_s
        while not ready():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {within_s:g} s for {what}")
            await self.act()
            await asyncio.sleep(0.02)


def violations(arena: Arena) -> list[str]:
    """What was wrong in any state since the last call.

    An apply that arrives late can make a child anew whose owner is gone: the garbage collector has to see it first, as
    any other child that lost its owner. That nothing is left behind (I9) is judged at rest.
    """
    return [text for text in arena.history.violations() if not text.startswith("I9")]


def _leases(side: Side) -> int:
    return sum(call.resource == "leases" for call in side.proxy.calls())


def _write_of(resource: str, subresource: str) -> Callable[[Call], bool]:
    def matches(call: Call) -> bool:
        if not call.is_write or call.resource in ("leases", "events"):
            return False
        return not resource or (call.resource, call.subresource) == (resource, subresource)

    return matches
