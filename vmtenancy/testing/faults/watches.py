"""One open watch: what the API server said and the client has not been told yet, and the faults in force on it."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from vmtenancy.testing.faults.actions import Cut, Expire, Hold, StreamAction
from vmtenancy.testing.faults.calls import Call
from vmtenancy.testing.faults.rules import Rule
from vmtenancy.testing.faults.upstream import LOST

#: How the API server begins the line of a bookmark: the type comes first.
_BOOKMARK: Final = b'{"type":"BOOKMARK"'
_EXPIRED: Final = {
    "type": "ERROR",
    "object": {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "too old resource version",
        "reason": "Expired",
        "code": 410,
    },
}


@dataclass(slots=True)
class _InForce:
    """An action on this watch, of the rule that it belongs to."""

    rule: Rule
    action: StreamAction
    from_event: int
    """Events that had passed when it came into force."""
    effective: bool = False


@dataclass(slots=True)
class _Line:
    text: bytes
    arrived: float
    """Monotonic seconds."""

    @property
    def is_bookmark(self) -> bool:
        return self.text.startswith(_BOOKMARK)


class OpenWatch:
    """Runs in the proxy's event loop. `run` it once; everything else may happen meanwhile."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self._waiting: deque[_Line] = deque()
        self._faults: list[_InForce] = []
        self._passed = 0
        self._cut = False
        self._ended: bool | None = None
        self._changed = asyncio.Event()

    async def run(self, source: AsyncIterator[bytes], tell: Callable[[bytes], Awaitable[None]]) -> bool:
        """Pass on what the API server says until it or a fault ends the watch; whether it ends in good order.

        `source` gives pieces of the stream, `tell` takes whole lines.
        """
        reader = asyncio.create_task(self._read(source))
        try:
            return await self._deliver(tell)
        finally:
            reader.cancel()

    def strike(self, rule: Rule, action: StreamAction) -> None:
        """Bring an action into force."""
        rule.take()
        self._faults.append(_InForce(rule, action, self._passed))
        if isinstance(action, Hold):
            loop = asyncio.get_running_loop()
            action.subscribe(lambda: loop.is_closed() or loop.call_soon_threadsafe(self._changed.set))
        self._changed.set()

    def relieve(self) -> None:
        """Take all faults back; what they held flows on."""
        for fault in self._faults:
            if not fault.effective:
                fault.rule.give_back()
        self._faults.clear()
        self._changed.set()

    def cut(self) -> None:
        """Break it; what is held is lost."""
        self._cut = True
        self._changed.set()

    async def _read(self, source: AsyncIterator[bytes]) -> None:
        rest = b""
        whole = False
        try:
            async for piece in source:
                *lines, rest = (rest + piece).split(b"\n")
                for text in lines:
                    self._arrive(_Line(text + b"\n", time.monotonic()))
            whole = True
        except LOST:
            pass
        finally:
            self._ended = whole
            self._changed.set()

    def _arrive(self, line: _Line) -> None:
        if not line.is_bookmark:
            for fault in self._faults:
                if isinstance(fault.action, Hold) and fault.action.wait_s(line.arrived, line.arrived) > 0:
                    self._effective(fault)
                    if fault.action.newest_only:
                        fault.action.dropped += self._supersede(line)
        self._waiting.append(line)
        self._changed.set()

    def _supersede(self, line: _Line) -> int:
        """Drop what waits of the same object; how many that were.

        One whose addition is dropped is added by what follows, unless that deletes it.
        """
        event = json.loads(line.text)
        older = [
            (waiting, waits)
            for waiting in self._waiting
            if (waits := json.loads(waiting.text))["type"] in ("ADDED", "MODIFIED")
            and _uid(waits) == _uid(event) is not None
        ]
        for waiting, _ in older:
            self._waiting.remove(waiting)
        if event["type"] == "MODIFIED" and any(waits["type"] == "ADDED" for _, waits in older):
            line.text = json.dumps({**event, "type": "ADDED"}, separators=(",", ":")).encode() + b"\n"
        return len(older)

    async def _deliver(self, tell: Callable[[bytes], Awaitable[None]]) -> bool:
        while True:
            self._changed.clear()
            if self._cut:
                return False
            if (ending := self._due_ending()) is not None:
                self._effective(ending)
                if isinstance(ending.action, Cut):
                    return False
                await tell(json.dumps(_EXPIRED).encode() + b"\n")
                return True
            wait_s = math.inf
            if self._waiting:
                wait_s = self._wait_s(self._waiting[0])
                if wait_s <= 0:
                    line = self._waiting.popleft()
                    await tell(line.text)
                    self._passed += not line.is_bookmark
                    continue
            elif self._ended is not None:
                return self._ended
            try:
                async with asyncio.timeout(wait_s if wait_s < math.inf else None):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _due_ending(self) -> _InForce | None:
        for fault in self._faults:
            passed = self._passed - fault.from_event
            if isinstance(fault.action, Cut | Expire) and passed >= fault.action.after_events:
                return fault
        return None

    def _wait_s(self, line: _Line) -> float:
        now = time.monotonic()
        holds = [fault.action for fault in self._faults if isinstance(fault.action, Hold)]
        return max((hold.wait_s(line.arrived, now) for hold in holds), default=0.0)

    def _effective(self, fault: _InForce) -> None:
        fault.effective = True
        fault.rule.struck += 1


def _uid(event: dict[str, Any]) -> str | None:
    uid: str | None = event["object"].get("metadata", {}).get("uid")
    return uid
