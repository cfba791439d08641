"""Programs under supervision: started in their own process group, logged to a file, never left behind.

Each program is forked by a thread of its own that lives as long as the program: the kernel's parent-death
signal (``PR_SET_PDEATHSIG``) is tied to the forking thread, and it is what makes a killed pytest take its
children along.
"""

import contextlib
import ctypes
import functools
import os
import random
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.testing.waiting import eventually

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_RESTART_DELAY_S = 0.5


class ProcessError(VmtError):
    """A program did not start, exited or did not become ready; the message ends with its log's last lines."""

    def __init__(self, message: str) -> None:
        super().__init__(Problem(Code.COMPONENT, "", message))


def _die_with(parent: int) -> None:
    """Runs in the child, between fork and exec."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked to be told
        os._exit(1)


class Process:
    """One program. With ``restart``, it is started again whenever it exits on its own."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        restart: bool = False,
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self.restarts = 0
        self._env = dict(env) if env is not None else None
        self._cwd = cwd
        self._restart = restart
        self._process: subprocess.Popen[bytes] | None = None
        self._launch_error: Exception | None = None
        self._forked = threading.Event()
        self._stopping = threading.Event()
        self._supervisor: threading.Thread | None = None

    def start(self) -> None:
        """Start the program, also again after ``stop``; returns once it is forked.

        Raises ``ProcessError`` if it can not be run.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._process = None
        self._forked.clear()
        self._stopping.clear()
        self._supervisor = threading.Thread(
            target=self._supervise, name=f"supervise {self.name}", daemon=True
        )
        self._supervisor.start()
        self._forked.wait()
        if self._launch_error is not None:
            raise ProcessError(f"{self.name} can not be started: {self._launch_error}")

    def stop(self, grace_s: float = 5.0) -> None:
        """Stop the program and its process group: SIGTERM, then SIGKILL after ``grace_s`` seconds."""
        self.terminate()
        if self._supervisor is None or self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        self.signal(signal.SIGKILL)  # the group: children of a program that exited in time, too
        self._supervisor.join()

    def terminate(self) -> None:
        """Ask the program to stop, without waiting; it will not be restarted."""
        self._stopping.set()
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program's process group; nothing happens if it is gone."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    @property
    def pid(self) -> int | None:
        """Process id of the running program, ``None`` when it is not running."""
        return self._process.pid if self._process is not None and self.alive else None

    @property
    def alive(self) -> bool:
        """Whether the program runs right now."""
        return self._process is not None and self._process.poll() is None

    def tail(self, lines: int = 25) -> str:
        """The last lines of the program's log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_ready(self, ready: Callable[[], bool], deadline_s: float, what: str) -> None:
        """Wait until ``ready()`` holds.

        Raises ``ProcessError`` when the program exits first (unless it is restarted) or after ``deadline_s``
        seconds; ``what`` says in the message what was waited for.
        """
        end = time.monotonic() + deadline_s
        while not ready():
            if not self.alive and not self._restart:
                status = self._process.returncode if self._process is not None else None
                raise ProcessError(f"{self.name} exited ({status}) before {what}; {self._log_excerpt()}")
            if time.monotonic() > end:
                raise ProcessError(f"{self.name}: not {what} after {deadline_s:g} s; {self._log_excerpt()}")
            time.sleep(0.05)

    def _log_excerpt(self) -> str:
        return f"last lines of {self.log}:\n{self.tail()}"

    def _supervise(self) -> None:
        with self.log.open("ab") as log:
            while True:
                try:
                    process = subprocess.Popen(
                        self.command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=self._env,
                        cwd=self._cwd,
                        start_new_session=True,
                        preexec_fn=functools.partial(_die_with, os.getpid()),  # noqa: PLW1509 (two system calls)
                    )
                except (OSError, subprocess.SubprocessError) as error:
                    self._launch_error = error
                    self._forked.set()
                    return
                self.restarts += self._process is not None
                self._process = process
                self._forked.set()
                if self._stopping.is_set():
                    self.signal(signal.SIGKILL)  # stop() came between two runs
                process.wait()
                if not self._restart or self._stopping.wait(_RESTART_DELAY_S):
                    return


@contextlib.contextmanager
def paused(process: Process) -> Iterator[None]:
    """The process group stands still (SIGSTOP) while the block runs, and goes on after it (SIGCONT).

    Of etcd: requests hang. Of a controller: its Lease runs out, another takes over, and it wakes in the middle of what
    it was doing. Raises ``ProcessError`` if the program is not running.
    """
    if not process.alive:
        raise ProcessError(f"{process.name} is not running and can not be paused")
    process.signal(signal.SIGSTOP)
    try:
        eventually(f"{process.name} stands still", lambda: _stands_still(process.pid), 10.0)
        yield
    finally:
        process.signal(signal.SIGCONT)


def _stands_still(pid: int | None) -> bool:
    """Whether all threads of a process are stopped."""
    threads = list(Path(f"/proc/{pid}/task").glob("*/stat"))
    # pid (name) state ...: the name may hold anything, and ends with the last bracket.
    return bool(threads) and all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in threads)


def free_port() -> int:
    """A loopback TCP port nobody listens on, below the range used for outgoing connections."""
    for _ in range(200):
        port = random.randint(15000, 32000)  # noqa: S311 (not a secret)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ProcessError("no free TCP port between 15000 and 32000 on 127.0.0.1")


def http_ok(url: str, context: ssl.SSLContext | None = None) -> Callable[[], bool]:
    """A readiness predicate: a GET on ``url`` answers 200."""

    https = urllib.request.HTTPSHandler(context=context)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), https)

    def ready() -> bool:
        try:
            with opener.open(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    return ready
