"""What the audit log tells of grants and releases: which grant was live when, and whether that was ever wrong.

The control plane's audit policy keeps the bodies of all writes to `GpuLedger` and `GpuAllocation`. `replay` goes
through them in the order in which they became true (resourceVersions), by the definition of a live grant in
docs/adr/0001-ledger-commit-protocol.md, so that what held between two observations is seen too.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vmtenancy.api.gpuclass import PARTS_PER_GPU
from vmtenancy.api.names import CONTROLLER_USER
from vmtenancy.core.ledger.head import Head, is_live
from vmtenancy.reconcile.steps import Object

Entry = Mapping[str, Any]
"""One event of `audit.k8s.io/v1`, with its bodies."""

_RESOURCES: Final = ("gpuledgers", "gpuallocations")
_REMOVALS: Final = ("delete", "deletecollection")


@dataclass(frozen=True, slots=True)
class Span:
    """One grant's time: live from the write with resourceVersion `since` on, until `until` (None: to the end)."""

    name: str
    owner: str
    since: int
    until: int | None = None


@dataclass(frozen=True, slots=True)
class History:
    """`spans` in the order in which they began; `heads` counts versions of the head; `problems` in words."""

    spans: tuple[Span, ...]
    heads: int
    problems: tuple[str, ...]


def read(log: Path, start: int = 0) -> list[Entry]:
    """The log's writes to the ledger from byte `start` on, which is the end of a line (the log's size earlier)."""
    with log.open("rb") as file:
        file.seek(start)
        # Most lines are of other resources: reading them as JSON would take most of the time.
        lines = [line for line in file if any(b'"%s"' % name.encode() in line for name in _RESOURCES)]
    entries = (json.loads(line) for line in lines)
    return [
        entry
        for entry in entries
        if (entry.get("objectRef") or {}).get("resource") in _RESOURCES
        and "dryRun=" not in entry["requestURI"]
    ]


def replay(entries: Iterable[Entry], before: Iterable[Object] = ()) -> History:
    """The history that `entries` tell; `before` are the allocations and the head that existed at their beginning."""
    replayed = _Replay()
    for obj in before:
        replayed.found(obj)
    for at, entry in _in_order(entries):
        replayed.step(at, entry)
    return History(
        tuple(replayed.ended + list(replayed.live.values())), replayed.heads, tuple(replayed.problems)
    )


def _in_order(entries: Iterable[Entry]) -> Iterator[tuple[int, Entry]]:
    """By resourceVersion. A deletion has none of its own: it comes after what was asked before it."""
    placed, latest = [], 0
    for entry in sorted(entries, key=lambda entry: str(entry["requestReceivedTimestamp"])):
        metadata = (entry.get("responseObject") or {}).get("metadata") or {}
        at = int(metadata.get("resourceVersion") or latest)
        latest = max(latest, at)
        placed.append((at, entry))
    yield from sorted(placed, key=lambda item: item[0])


