"""`python _stepped.py FILE MODULE ARG…`: `python -m MODULE ARG…`, with the seconds in FILE added to the wall clock.

Run as a file and free of imports from vmtenancy: the clock must be changed before any other module reads it.
"""

import mmap
import runpy
import struct
import sys
import time
from pathlib import Path

FORMAT = "d"


def _main() -> None:
    # sys.path begins with this folder, whose modules nobody is to find under their bare names.
    sys.path[0] = str(Path.cwd())
    _, file, module, *sys.argv[1:] = sys.argv
    with Path(file).open("rb") as opened:
        offset = mmap.mmap(opened.fileno(), struct.calcsize(FORMAT), access=mmap.ACCESS_READ)
    real_ns = time.time_ns

    def time_ns() -> int:
        seconds: float = struct.unpack(FORMAT, offset[:])[0]
        return real_ns() + round(seconds * 1e9)

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
