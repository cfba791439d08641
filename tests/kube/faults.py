"""A TCP proxy before the API server that can cut, refuse and swallow."""

from __future__ import annotations

import asyncio
import contextlib


class Proxy:
    """Forwards connections of `port` to `target`. TLS passes through unseen."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.refuse = False
        self.swallow_answers = False
        self._target = target
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection there is."""
        for connection in self._connections:
            connection.cancel()

    async def _serve(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        try:
            if self.refuse:
                return
            far_in, far_out = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                await asyncio.gather(self._pump(near_in, far_out), self._pump(far_in, near_out, answers=True))
            finally:
                far_out.close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            near_out.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        while data := await source.read(65536):
            if answers and self.swallow_answers:
                continue
            sink.write(data)
            await sink.drain()
        with contextlib.suppress(OSError):
            sink.write_eof()
