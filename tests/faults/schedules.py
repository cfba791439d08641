"""Random schedules: people act while things go wrong. Once the faults end, the right state comes and stays.

A seed gives the same acts and the same faults in every run; where exactly they meet depends on the machine. Not among
the faults is an old answer to a list: lists are consistent reads, which an API server never answers with the past.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from api_scenarios import HOME, inside, pod
from arena import REST_S, Arena, NotAtRestError
from end_states import differences, end_state
from lab import gpu_vm, nodes, virtual_cluster
from pair import violations

from vmtenancy.kube.errors import KubeError
from vmtenancy.reconcile import World, check
from vmtenancy.reconcile.status import condition
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.world import ref_of
from vmtenancy.testing.cluster import Cluster
from vmtenancy.testing.faults import (
    Action,
    Answer,
    Call,
    Cut,
    Delay,
    Expire,
    Hold,
    LoseResponse,
    Rule,
    SlowBody,
    StopAfter,
    StopBefore,
    paused,
)

_MACHINES: Final = [("vision", "a"), ("vision", "b"), ("llm", "c")]
_PODS: Final = ["p", "q"]
_LAB: Final = Ref("VirtualCluster", "llm", "lab")
_NODE: Final = "machines"
#: Whoever waits, and says one of these, waits for what others hold.
_MAY_WAIT: Final = ("QuotaExceeded", "NoCapacity")


@dataclass(slots=True)
class Outcome:
    """One schedule. `seconds`: from the end of the faults to rest."""

    seed: int
    struck: int
    seconds: float
    wrong: list[str] = field(default_factory=list)


class Schedules:
    """Plays schedules one after the other on an arena, each on what the one before left."""

    def __init__(self, arena: Arena, cluster: Cluster, empty: World) -> None:
        """`empty`: the arena at rest, before anybody asked for anything."""
        self._arena, self._cluster = arena, cluster
        self._empty = end_state(empty)

    async def play(self, seed: int) -> Outcome:
        """Some acts with faults in force, then the end of the faults, then rest; what was wrong in any state."""
        chance = random.Random(seed)
        arena = self._arena
        rules = [arena.proxy.add(_rule(chance, arena)) for _ in range(chance.randint(4, 10))]
        for act in chance.sample(_ACTS, chance.randint(2, 4)):
            with suppress(KubeError):  # what it is about is not there, or is there already
                await act(self, chance)
            async with _trouble(chance, arena, self._cluster):
                with suppress(NotAtRestError):
                    await arena.rest(chance.uniform(0.1, 0.8))
        await self._node_is_there()
        began = time.monotonic()
        arena.proxy.clear()
        outcome = Outcome(seed, sum(rule.struck for rule in rules), 0.0)
        try:
            world = await arena.rest(REST_S)
        except NotAtRestError as error:
            outcome.wrong.append(str(error))
            world = arena.history.snapshot()
        outcome.seconds = time.monotonic() - began
        outcome.wrong += [*violations(arena), *map(str, check(world)), *_not_as_wished(world)]
        return outcome

    async def clean_up(self) -> list[str]:
        """Delete all that people made; how what is left differs from the beginning."""
        await self._node_is_there()
        world = self._arena.history.snapshot()
        made = [ref_of(obj) for kind in ("GpuVM", "VirtualCluster") for obj in world.of(kind)]
        made += [Ref("Pod", "llm", name) for name in _PODS]
        await self._arena.delete(*made)
        world = await self._arena.rest()
        return [*violations(self._arena), *differences(self._empty, end_state(world))]

    # -- people ------------------------------------------------------------------------------------------------

    async def _machine(self, chance: random.Random) -> None:
        namespace, name = chance.choice(_MACHINES)
        of = chance.choice(["whole", "whole", "quarter"])
        await self._arena.create(gpu_vm(name, chance.randint(1, 3), of=of, namespace=namespace))

    async def _edit(self, chance: random.Random) -> None:
        namespace, name = chance.choice(_MACHINES)
        spec: dict[str, Any] = {"runStrategy": chance.choice(["Halted", "Always"])}
        if spec["runStrategy"] == "Halted":
            spec["gpus"] = [{"class": "whole", "count": chance.randint(1, 3)}]
            spec["whenStopped"] = chance.choice(["Release", "Hold"])
        await self._arena.patch("GpuVM", namespace, name, {"spec": spec})

    async def _unmachine(self, chance: random.Random) -> None:
        namespace, name = chance.choice(_MACHINES)
        await self._arena.delete(Ref("GpuVM", namespace, name))

    async def _cluster_made(self, chance: random.Random) -> None:
        await self._arena.create(virtual_cluster(guaranteed=chance.randint(0, 2), most=2))

    async def _cluster_gone(self, chance: random.Random) -> None:
        await self._arena.delete(_LAB)

    async def _pod(self, chance: random.Random) -> None:
        await self._arena.create(pod(chance.choice(_PODS), chance.randint(1, 2)))

    async def _unpod(self, chance: random.Random) -> None:
        await self._arena.delete(Ref("Pod", "llm", chance.choice(_PODS)))

    async def _inside(self, chance: random.Random) -> None:
        if self._arena.history.world.get("Namespace", "", HOME):
            await self._arena.create(inside(chance.choice(_PODS)))

    async def _lose_node(self, chance: random.Random) -> None:
        await self._arena.delete(Ref("Node", "", _NODE))

    async def _node_is_there(self) -> None:
        if self._arena.history.world.get("Node", "", _NODE) is None:
            (node,) = [node for node in nodes() if node["metadata"]["name"] == _NODE]
            await self._arena.add_node(node)


_ACTS: Final[Sequence[Callable[[Schedules, random.Random], Awaitable[None]]]] = (
    *(Schedules._machine, Schedules._machine, Schedules._edit, Schedules._edit, Schedules._unmachine),
    *(Schedules._cluster_made, Schedules._inside, Schedules._cluster_gone, Schedules._pod, Schedules._unpod),
    Schedules._lose_node,
)


# -- faults ----------------------------------------------------------------------------------------------------


def _rule(chance: random.Random, arena: Arena) -> Rule:
    resources = chance.choice(
        [(), ("gpuledgers",), ("gpuallocations",), ("pods",), ("gpuvms", "virtualmachines"), ("namespaces",)]
    )

    def is_about(call: Call) -> bool:
        return not resources or call.resource in resources

    def is_write(call: Call) -> bool:
        return call.is_write and is_about(call)

    def is_watch(call: Call) -> bool:
        return call.verb == "watch" and is_about(call)

    def is_read(call: Call) -> bool:
        return call.verb in ("get", "list") and is_about(call)

    to_writes: list[Action] = [
        StopBefore(arena.replace_controller),
        StopAfter(arena.replace_controller),
        LoseResponse(),
        Delay(chance.uniform(0.1, 2.0)),
        Delay(chance.uniform(0.1, 2.0), answer=True),
        Answer(409),
        Answer(429, retry_after=1),
        Answer(500),
        Answer(503),
        Answer(504, forwarded=True),
    ]
    to_watches: list[Action] = [
        Cut(chance.randint(0, 3)),
        Expire(chance.randint(0, 3)),
        Hold(chance.uniform(0.1, 1.5)),
        Hold(chance.uniform(0.1, 1.5), newest_only=True),
    ]
    to_reads: list[Action] = [SlowBody(chance.uniform(0.1, 1.0)), Answer(503), Answer(429, retry_after=1)]
    match, actions = chance.choice(
        [(is_write, to_writes), (is_write, to_writes), (is_watch, to_watches), (is_read, to_reads)]
    )
    skip = chance.randint(0, 3 if resources else 12) if match is is_write else 0
    return Rule(match, chance.choice(actions), skip=skip, times=chance.choice([1, 1, 2, 4]))


@asynccontextmanager
async def _trouble(chance: random.Random, arena: Arena, cluster: Cluster) -> AsyncIterator[None]:
    """Now and then something larger goes wrong while the block runs."""
    match chance.choice(["", "", "", "cut", "refuse", "etcd"]):
        case "cut":
            arena.proxy.cut()
            yield
        case "refuse":
            with arena.proxy.refusing():
                yield
        case "etcd":
            (etcd,) = [process for process in cluster.processes if process.name == "etcd"]
            stopping = paused(etcd)
            await asyncio.to_thread(stopping.__enter__)
            try:
                yield
            finally:
                await asyncio.to_thread(stopping.__exit__, None, None, None)
        case _:
            yield


# -- the right state ---------------------------------------------------------------------------------------------


def _not_as_wished(world: World) -> list[str]:
    """Machines and virtual clusters that neither are as asked nor wait for what others hold."""
    found = []
    for kind, good in (("GpuVM", ("Running", "Stopped")), ("VirtualCluster", ("Ready",))):
        for obj in world.of(kind):
            status: Object = obj.get("status") or {}
            admitted = condition(obj, "Admitted") or {}
            waits = status.get("phase") == "Pending" and admitted.get("reason") in _MAY_WAIT
            if status.get("phase") not in good and not waits:
                found.append(f"{ref_of(obj)} is {status.get('phase')}: {admitted.get('reason')}")
            elif not waits and status["observedGeneration"] != obj["metadata"]["generation"]:
                found.append(f"{ref_of(obj)} shows generation {status['observedGeneration']}")
    return found
