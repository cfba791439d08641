"""`make mutants`: puts each seeded bug into a copy of the project and asks the test that must catch it.

Prints a line per bug (`caught`, `SURVIVED`, `does not apply`, `NO VERDICT`) and at last `caught N/M`; exits with 1
unless all are caught. First every named test is run without any bug: one that fails there can not catch anything.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mutant import FOLDER, ROOT, Mutant, PatchError, load_all

PURE_LIMIT_S = 120
CLUSTER_LIMIT_S = 400
JOBS = 2


@dataclass(frozen=True)
class Verdict:
    word: str
    took_s: float = 0.0
    reason: str = ""


class Tree:
    """A copy of the project whose `vmtenancy` is the one that tests import."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.root = folder
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".*", "__pycache__"))

    def pytest(self, tests: Sequence[str], limit_s: float) -> tuple[int, str]:
        """Exit status and output; -1 where it did not end. `limit_s` is per test."""
        whole_s = limit_s * (1 + len(tests))
        options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-o", f"timeout={limit_s:g}"]
        options.append("--hypothesis-profile=first-failure")
        line = [sys.executable, "-m", "pytest", *options, *tests]
        env = {**os.environ, "PYTHONPATH": str(self.root)}
        try:
            done = subprocess.run(
                line, cwd=self.root, env=env, capture_output=True, text=True, check=False, timeout=whole_s
            )
        except subprocess.TimeoutExpired:
            return -1, f"did not end in {whole_s:g} s"
        return done.returncode, done.stdout + done.stderr

    def judge(self, mutant: Mutant) -> Verdict:
        """Whether its test fails with the bug; the copy is as before afterwards."""
        started = time.monotonic()
        try:
            texts = mutant.applied(self.root)
        except PatchError as error:
            return Verdict("does not apply", 0.0, str(error))
        before = {path: path.read_text() for path in texts}
        try:
            for path, text in texts.items():
                _write(path, text)
            status, said = self.pytest([mutant.test], CLUSTER_LIMIT_S if mutant.cluster else PURE_LIMIT_S)
        finally:
            for path, text in before.items():
                _write(path, text)
        took_s = time.monotonic() - started
        if status == 0:
            return Verdict("SURVIVED", took_s, mutant.test)
        # An error before the test (nothing can be imported, no such test, no control plane) shows nothing.
        if status == 1 and re.search(r"^\d+ failed|, \d+ failed", said, re.MULTILINE):
            return Verdict("caught", took_s)
        return Verdict("NO VERDICT", took_s, said[-2000:])


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    # Compiled files are trusted by size and seconds: both may be those of the text before.
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()


def run(mutants: Sequence[Mutant], source: Path) -> bool:
    """Judge them all, printing as it goes; whether every one was caught."""
    pure, cluster = ([m for m in mutants if m.cluster is needs] for needs in (False, True))
    caught = 0
    with tempfile.TemporaryDirectory(prefix="vmtenancy-mutants-") as scratch:
        trees: queue.Queue[Tree] = queue.Queue()
        for number in range(JOBS):
            trees.put(Tree(source, Path(scratch, str(number))))
        tree = trees.get()
        for group, limit_s in ((pure, PURE_LIMIT_S), (cluster, CLUSTER_LIMIT_S)):
            status, said = tree.pytest(sorted({m.test for m in group}), limit_s) if group else (0, "")
            if status != 0:
                print(f"{said[-4000:]}\nthe tests do not pass without any bug")
                return False
        trees.put(tree)

        def judge(mutant: Mutant) -> Verdict:
            tree = trees.get()
            try:
                return tree.judge(mutant)
            finally:
                trees.put(tree)

        for group, jobs in ((pure, JOBS), (cluster, 1)):
            with ThreadPoolExecutor(jobs) as pool:
                for mutant, verdict in zip(group, pool.map(judge, group), strict=True):
                    caught += verdict.word == "caught"
                    print(
                        f"{verdict.word:14} {verdict.took_s:5.1f} s  {mutant.name}: {mutant.bug}", flush=True
                    )
                    if verdict.reason:
                        print(textwrap.indent(verdict.reason, " " * 15), flush=True)
    print(f"caught {caught}/{len(mutants)}")
    return caught == len(mutants)


def main() -> int:
    """Command line: all of them, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="patches by name, without .patch; all when left out")
    wanted = set(parser.parse_args().names)
    mutants = load_all(FOLDER)
    if unknown := wanted - {mutant.name for mutant in mutants}:
        parser.error(f"no such patch: {', '.join(sorted(unknown))}")
    return 0 if run([m for m in mutants if not wanted or m.name in wanted], ROOT) else 1


if __name__ == "__main__":
    sys.exit(main())
