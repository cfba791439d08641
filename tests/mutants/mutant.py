"""Seeded bugs: what a patch file says, and the source with it.

A patch is a unified diff under a header::

    Bug: the head is replaced whatever its resourceVersion is
    Caught by: tests/kube/test_executor.py::test_of_two_that_swap_at_once_one_wins
    Needs: cluster

    --- a/vmtenancy/kube/client.py
    +++ b/vmtenancy/kube/client.py
    @@ ...

`Needs: cluster` is left out where the test is pure. Line numbers mean nothing: the lines that a hunk shows must be in
the file exactly once, so a patch goes on applying while the code around it moves, and never applies somewhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


class PatchError(Exception):
    """A patch file that is not one, or does not apply."""


@dataclass(frozen=True)
class Hunk:
    path: str
    """Relative to the project's root."""
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    name: str
    bug: str
    test: str
    """The pytest node id of the test that must fail."""
    cluster: bool
    """Whether that test needs the built control plane."""
    hunks: tuple[Hunk, ...]

    def applied(self, root: Path) -> Mapping[Path, str]:
        """The text of every file that it changes, with the bug. Raises `PatchError`."""
        texts: dict[Path, str] = {}
        for hunk in self.hunks:
            path = root / hunk.path
            if path not in texts:
                if not path.is_file():
                    raise PatchError(f"{self.name}: there is no {hunk.path}")
                texts[path] = path.read_text()
            found = texts[path].count(hunk.old)
            if found != 1:
                raise PatchError(f"{self.name}: its lines are in {hunk.path} {found} times, not once")
            texts[path] = texts[path].replace(hunk.old, hunk.new)
        return texts


def load(path: Path) -> Mutant:
    """Read a patch file. Raises `PatchError`."""
    header, _, diff = path.read_text().partition("\n\n")
    fields = dict(line.partition(": ")[::2] for line in header.splitlines())
    if missing := {"Bug", "Caught by"} - fields.keys():
        raise PatchError(f"{path.name}: no line '{min(missing)}: ...'")
    if unknown := fields.items() - {
        ("Bug", fields["Bug"]),
        ("Caught by", fields["Caught by"]),
        ("Needs", "cluster"),
    }:
        raise PatchError(f"{path.name}: header not understood: {unknown}")
    hunks = tuple(_hunks(path.name, diff))
    if not hunks or any(hunk.old == hunk.new or not hunk.old for hunk in hunks):
        raise PatchError(f"{path.name}: changes nothing, or shows no line of what is there")
    return Mutant(path.stem, fields["Bug"], fields["Caught by"], "Needs" in fields, hunks)


def load_all(folder: Path = FOLDER) -> list[Mutant]:
    """Every patch of a folder, in the order of names. Raises `PatchError`."""
    return [load(path) for path in sorted(folder.glob("*.patch"))]


def _hunks(name: str, diff: str) -> Iterator[Hunk]:
    path, old, new = "", "", ""
    for line in [*diff.splitlines(keepends=True), "@@"]:
        match line[:1], line[1:]:
            case "@", _:
                if old or new:
                    yield Hunk(path, old, new)
                old, new = "", ""
            case (("-" | "+"), rest) if line.startswith(("--- a/", "+++ b/")):
                if old or new:
                    yield Hunk(path, old, new)
                path, old, new = rest.split("/", 1)[1].strip(), "", ""
            case "-", rest:
                old += rest
            case "+", rest:
                new += rest
            case ((" " | "\n"), rest):
                old += rest or "\n"
                new += rest or "\n"
            case _:
                raise PatchError(f"{name}: no line of a unified diff: {line.rstrip()}")
