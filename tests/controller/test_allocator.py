from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from vmtenancy.api.names import API_VERSION
from vmtenancy.controller.allocator import DECISIVE, LEDGER, Allocator, ReadAgain
from vmtenancy.controller.metrics import Metrics
from vmtenancy.kube.cache import Cache
from vmtenancy.kube.errors import ConflictError
from vmtenancy.kube.executor import Outcome
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import Apply, Chain, Create, Object, Plan, Replace
from vmtenancy.reconcile.world import World

NOTHING = Plan()


def pod(name: str, version: int) -> Object:
    meta = {"name": name, "namespace": "ns", "uid": name, "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta}


def chain(why: str, **data: str) -> Chain:
    return Chain(why, (Apply({"kind": "ConfigMap", "metadata": {"name": why}, "data": data}),))


class Recorder:
    """Stands in for the executor: notes what it was given, and fails what the test says."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failing: set[str] = set()
        self.stopped = False
        self.waiting = 0
        self.hang: asyncio.Event | None = None
        self.cancelled = False
        self.store: Cache | None = None

    def stop(self) -> None:
        self.stopped = True

    async def execute(self, plan: Plan) -> Sequence[Outcome]:
        self.ran += [chain.why for chain in plan.chains]
        if self.hang:
            try:
                await self.hang.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        if self.store:
            for number, step in enumerate(step for chain in plan.chains for step in chain.steps):
                assert isinstance(step, Create | Replace)
                meta = {"uid": "new-head", **step.object["metadata"], "resourceVersion": str(30 + number)}
                self.store.wrote({**step.object, "metadata": meta})
        failures = {c.why: ConflictError("not now") for c in plan.chains if c.why in self.failing}
        return [Outcome(c, 0 if c.why in failures else 1, failures.get(c.why)) for c in plan.chains]


class Setup:
    def __init__(self, planner: Callable[[World, float], Plan], read_again: ReadAgain | None = None) -> None:
        self.leads = True
        self.metrics = Metrics()
        self.executor = Recorder()
        self.cache = Cache(on_change=self.changed)
        self.allocator = Allocator(
            self.cache,
            self.executor,  # type: ignore[arg-type]
            planner,
            leads=lambda: self.leads,
            metrics=self.metrics,
            read_again=read_again,
        )

    def changed(self) -> None:
        self.allocator.poke()

    def sync(self) -> None:
        for info in KINDS.values():
            self.cache.relist(info, [], "1", begun_at=0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.allocator.run())
        try:
            yield task
        finally:
            self.allocator.stop()
            await task

    def count(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition is no event
            await asyncio.sleep(0.005)


async def test_nothing_is_planned_before_everything_is_known_and_the_lease_is_held() -> None:
    plans: list[int] = []

    def planner(world: World, now: float) -> Plan:
        plans.append(len(world.objects["Pod"]))
        return NOTHING

    setup = Setup(planner)
    setup.leads = False
    async with setup.running():
        setup.cache.observe("ADDED", pod("a", 2))
        setup.sync()
        await asyncio.sleep(0)
        assert plans == []
        setup.leads = True
        setup.allocator.leadership(True)
        await until(lambda: plans == [1])


async def test_changes_while_a_plan_is_made_are_one_more_plan() -> None:
    go_on, plans = threading.Event(), []

    def planner(world: World, now: float) -> Plan:
        plans.append(len(world.objects["Pod"]))
        go_on.wait(10)
        return NOTHING

    setup = Setup(planner)
    setup.sync()
    async with setup.running():
        await until(lambda: len(plans) == 1)
        for number in range(50):
            setup.cache.observe("ADDED", pod(f"p{number}", number + 2))
        assert plans == [0], "one plan at a time"
        go_on.set()
        await until(lambda: len(plans) == 2)
        assert plans == [0, 50]


async def test_the_loop_stays_responsive_while_a_plan_is_made() -> None:
    ticks = 0

    def planner(world: World, now: float) -> Plan:
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            sum(range(1000))
        return NOTHING

    setup = Setup(planner)
    setup.sync()
    async with setup.running():
        while setup.count("vmtenancy_plan_seconds_count") < 1:
            ticks += 1
            await asyncio.sleep(0.005)
    assert ticks > 5, "renewing the lease would have had its turns"


async def test_plans_again_at_the_time_that_the_plan_names() -> None:
    times: list[float] = []

    def planner(world: World, now: float) -> Plan:
        times.append(now)
        return Plan(retry_at=now + 0.2) if len(times) < 3 else NOTHING

    setup = Setup(planner)
    setup.sync()
    async with setup.running():
        await until(lambda: len(times) == 3)
    assert all(later - earlier >= 0.19 for earlier, later in pairwise(times))


async def test_a_chain_that_fails_waits_longer_each_time_and_holds_nobody_up() -> None:
    setup = Setup(lambda world, now: Plan((chain("bad"), *(chain(name) for _, name in world.objects["Pod"]))))
    setup.executor.failing = {"bad"}
    setup.sync()
    async with setup.running():
        await until(lambda: setup.executor.ran.count("bad") >= 4)
        for number in range(10):
            setup.cache.observe("ADDED", pod(f"good{number}", number + 2))
            await until(lambda: f"good{number}" in setup.executor.ran)  # noqa: B023
    assert setup.executor.ran.count("bad") < setup.executor.ran.count("good0")
    assert setup.count("vmtenancy_chains_failed_total") == setup.executor.ran.count("bad")


async def test_a_failing_chain_is_tried_at_once_when_it_is_another_one() -> None:
    content = {"v": "wrong"}
    setup = Setup(lambda world, now: Plan((chain("c", **content),)) if content else NOTHING)
    setup.executor.failing = {"c"}
    setup.sync()
    async with setup.running():
        await until(lambda: setup.executor.ran.count("c") >= 5)  # the next delay is over a second
        before = len(setup.executor.ran)
        content["v"] = "right"
        setup.executor.failing = set()
        started = time.monotonic()
        setup.allocator.poke()
        await until(lambda: len(setup.executor.ran) > before)
        assert time.monotonic() - started < 1.2
        content.clear()


async def test_versions_do_not_make_another_chain() -> None:
    versions = iter(range(1000))

    def planner(world: World, now: float) -> Plan:
        meta = {"name": "x", "resourceVersion": str(next(versions))}
        return Plan((Chain("c", (Apply({"kind": "ConfigMap", "metadata": meta}),)),))

    setup = Setup(planner)
    setup.executor.failing = {"c"}
    setup.sync()
    async with setup.running():
        await until(lambda: setup.executor.ran.count("c") >= 3)
        for _ in range(20):
            setup.allocator.poke()
            await asyncio.sleep(0.005)
        assert setup.executor.ran.count("c") <= 5


async def test_a_planner_that_raises_is_asked_again() -> None:
    calls: list[int] = []

    def planner(world: World, now: float) -> Plan:
        calls.append(1)
        if len(calls) < 3:
            raise ZeroDivisionError
        return Plan((chain("done"),)) if len(calls) == 3 else NOTHING

    setup = Setup(planner)
    setup.sync()
    async with setup.running():
        await until(lambda: setup.executor.ran == ["done"])
    assert setup.count("vmtenancy_plan_errors_total") == 2


async def test_a_lost_lease_drops_what_is_being_written_and_a_new_term_goes_on() -> None:
    setup = Setup(lambda world, now: Plan((chain("long"),)))
    setup.executor.hang = asyncio.Event()
    setup.sync()
    async with setup.running():
        await until(lambda: setup.executor.ran == ["long"])
        setup.leads = False
        setup.allocator.leadership(False)
        await until(lambda: setup.executor.cancelled)
        assert setup.executor.ran == ["long"]
        setup.executor.hang.set()
        setup.leads = True
        setup.allocator.leadership(True)
        await until(lambda: len(setup.executor.ran) > 1)


async def test_stop_waits_for_the_chains_in_hand() -> None:
    setup = Setup(lambda world, now: Plan((chain("long"),)))
    setup.executor.hang = asyncio.Event()
    setup.sync()
    async with setup.running() as task:
        await until(lambda: setup.executor.ran == ["long"])
        setup.allocator.stop()
        await asyncio.sleep(0)
        assert setup.executor.stopped
        assert not task.done()
        setup.executor.hang.set()
        await until(task.done)
    assert not setup.executor.cancelled


async def test_a_lease_lost_while_reading_again_is_no_leave_to_decide() -> None:
    reads: list[str] = []
    planned = threading.Event()

    async def read_again(kinds: Sequence[str]) -> None:
        reads.append(kinds[0])
        if len(reads) == 2:  # lost and held again before the read is done
            setup.allocator.leadership(False)
            setup.allocator.leadership(True)

    def planner(world: World, now: float) -> Plan:
        planned.set()
        return NOTHING

    setup = Setup(planner, read_again)
    setup.sync()
    async with setup.running():
        await asyncio.to_thread(planned.wait, 10)
    assert reads == ["GpuLedger", DECISIVE[0], "GpuLedger", DECISIVE[0]]


async def test_a_new_leader_reads_again_before_its_first_decision() -> None:
    done: list[object] = []

    async def read_again(kinds: Sequence[str]) -> None:
        done.append(tuple(kinds))

    def planner(world: World, now: float) -> Plan:
        done.append("plan")
        planned.set()
        return NOTHING

    planned = threading.Event()
    setup = Setup(planner, read_again)
    setup.sync()
    async with setup.running():
        await asyncio.to_thread(planned.wait, 10)
        assert done[:3] == [LEDGER, DECISIVE, "plan"]
        assert setup.executor.ran[0] == "start the ledger", "fenced before what the old leader wrote is read"
        planned.clear()
        setup.allocator.leadership(False)
        setup.allocator.leadership(True)
        await asyncio.to_thread(planned.wait, 10)
        assert done[-3:] == [LEDGER, DECISIVE, "plan"]


def head(version: int, epoch: int, sequence: int) -> Object:
    meta = {"name": "fleet", "uid": "head", "resourceVersion": str(version)}
    spec = {"epoch": epoch, "holder": "vmtenancy", "sequence": sequence}
    return {"apiVersion": API_VERSION, "kind": "GpuLedger", "metadata": meta, "spec": spec}


@pytest.mark.parametrize("restored", [head(9, 2, 4), head(20, 2, 4), head(20, 1, 9), None])
async def test_a_ledger_that_went_back_is_taken_over_as_by_another_controller(
    restored: Object | None,
) -> None:
    """etcd restored from a backup (with a version below or above the one seen), or the head deleted."""
    reads: list[Sequence[str]] = []
    planned: list[tuple[str, tuple[int, int]]] = []

    async def read_again(kinds: Sequence[str]) -> None:
        reads.append(tuple(kinds))

    def planner(world: World, now: float) -> Plan:
        planned.append((world.identity, world.head_seen))
        return NOTHING

    setup = Setup(planner, read_again)
    setup.sync()
    setup.cache.observe("ADDED", head(10, 2, 5))
    setup.executor.store = setup.cache
    async with setup.running():
        await until(lambda: bool(planned))
        assert planned[-1] == ("vmtenancy", (2, 5))
        assert setup.executor.ran == []
        reads.clear()
        items = [restored] if restored else []
        setup.cache.relist(KINDS["GpuLedger"], items, "20", begun_at=10)
        await until(lambda: len(planned) > 1)
    sequence = max(5, restored["spec"]["sequence"] if restored else 0)
    assert planned[1] == ("vmtenancy.2", (3, sequence)), "above all that was seen"
    assert setup.executor.ran == ["take over the ledger as epoch 3" if restored else "start the ledger"]
    assert reads[:2] == [LEDGER, tuple(KINDS)], "all that is known may be of the other history"
    assert setup.count("vmtenancy_ledger_rewinds_total") == 1
