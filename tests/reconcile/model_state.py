"""One state of the model: what the API server holds, and what each controller knows and is about to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from model_store import ModelServer, Objects, Shape, canonical, holds, is_current, shape, step_shape

from vmtenancy.reconcile import World
from vmtenancy.reconcile.steps import (
    Absent,
    Apply,
    Chain,
    Create,
    Delete,
    Granted,
    Object,
    Ref,
    Replace,
    Step,
)
from vmtenancy.reconcile.world import ref_of


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may go wrong in one run: `total` faults in all, and of each kind no more than is said for it.

    `crashes`: the controller dies, another one follows. `pauses`: another one follows, and the first may wake up and
    go on with its plan. `losses`: the answer to a write is lost. `refusals`: a write is refused (429, 500), or a chain
    is held back. `lags`: the watch of one kind stands still from some change on, until it catches up. `inside`: someone
    else acts between the writes of a plan. `delays`: a chain is overtaken by all others of its plan. `delusions`:
    one that was paused plans once more, and has not seen that the head was taken over. `slowness`: a deadline passes
    while somebody still had something to do.
    """

    crashes: int = 0
    pauses: int = 0
    losses: int = 0
    refusals: int = 0
    lags: int = 0
    inside: int = 0
    delays: int = 0
    delusions: int = 0
    slowness: int = 0
    total: int = 1

    @classmethod
    def any(cls, total: int, **most: int) -> Budget:
        """That many faults in all, of every kind but for those of which `most` allows less."""
        kinds = {entry.name: total for entry in dataclasses.fields(cls)}
        return cls(**kinds | most)

    def left(self) -> tuple[int, ...]:
        """Equal where the same may still go wrong."""
        return tuple(min(getattr(self, entry.name), self.total) for entry in dataclasses.fields(self))

    def less(self, fault: str, by: int = 1) -> Budget | None:
        """What is left after that many faults of a kind; None where there are not as many."""
        left, total = getattr(self, fault) - by, self.total - by
        return dataclasses.replace(self, **{fault: left, "total": total}) if min(left, total) >= 0 else None


@dataclass(frozen=True, slots=True)
class Controller:
    """`leads`: it has taken over. `stale`: the kinds whose watch stands still, as it last saw them; of all others it
    sees what is stored. `hand`: what is left of its plan."""

    identity: str
    leads: bool = False
    stale: Mapping[str, Objects] = field(default_factory=dict)
    charts: Mapping[str, tuple[Object, ...]] = field(default_factory=dict)
    hand: tuple[Chain, ...] = ()

    def sees(self, world: World) -> World:
        """Its cache."""
        objects = {**world.objects, **self.stale}
        return dataclasses.replace(
            world, identity=self.identity, objects=objects, charts=dict(self.charts), chart_errors={}
        )

    def reads(self, world: World, ref: Ref) -> Controller:
        """After an answer that told what is stored under one name."""
        if ref.kind not in self.stale:
            return self
        held = {key: obj for key, obj in self.stale[ref.kind].items() if key != (ref.namespace, ref.name)}
        stored = world.find(ref)
        if stored is not None:
            held[(ref.namespace, ref.name)] = stored
        return dataclasses.replace(self, stale={**self.stale, ref.kind: held}).caught_up(world)

    def caught_up(self, world: World) -> Controller:
        """A watch that shows what is stored does not stand still."""
        stale = {kind: held for kind, held in self.stale.items() if held != world.objects[kind]}
        return self if len(stale) == len(self.stale) else dataclasses.replace(self, stale=stale)

    def shapes(self, world: World, role: str) -> Iterator[tuple[object, Shape]]:
        """What tells it from another one, in this world."""
        yield (role, self.identity, self.leads, sorted(self.charts)), (0, ())
        for kind, held in self.stale.items():
            yield (role, "stale", kind), (0, ())
            for obj in held.values():
                yield (role, is_current(world, obj)), shape(obj)
        for place, chain in enumerate(self.hand):
            for number, step in enumerate(chain.steps):
                yield (role, place, number, holds(world, step)), step_shape(step)


@dataclass(frozen=True, slots=True)
class State:
    """`late`: controllers that lost the leadership with writes in hand. `standby`: as `Controller.stale`, of the one
    that will lead next. `acted`: how many acts of the script are done."""

    cluster: ModelServer
    leader: Controller
    budget: Budget
    late: tuple[Controller, ...] = ()
    standby: Mapping[str, Objects] = field(default_factory=dict)
    acted: int = 0

    @property
    def world(self) -> World:
        return self.cluster.world

    def with_(self, **changes: Any) -> State:
        return dataclasses.replace(self, **changes)

    def key(self) -> int:
        """Equal for states with the same futures."""
        world = self.world
        shapes: list[tuple[object, Shape]] = [
            ("", shape(obj)) for of in world.objects.values() for obj in of.values()
        ]
        shapes += self.leader.shapes(world, "leader")
        for controller in self.late:
            shapes += controller.shapes(world, "late")
        for kind, held in self.standby.items():
            shapes.append((("standby", kind), (0, ())))
            shapes += [(("standby", is_current(world, obj)), shape(obj)) for obj in held.values()]
        return hash((canonical(shapes), self.acted, self.cluster.now, self.budget.left()))


def target(step: Step) -> Ref:
    """The object that a step is about."""
    match step:
        case Create(obj) | Apply(obj) | Replace(obj):
            return ref_of(obj)
        case Delete(ref) | Absent(ref):
            return ref
        case Granted(ledger):
            return ledger
    raise TypeError(f"{type(step).__name__} is about no object")


def describe(step: Step) -> str:
    """A step in a few words."""
    what = type(step).__name__.lower() + (" status of" if getattr(step, "status", False) else "")
    return f"{what} {target(step)}"
