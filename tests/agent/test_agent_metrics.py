"""The page of metrics: what stands on it, and that nobody keeps it, or the agent, busy."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import urllib.request
from contextlib import ExitStack

import pytest
from nvml_library import StandIn, address, board

from vmtenancy.agent.agent import Agent
from vmtenancy.agent.metrics import _AT_ONCE, serving


def test_metrics_leave_out_what_can_not_be(nvml: StandIn, agent: Agent) -> None:
    nvml.answer(board(2) | {"0.power": "!3", "1.temperature": "!15", "1.utilization": "!999"})
    page = agent.page()
    assert re.findall(r"vmtenancy_gpu_power_watts\{gpu=\"(.*)\"\}", page) == [address(1)]
    assert re.findall(r"vmtenancy_gpu_temperature_celsius\{gpu=\"(.*)\"\}", page) == [address(0)]


def test_who_does_not_come_to_an_end_is_cut_off() -> None:
    """A byte now and then would keep a timeout of the socket from ever passing."""
    with (
        serving(0, lambda: "a 1\n", deadline_s=0.2) as port,
        socket.create_connection(("127.0.0.1", port), 30) as client,
    ):
        client.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert client.recv(1) == b""


def test_connections_have_a_bound() -> None:
    asked, told = threading.Semaphore(0), threading.Event()

    def page() -> str:
        asked.release()
        told.wait(30)
        return "a 1\n"

    with serving(0, page) as port, ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 30)) for _ in range(_AT_ONCE)
        ]
        for client in clients:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert asked.acquire(timeout=30)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            fetched(port)
        told.set()
        for client in clients:
            with client.makefile() as answer:
                assert answer.read().endswith("a 1\n")
        assert fetched(port) == "a 1\n", "there is room again"


def fetched(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return str(answer.read().decode())
