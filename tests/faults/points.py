"""Every write of a controller as a point at which something goes wrong.

A scenario is a list of acts. Played without faults, each act has the writes that the controller makes until all is at
rest, and the state at that rest. Then each act is played again for each of its writes and each `Mode`, and has to
come to the same state. One walk through a scenario strikes once in each of its acts: the state between two acts was
just compared, so each act begins where it began without faults.
"""

from __future__ import annotations

import random
import re
import zlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NoReturn

from arena import Arena, NotAtRestError
from end_states import differences, end_state

from vmtenancy.reconcile import World, check
from vmtenancy.reconcile.steps import Object
from vmtenancy.testing.faults import Action, Call, LoseResponse, Rule, StopAfter, StopBefore

Act = Callable[[Arena], Awaitable[None]]
Chosen = Callable[["Point"], bool]
#: Of a share of all points.
SEED: Final = 20_261_124
#: A write that timing brings about in some runs only is waited for in this many.
_TRIES: Final = 4
_MADE_NAMES: Final = re.compile(
    r"(?:vm|vc|pod)-[0-9a-f]{8}-[-0-9a-f]+|(?<=virt-launcher-)([-a-z0-9]+)-[0-9a-f]{6}$|\.[0-9a-f]{16}$"
)


class Mode(StrEnum):
    """What happens at a write. One that is killed is followed by another controller."""

    KILLED_BEFORE = "killed before"
    KILLED_AFTER = "killed after commit"
    RESPONSE_LOST = "response lost"

    def action(self, arena: Arena) -> Action:
        """What the proxy does."""
        match self:
            case Mode.KILLED_BEFORE:
                return StopBefore(arena.replace_controller)
            case Mode.KILLED_AFTER:
                return StopAfter(arena.replace_controller)
            case Mode.RESPONSE_LOST:
                return LoseResponse()


@dataclass(frozen=True, slots=True)
class Point:
    """The `nth` write (from 0) of an act that is named `write`."""

    act: int
    write: str
    nth: int
    mode: Mode

    def __str__(self) -> str:
        return f"act {self.act + 1}, {self.mode}: {self.write}" + (f" ({self.nth + 1})" if self.nth else "")


@dataclass(slots=True)
class Tally:
    """What came of one scenario."""

    points: int = 0
    violations: list[str] = field(default_factory=list)
    missed: list[Point] = field(default_factory=list)
    """Writes that were seen once and then did not come again."""


@dataclass(slots=True)
class _Expected:
    """One act: where it leads, which writes it is known to make, and the points that are left."""

    end: dict[str, Object]
    known: set[tuple[str, int]] = field(default_factory=set)
    left: deque[Point] = field(default_factory=deque)

    def learn(self, number: int, calls: Iterable[Call], chosen: Chosen) -> None:
        """Add the points of writes that were not seen before."""
        for write in numbered(calls):
            if write not in self.known:
                self.known.add(write)
                points = (Point(number, *write, mode) for mode in Mode)
                self.left += [point for point in points if chosen(point)]


class BrokenError(Exception):
    """The arena is not as it should be: no further act of this walk means anything."""


def write_name(call: Call) -> str:
    """What a write is about, equal in every run."""
    what = call.resource + (f"/{call.subresource}" if call.subresource else "")
    name = _MADE_NAMES.sub(lambda match: match[1] or "*", call.name)
    return f"{call.verb} {what} {call.namespace + '/' if call.namespace else ''}{name}"


def numbered(calls: Iterable[Call]) -> Iterator[tuple[str, int]]:
    """The writes among calls, each with how many of its name came before."""
    counts: Counter[str] = Counter()
    for call in calls:
        if call.is_write and call.resource != "leases":
            name = write_name(call)
            yield name, counts[name]
            counts[name] += 1


class Walks:
    """One scenario, and what is left of its points: those that `chosen` wants, or `most` of them."""

    def __init__(
        self, acts: Sequence[Act], *, chosen: Chosen = lambda point: True, most: int | None = None
    ) -> None:
        self.tally = Tally()
        self._acts, self._chosen, self._most = acts, chosen, most
        self._expected: list[_Expected] = []
        self._tries: Counter[Point] = Counter()

    async def play(self, arena: Arena) -> None:
        """Record, then walk until no point is left.

        Raises `BrokenError` after a violation; it can be played on in another arena.
        """
        if not self._expected:
            await self._record(arena)
        while any(act.left for act in self._expected):
            for number in range(len(self._acts)):
                left = self._expected[number].left
                await self._strike(arena, number, left.popleft() if left else None)

    async def _record(self, arena: Arena) -> None:
        expected = []
        for number, act in enumerate(self._acts):
            begun = len(arena.proxy.calls())
            await act(arena)
            expected.append(_Expected(end_state(await self._judged(arena, f"act {number + 1}, no fault"))))
            expected[number].learn(number, arena.proxy.calls()[begun:], self._chosen)
        self._expected = expected
        if self._most is not None:
            points = sorted((point for act in expected for point in act.left), key=str)
            kept = random.Random(SEED).sample(points, min(self._most, len(points)))
            for act in expected:
                act.left = deque(point for point in act.left if point in kept)
            self._chosen = lambda point: False

    async def _strike(self, arena: Arena, number: int, point: Point | None) -> None:
        """One act, with a fault if there is a point."""
        act, expected = self._acts[number], self._expected[number]
        begun = len(arena.proxy.calls())
        what = str(point or f"act {number + 1}, no fault")
        rule = Rule(_is_write(point.write), point.mode.action(arena), skip=point.nth) if point else None
        if rule:
            arena.proxy.add(rule)
        try:
            await act(arena)
            world = await self._judged(arena, what)
        finally:
            arena.proxy.clear()
        calls = arena.proxy.calls()[begun:]
        if rule and rule.struck:
            self.tally.points += 1
            calls = tuple(_until_struck(calls))
        elif point:
            self._again(point)
        expected.learn(number, calls, self._chosen)
        if differs := differences(expected.end, end_state(world)):
            self._violated(what, differs)

    async def _judged(self, arena: Arena, what: str) -> World:
        """The world at rest, once all that was on the way there is known to be right."""
        try:
            world = await arena.rest()
        except NotAtRestError as error:
            self._violated(what, [str(error), *arena.history.violations()])
        if wrong := [*arena.history.violations(), *map(str, check(world))]:
            self._violated(what, wrong)
        return world

    def _violated(self, what: str, wrong: Sequence[str]) -> NoReturn:
        self.tally.violations.append(f"{what}: {'; '.join(wrong[:10])}")
        raise BrokenError(self.tally.violations[-1])

    def _again(self, point: Point) -> None:
        self._tries[point] += 1
        if self._tries[point] < _TRIES:
            self._expected[point.act].left.append(point)
        else:
            self.tally.missed.append(point)


def _is_write(name: str) -> Callable[[Call], bool]:
    return lambda call: call.is_write and write_name(call) == name


def _until_struck(calls: Iterable[Call]) -> Iterator[Call]:
    for call in calls:
        yield call
        if call.fault:
            return


def shard(index: int, of: int) -> Chosen:
    """One of `of` parts (from 0) of all points, the same in every run."""
    return lambda point: zlib.crc32(str(point).encode()) % of == index
