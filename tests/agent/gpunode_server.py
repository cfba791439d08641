"""One GpuNode behind HTTPS, and every request counted. What Kubernetes itself does is tested on the real API server."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vmtenancy.testing.pki import LOOPBACK, Authority


class GpuNodeServer:
    """`stored` is the object, `requests` are (method, path), `writes` bodies; `refuse` is what all is answered with."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] | None = None
        self.requests: list[tuple[str, str]] = []
        self.writes: list[dict[str, Any]] = []
        self.tokens: list[str] = []
        self.refuse = 0
        self.seen = threading.Condition()
        self.url = ""
        self.authority = Path()

    def answer(
        self, method: str, path: str, body: dict[str, Any] | None, token: str
    ) -> tuple[int, dict[str, Any]]:
        with self.seen:
            self.requests.append((method, path))
            self.tokens.append(token)
            if body is not None:
                self.writes.append(body)
            self.seen.notify_all()
            if self.refuse:
                return self.refuse, {"kind": "Status", "message": "refused"}
            if method == "POST":
                self.stored = body
            elif self.stored is None:
                return 404, {"kind": "Status", "reason": "NotFound", "message": "not found"}
            elif body is not None:
                self.stored = {**self.stored, "status": body["status"]}
            return 200, self.stored or {}

    def wait_for(self, requests: int) -> None:
        """Until there were that many requests."""
        with self.seen:
            assert self.seen.wait_for(lambda: len(self.requests) >= requests, 30.0), self.requests


@contextmanager
def serving(folder: Path) -> Iterator[GpuNodeServer]:
    """`folder` is for its certificates."""
    state = GpuNodeServer()
    authority = Authority(folder, "authority")
    pair = authority.issue("server", "server", hosts=LOOPBACK)
    state.authority = authority.cert
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pair.cert, pair.key)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            code, answer = state.answer(self.command, self.path, body, token)
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = _answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    state.url = f"https://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()
