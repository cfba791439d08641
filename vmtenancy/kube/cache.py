"""Keeps a `World` current from watches and from the answers to our own writes.

The rules: what was written is seen by the next plan, an object never goes back to an older version, and what
is gone stays gone, in whatever order events and answers arrive. resourceVersions are compared as integers,
which Kubernetes guarantees since 1.35 and etcd always gave.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from vmtenancy.reconcile.kinds import KINDS, KindInfo
from vmtenancy.reconcile.ownership import is_our_apply
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.world import World, labels_of, ref_of, uid_of

#: Uids of objects that are gone. A uid never comes back, so the bound only limits how late a message may be.
MAX_TOMBSTONES: Final = 20_000
#: A chart that could not be rendered is tried again: the reason may have been the machine, not the values.
CHART_RETRY_S: Final = 300.0
_MEMO_SLACK: Final = 1_000
_SPARE_CHARTS: Final = 16


class Cache:
    """One `World`, fed by one reflector per kind and by the executor. For one event loop; not thread-safe."""

    def __init__(self, world: World | None = None, on_change: Callable[[], None] = lambda: None) -> None:
        """`on_change` is called after every change of what a plan would see, and when `synced` is set."""
        self.world = world or World()
        self.synced = asyncio.Event()
        self._on_change = on_change
        self.on_rewind: list[Callable[[], None]] = []
        """Called by `rewind`."""
        self._history, self._listed_in = 0, dict.fromkeys(KINDS, 0)
        self._unlisted = set(KINDS)
        self._listed_at: dict[str, int] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()

    def snapshot(self) -> World:
        """A world that stays as it is now, for a plan in another thread.

        Objects are shared: they never change.
        """
        world = self.world
        if len(world.memo) > 4 * sum(map(len, world.objects.values())) + _MEMO_SLACK:
            world.memo = {}  # most of it parses versions that are no longer there
        return replace(
            world,
            objects={kind: dict(objects) for kind, objects in world.objects.items()},
            charts=dict(world.charts),
            chart_errors=dict(world.chart_errors),
        )

    # -- from watches ----------------------------------------------------------------------------------------

    def newest(self, kind: str) -> int:
        """The highest resourceVersion held of a kind, 0 where there is none."""
        return max(map(_version, self.world.objects[kind].values()), default=0)

    def relist(self, info: KindInfo, items: Iterable[Object], resource_version: str, begun_at: int) -> None:
        """A full list: what is not in it is gone, unless we wrote it after the list was made.

        `begun_at` is `newest(kind)` from before the list was asked for. A list is consistent, so an older one
        means that the server's history was rewound (etcd restored from a backup): then only the lists count.
        """
        kind = info.kind
        version = int(resource_version or 0)
        listed = {_key(item): item for item in items}
        held = self.world.objects[kind]
        # Where the new history has caught up with the old one, a single object may still have gone back.
        went_back = version < begun_at or any(
            _version(item) < _version(held[key]) <= version for key, item in listed.items() if key in held
        )
        if went_back and self._listed_in[kind] == self._history:
            self.rewind()
        if self._listed_in[kind] < self._history:
            held.clear()
            self._listed_in[kind] = self._history
        self._listed_at[kind] = version
        changed = went_back
        for key, obj in list(held.items()):
            if key not in listed and _version(obj) <= version:
                changed |= self._bury(ref_of(obj), uid_of(obj))
        for item in listed.values():
            changed |= self._put(item)
        if kind in self._unlisted:
            self._unlisted.discard(kind)
            changed = True
            if not self._unlisted:
                self.synced.set()
        if changed:
            self._on_change()

    def rewind(self) -> None:
        """The server's history is another one than was seen (etcd restored from a backup).

        What went by its versions is forgotten: they come again, with other content. The next list of each kind counts
        alone.
        """
        self._history += 1
        self._gone.clear()
        self._listed_at.clear()
        self.world.memo = {}
        for callback in self.on_rewind:
            callback()

    def observe(self, event_type: str, obj: Object) -> None:
        """One event of a watch, bookmarks excluded."""
        changed = self._bury(ref_of(obj), uid_of(obj)) if event_type == "DELETED" else self._put(obj)
        if changed:
            self._on_change()

    # -- from our own requests -------------------------------------------------------------------------------

    def wrote(self, obj: Object) -> None:
        """The API server's answer to a write or a live read.

        Kinds and objects that are not watched are ignored.
        """
        info = KINDS.get(obj["kind"])
        if not info or info.api_version != obj["apiVersion"] or not _selected(info, obj):
            return
        if _version(obj) <= self._listed_at.get(info.kind, 0) and self.world.find(ref_of(obj)) is None:
            return  # a late answer: the list, made after this write, no longer had the object
        if self._put(obj):
            self._on_change()

    def gone(self, ref: Ref, uid: str) -> None:
        """The object with this uid is known to be gone (a live read or a deletion said so)."""
        if ref.kind in KINDS and self._bury(ref, uid):
            self._on_change()

    def charted(self, key: str, objects: Iterable[Object] = (), error: str = "") -> None:
        """A chart was rendered, or could not be."""
        if error:
            self.world.chart_errors[key] = error
            asyncio.get_running_loop().call_later(CHART_RETRY_S, self._forget_chart_error, key)
        else:
            self.world.chart_errors.pop(key, None)
            self.world.charts[key] = tuple(objects)
        # One that is still wanted is rendered again.
        while len(self.world.charts) > 2 * len(self.world.objects["VirtualCluster"]) + _SPARE_CHARTS:
            self.world.charts.pop(next(iter(self.world.charts)))
        self._on_change()

    def _forget_chart_error(self, key: str) -> None:
        if self.world.chart_errors.pop(key, None) is not None:
            self._on_change()

    # -- the rules -------------------------------------------------------------------------------------------

    def _put(self, obj: Object) -> bool:
        if uid_of(obj) in self._gone:
            return False
        held = self.world.find(ref_of(obj))
        if held is not None:
            if _version(obj) <= _version(held):
                return False
            if uid_of(held) != uid_of(obj):
                self._remember_gone(uid_of(held))
        # A third of every object; of use to a plan is only what is still ours of what we applied.
        accounts = obj["metadata"].pop("managedFields", None) or ()
        if ours := [entry for entry in accounts if is_our_apply(entry)]:
            obj["metadata"]["managedFields"] = ours
        self.world.put(obj)
        return True

    def _bury(self, ref: Ref, uid: str) -> bool:
        self._remember_gone(uid)
        held = self.world.find(ref)
        if held is None or uid_of(held) != uid:
            return False
        self.world.remove(ref.kind, ref.namespace, ref.name)
        return True

    def _remember_gone(self, uid: str) -> None:
        self._gone[uid] = None
        while len(self._gone) > MAX_TOMBSTONES:
            self._gone.popitem(last=False)


def _key(obj: Object) -> tuple[str, str]:
    ref = ref_of(obj)
    return ref.namespace, ref.name


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])


def _selected(info: KindInfo, obj: Object) -> bool:
    """Whether the watch of this kind would show the object.

    Selectors of the table are `label=value` terms.
    """
    labels = labels_of(obj)
    terms = (term.split("=", 1) for term in info.selector.split(",") if term)
    return all(labels.get(name) == value for name, value in terms)
