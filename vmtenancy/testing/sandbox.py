"""What a container gives a program, without an image: network, mounts, processes and root folder of its own.

The network has nothing but its own loopback, so every program finds its usual ports free; bytes are carried
in and out by relays. Needs Linux, root and util-linux; `missing()` says what is not there.
"""

import contextlib
import ctypes
import fcntl
import functools
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_TOOLS = ("nsenter", "unshare", "mount", "chroot", "sh")
_UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
# Binds each source to its place below the root, then becomes the program, which is process 1: when it ends,
# or whoever started it, the kernel ends all it has started.
_ENTER = """
root=$1; shift
while [ "$1" != -- ]; do mount --bind "$1" "$root$2"; shift 2; done
shift
mount -t proc proc "$root/proc"
exec chroot "$root" "$@"
"""


@functools.cache
def missing() -> str | None:
    """Why no sandbox can be made here, or None."""
    if sys.platform != "linux":
        return f"namespaces need Linux, this is {sys.platform}"
    if os.geteuid() != 0:
        return "mount and network namespaces need root"
    if absent := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"not on PATH: {', '.join(absent)}"
    attempt = subprocess.run([*_UNSHARE, "--net", "true"], capture_output=True, text=True, check=False)
    return f"no namespaces: {attempt.stderr.strip()}" if attempt.returncode else None


class Network:
    """A network namespace with its loopback up; it lives until `close` and until its last process ends."""

    def __init__(self) -> None:
        # A namespace belongs to a thread: this one stays inside and makes sockets for those outside.
        self._inside = ThreadPoolExecutor(1, thread_name_prefix="network")
        self.path = self._inside.submit(self._enter).result()
        self._listeners: list[socket.socket] = []

    @staticmethod
    def _enter() -> Path:
        if _LIBC.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "no network namespace")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
        return Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net")

    def reach(self, port: int) -> None:
        """Carry connections to a port inside to the same port of this machine's loopback."""
        inside = self._inside.submit(socket.create_server, _local(port)).result()
        self._relay(inside, lambda: socket.create_connection(_local(port)))

    def expose(self, port: int, outside: int) -> None:
        """Carry connections to a port of this machine's loopback, ``outside``, to a port inside."""
        self._relay(
            socket.create_server(_local(outside)),
            lambda: self._inside.submit(socket.create_connection, _local(port)).result(),
        )

    def close(self) -> None:
        """Carry nothing more and let go of the namespace."""
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # a close alone would not wake a thread in accept()
        self._inside.shutdown()

    def command(self, program: Sequence[str | Path]) -> list[str]:
        """How to start a program that shares this network and nothing else."""
        return ["nsenter", f"--net={self.path}", "--", *map(str, program)]

    def sandboxed(self, root: Path, binds: Mapping[str, Path], program: Sequence[str]) -> list[str]:
        """How to start a program in this network with ``root`` as its root folder.

        ``binds`` are absolute paths inside and what is found there; the places for them are made in ``root``.
        """
        arguments = []
        for inside, outside in binds.items():
            place = root / inside.lstrip("/")
            (place if outside.is_dir() else place.parent).mkdir(parents=True, exist_ok=True)
            if not outside.is_dir():
                place.touch()
            arguments += [str(outside), inside]
        (root / "proc").mkdir(exist_ok=True)
        return self.command([*_UNSHARE, "sh", "-euc", _ENTER, "sandbox", root, *arguments, "--", *program])

    def _relay(self, listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
        def serve() -> None:
            with contextlib.suppress(OSError), listener:
                while True:
                    near, _ = listener.accept()
                    threading.Thread(target=_join, args=(near, connect), daemon=True).start()

        self._listeners.append(listener)
        threading.Thread(target=serve, name="relay", daemon=True).start()


def _local(port: int) -> tuple[str, int]:
    return "127.0.0.1", port


def _join(near: socket.socket, connect: Callable[[], socket.socket]) -> None:
    with near:
        try:
            far = connect()
        except OSError:
            return
        with far:
            back = threading.Thread(target=_pump, args=(far, near), daemon=True)
            back.start()
            _pump(near, far)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
