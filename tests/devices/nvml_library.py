"""The stand-in for NVML (`nvml_stand_in.c`) as tests use it: built once, told what to answer, found by the loader."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("nvml_stand_in.c")

#: One GPU of an HGX H100 board with driver 570, as `INDEX.key` lines are made of it.
H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "memory": 85520809984,
    "architecture": 9,
    "capability": "9.0",
    "deviceId": "0x233010de",
    "virtualization": 0,
    "mig": 0,
    "remapFailed": 0,
    "retiredPages": "!3",
    "links": 18,
    "link.type": 2,
    "link.pci": "0000:05:00.0",
    "ancestor": 50,
    "fabric": f"3 0 {'0' * 32}",
    "power": 95000,
    "temperature": 34,
    "clock": 345,
    "utilization": 7,
    "used": 1 << 30,
}
SYSTEM = {"driver": "570.86.15", "nvml": "12.570.86.15", "cuda": 12080}
ADDRESSES = ("1b", "43", "52", "61", "9d", "c3", "d1", "df")


def board(gpus: int = 8, **changes: Any) -> dict[str, Any]:
    """Answers of a server with this many H100s, four on each socket; `changes` by key, `_` for `.`."""
    answers: dict[str, Any] = {**SYSTEM, "count": gpus} | {f"*.{key}": value for key, value in H100.items()}
    for index in range(gpus):
        answers[f"{index}.pci"] = f"0000:{ADDRESSES[index].upper()}:00.0"
        answers[f"{index}.uuid"] = f"GPU-5e2c9a10-0f6b-4f6e-9c47-0d9a7a7c0b{index:02d}"
        answers[f"{index}.serial"] = f"16528230{index:05d}"
        answers[f"{index}.moduleId"] = index + 1
        answers[f"{index}.memoryAffinity"] = 1 << (index // 4)
        for other in range(gpus):
            if other // 4 == index // 4:
                answers[f"{index}.ancestor.{other}"] = 40
    return answers | changes


def address(index: int) -> str:
    """Where a GPU of `board` is."""
    return f"0000:{ADDRESSES[index]}:00.0"


def build(folder: Path, *flags: str) -> Path:
    """Compile the library into a folder, which is what the loader needs: by the machine's compiler, or PyPI's."""
    compiler = ["cc"] if shutil.which("cc") else [sys.executable, "-m", "ziglang", "cc"]
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libnvidia-ml.so.1"
    command = [
        *compiler,
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        *flags,
        "-o",
        str(library),
        str(SOURCE),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder


class StandIn:
    """What the library answers; may be changed while a program runs. `environment` makes a program find it."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._answers = folder / "answers"
        self._pipe = folder / "events"
        os.mkfifo(self._pipe)
        self._fd = os.open(self._pipe, os.O_RDWR)
        self.environment = {
            "LD_LIBRARY_PATH": str(library),
            "NVML_STAND_IN": str(self._answers),
            "NVML_STAND_IN_EVENTS": str(self._pipe),
        }
        self.answer(board())

    def answer(self, answers: Mapping[str, Any]) -> None:
        """From now on answer this."""
        lines = [f"{key} {value}\n" for key, value in answers.items() if value is not None]
        new = self._answers.with_suffix(".new")
        new.write_text("".join(lines))
        new.rename(self._answers)  # at once: it is read while we write

    def report(self, index: int, xid: int) -> None:
        """Have the event set report an XID."""
        os.write(self._fd, f"{index} {xid}\n".encode())

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def using(library: Path, folder: Path) -> Iterator[StandIn]:
    """Have processes find the library, and a stand-in of its own say what it answers."""
    stand_in = StandIn(library, folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stand_in.environment.items():
            patch.setenv(name, value)
        yield stand_in
    stand_in.close()
