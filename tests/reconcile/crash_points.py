"""Enumerates every write of a scenario and plays the scenario once for each, with something going wrong there.

The number of points grows by itself when the code adds writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lab import Act, Fault, Lab, differences, end_state, fork, state

from vmtenancy.reconcile import Plan

ROUNDS = 60


@dataclass
class Way:
    """What follows from one act without any fault: each turn's beginning that plans something, and where it ends.

    `states` are all that are known to lead to that end; a run that comes to one of them needs not be played further.
    """

    turns: list[Lab] = field(default_factory=list)
    end: dict[str, str] = field(default_factory=dict)
    states: set[int] = field(default_factory=set)


def without_faults(lab: Lab, act: Act) -> Way:
    """Play `act` and what follows; `lab` is at rest then."""
    act(lab)
    way = Way()
    for _ in range(ROUNDS):
        before, planned = lab.cluster.writes, lab.plan()
        way.states.add(state(lab))
        if planned.chains:
            way.turns.append(fork(lab))
        lab.execute(planned)
        lab.surroundings()
        if lab.cluster.writes == before and not planned.chains:
            lab.judge(at_rest=True)
            way.end = end_state(lab.cluster.world)
            return way
        lab.cluster.now += 1
    raise AssertionError(f"still changing after {ROUNDS} rounds: {lab.whys[-10:]}")


def leads_home(lab: Lab, way: Way, what: str) -> None:
    """Play on until it is clear that the run comes to the end of `way`; raises `AssertionError` where it does not."""
    passed = set()
    for _ in range(ROUNDS):
        now = state(lab)
        if now in way.states:
            break
        passed.add(now)
        before = lab.cluster.writes
        planned = lab.reconcile()
        lab.surroundings()
        lab.cluster.now += 1
        if not planned and lab.cluster.writes == before:
            lab.judge(at_rest=True)
            differs = differences(way.end, end_state(lab.cluster.world))
            assert not differs, f"{what}: {differs}"
            break
    else:
        raise AssertionError(f"{what}: still changing after {ROUNDS} rounds: {lab.whys[-10:]}")
    way.states |= passed


def faults_of(planned: Plan) -> Iterator[tuple[int, Fault]]:
    """Where a plan can be struck, by number of step. Killed after one step is killed before the next of the plan."""
    number = 0
    for chain in planned.chains:
        for left in reversed(range(len(chain.steps))):
            yield number, Fault.KILLED_BEFORE
            yield number, Fault.REFUSED
            if left:  # of the last step of a chain nothing depends on the answer
                yield number, Fault.RESPONSE_LOST
            number += 1
    if number:
        yield number - 1, Fault.KILLED_AFTER


def crash_points(way: Way) -> int:
    """Strike at every point; returns their number."""
    points = 0
    for turn in way.turns:
        for number, fault in faults_of(turn.plan()):
            struck = fork(turn)
            struck.fault = (number, fault)
            struck.reconcile()
            assert struck.fault is None
            struck.surroundings()
            leads_home(struck, way, f"{fault} step {number} of {[c.why for c in turn.plan().chains]}")
            points += 1
    return points


def late_controllers(way: Way) -> int:
    """Pause a controller before every step, let another one take over and come to rest, wake the first one up.

    It goes on with what it had planned. Nothing may be granted by it any more (I8). Returns the number of points.
    """
    points = 0
    for turn in way.turns:
        planned = turn.plan()
        for at, chain in enumerate(planned.chains):
            for paused_before in range(len(chain.steps)):
                late = fork(turn)
                for earlier in planned.chains[:at]:
                    late.run_chain(earlier)
                if not late.run_chain(chain, 0, paused_before):
                    continue
                late.restart()
                late.rest()
                head, granted = late.head(), late.live_grants()
                late.run_chain(chain, paused_before)
                for later in planned.chains[at + 1 :]:
                    late.run_chain(later)
                assert late.head() == head
                assert late.live_grants() == granted
                leads_home(late, way, f"late before step {paused_before} of {chain.why}")
                points += 1
    return points
