"""Supervised programs: readiness, restarts, and nothing left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmtenancy.testing.process import Process, ProcessError, free_port, http_ok
from vmtenancy.testing.waiting import eventually

# Starts a child of its own, writes both process ids to a file and waits.
PARENT = (
    "import os, subprocess, sys, time\n"
    "child = subprocess.Popen(['sleep', '600'])\n"
    "open(sys.argv[1], 'w').write(f'{os.getpid()} {child.pid}\\n')\n"
    "time.sleep(600)\n"
)


def exists(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet is gone all the same."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(path: Path) -> list[int]:
    eventually("process ids written", lambda: path.exists() and path.read_text().endswith("\n"))
    return [int(pid) for pid in path.read_text().split()]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Process]:
    process = Process(
        "parent", [sys.executable, "-c", PARENT, tmp_path / "pids"], log=tmp_path / "parent.log"
    )
    process.start()
    yield process
    process.stop(grace_s=0)


def test_stop_takes_the_whole_group(running: Process, tmp_path: Path) -> None:
    family = pids(tmp_path / "pids")
    assert all(map(exists, family))
    running.stop()
    assert not running.alive
    eventually("all gone", lambda: not any(map(exists, family)))


def test_a_killed_owner_leaves_no_program(tmp_path: Path) -> None:
    owner = (
        "import pathlib, sys, time\n"
        "from vmtenancy.testing.process import Process\n"
        "p = Process('sleeper', ['sleep', '600'], log=pathlib.Path(sys.argv[1]) / 'log')\n"
        "p.start(); print(p.pid, flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", owner, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        pid = int(killed.stdout.readline())
        assert exists(pid)
        killed.kill()
    eventually("program gone", lambda: not exists(pid))


def test_exit_before_ready_shows_the_log(tmp_path: Path) -> None:
    process = Process("broken", ["sh", "-c", "echo no such flag; exit 3"], log=tmp_path / "broken.log")
    process.start()
    with pytest.raises(ProcessError, match=r"broken exited \(3\) before ready; .*\nno such flag"):
        process.wait_ready(lambda: False, 30, "ready")


def test_deadline_names_what_was_waited_for(running: Process) -> None:
    with pytest.raises(ProcessError, match=r"parent: not serving after 0.1 s"):
        running.wait_ready(lambda: False, 0.1, "serving")


def test_missing_program_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match=r"ghost can not be started: .*no-such-program"):
        Process("ghost", [tmp_path / "no-such-program"], log=tmp_path / "log").start()


def test_restart_only_where_asked(tmp_path: Path) -> None:
    process = Process("flaky", ["sh", "-c", "echo run; exit 1"], log=tmp_path / "flaky.log", restart=True)
    process.start()
    eventually("restarted twice", lambda: process.restarts >= 2)
    process.stop()
    assert process.tail().count("run") >= 2
    assert not process.alive


def test_killed_program_comes_back_with_another_pid(tmp_path: Path) -> None:
    process = Process("sleeper", ["sleep", "600"], log=tmp_path / "log", restart=True)
    process.start()
    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    eventually("running again", lambda: process.pid not in (None, first))
    process.stop()
    assert process.pid is None


def test_http_ok_until_served(tmp_path: Path) -> None:
    port = free_port()
    ready = http_ok(f"http://127.0.0.1:{port}/")
    assert not ready()
    server = Process(
        "server",
        [sys.executable, "-m", "http.server", "--bind=127.0.0.1", f"--directory={tmp_path}", str(port)],
        log=tmp_path / "server.log",
    )
    server.start()
    server.wait_ready(ready, 30, "serving")
    assert not http_ok(f"http://127.0.0.1:{port}/missing")()
    server.stop()
