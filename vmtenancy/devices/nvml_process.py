"""NVML from outside: a child process with a deadline, killed when a call hangs and started anew.

A driver in trouble may block a call for ever. The child tells before each GPU which one it reads, so the one that it
hung on is known: another child asks the others, and that one is asked last from then on.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

Answers = dict[str, Any]

#: Why NVML as a whole does not answer: the reasons of the condition `NvmlAnswers`.
LIBRARY_NOT_FOUND: Final = "LibraryNotFound"
DRIVER_NOT_LOADED: Final = "DriverNotLoaded"
INITIALISATION_FAILED: Final = "InitializationFailed"
HANGS: Final = "CallHangs"
DIED: Final = "ProcessDied"
_REASONS: Final = {9: DRIVER_NOT_LOADED, 12: LIBRARY_NOT_FOUND}

_KILL_S: Final = 2.0
#: For the child to be there, before NVML has any part in it.
_START_S: Final = 60.0
#: How many deadlines NVML's initialisation may take.
_INITIALISATION: Final = 3
#: GPUs that are given up one after the other in one round.
_HUNG_MOST: Final = 16


@dataclass(slots=True)
class Reading:
    """What one round of questions brought, whole or not.

    `trouble` is `(reason, message)` where NVML as a whole did not answer to the end; `stuck` is the GPU whose turn
    it was then.
    """

    system: Answers = field(default_factory=dict)
    devices: list[Answers] = field(default_factory=list)
    samples: list[Answers] = field(default_factory=list)
    trouble: tuple[str, str] | None = None
    stuck: str = ""


class NvmlProcess:
    """The child and its deadline. Any thread may ask; one question is out at a time.

    `on_event` is called, by a thread of this object's, with what the event set reports.
    """

    def __init__(self, deadline_s: float, on_event: Callable[[Answers], None] = lambda event: None) -> None:
        self._deadline_s = deadline_s
        self._on_event = on_event
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[Answers | None] = queue.SimpleQueue()
        self._number = 0
        self._unkillable: subprocess.Popen[str] | None = None
        self._stuck: set[str] = set()
        self._is_ready = False
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Of the child that runs, if one does."""
        return self._child.pid if self._child else None

    def facts(self) -> Reading:
        """All facts, GPU by GPU. One that hangs costs its deadline, and is not asked again this time."""
        with self._lock:
            skip: set[str] = set()
            reading = self._ask("facts", skip)
            trouble = reading.trouble
            while reading.stuck and len(skip) < _HUNG_MOST:
                skip.add(reading.stuck)
                again = self._ask("facts", skip)
                if not again.system:  # not even that: what there is stands
                    break
                reading = again
            reading.trouble = trouble or reading.trouble
            self._stuck = skip
            return reading

    def samples(self) -> Reading:
        """Telemetry of all GPUs but the ones that hang."""
        with self._lock:
            reading = self._ask("samples", self._stuck)
            if reading.stuck:
                self._stuck.add(reading.stuck)
            return reading

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _ask(self, what: str, skip: Iterable[str]) -> Reading:
        reading = Reading()
        if not self._started():
            reading.trouble = HANGS, "the process that hangs in the driver can not be killed"
            return reading
        child = self._child
        assert child is not None and child.stdin is not None  # noqa: S101, PT018 - as `_started` leaves it
        self._number += 1
        said = False
        with suppress(OSError):  # it died: the end of its answers says so
            request = {"number": self._number, "ask": what, "last": sorted(self._stuck), "skip": sorted(skip)}
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
        while True:
            # Before it has said anything there is its start, then NVML's: that may wake all GPUs.
            deadline_s = self._deadline_s if said else _INITIALISATION * self._deadline_s
            try:
                line = self._lines.get(timeout=deadline_s if self._is_ready else _START_S)
            except queue.Empty:
                reading.trouble = HANGS, f"NVML did not answer within {deadline_s:g} s"
                self._end()
                return reading
            if line is None:
                self._end()
                reading.trouble = DIED, "the process that asks NVML died"
                return reading
            if "ready" in line:
                self._is_ready = True
            if line.get("number") != self._number:
                continue
            if "done" in line:
                return reading
            said = True
            self._take(reading, line)

    def _take(self, reading: Reading, line: Answers) -> None:
        if "failed" in line:
            reading.trouble = _REASONS.get(line["failed"], INITIALISATION_FAILED), str(line["message"])
        elif "system" in line:
            reading.system = line["system"]
        elif "reading" in line:
            reading.stuck = line["reading"] or ""
        elif "device" in line:
            reading.stuck = ""
            reading.devices.append(line["device"])
        elif "sample" in line:
            reading.stuck = ""
            reading.samples.append(line["sample"])

    # -- the child -------------------------------------------------------------------------------------------

    def _started(self) -> bool:
        """Have a child; False while an earlier one can not be killed: more of them would only pile up."""
        if self._child is not None:
            return True
        if self._unkillable is not None:
            if self._unkillable.poll() is None:
                return False
            self._unkillable = None
        root = str(Path(__file__).parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._child = subprocess.Popen(
            # Warnings: one of the packages that provide `pynvml` warns of itself.
            [sys.executable, "-W", "ignore", "-m", "vmtenancy.devices.nvml_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self.starts += 1
        self._is_ready = False
        self._lines = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(self._child, self._lines), daemon=True).start()
        return True

    def _listen(self, child: subprocess.Popen[str], lines: queue.SimpleQueue[Answers | None]) -> None:
        assert child.stdout is not None  # noqa: S101
        with suppress(ValueError):  # closed
            for text in child.stdout:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue  # cut off as it was killed
                if "event" in line:
                    self._on_event(line["event"])
                else:
                    lines.put(line)
        lines.put(None)

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        try:
            child.wait(_KILL_S)
        except subprocess.TimeoutExpired:  # in the driver, uninterruptible
            self._unkillable = child
        for stream in (child.stdin, child.stdout) if self._unkillable is None else ():
            with suppress(OSError):
                if stream is not None:
                    stream.close()
