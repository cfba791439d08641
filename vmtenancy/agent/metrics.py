"""The agent's metrics in Prometheus' text format (version 0.0.4). Telemetry goes here, never into objects (I7).

Read from NVML when Prometheus asks, so nothing is polled where nobody looks.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from vmtenancy.devices.nvml_facts import Judge, number

Sample = tuple[Mapping[str, str], float]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: Name, help, and how its value comes from a sample: the answer, the item of it, and what divides it.
_GAUGES: Final = (
    ("vmtenancy_gpu_power_watts", "Power that the GPU draws", "power", None, 1000),
    ("vmtenancy_gpu_temperature_celsius", "Temperature of the GPU", "temperature", None, 1),
    ("vmtenancy_gpu_sm_clock_hertz", "Clock of its multiprocessors", "smClock", None, 1e-6),
    ("vmtenancy_gpu_memory_clock_hertz", "Clock of its memory", "memoryClock", None, 1e-6),
    ("vmtenancy_gpu_utilization_ratio", "Share of time in which kernels ran", "utilization", 0, 100),
    (
        "vmtenancy_gpu_memory_utilization_ratio",
        "Share of time in which its memory was used",
        "utilization",
        1,
        100,
    ),
    ("vmtenancy_gpu_memory_used_bytes", "Memory in use", "memory", 0, 1),
    ("vmtenancy_gpu_memory_total_bytes", "Memory that it has", "memory", 1, 1),
)
#: More of anything is garbage: a megawatt, a petabyte, a terahertz.
_MOST: Final = 1 << 50
#: Connections at one time; more are closed at once. Prometheus needs one.
_AT_ONCE: Final = 8


def gpu_families(samples: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of the families of all GPUs. What a GPU does not answer, or what can not be, is left out."""
    rows = [(str(sample["address"]), Judge(sample)) for sample in samples]
    for name, help_text, answer, item, divisor in _GAUGES:
        yield from family(
            name,
            "gauge",
            help_text,
            [
                ({"gpu": address}, value / divisor)
                for address, judge in rows
                if (value := judge.get(answer, partial(_value, item))) is not None
            ],
        )


def _value(item: int | None, answer: Any) -> int | None:
    return number(0, _MOST)(answer if item is None else answer[item])


def family(name: str, kind: str, help_text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """One family with its samples; nothing where it has none."""
    lines = [f"{name}{_labels(labels)} {value!r}" for labels, value in samples]
    if lines:
        yield f"# HELP {name} {help_text}"
        yield f"# TYPE {name} {kind}"
        yield from lines


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escaped = (
        (key, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
        for key, value in labels.items()
    )
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped) + "}"


class _Server(ThreadingHTTPServer):
    """At most `_AT_ONCE` connections, each with one request and a deadline: anyone in the cluster may connect."""

    daemon_threads = True

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler], deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._free = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(("", port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        # A timeout of the socket would begin anew with every byte that comes.
        end = threading.Timer(self._deadline_s, _cut, (request,))
        end.daemon = True
        end.start()
        try:
            super().finish_request(request, client_address)
        finally:
            end.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: that a client went away or was cut off is no trouble of ours."""


def _cut(request: socket.socket) -> None:
    with suppress(OSError):  # closed already
        request.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(port: int, page: Callable[[], str], deadline_s: float = 30.0) -> Iterator[int]:
    """Serve `/metrics` on all addresses from threads of its own; gives the port (for 0: one that is free).

    A connection is cut after `deadline_s`. Raises `OSError` where the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            body = page().encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: a line each scrape says nothing."""

    server = _Server(port, Handler, deadline_s)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
