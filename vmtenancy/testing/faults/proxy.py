"""The proxy itself: an HTTP server of its own thread, in front of one API server."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import yaml
from aiohttp import web

from vmtenancy.testing.faults.actions import (
    Answer,
    Cut,
    Delay,
    Expire,
    Hold,
    LoseResponse,
    ReplayList,
    RequestAction,
    SlowBody,
    StopAfter,
    StopBefore,
)
from vmtenancy.testing.faults.calls import Call, describe
from vmtenancy.testing.faults.rules import MissedError, Rule
from vmtenancy.testing.faults.upstream import LOST, Answered, Upstream, passed_on, refusal
from vmtenancy.testing.faults.watches import OpenWatch

T = TypeVar("T")
#: Of a list's query, what does not say what is wanted.
_HOW_TO_LIST: Final = frozenset({"limit", "timeoutSeconds"})
_LISTS_KEPT: Final = 16
_SLOW_PIECES: Final = 20


class FaultProxy:
    """`with FaultProxy(kubeconfig, folder) as proxy:` a way to the API server on which things go wrong by plan.

    Point clients at `proxy.kubeconfig` (a file in `folder`): plain HTTP on loopback. A client certificate can not
    be passed on, so requests with a token (`Authorization`) go on as that user, all others as the user of
    `kubeconfig`: whoever reaches the port acts as that user, which suits tests only. Whom a client asks to
    impersonate passes. Programs in Go send tokens over TLS only, so behind the proxy they are the kubeconfig's user.

    Watches are passed on event by event, everything else as a whole. Requests that leave HTTP (exec, port-forward)
    do not work. Watches are asked for in JSON, whatever else the client would take.

    It runs an event loop in a thread, so tests may be synchronous and controllers subprocesses. All methods can be
    called from any thread but its own. Leaving the block raises what callbacks and matches of rules raised, and
    `MissedError` if a rule is left that never struck.
    """

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self._of, self._folder = kubeconfig, folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self._calls: list[Call] = []
        self._rules: list[Rule] = []
        self._errors: list[Exception] = []
        self._watches: dict[int, OpenWatch] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lists: defaultdict[tuple[str, str], deque[Answered]] = defaultdict(
            lambda: deque(maxlen=_LISTS_KEPT)
        )

    # -- life ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._await(self._start())
        except BaseException:
            self._end_loop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        missed = self.clear()
        self._await(self._stop())
        self._end_loop()
        if error is None and self._errors:
            raise self._errors[0]
        if error is None and missed:
            raise MissedError(f"never struck: {', '.join(map(repr, missed))}")

    async def _start(self) -> None:
        self._cleared = asyncio.Event()
        self._upstream = await Upstream.connect(self._of)
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        # A client that goes away ends its watch at the API server, too.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await self._listen(0)
        self.port: int = self._site.port
        self.kubeconfig = self._folder / f"fault-proxy-{self.port}.yaml"
        self.kubeconfig.write_text(yaml.safe_dump(_kubeconfig(f"http://127.0.0.1:{self.port}")))

    async def _listen(self, port: int) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True)
        await self._site.start()

    async def _stop(self) -> None:
        self._break_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._runner.cleanup()
        await self._upstream.close()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # -- what tests use --------------------------------------------------------------------------------------

    def calls(self) -> tuple[Call, ...]:
        """All requests so far, in the order in which they came in."""
        return tuple(self._calls)

    def writes(self, *, leases: bool = False) -> tuple[Call, ...]:
        """The requests so far that write, whatever became of them; those of Leases only with `leases`."""
        return tuple(call for call in self.calls() if call.is_write and (leases or call.resource != "leases"))

    def watches(self) -> tuple[Call, ...]:
        """The watches that are open, in the order in which they came in."""

        async def watches() -> tuple[Call, ...]:
            return tuple(self._calls[number - 1] for number in self._watches)

        return self._await(watches())

    def add(self, rule: Rule) -> Rule:
        """Put a rule into force, behind those that are; actions on watches also strike open ones. The rule."""

        async def add() -> None:
            self._rules.append(rule)
            for watch in list(self._watches.values()):
                self._bend(watch, [rule])

        self._await(add())
        return rule

    def clear(self) -> tuple[Rule, ...]:
        """End all faults: no rule is in force any more, what was delayed or held flows on.

        The rules among them that never struck.
        """

        async def clear() -> tuple[Rule, ...]:
            rules, self._rules = self._rules, []
            for watch in self._watches.values():
                watch.relieve()
            self._cleared.set()
            self._cleared = asyncio.Event()
            return tuple(rule for rule in rules if not rule.struck)

        return self._await(clear())

    def cut(self, match: Callable[[Call], bool] = lambda call: True) -> int:
        """Break the open watches that match, now; how many those were."""

        async def cut() -> int:
            matching = [watch for watch in self._watches.values() if match(watch.call)]
            for watch in matching:
                watch.cut()
            return len(matching)

        return self._await(cut())

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Nobody listens while the block runs: open connections break at its start, new ones are refused."""

        async def refuse() -> None:
            await self._site.stop()
            self._break_all()

        self._await(refuse())
        try:
            yield
        finally:
            self._await(self._listen(self.port))

    def _break_all(self) -> None:
        assert self._runner.server
        for open_connection in self._runner.server.connections:
            if open_connection.transport:
                open_connection.transport.abort()

    # -- requests --------------------------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        agent = request.headers.get("User-Agent", "")
        call = describe(len(self._calls) + 1, request.method, request.raw_path, agent, body)
        self._calls.append(call)
        action = self._action_for(call, request)
        if call.verb == "watch" and isinstance(action, Delay | None):
            if action:
                await self._pause(action.seconds)
            return await self._watch(call, request)
        # What is under way arrives, even if the client goes away.
        work = asyncio.create_task(self._answer(call, request, body, action))
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)
        answered = await asyncio.shield(work)
        if answered is None:
            return _broken(request)
        if isinstance(action, SlowBody):
            return await self._drip(request, answered, action.seconds)
        return web.Response(status=answered.status, headers=answered.headers, body=answered.body)

    def _action_for(self, call: Call, request: web.Request) -> RequestAction | None:
        """Every rule counts the call; the first whose turn it is, and that can do something, strikes."""
        chosen: RequestAction | None = None
        for rule in self._rules:
            action = rule.action
            if isinstance(action, Cut | Expire | Hold) or not self._due(rule, call) or chosen:
                continue
            if isinstance(action, ReplayList) and self._earlier(call, request, action) is None:
                continue
            if isinstance(action, SlowBody) and call.verb == "watch":
                continue
            rule.take()
            rule.struck += 1
            chosen = action
            self._note(call, fault=type(action).__name__)
        return chosen

    def _due(self, rule: Rule, call: Call) -> bool:
        try:
            return rule.due(call)
        except Exception as error:
            self._errors.append(error)
            return False

    async def _answer(
        self, call: Call, request: web.Request, body: bytes, action: RequestAction | None
    ) -> Answered | None:
        """The answer to give; None: the connection is to break."""
        match action:
            case StopBefore(callback):
                await self._run(callback)
                return None
            case Answer(forwarded=False):
                return self._refuse(call, action)
            case ReplayList():
                return self._earlier(call, request, action)
            case Delay(seconds, answer=False):
                await self._pause(seconds)
        try:
            answered = await self._forward(call, request, body)
        except LOST:  # the API server is down, or went down on it
            return None
        match action:
            case LoseResponse():
                return None
            case StopAfter(callback):
                await self._run(callback)
                return None
            case Answer():
                return self._refuse(call, action)
            case Delay(seconds, answer=True):
                await self._pause(seconds)
        return answered

    async def _forward(self, call: Call, request: web.Request, body: bytes) -> Answered:
        if call.verb == "watch":  # its body has no end, and nobody will read it
            async with await self._upstream.watch(request) as response:
                answered = Answered(response.status, passed_on(response.headers), b"")
        else:
            answered = await self._upstream.forward(request, body)
        self._note(call, status=answered.status)
        if answered.status == 200 and (key := _list_key(call, request)):
            self._lists[key].append(answered)
        return answered

    def _refuse(self, call: Call, action: Answer) -> Answered:
        self._note(call, status=action.status)
        return refusal(call, action)

    def _earlier(self, call: Call, request: web.Request, action: ReplayList) -> Answered | None:
        key = _list_key(call, request)
        earlier = self._lists[key] if key else ()
        with suppress(IndexError):
            return earlier[action.index]
        return None

    async def _drip(self, request: web.Request, answered: Answered, seconds: float) -> web.StreamResponse:
        response = web.StreamResponse(status=answered.status, headers=answered.headers)
        response.content_length = len(answered.body)
        await response.prepare(request)
        size = max(1, math.ceil(len(answered.body) / _SLOW_PIECES))
        for start in range(0, len(answered.body), size):
            await self._pause(seconds / _SLOW_PIECES)
            await response.write(answered.body[start : start + size])
        await response.write_eof()
        return response

    async def _run(self, callback: Callable[[], object] | None) -> None:
        if callback:
            try:
                await asyncio.to_thread(callback)
            except Exception as error:
                self._errors.append(error)

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not beyond `clear`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._cleared.wait()

    def _note(self, call: Call, **changes: Any) -> None:
        self._calls[call.number - 1] = replace(self._calls[call.number - 1], **changes)

    # -- watches ---------------------------------------------------------------------------------------------

    async def _watch(self, call: Call, request: web.Request) -> web.StreamResponse:
        try:
            upstream = await self._upstream.watch(request)
        except LOST:
            return _broken(request)
        async with upstream:
            self._note(call, status=upstream.status)
            headers = passed_on(upstream.headers)
            if upstream.status != 200:
                return web.Response(status=upstream.status, headers=headers, body=await upstream.read())
            response = web.StreamResponse(headers=headers)
            watch = self._watches[call.number] = OpenWatch(call)
            self._bend(watch, self._rules)
            try:
                await response.prepare(request)
                in_order = await watch.run(upstream.content.iter_any(), response.write)
            finally:
                watch.relieve()
                del self._watches[call.number]
                upstream.close()
        if not in_order:
            return _broken(request)
        await response.write_eof()
        return response

    def _bend(self, watch: OpenWatch, rules: Sequence[Rule]) -> None:
        for rule in rules:
            if isinstance(rule.action, Cut | Expire | Hold) and self._due(rule, watch.call):
                watch.strike(rule, rule.action)


def _broken(request: web.Request) -> web.StreamResponse:
    """Break the connection; the response goes nowhere."""
    if request.transport:
        request.transport.abort()
    return web.Response()


def _list_key(call: Call, request: web.Request) -> tuple[str, str] | None:
    """Equal for lists that ask for the same; None for all but the beginning of a list."""
    if call.verb != "list" or "continue" in request.query:
        return None
    wanted = sorted((name, value) for name, value in request.query.items() if name not in _HOW_TO_LIST)
    return f"{request.path}?{wanted}", request.headers.get("Accept", "")


def _kubeconfig(server: str) -> dict[str, Any]:
    name = "fault-proxy"
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "clusters": [{"name": name, "cluster": {"server": server}}],
        "users": [{"name": name, "user": {}}],
    }
