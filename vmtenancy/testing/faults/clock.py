"""Wall clocks that jump, for one process.

Linux gives no process a wall clock of its own (time namespaces cover only the monotonic clocks), and stepping the
machine's would hit everything on it. So the step is made where Python reads the wall clock: `time.time` and
`time.time_ns`, which is all that vmtenancy decides by. The monotonic clock is left alone, as in a real step.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from vmtenancy.testing.faults import _stepped


class SteppedClock:
    """The wall clock of the Python processes started with `command`, this machine's plus what `step` added."""

    def __init__(self, folder: Path) -> None:
        """`folder` gets the file through which the processes learn of steps."""
        self._file = folder / "clock"
        self._offset_s = 0.0
        self._file.write_bytes(struct.pack(_stepped.FORMAT, self._offset_s))

    def step(self, seconds: float) -> None:
        """Jump forward, or back where negative; at once, in all processes of this clock."""
        self._offset_s += seconds
        with self._file.open("r+b") as file:  # in place: the processes have it mapped
            file.write(struct.pack(_stepped.FORMAT, self._offset_s))

    def command(self, module: str, *args: str | Path) -> Sequence[str]:
        """Like `python -m module args`, by this clock."""
        return [sys.executable, _stepped.__file__, str(self._file), module, *map(str, args)]