@dataclass(slots=True)
class _Replay:
    """The ledger as it was after each write."""

    head: Head = field(default_factory=Head)
    heads: int = 0
    specs: dict[str, Object] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    live: dict[str, Span] = field(default_factory=dict)
    ended: list[Span] = field(default_factory=list)
    past: set[str] = field(default_factory=set)
    unanswered: dict[str, Object] = field(default_factory=dict)
    """What creates asked for that the API server may have carried out without saying so."""
    problems: list[str] = field(default_factory=list)

    def found(self, obj: Object) -> None:
        """Take over an object that existed before."""
        if obj["kind"] == "GpuLedger":
            self.head, self.heads = Head.from_spec(obj["spec"]), 1
        else:
            self._allocation(obj)
        for name in self._live_names():
            self.live.setdefault(name, Span(name, _owner(self.specs[name]), 0))

    def step(self, at: int, entry: Entry) -> None:
        """One write."""
        code = int((entry.get("responseStatus") or {}).get("code") or 0)
        ref, verb = entry["objectRef"], entry["verb"]
        is_head = ref["resource"] == "gpuledgers"
        if not 200 <= code < 300:
            if verb == "create" and not is_head and (code == 0 or code >= 500):
                asked = entry["requestObject"]
                self.unanswered[asked["metadata"]["name"]] = asked
            return
        by_controller = entry["user"]["username"] == CONTROLLER_USER
        if verb in _REMOVALS:
            gone = self._remove(ref, is_head)
            self._changed(at, f"{verb} of {gone}", allowed=not by_controller)
        elif is_head:
            self._head(at, Head.from_spec(entry["responseObject"]["spec"]), is_new=verb == "create")
        else:
            name = entry["responseObject"]["metadata"]["name"]
            was_live = name in self.live
            self._allocation(entry["responseObject"])
            # The mark of a grant that is released in the same plan may come after its release; it changes nothing.
            if self.marks[name] and not was_live and name not in self.head.released:
                self.problems.append(f"at {at}: {name} was marked, but the head had not committed it")
            self._changed(at, f"{verb} of {name}")

    def _head(self, at: int, new: Head, *, is_new: bool) -> None:
        old = Head() if is_new else self.head
        committed, released = set(new.committed) - set(old.committed), new.released - old.released
        if new.epoch < old.epoch:
            self.problems.append(f"at {at}: epoch {old.epoch} became {new.epoch}")
        if new.holder != old.holder and new.epoch <= old.epoch:
            self.problems.append(f"at {at}: {new.holder} took over without raising epoch {old.epoch}")
        if new.sequence < old.sequence:
            self.problems.append(f"at {at}: sequence {old.sequence} became {new.sequence}")
        if new.sequence == old.sequence and committed | released:
            self.problems.append(f"at {at}: a commit left the sequence at {old.sequence}")
        for name in sorted(committed):
            if name not in self.specs and name in self.unanswered:
                self._allocation(self.unanswered[name])
            if name not in self.specs:
                self.problems.append(f"at {at}: the head committed {name}, which did not exist")
            elif self.specs[name]["epoch"] != new.epoch:
                was = self.specs[name]["epoch"]
                self.problems.append(f"at {at}: {name} of epoch {was} was committed in epoch {new.epoch}")
            if new.committed[name] != new.sequence:
                self.problems.append(
                    f"at {at}: {name} was committed as {new.committed[name]} by {new.sequence}"
                )
        self.head, self.heads = new, self.heads + 1
        self._changed(at, "a write of the head")

    def _allocation(self, obj: Object) -> None:
        name, mark = obj["metadata"]["name"], int((obj.get("status") or {}).get("sequence") or 0)
        sequence = self.head.committed.get(name)
        if mark and sequence not in (None, mark):
            self.problems.append(f"{name} was marked {mark}, the head committed it as {sequence}")
        self.specs[name], self.marks[name] = obj["spec"], mark

    def _remove(self, ref: Mapping[str, Any], is_head: bool) -> str:
        if is_head:
            self.head = Head()
            return "the head"
        names = [ref["name"]] if "name" in ref else list(self.specs)
        for name in names:
            self.specs.pop(name, None)
        return ", ".join(names) or "nothing"

    def _live_names(self) -> set[str]:
        return {name for name in self.specs if is_live(self.head, name, self.marks[name])}

    def _changed(self, at: int, by: str, *, allowed: bool = False) -> None:
        """Compare what is live now with what was; `allowed`: an administrator may end grants by force."""
        now = self._live_names()
        for name in sorted(set(self.live) - now):
            if name not in self.head.released and not allowed:
                self.problems.append(f"at {at}: {name} ended by {by}, it was never released")
            span = self.live.pop(name)
            self.ended.append(Span(name, span.owner, span.since, at))
            self.past.add(name)
        begun = sorted(now - set(self.live))
        for name in begun:
            if name in self.past:
                self.problems.append(f"at {at}: {name} came back by {by}")
            self.live[name] = Span(name, _owner(self.specs[name]), at)
        if begun:
            self._overlaps(at, set(begun))

    def _overlaps(self, at: int, begun: set[str]) -> None:
        holders: dict[tuple[str, str], list[tuple[str, int, str]]] = defaultdict(list)
        for name in self.live:
            spec = self.specs[name]
            for grant in spec["grants"]:
                for device in grant.get("devices") or ():
                    part = grant["parts"] // grant["count"]
                    holders[(spec.get("node") or "", device)].append((name, part, grant["resource"]))
        for (node, device), users in sorted(holders.items()):
            names = sorted({name for name, _, _ in users})
            if not begun & set(names):
                continue  # told when it began
            if sum(part for _, part, _ in users) > PARTS_PER_GPU:
                self.problems.append(
                    f"at {at}: {device} on {node} is granted beyond one GPU: {', '.join(names)}"
                )
            elif len({resource for _, _, resource in users}) > 1:
                self.problems.append(
                    f"at {at}: {device} on {node} is granted in two ways: {', '.join(names)}"
                )
        owners = defaultdict(list)
        for name, span in self.live.items():
            owners[span.owner].append(name)
        for owner, names in sorted(owners.items()):
            if len(names) > 1 and begun & set(names):
                self.problems.append(f"at {at}: {owner} has several grants: {', '.join(sorted(names))}")


def _owner(spec: Object) -> str:
    owner = spec["owner"]
    return f"{owner['kind']} {owner['namespace']}/{owner['name']} ({owner['uid']})"
