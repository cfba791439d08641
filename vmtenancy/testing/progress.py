"""Long builds that say what they are doing: one live line on a terminal, a line now and then elsewhere."""

import collections
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

LOG_EVERY_S = 15.0


def run_with_progress(
    title: str, command: Sequence[str], *, cwd: Path, env: Mapping[str, str]
) -> tuple[int, list[str]]:
    """Run a command and report on stderr: title, seconds, lines of output so far and the last of them.

    Returns the exit status and the last 30 lines of its output (stdout and stderr together).
    """
    live = sys.stderr.isatty()
    started = time.monotonic()
    tail: collections.deque[str] = collections.deque(maxlen=30)
    count = 0
    process = subprocess.Popen(
        command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )

    def read() -> None:
        nonlocal count
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line.rstrip())
            count += not line.startswith("go: ")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def report(end: str) -> None:
        seconds = time.monotonic() - started
        last = f": {tail[-1][:60]}" if tail else ""
        text = f"{title} {seconds:.0f} s, {count} packages{last}"
        print(f"\r\x1b[2K{text[:110]}" if live else text, end=end, file=sys.stderr, flush=True)

    try:
        while True:
            reader.join(0.5 if live else LOG_EVERY_S)
            if not reader.is_alive():
                break
            report("" if live else "\n")
        rc = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    verdict = "done" if rc == 0 else f"failed ({rc})"
    line = f"{title} {verdict} in {time.monotonic() - started:.0f} s"
    print(f"\r\x1b[2K{line}" if live else line, file=sys.stderr, flush=True)
    return rc, list(tail)
