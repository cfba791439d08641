"""The head of the ledger: the one small object whose compare-and-swap makes grants live or ends them.

An allocation object means nothing by itself. It is *live* once the head lists its name as committed, or once
it carries the sequence number that proves it was (the mark), and until the head lists it as released. A name
stands for one grant only: it carries the epoch and the sequence of its commit, and a digest. Everything
here is pure; the caller writes the returned head with the resourceVersion of the one it read. The argument
for the protocol is in docs/adr/0001-ledger-commit-protocol.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vmtenancy.errors import Code, Problem, VmtError

#: Most entries in each log: about 350 KB of JSON, well under what etcd takes as one object.
MAX_LOG = 4096


@dataclass(frozen=True, slots=True)
class Head:
    """`epoch` counts controllers that took over, `sequence` counts commits.

    `committed` maps the name of an allocation to the sequence of its commit.
    """

    epoch: int = 0
    holder: str = ""
    sequence: int = 0
    committed: Mapping[str, int] = field(default_factory=dict)
    released: frozenset[str] = frozenset()

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Head:
        """Read `GpuLedger.spec`."""
        return cls(
            epoch=spec["epoch"],
            holder=spec["holder"],
            sequence=spec["sequence"],
            committed={entry["name"]: entry["sequence"] for entry in spec.get("committed", ())},
            released=frozenset(spec.get("released", ())),
        )

    def still_grants(self, epoch: int, name: str) -> bool:
        """Whether nobody has taken over since `epoch`, and an allocation that was live then has not been released."""
        return self.epoch == epoch and name not in self.released

    def to_spec(self) -> dict[str, Any]:
        """Write `GpuLedger.spec`, in a canonical order."""
        return {
            "epoch": self.epoch,
            "holder": self.holder,
            "sequence": self.sequence,
            "committed": [
                {"name": name, "sequence": sequence}
                for name, sequence in sorted(self.committed.items(), key=lambda item: (item[1], item[0]))
            ],
            "released": sorted(self.released),
        }


def take_over(head: Head, holder: str) -> Head:
    """What a new leader writes before anything else: from then on an older one's commit conflicts (I8)."""
    return replace(head, epoch=head.epoch + 1, holder=holder)


def is_live(head: Head, name: str, mark: int) -> bool:
    """Whether the allocation of this name and mark (its `status.sequence`, 0 if none) is granted."""
    return name not in head.released and (mark > 0 or name in head.committed)


def commit(head: Head, *, grants: Iterable[str] = (), releases: Iterable[str] = ()) -> Head:
    """One batch: `grants` become live and `releases` end, all or nothing.

    Raises `VmtError` (LEDGER) where a name is granted twice, granted after its release, or a log would
    overflow.
    """
    new, ended = list(grants), frozenset(releases)
    twice = [name for name in new if name in head.committed or name in head.released or name in ended]
    if twice or len(set(new)) != len(new):
        found = ", ".join(twice) or ", ".join(new)
        raise VmtError(Problem(Code.LEDGER, "", "an allocation can be committed once only", found=found))
    sequence = head.sequence + 1
    committed = {name: seq for name, seq in head.committed.items() if name not in ended}
    committed |= dict.fromkeys(new, sequence)
    released = head.released | ended
    longest = max(len(committed), len(released))
    if longest > MAX_LOG:
        raise VmtError(
            Problem(Code.LEDGER, "", "the log of the head is full", f"{longest} entries", f"{MAX_LOG}")
        )
    return replace(head, sequence=sequence, committed=committed, released=released)


def trim(head: Head, *, marked: Collection[str], existing: Collection[str]) -> Head:
    """Forget what the objects themselves now say.

    `marked`: names of allocations that carry their sequence; they need no entry. `existing`: names of all
    allocation objects there are; a released one that is gone can not come back, and a committed one whose
    object is gone has nothing left that it could describe.
    """
    return replace(
        head,
        committed={n: seq for n, seq in head.committed.items() if n not in marked and n in existing},
        released=frozenset(n for n in head.released if n in existing),
    )


def room(head: Head) -> int:
    """How many grants, and how many releases, still fit into the logs."""
    return MAX_LOG - max(len(head.committed), len(head.released))
