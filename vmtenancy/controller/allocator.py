"""The loop: what is observed → one plan → its chains → again, when something changed or a time has come.

One plan at a time, made from a snapshot in a worker thread so that a long one starves neither the watches nor
the renewal of the Lease. Nothing is kept between rounds but how often a chain has failed: a new process goes
on from what the cluster says.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from vmtenancy.controller.metrics import Metrics
from vmtenancy.core.ledger.head import Head
from vmtenancy.kube.backoff import Backoff
from vmtenancy.kube.cache import Cache
from vmtenancy.kube.errors import KubeError
from vmtenancy.kube.executor import Executor, Outcome, StoppedError
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.ledger import take_over_chain
from vmtenancy.reconcile.steps import Chain, Plan
from vmtenancy.reconcile.view import LEDGER_NAME, View
from vmtenancy.reconcile.world import World

log = logging.getLogger(__name__)

Planner = Callable[[World, float], Plan]
ReadAgain = Callable[[Sequence[str]], Awaitable[None]]

#: What is read before the ledger is taken over: a head that is new must not be behind the marks of its grants.
LEDGER: Final = ("GpuLedger", "GpuAllocation")
#: What a new leader reads again before its first decision: grants, who may have them, who has them.
DECISIVE: Final = (
    *("GpuAllocation", "GpuLedger", "GpuVM", "VirtualCluster", "GpuGroup", "Tenant", "Namespace"),
    "GpuReservation",
    *("Pod", "VirtualMachine", "VirtualMachineInstance"),
)

#: Changes come in bursts; one plan for all of them.
SETTLE_S: Final = 0.02
#: After a round in which something failed. A chain that fails again and again waits longer, by itself.
_ROUND_BACKOFF: Final = (0.05, 1.0)
#: A round that takes longer than this is stuck.
STUCK_S: Final = 120.0
_VERSIONS = re.compile(r"(resourceVersion'?: ?|resource_version=)'\d*'")


@dataclass(slots=True)
class _Failing:
    """A chain that failed: when it may be tried again (monotonic seconds)."""

    backoff: Backoff = field(default_factory=lambda: Backoff(0.1, 60.0))
    not_before: float = 0.0


class Allocator:
    """Runs while it leads. `poke` it when something changed."""

    def __init__(
        self,
        cache: Cache,
        executor: Executor,
        planner: Planner,
        *,
        leads: Callable[[], bool],
        metrics: Metrics,
        read_again: ReadAgain | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`read_again` brings kinds up to date by a consistent read; a new leader can not trust its watches."""
        self._read_again, self._caught_up = read_again, read_again is None
        self._term = 0
        self._identity, self._lives, self._rewound = cache.world.identity, 1, False
        self._cache, self._executor, self._planner = cache, executor, planner
        self._leads, self._metrics, self._clock = leads, metrics, clock
        self._wake = asyncio.Event()
        self._stopping = False
        self._executing: asyncio.Task[Sequence[Outcome]] | None = None
        self._failing: dict[str, _Failing] = {}
        self._trouble = Backoff(*_ROUND_BACKOFF)
        self._round_began: float | None = None

    def poke(self) -> None:
        """Something changed that a plan may depend on."""
        self._wake.set()

    def leadership(self, held: bool) -> None:
        """The Lease was taken or lost. Once lost, what is being written is dropped at once."""
        if not held and self._executing:
            self._executing.cancel()
        self._term += 1
        self._caught_up = self._read_again is None
        self.poke()

    def stop(self) -> None:
        """End `run` after the chains in hand; no further chain begins."""
        self._stopping = True
        self._executor.stop()
        self.poke()

    def stuck(self) -> bool:
        """Whether one round has been going on for longer than any should."""
        return self._round_began is not None and time.monotonic() - self._round_began > STUCK_S

    async def run(self) -> None:
        """Until `stop`. Failures of plans and chains are retried, never raised."""
        while not self._stopping:
            self._wake.clear()
            wait_s: float | None = None
            if self._cache.synced.is_set() and self._leads():
                self._round_began = time.monotonic()
                if self._caught_up and self._read_again is not None:
                    self._watch_head()
                wait_s = await (self._round() if self._caught_up else self._take_over())
                self._round_began = None
            if self._stopping:
                return
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            else:
                await asyncio.sleep(SETTLE_S)

    async def _take_over(self) -> float:
        """Fence the leader before (its next commit fails), then see all that it wrote until then.

        Watches may lag behind: what they have not shown yet would look free, and be granted again.
        """
        assert self._read_again is not None  # noqa: S101 - else it is caught up from the start
        term = self._term
        try:
            await self._read_again(LEDGER)
            chain = take_over_chain(View(self._cache.snapshot(), self._clock()))
            if chain is not None:
                (outcome,) = await self._execute(Plan((chain,))) or (None,)
                if outcome is None or outcome.error is not None:
                    return await self._rest()
            await self._read_again(tuple(KINDS) if self._rewound else DECISIVE)
        except KubeError as error:
            log.warning("can not take over yet: %s", error)
            return await self._rest()
        # Not if the Lease was lost on the way, even if it is held again: another may have led in between.
        self._caught_up = self._leads() and term == self._term
        self._rewound = self._rewound and not self._caught_up
        return 0.0

    def _watch_head(self) -> None:
        """A ledger that is behind what was seen of it was restored from a backup, or deleted."""
        world = self._cache.world
        ledger = world.get("GpuLedger", "", LEDGER_NAME)
        head = Head.from_spec(ledger["spec"]) if ledger else Head()
        if (head.epoch, head.sequence) >= world.head_seen:
            world.head_seen = (head.epoch, head.sequence)
            return
        log.error(
            "the ledger went back from epoch %d, commit %d to epoch %d, commit %d",
            *(*world.head_seen, head.epoch, head.sequence),
        )
        self.rewound()

    def rewound(self) -> None:
        """What this process knows is of another history, in which its epoch may be another's, too.

        It goes on as another controller, which takes the ledger over above everything seen, and reads everything again.
        """
        if self._executing:
            self._executing.cancel()
        self._metrics.ledger_rewinds.inc()
        self._lives += 1
        self._cache.world.identity = f"{self._identity}.{self._lives}"
        self._term += 1
        self._caught_up, self._rewound = self._read_again is None, True
        self.poke()

    async def _round(self) -> float | None:
        """Plan once and execute. Seconds after which to plan again even if nothing changes."""
        now = self._clock()
        started, term = time.perf_counter(), self._term
        try:
            plan = await asyncio.to_thread(self._planner, self._cache.snapshot(), now)
        except Exception:
            log.exception("no plan could be made")
            self._metrics.plan_errors.inc()
            return await self._rest()
        self._metrics.plan_seconds.observe(time.perf_counter() - started)
        if term != self._term:
            return 0.0  # made of what was known in a term that is over
        due = self._due(plan.chains)
        outcomes = await self._execute(Plan(due))
        if self._account(outcomes):
            await self._rest()
        else:
            self._trouble.reset()
        again = [failing.not_before - time.monotonic() for failing in self._failing.values()]
        if plan.retry_at is not None:
            again.append(plan.retry_at - self._clock())
        return max(0.0, min(again)) if again else None

    async def _rest(self) -> float:
        """Keep away from the API server for a moment after a failure, whatever changes."""
        await asyncio.sleep(self._trouble.next_s())
        return 0.0

    async def _execute(self, plan: Plan) -> Sequence[Outcome]:
        if not plan.chains:
            return ()
        self._executing = asyncio.create_task(self._executor.execute(plan))
        try:
            return await self._executing
        except asyncio.CancelledError:
            if (current := asyncio.current_task()) and current.cancelling():
                raise
            log.warning("this term is over: %d chains dropped", len(plan.chains))
            return ()
        finally:
            self._executing.cancel()
            self._executing = None

    def _due(self, chains: Sequence[Chain]) -> tuple[Chain, ...]:
        """The chains to run now: all but those that failed and whose time has not come."""
        if not self._failing:
            self._metrics.chains_held.set(0)
            return tuple(chains)
        named = [(_name(chain), chain) for chain in chains]
        wanted = {name for name, _ in named}
        self._failing = {name: failing for name, failing in self._failing.items() if name in wanted}
        now = time.monotonic()
        held = {name for name, failing in self._failing.items() if failing.not_before > now}
        self._metrics.chains_held.set(len(held))
        return tuple(chain for name, chain in named if name not in held)

    def _account(self, outcomes: Sequence[Outcome]) -> bool:
        """Remember what failed. Whether anything did."""
        failed = False
        for outcome in outcomes:
            if isinstance(outcome.error, StoppedError):
                continue
            if outcome.error is None:
                if self._failing:
                    self._failing.pop(_name(outcome.chain), None)
                continue
            failed = True
            self._metrics.chains_failed.inc()
            failing = self._failing.setdefault(_name(outcome.chain), _Failing())
            delay = failing.backoff.next_s()
            failing.not_before = time.monotonic() + delay
            log.warning(
                "%s: step %d of %d failed, next attempt in %.1f s: %s",
                *(outcome.chain.why, outcome.done + 1, len(outcome.chain.steps), delay, outcome.error),
            )
        return failed


def _name(chain: Chain) -> str:
    """Equal for chains that would write the same, whatever versions of the objects they were decided on."""
    return hashlib.sha256(_VERSIONS.sub("", repr(chain)).encode()).hexdigest()
