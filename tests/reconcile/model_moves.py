"""Everything that can happen next in a state of the model.

A controller makes a plan from what it sees and writes it chain by chain. Between its plans, and as far as the budget
goes between its writes, surroundings and people act one at a time, time goes by, and controllers that lost the
leadership write what they had in hand.

Left out, because it leads to nothing else:
- Other versions of what a watch may show than that at which it stood still: it could have stood still later.
- What a plan reports (the status of owners and of what describes the fleet) is written with it, and what KubeVirt
  reports of machines at once: nobody decides by it.
- A take-over is one step. Until its head is written nothing of it is seen, and what others write before it reads is
  as if written before. Kinds that it reads one after another may differ as if the watch of one then stood still.
- A controller dies before a step, not after the last one: that is before the first step of its next plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from sys import intern
from typing import NamedTuple

from model_state import Budget, Controller, State, describe, target
from model_store import ModelServer

from vmtenancy.controller import allocator
from vmtenancy.reconcile import Plan, World, planner
from vmtenancy.reconcile.ledger import take_over_chain
from vmtenancy.reconcile.memory import ConflictError
from vmtenancy.reconcile.steps import Chain, Emit, RenderChart, Replace, Step
from vmtenancy.reconcile.view import View
from vmtenancy.testing.simulated import SimulatedCluster, simulated_chart

#: Kinds whose status only reports.
_REPORTED = ("Tenant", "Cohort", "GpuPool", "GpuClass", "GpuVM", "VirtualCluster")

Act = Callable[[SimulatedCluster], None]


class Move(NamedTuple):
    """`actor`: who acts, `""` for all that is not a controller. `step`: what was tried, if it is one write.

    `calm`: without a fault, and not by people.
    """

    what: str
    state: State
    actor: str = ""
    step: Step | None = None
    calm: bool = True


@dataclass(slots=True)
class Model:
    """The rules for one small world. `script`: what people and nodes do, in order, at any time.

    `laggards`, `standby_laggards`: kinds whose watch may stand still, of the leader and of the one that waits.
    """

    start: State
    script: Sequence[tuple[str, Act]]
    laggards: Sequence[str] = ()
    standby_laggards: Sequence[str] = ()
    _plans: dict[int, Plan] = field(default_factory=dict)
    _around: dict[int, tuple[list[tuple[str, ModelServer]], bool]] = field(default_factory=dict)

    def moves(self, state: State) -> Iterator[Move]:
        """All that can happen next. The first calm one is what happens while nothing goes wrong."""
        leader = state.leader
        around, only_report = self._surroundings(state.cluster)
        busy = leader.leads and bool(leader.hand)
        if only_report and not busy:
            what, cluster = around[0]
            yield Move(what, state.with_(cluster=cluster))
            return
        if not leader.leads:
            yield self._take_over(state)
        elif leader.hand:
            yield from self._write(state)
            yield from self._die(state)
        else:
            yield from self._catch_up(state)
            yield from self._plan(state)
        outside = state
        if busy:
            left = state.budget.less("inside")
            if left is None:
                return
            outside = state.with_(budget=left)
        calm = outside is state
        for what, cluster in around:
            yield from self._seen(state, Move(what, outside.with_(cluster=cluster), calm=calm))
        if not busy:
            yield from self._time(state, idle=not around and not leader.stale)
        yield from self._late(outside, state)
        if state.acted < len(self.script):
            what, act = self.script[state.acted]
            cluster = state.cluster.fork()
            act(surroundings_of(cluster))
            after = outside.with_(cluster=cluster, acted=state.acted + 1)
            yield from self._seen(state, Move(what, after, calm=False))

    # -- the leader -------------------------------------------------------------------------------------------

    def _take_over(self, state: State) -> Move:
        """As `Allocator._take_over`: raise the epoch, then read again what decisions depend on."""
        cluster = state.cluster.fork()
        chain = take_over_chain(View(state.leader.sees(cluster.world), cluster.now))
        assert chain is not None
        (step,) = chain.steps
        cluster.run_step(step)
        stale = {kind: held for kind, held in state.standby.items() if kind not in allocator.DECISIVE}
        leader = dataclasses.replace(state.leader, leads=True, stale=stale).caught_up(cluster.world)
        after = state.with_(cluster=cluster, leader=leader, standby={})
        return Move(f"{leader.identity}: {chain.why}", after, leader.identity, step)

    def _catch_up(self, state: State) -> Iterator[Move]:
        leader = state.leader
        for kind in leader.stale:
            stale = {other: held for other, held in leader.stale.items() if other != kind}
            after = state.with_(leader=dataclasses.replace(leader, stale=stale))
            yield Move(f"{leader.identity}: its watch of {kind} catches up", after)

    def plan_of(self, controller: Controller, cluster: ModelServer) -> Plan:
        """What a controller would do now, by what it sees."""
        seen = controller.sees(cluster.world)
        key = _signature(seen, cluster.now)
        found = self._plans.get(key)
        if found is None:
            found = self._plans[key] = planner.plan(seen, cluster.now)
        return found

    def _plan(self, state: State) -> Iterator[Move]:
        planned = self.plan_of(state.leader, state.cluster)
        if planned.chains:
            cluster = state.cluster.fork()
            leader = _with_hand(state.leader, planned, cluster)
            yield Move(_plans(leader), state.with_(cluster=cluster, leader=leader))

    def _write(self, state: State) -> Iterator[Move]:
        """The next step of its first chain, and what may go wrong with it."""
        leader, cluster = state.leader, state.cluster.fork()
        chain, *others = leader.hand
        before = dataclasses.replace(leader, hand=tuple(others))
        step, left = chain.steps[0], chain.steps[1:]
        after, done = _run(cluster, before, step)
        going_on = dataclasses.replace(
            after, hand=(Chain(chain.why, left), *others) if done and left else others
        )
        what = intern(f"{leader.identity}: {describe(step)}{'' if done else ' (refused: changed meanwhile)'}")
        wrote = state.with_(cluster=cluster, leader=dataclasses.replace(going_on, hand=tuple(going_on.hand)))
        yield from self._seen_by_standby(state, Move(what, wrote, leader.identity, step))
        if done and (budget := state.budget.less("losses")):
            if left:
                lost = Move(
                    f"{what}, its answer is lost",
                    wrote.with_(leader=after, budget=budget),
                    leader.identity,
                    step,
                )
                yield lost._replace(calm=False)
            kind = target(step).kind
            if kind in self.laggards and kind not in leader.stale and (blind := budget.less("lags")):
                # Nor could the object be read again.
                stale = {**leader.stale, kind: state.world.objects[kind]}
                unread = wrote.with_(leader=dataclasses.replace(before, stale=stale), budget=blind)
                yield Move(f"{what}, nothing is heard of it", unread, leader.identity, step, calm=False)
        if budget := state.budget.less("refusals"):
            refused = state.with_(leader=before, budget=budget)
            yield Move(f"{what}: refused", refused, calm=False)
        if others and (budget := state.budget.less("delays")):
            delayed = dataclasses.replace(leader, hand=(*others, chain))
            yield Move(
                f"{leader.identity}: {chain.why!r} waits",
                state.with_(leader=delayed, budget=budget),
                calm=False,
            )

    def _die(self, state: State) -> Iterator[Move]:
        leader = state.leader
        successor = Controller(f"controller-{int(leader.identity.rpartition('-')[2]) + 1}")
        if budget := state.budget.less("crashes"):
            yield Move(f"{leader.identity} dies", state.with_(leader=successor, budget=budget), calm=False)
        if budget := state.budget.less("pauses"):
            knows = {"GpuLedger": state.world.objects["GpuLedger"]}
            deludes = budget.less("delusions") is not None
            late = dataclasses.replace(leader, leads=deludes, stale=knows if deludes else {})
            after = state.with_(leader=successor, late=(*state.late, late), budget=budget)
            yield Move(f"{leader.identity} is paused", after, calm=False)

    # -- all others -------------------------------------------------------------------------------------------

    def _surroundings(self, cluster: ModelServer) -> tuple[list[tuple[str, ModelServer]], bool]:
        """What each of them would do now. Where one of them would only report, that one alone, and true."""
        key = cluster.signature()
        found = self._around.get(key)
        if found is None:
            around = surroundings_of(cluster)
            moves: list[tuple[str, ModelServer]] = []
            for what, move in list(around.moves()):
                around.cluster = cluster.fork()
                move()
                if around.cluster.writes != cluster.writes:
                    moves.append((intern(what), around.cluster))
            reports = [move for move in moves if _only_reports(cluster.world, move[1].world)]
            found = self._around[key] = (reports[:1], True) if reports else (moves, False)
        return found

    def _time(self, state: State, *, idle: bool) -> Iterator[Move]:
        """A time comes at which the leader wanted to look again: where others still had something to do, too early."""
        if not state.leader.leads:
            return
        planned, cluster = self.plan_of(state.leader, state.cluster), state.cluster.fork()
        if planned.retry_at is None or planned.retry_at <= cluster.now:
            return
        what, cluster.now = f"{planned.retry_at - cluster.now:g} s go by", planned.retry_at
        if idle and not planned.chains:
            yield Move(what, state.with_(cluster=cluster))
        elif budget := state.budget.less("slowness"):
            yield Move(what, state.with_(cluster=cluster, budget=budget), calm=False)

    def _late(self, state: State, before: State) -> Iterator[Move]:
        """A controller that lost the leadership writes on: any chain of its plan, as they run side by side.

        Or it plans once more, by all that it sees but the head.
        """
        for number, late in enumerate(state.late):
            if late.leads and (budget := state.budget.less("delusions")):
                again = self.plan_of(late, state.cluster)
                deluded = dataclasses.replace(_with_hand(late, again, state.cluster.fork()), leads=False)
                lates = (*state.late[:number], deluded, *state.late[number + 1 :])
                if deluded.hand and again.chains:
                    yield Move(
                        f"late, {_plans(deluded)}", before.with_(late=lates, budget=budget), calm=False
                    )
            for place, chain in enumerate(late.hand):
                cluster = state.cluster.fork()
                step, left = chain.steps[0], chain.steps[1:]
                knows, done = _run(cluster, late, step)
                rest = (Chain(chain.why, left),) if done and left else ()
                hand = (*late.hand[:place], *rest, *late.hand[place + 1 :])
                kept = (dataclasses.replace(knows, hand=hand),) if hand else ()
                lates = (*state.late[:number], *kept, *state.late[number + 1 :])
                after = state.with_(cluster=cluster, late=lates)
                what = intern(f"{late.identity} wakes up: {describe(step)}{'' if done else ' (refused)'}")
                yield from self._seen(before, Move(what, after, late.identity, step, calm=False))

    def _seen(self, before: State, move: Move) -> Iterator[Move]:
        """The leader sees the change at once, or its watch of a kind stands still from here on."""
        after = move.state
        yield from self._seen_by_standby(before, move)
        leader = after.leader
        changed = [
            k
            for k in self.laggards
            if after.world.objects[k] is not before.world.objects[k] and k not in leader.stale
        ]
        if not leader.leads:
            return
        for count in range(1, min(after.budget.lags, after.budget.total, len(changed)) + 1):
            for kinds in combinations(changed, count):
                stale = {**leader.stale, **{kind: before.world.objects[kind] for kind in kinds}}
                late = after.with_(
                    leader=dataclasses.replace(leader, stale=stale), budget=after.budget.less("lags", count)
                )
                what = f"{move.what}; {leader.identity} does not see it: {', '.join(kinds)}"
                yield move._replace(what=intern(what), state=late, calm=False)

    def _seen_by_standby(self, before: State, move: Move) -> Iterator[Move]:
        yield move
        after = move.state
        budget = after.budget.less("lags")
        if budget is None or not (after.budget.crashes or after.budget.pauses):
            return
        for kind in self.standby_laggards:
            if after.world.objects[kind] is not before.world.objects[kind] and kind not in after.standby:
                standby = {**after.standby, kind: before.world.objects[kind]}
                what = intern(f"{move.what}; the next controller does not see it: {kind}")
                yield move._replace(what=what, state=after.with_(standby=standby, budget=budget), calm=False)


def surroundings_of(cluster: ModelServer) -> SimulatedCluster:
    """What plays the surroundings, on this state."""
    around = SimulatedCluster({})
    around.cluster = cluster
    return around


def begin(cluster: ModelServer, budget: Budget, identity: str = "controller-1") -> State:
    """A state in which a controller leads."""
    return State(cluster, Controller(identity, leads=True), budget)


def _with_hand(controller: Controller, planned: Plan, cluster: ModelServer) -> Controller:
    """With a plan to write. What it only reports is written to `cluster`, and charts are rendered, at once."""
    hand: list[Chain] = []
    for chain in planned.chains:
        steps = tuple(step for step in chain.steps if not isinstance(step, Emit))
        if all(_is_status(step, _REPORTED) for step in steps):
            for step in steps:
                controller = _run(cluster, controller, step)[0]
        elif isinstance(chart := steps[0], RenderChart):
            charts = {**controller.charts, chart.key: tuple(simulated_chart(chart))}
            controller = dataclasses.replace(controller, charts=charts)
        else:
            hand.append(Chain(chain.why, steps))
    return dataclasses.replace(controller, hand=tuple(hand))


def _plans(controller: Controller) -> str:
    return intern(f"{controller.identity}: plans {[chain.why for chain in controller.hand]}")


def _is_status(step: Step, kinds: Sequence[str]) -> bool:
    return isinstance(step, Replace) and step.status and step.object["kind"] in kinds


def _only_reports(before: World, after: World) -> bool:
    """Whether nothing changed but the status of machines, and that of instances that have not come up yet."""
    for kind, objects in after.objects.items():
        old = before.objects[kind]
        if objects is old:
            continue
        if kind not in ("VirtualMachine", "VirtualMachineInstance") or objects.keys() != old.keys():
            return False
        for key, obj in objects.items():
            was = old[key]
            if obj is was:
                continue
            metadata = {**obj["metadata"], "resourceVersion": was["metadata"]["resourceVersion"]}
            if {**obj, "metadata": metadata, "status": was.get("status")} != {"status": None, **was}:
                return False
            if kind == "VirtualMachineInstance" and obj["status"].get("phase") != "Scheduling":
                return False
    return True


def _run(cluster: ModelServer, controller: Controller, step: Step) -> tuple[Controller, bool]:
    """Write, and read the answer, or after a conflict the object."""
    try:
        cluster.run_step(step)
        done = True
    except ConflictError:
        done = False
    return controller.reads(cluster.world, target(step)), done


def _signature(world: World, now: float) -> int:
    versions = frozenset(
        obj["metadata"]["resourceVersion"] for of in world.objects.values() for obj in of.values()
    )
    return hash((versions, world.identity, tuple(sorted(world.charts)), now))
