"""The API server of the model: its state is plain data that can be forked, compared and shared.

Nothing in it depends on the way by which a state was reached: a uid follows from a name and how often it was taken
before, a resourceVersion from the object's content and how often it was written. So equal states look equal, and what
was parsed once is known for good. Garbage is collected by moves of their own, not together with the deletion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeAlias

from vmtenancy.core.ledger.head import Head
from vmtenancy.reconcile import World
from vmtenancy.reconcile.memory import MemoryCluster
from vmtenancy.reconcile.steps import Absent, Apply, Create, Delete, Granted, Object, Ref, Replace, Step
from vmtenancy.reconcile.world import Key, ref_of, uid_of

Objects: TypeAlias = dict[Key, Object]
"""The objects of one kind; never changed in place once another state may see it."""

Shape: TypeAlias = tuple[int, tuple[int, ...]]
"""What an object says, as a digest without the sequence numbers of the ledger, and those numbers in order."""


class Interned:
    """Small numbers for values, the same for equal ones."""

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}

    def __call__(self, value: object) -> int:
        return self._numbers.setdefault(value, len(self._numbers) + 1)


_uids, _versions = Interned(), Interned()
_writes: dict[str, int] = {}
_shapes: dict[str, Shape] = {}
_step_shapes: dict[int, tuple[Step, Shape]] = {}

_SEQUENCES = re.compile(r"(?<=-)\d+(?=-[0-9a-f]{8}\b)|(?<=\"sequence\": )\d+|(?<='sequence': )\d+")
_STEP_VERSION = re.compile(r"('resourceVersion': |resource_version=)'\d*'")


def shape_of_text(text: str, *, head: bool = False) -> Shape:
    numbers = tuple(map(int, _SEQUENCES.findall(text)))
    if head:  # it gives the number after its own to the next commit
        numbers += tuple(number + 1 for number in numbers)
    return int.from_bytes(blake2b(_SEQUENCES.sub("#", text).encode(), digest_size=8).digest()), numbers


def shape(obj: Object) -> Shape:
    """The shape of a stored object; its resourceVersion stands for its content."""
    return _shapes[obj["metadata"]["resourceVersion"]]


def step_shape(step: Step) -> Shape:
    found = _step_shapes.get(id(step))
    if found is None:
        text = _STEP_VERSION.sub("", repr(step))
        found = _step_shapes[id(step)] = step, shape_of_text(text, head="'GpuLedger'" in text)
    return found[1]


class SharedWorld(World):
    """A world whose copies share what they do not change."""

    def put(self, obj: Object) -> None:
        ref = ref_of(obj)
        self.objects[ref.kind] = {**self.objects[ref.kind], (ref.namespace, ref.name): obj}

    def remove(self, kind: str, namespace: str, name: str) -> None:
        key = (namespace, name)
        self.objects[kind] = {k: obj for k, obj in self.objects[kind].items() if k != key}


@dataclass(slots=True)
class ModelServer(MemoryCluster):
    """`births`: how often each name was taken."""

    births: Mapping[Ref, int] = field(default_factory=dict)

    def fork(self) -> ModelServer:
        """A copy that goes its own way."""
        world = SharedWorld(
            self.world.identity,
            dict(self.world.objects),
            templates=self.world.templates,
            memo=self.world.memo,
        )
        return ModelServer(world, self.now, self.renderer, writes=self.writes, births=self.births)

    def _store(self, obj: Object) -> None:
        ref, meta = ref_of(obj), obj["metadata"]
        current = self.world.find(ref)
        number = 1
        if current is None:
            self.births = {**self.births, ref: self.births.get(ref, 0) + 1}
            meta["uid"] = f"uid-{_uids((ref, self.births[ref])):06d}"
        else:
            number += _writes[current["metadata"]["resourceVersion"]]
        meta.pop("resourceVersion", None)
        text = json.dumps(obj, sort_keys=True)
        version = meta["resourceVersion"] = str(_versions((number, text)))
        if version not in _shapes:
            _writes[version] = number
            _shapes[version] = shape_of_text(text, head=ref.kind == "GpuLedger")
        self.writes += 1
        self.world.put(obj)

    def _orphan(self, uid: str) -> None:
        """The garbage collector has moves of its own."""

    def signature(self) -> int:
        """Equal for equal contents, versions and uids to come."""
        versions = [
            obj["metadata"]["resourceVersion"] for of in self.world.objects.values() for obj in of.values()
        ]
        return hash((frozenset(versions), frozenset(self.births.items()), self.now))


def is_current(world: World, obj: Mapping[str, Any]) -> bool:
    """Whether a copy of an object is what is stored now."""
    stored = world.find(ref_of(obj))
    return stored is not None and stored["metadata"]["resourceVersion"] == obj["metadata"]["resourceVersion"]


def holds(world: World, step: Step) -> bool:
    """Whether the precondition of a step is met now."""
    match step:
        case Create(obj) | Apply(obj) | Replace(obj):
            return "resourceVersion" not in obj["metadata"] or is_current(world, obj)
        case Delete(ref, uid, version):
            stored = world.find(ref)
            return (
                stored is not None
                and uid_of(stored) == uid
                and version in ("", stored["metadata"]["resourceVersion"])
            )
        case Absent(ref, uid):
            stored = world.find(ref)
            return stored is None or uid_of(stored) != uid
        case Granted(ledger, epoch, name):
            stored = world.find(ledger)
            return stored is not None and Head.from_spec(stored["spec"]).still_grants(epoch, name)
    return True


def canonical(shapes: Iterable[tuple[object, Shape]]) -> int:
    """A digest of shapes, each with what is said of it, in which the ledger's numbers count by their order only."""
    items = sorted(((repr(said), *found) for said, found in shapes))
    ranks = {n: rank for rank, n in enumerate(sorted({n for _, _, numbers in items for n in numbers}))}
    return hash(tuple((said, text, tuple(map(ranks.__getitem__, numbers))) for said, text, numbers in items))
