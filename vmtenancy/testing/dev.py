"""A control plane that stays: what ``vmtenancy dev up``, ``status`` and ``down`` do.

``up`` starts a supervisor (this module, run as a program) in the background. It runs the control plane and
KubeVirt, holds a lock as long as it lives, and keeps ``state.json`` current. All its programs end with it.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmtenancy.errors import VmtError
from vmtenancy.testing import build
from vmtenancy.testing.process import Process, ProcessError
from vmtenancy.testing.waiting import eventually

START_DEADLINE_S = 180.0
STOP_DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """One program of the control plane; ``pid`` is ``None`` while it is down."""

    name: str
    pid: int | None
    restarts: int
    log: str


@dataclass(frozen=True, slots=True)
class Status:
    """State of the control plane; ``kubeconfig`` (a path) and ``url`` are empty until it is ready."""

    phase: Literal["Starting", "Ready", "Failed"]
    pid: int = 0
    """The supervisor's process id; 0 when it has only just been started."""
    url: str = ""
    kubeconfig: str = ""
    programs: tuple[ProgramStatus, ...] = ()
    error: str = ""


def state_dir() -> Path:
    """Where the control plane keeps its data, logs and kubeconfig while it is up."""
    return build.cache_dir() / "dev"


def up(*, kubevirt: bool = True, vcluster: bool = True) -> Status:
    """Start the control plane, or find it running; returns once it is ready.

    With ``kubevirt`` it has KubeVirt, with ``vcluster`` a node that runs the control planes of virtual clusters.
    What is missing is built first, with progress on stderr. Raises ``BuildError`` or ``ProcessError``.
    """
    wanted = [*(["kubevirt"] if kubevirt else []), *(["vcluster"] if vcluster else [])]
    for component in ("etcd", "kubernetes", "kwok", *wanted):
        build.resolve_all(component)
    supervisor = None if status() else _launch(wanted)
    end = time.monotonic() + START_DEADLINE_S
    while (state := status()) or (supervisor and supervisor.poll() is None):
        if state and state.phase == "Ready":
            return state
        if time.monotonic() > end:
            down()
            raise ProcessError(f"the development control plane is not ready after {START_DEADLINE_S:g} s")
        time.sleep(0.1)
    failed = _read()
    reason = failed.error if failed and failed.error else _log().read_text(errors="replace")[-2000:]
    raise ProcessError(f"the development control plane did not start: {reason}")


def status() -> Status | None:
    """State of the running control plane, ``None`` when there is none."""
    with _lock(0) as free:
        return None if free else _read() or Status("Starting")


def down() -> bool:
    """Stop the control plane and remove its data; ``False`` when there was none."""
    state = status()
    if state is not None and state.pid:
        _end(state.pid)
    shutil.rmtree(state_dir(), ignore_errors=True)
    return state is not None


def _launch(wanted: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", __name__, *wanted]
    with _log().open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def _end(supervisor: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):  # its programs die with it, either way
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, number)
        with contextlib.suppress(TimeoutError):
            eventually("supervisor is gone", lambda: status() is None, STOP_DEADLINE_S)
            return


@contextlib.contextmanager
def _lock(patience_s: float) -> Iterator[bool]:
    """Take the supervisor's lock for the ``with`` block; ``False`` if another holds it all the time."""
    path = build.cache_dir() / "dev.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:

        def taken() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        try:
            mine = eventually("lock is free", taken, patience_s)
        except TimeoutError:
            mine = False
        yield mine


def _log() -> Path:
    return build.cache_dir() / "dev.log"


def _read() -> Status | None:
    try:
        data = json.loads((state_dir() / "state.json").read_text())
    except FileNotFoundError:
        return None
    data["programs"] = tuple(ProgramStatus(**program) for program in data["programs"])
    return Status(**data)


def _write(state: Status) -> None:
    path = state_dir() / "state.json"
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(dataclasses.asdict(state), indent=1))
    scratch.rename(path)


def _serve(wanted: Collection[str]) -> None:
    """The supervisor: run everything until SIGTERM."""
    from vmtenancy.testing.controlplane import ControlPlane

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    state = Status("Starting", os.getpid())
    # Who asks for the status holds the lock for a moment.
    with _lock(2.0) as mine, contextlib.ExitStack() as running:
        if not mine:
            raise SystemExit("a development control plane is running already")
        shutil.rmtree(state_dir(), ignore_errors=True)
        state_dir().mkdir(parents=True)
        _write(state)
        try:
            cluster = running.enter_context(ControlPlane(state_dir()))
            processes = cluster.processes
            if "kubevirt" in wanted:
                from vmtenancy.testing.kubevirt import KubeVirt

                running.enter_context(KubeVirt(cluster))
            if "vcluster" in wanted:
                from vmtenancy.testing.vcluster import VClusterRunner

                running.enter_context(VClusterRunner(cluster))
        except (VmtError, subprocess.CalledProcessError) as error:
            _write(dataclasses.replace(state, phase="Failed", error=str(error)))
            raise SystemExit(1) from error
        state = Status("Ready", os.getpid(), cluster.url, str(cluster.kubeconfig))
        written = None
        while True:
            current = dataclasses.replace(state, programs=tuple(map(_program, processes)))
            if current != written:
                _write(current)
                written = current
            if stop.wait(1.0):
                break


def _program(process: Process) -> ProgramStatus:
    return ProgramStatus(process.name, process.pid, process.restarts, str(process.log))


if __name__ == "__main__":
    _serve(sys.argv[1:])
