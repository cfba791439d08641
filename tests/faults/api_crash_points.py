"""`make crash-points`: every write of every scenario, struck in every way, on a real API server.

Prints `name: N points, M violations` per scenario and for all of them; the exit status is 1 if there is a violation.
`CRASH_POINTS_SHARD=2/6` takes the second of six parts. Names of scenarios as arguments: only those.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from api_scenarios import SCENARIOS
from arena import arena, arena_plane
from points import BrokenError, Chosen, Tally, Walks, shard

from vmtenancy.testing.cluster import Cluster

#: A scenario that breaks so often is given up.
_MOST_VIOLATIONS: Final = 5

Tell = Callable[[str], None]


def play_all(names: Iterable[str], walks: Callable[[str], Walks], tell: Tell = print) -> dict[str, Tally]:
    """Play these scenarios. After a violation everything begins anew on another control plane."""
    waiting = [(name, walks(name)) for name in names]
    tallies: dict[str, Tally] = {}
    while waiting:
        with arena_plane() as cluster, tempfile.TemporaryDirectory() as folder:
            tallies |= asyncio.run(_play_on(cluster, Path(folder), waiting, tell))
    return tallies


async def _play_on(
    cluster: Cluster, folder: Path, waiting: list[tuple[str, Walks]], tell: Tell
) -> Mapping[str, Tally]:
    """Play until nothing waits, or something breaks. What is through."""
    done: dict[str, Tally] = {}
    async with arena(cluster, folder) as made:
        while waiting:
            name, walk = waiting[0]
            try:
                await walk.play(made)
            except BrokenError as error:
                tell(f"{name}: VIOLATION: {error}")
                if len(walk.tally.violations) < _MOST_VIOLATIONS:
                    return done
            done[waiting.pop(0)[0]] = walk.tally
            if missed := walk.tally.missed:
                writes = ", ".join(sorted({point.write for point in missed}))
                tell(f"{name}: not struck {len(missed)} times, as timing made no such write again: {writes}")
            tell(f"{name}: {summary([walk.tally])}")
            if walk.tally.violations:
                return done
    return done


def summary(tallies: Iterable[Tally]) -> str:
    """`N points, M violations`."""
    tallies = list(tallies)
    violations = sum(len(tally.violations) for tally in tallies)
    return f"{sum(tally.points for tally in tallies)} points, {violations} violations"


def chosen_shard() -> Chosen:
    """The part of all points that this run is asked for. Raises `SystemExit`."""
    text = os.environ.get("CRASH_POINTS_SHARD", "1/1")
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        sys.exit(f"CRASH_POINTS_SHARD: found {text!r}, expected i/n with 1 <= i <= n")
    return shard(int(number) - 1, int(of))


def main() -> None:
    """Run it."""
    names = sys.argv[1:] or list(SCENARIOS)
    if unknown := [name for name in names if name not in SCENARIOS]:
        sys.exit(f"no scenario {unknown[0]!r}, expected one of: {', '.join(SCENARIOS)}")
    logging.disable(logging.ERROR)  # of requests that fail: that is what this is about
    chosen, started = chosen_shard(), time.monotonic()
    tell: Tell = lambda line: print(line, flush=True)  # noqa: E731
    tallies = play_all(names, lambda name: Walks(SCENARIOS[name], chosen=chosen), tell)
    tell(f"took {time.monotonic() - started:.0f} s")
    tell(summary(tallies.values()))
    if any(tally.violations for tally in tallies.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
