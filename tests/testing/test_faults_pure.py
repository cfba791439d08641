"""What a request is read as, whose turn a rule thinks it is, and what happens to the events of a watch."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientOSError, ClientPayloadError, ClientSession, ServerDisconnectedError, web
from aiohttp.test_utils import TestServer

from vmtenancy.testing.faults import Answer, Cut, Expire, FaultProxy, Hold, LoseResponse, Rule, SteppedClock
from vmtenancy.testing.faults.actions import StreamAction
from vmtenancy.testing.faults.calls import Call, describe
from vmtenancy.testing.faults.upstream import refusal
from vmtenancy.testing.faults.watches import OpenWatch
from vmtenancy.testing.process import Process, ProcessError, paused
from vmtenancy.testing.waiting import eventually

# -- calls ---------------------------------------------------------------------------------------------------

GPUVMS = "/apis/vmtenancy.io/v1alpha1/namespaces/vision/gpuvms"


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/api/v1/pods", ("list", "", "pods", "", "", "")),
        ("GET", "/api/v1/pods?watch=true&resourceVersion=7", ("watch", "", "pods", "", "", "")),
        ("GET", "/api/v1/pods?watch=1", ("watch", "", "pods", "", "", "")),
        ("GET", "/api/v1/pods?watch=false", ("list", "", "pods", "", "", "")),
        ("GET", "/api/v1/namespaces/a/pods/p", ("get", "", "pods", "", "a", "p")),
        ("POST", "/api/v1/namespaces/a/pods/p/binding", ("create", "", "pods", "binding", "a", "p")),
        ("PATCH", f"{GPUVMS}/x/status", ("patch", "vmtenancy.io", "gpuvms", "status", "vision", "x")),
        ("PUT", f"{GPUVMS}/x?dryRun=All", ("update", "vmtenancy.io", "gpuvms", "", "vision", "x")),
        ("DELETE", f"{GPUVMS}/x", ("delete", "vmtenancy.io", "gpuvms", "", "vision", "x")),
        ("DELETE", GPUVMS, ("deletecollection", "vmtenancy.io", "gpuvms", "", "vision", "")),
        ("GET", "/api/v1/namespaces", ("list", "", "namespaces", "", "", "")),
        ("GET", "/api/v1/namespaces/a", ("get", "", "namespaces", "", "", "a")),
        ("PUT", "/api/v1/namespaces/a/finalize", ("update", "", "namespaces", "finalize", "", "a")),
        ("PATCH", "/api/v1/namespaces/a/status", ("patch", "", "namespaces", "status", "", "a")),
        ("GET", "/api/v1/namespaces/a/configmaps/x%3Ay", ("get", "", "configmaps", "", "a", "x:y")),
        ("GET", "/apis/vmtenancy.io/v1alpha1", ("get", "", "", "", "", "")),
        ("GET", "/api", ("get", "", "", "", "", "")),
        ("GET", "/", ("get", "", "", "", "", "")),
        ("GET", "/version?watch=true", ("get", "", "", "", "", "")),
    ],
)
def test_requests_are_read_as_the_api_server_reads_them(
    method: str, target: str, expected: tuple[str, ...]
) -> None:
    call = describe(1, method, target, "me", b"")
    assert (call.verb, call.group, call.resource, call.subresource, call.namespace, call.name) == expected
    assert (call.number, call.user_agent, call.path, call.status) == (1, "me", target, None)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"metadata":{"name":"x"}}', "x"),
        (b'{"metadata":{"generateName":"x-"}}', ""),
        (b"k8s\x00\n\x0c", ""),
        (b"[]", ""),
        (b"", ""),
    ],
)
def test_a_create_is_named_by_its_body(body: bytes, name: str) -> None:
    assert describe(1, "POST", GPUVMS, "", body).name == name


@pytest.mark.parametrize(
    ("method", "target", "writes"),
    [
        ("POST", GPUVMS, True),
        ("PATCH", f"{GPUVMS}/x/status", True),
        ("DELETE", GPUVMS, True),
        ("POST", "/api/v1/namespaces/a/pods/p/eviction", True),
        ("POST", f"{GPUVMS}?fieldManager=a&dryRun=All", False),
        ("POST", "/api/v1/namespaces/a/serviceaccounts/default/token", False),
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", False),
        ("POST", "/nothing/known", False),
        ("GET", GPUVMS, False),
    ],
)
def test_a_write_is_what_changes_what_is_stored(method: str, target: str, writes: bool) -> None:
    assert describe(1, method, target, "", b"").is_write is writes


def call_of(method: str = "GET", target: str = "/api/v1/pods?watch=true") -> Call:
    return describe(1, method, target, "", b"")


def test_a_rule_skips_then_strikes_so_many_times() -> None:
    rule = Rule(lambda call: call.is_write, LoseResponse(), skip=2, times=2)
    turns = []
    for method in ("POST", "GET", "POST", "POST", "GET", "POST", "POST"):
        if due := rule.due(call_of(method, GPUVMS)):
            rule.take()
        turns.append(due)
    assert turns == [False, False, False, True, False, True, False]


def test_a_rule_whose_turn_another_took_strikes_the_next() -> None:
    rule = Rule(lambda call: True, LoseResponse())
    assert rule.due(call_of())
    assert rule.due(call_of())


def test_a_status_that_the_api_server_never_gives_is_refused() -> None:
    with pytest.raises(ValueError, match="does not answer 418"):
        Answer(418)


def test_an_answer_has_the_form_of_the_api_servers() -> None:
    call = describe(1, "PUT", f"{GPUVMS}/x", "", b"")
    status, headers, body = refusal(call, Answer(429, retry_after=7))
    assert (status, dict(headers)) == (429, {"Content-Type": "application/json", "Retry-After": "7"})
    assert json.loads(body) == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"a fault on purpose: update {GPUVMS}/x",
        "reason": "TooManyRequests",
        "details": {"name": "x", "group": "vmtenancy.io", "kind": "gpuvms", "retryAfterSeconds": 7},
        "code": 429,
    }
    assert "Retry-After" not in refusal(call, Answer(503)).headers


# -- the events of a watch -----------------------------------------------------------------------------------


def event(kind: str, uid: str, version: int) -> bytes:
    metadata = {"uid": uid, "resourceVersion": str(version)}
    return (
        json.dumps({"type": kind, "object": {"metadata": metadata}}, separators=(",", ":")).encode() + b"\n"
    )


class Stream:
    """A watch between an API server that says what the test wants and a client that writes it down."""

    def __init__(self) -> None:
        self.watch = OpenWatch(call_of())
        self.told: list[dict[str, Any]] = []
        self.changed = asyncio.Event()
        self._pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.end = asyncio.create_task(self.watch.run(self._source(), self._tell))

    async def _source(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def _tell(self, line: bytes) -> None:
        assert line.endswith(b"\n")
        self.told.append(json.loads(line))
        self.changed.set()

    def says(self, *pieces: bytes | Exception | None) -> None:
        for piece in pieces:
            self._pieces.put_nowait(piece)

    def strike(self, action: StreamAction) -> Rule:
        rule = Rule(lambda call: True, action)
        self.watch.strike(rule, action)
        return rule

    async def heard(self, *expected: tuple[str, str]) -> None:
        """Exactly these events (type, resourceVersion) are told, in this order."""
        async with asyncio.timeout(10):
            while len(self.told) < len(expected):
                self.changed.clear()
                await self.changed.wait()
        assert [(e["type"], e["object"]["metadata"].get("resourceVersion")) for e in self.told] == [*expected]

    async def ended(self) -> bool:
        """Whether the watch ended in good order."""
        async with asyncio.timeout(10):
            return await self.end

    async def passes_nothing(self, rule: Rule, withheld: int) -> None:
        """The events have arrived, are held, and the loop has had its turns."""
        async with asyncio.timeout(10):
            while rule.struck < withheld:  # noqa: ASYNC110 - a counter is no event
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)


async def test_events_pass_whole_however_they_arrive() -> None:
    stream = Stream()
    text = event("ADDED", "a", 1) + event("BOOKMARK", "", 2) + event("DELETED", "a", 3)
    stream.says(*(text[n : n + 7] for n in range(0, len(text), 7)), None)
    assert await stream.ended(), "the API server ended it"
    await stream.heard(("ADDED", "1"), ("BOOKMARK", "2"), ("DELETED", "3"))


@pytest.mark.parametrize("error", [ConnectionResetError(), ClientPayloadError()])
async def test_a_connection_that_breaks_behind_breaks_in_front(error: Exception) -> None:
    stream = Stream()
    stream.says(event("ADDED", "a", 1), error)
    assert not await stream.ended()
    await stream.heard(("ADDED", "1"))


async def test_cut_after_events_counts_no_bookmarks_and_none_of_before() -> None:
    stream = Stream()
    stream.says(event("ADDED", "a", 1))
    await stream.heard(("ADDED", "1"))
    rule = stream.strike(Cut(after_events=2))
    stream.says(*(event("BOOKMARK", "", 2), event("ADDED", "b", 3)))
    await stream.heard(("ADDED", "1"), ("BOOKMARK", "2"), ("ADDED", "3"))
    assert not rule.struck
    stream.says(event("ADDED", "c", 4), event("ADDED", "d", 5))
    assert not await stream.ended()
    await stream.heard(("ADDED", "1"), ("BOOKMARK", "2"), ("ADDED", "3"), ("ADDED", "4"))
    assert rule.struck == 1


async def test_expire_says_so_and_ends_in_good_order() -> None:
    stream = Stream()
    rule = stream.strike(Expire(after_events=1))
    stream.says(event("ADDED", "a", 1), event("ADDED", "b", 2))
    assert await stream.ended()
    assert [e["type"] for e in stream.told] == ["ADDED", "ERROR"]
    assert (stream.told[1]["object"]["code"], stream.told[1]["object"]["reason"]) == (410, "Expired")
    assert rule.struck == 1


async def test_held_until_released_in_order() -> None:
    stream = Stream()
    rule = stream.strike(hold := Hold())
    stream.says(event("ADDED", "a", 1), event("BOOKMARK", "", 2), event("MODIFIED", "a", 3))
    await stream.passes_nothing(rule, 2)
    assert stream.told == []
    hold.release()
    await stream.heard(("ADDED", "1"), ("BOOKMARK", "2"), ("MODIFIED", "3"))
    stream.says(event("DELETED", "a", 4), None)
    assert await stream.ended()
    assert (rule.struck, hold.dropped) == (2, 0)


async def test_held_for_a_time() -> None:
    stream = Stream()
    rule = stream.strike(Hold(seconds=0.1))
    began = time.monotonic()
    stream.says(event("ADDED", "a", 1), event("ADDED", "b", 2))
    await stream.heard(("ADDED", "1"), ("ADDED", "2"))
    assert time.monotonic() - began >= 0.1
    assert rule.struck == 2
    stream.says(None)
    assert await stream.ended()


async def test_a_watch_that_ends_is_told_to_the_end_first() -> None:
    stream = Stream()
    rule = stream.strike(hold := Hold())
    stream.says(event("ADDED", "a", 1), None)
    await stream.passes_nothing(rule, 1)
    assert not stream.end.done()
    hold.release()
    assert await stream.ended()
    await stream.heard(("ADDED", "1"))


async def test_only_the_newest_of_each_object_and_every_deletion() -> None:
    stream = Stream()
    rule = stream.strike(hold := Hold(newest_only=True))
    stream.says(
        *(event("ADDED", "a", 1), event("MODIFIED", "b", 2), event("MODIFIED", "a", 3)),
        *(event("BOOKMARK", "", 4), event("MODIFIED", "a", 5), event("MODIFIED", "b", 6)),
        *(event("DELETED", "b", 7), event("ADDED", "c", 8)),
    )
    await stream.passes_nothing(rule, 7)
    hold.release()
    await stream.heard(
        ("BOOKMARK", "4"),
        ("ADDED", "5"),  # its addition was dropped: to the client it is new
        ("DELETED", "7"),
        ("ADDED", "8"),
    )
    assert hold.dropped == 4


@pytest.mark.parametrize("uid", ["another", "the same"])
async def test_a_deletion_stays_when_the_name_comes_again(uid: str) -> None:
    """With the same uid: it left what a selector chooses, and came back."""
    stream = Stream()
    rule = stream.strike(hold := Hold(newest_only=True))
    stream.says(event("DELETED", "the same", 1), event("ADDED", uid, 2))
    await stream.passes_nothing(rule, 2)
    hold.release()
    await stream.heard(("DELETED", "1"), ("ADDED", "2"))
    assert hold.dropped == 0


async def test_relief_lets_everything_flow_and_gives_unused_turns_back() -> None:
    stream = Stream()
    held, unused = stream.strike(Hold()), stream.strike(Cut(after_events=5))
    stream.says(event("ADDED", "a", 1))
    await stream.passes_nothing(held, 1)
    stream.watch.relieve()
    await stream.heard(("ADDED", "1"))
    assert (held.struck, unused.struck) == (1, 0)
    assert not held.due(call_of())
    assert unused.due(call_of())


async def test_cut_by_hand() -> None:
    stream = Stream()
    rule = stream.strike(Hold())
    stream.says(event("ADDED", "a", 1))
    await stream.passes_nothing(rule, 1)
    stream.watch.cut()
    assert not await stream.ended()
    assert stream.told == []


# -- the way behind the proxy --------------------------------------------------------------------------------


async def test_the_proxy_sends_nothing_twice(tmp_path: Path) -> None:
    """An HTTP client may repeat a PUT when its connection breaks; what became of the first is not for the proxy."""
    asked: list[str] = []

    async def hang_up_on_puts(request: web.Request) -> web.StreamResponse:
        asked.append(request.method)
        if request.method == "PUT" and request.transport:
            request.transport.abort()
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", hang_up_on_puts)
    async with TestServer(app) as server:
        (tmp_path / "config").write_text(
            "{current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}], "
            f"clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{server.port}'}}}}]}}"
        )
        with FaultProxy(tmp_path / "config", tmp_path) as proxy:
            url = f"http://127.0.0.1:{proxy.port}/x"
            async with ClientSession() as session:
                await session.get(url)
            async with ClientSession() as session:  # on its first connection a client does not repeat
                with pytest.raises((ServerDisconnectedError, ClientOSError)):
                    await session.put(url, headers={"Connection": "close"})
    assert asked[:2] == ["GET", "PUT"]
    assert asked.count("PUT") == len([call for call in proxy.calls() if call.verb == "update"])


# -- processes -----------------------------------------------------------------------------------------------


def test_a_paused_process_does_nothing_until_it_goes_on(tmp_path: Path) -> None:
    counter = "import itertools\nfor n in itertools.count(): print(n, flush=True)"
    process = Process("counter", [sys.executable, "-c", counter], log=tmp_path / "log")
    process.start()
    try:
        eventually("it counts", lambda: process.tail(1))
        with paused(process):
            size = process.log.stat().st_size
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                assert process.log.stat().st_size == size
        eventually("it goes on", lambda: process.log.stat().st_size > size)
    finally:
        process.stop()
    with pytest.raises(ProcessError, match="not running"), paused(process):
        pass


def test_a_stepped_clock(tmp_path: Path) -> None:
    (tmp_path / "watcher.py").write_text(
        "import sys, time\n"
        "for line in sys.stdin: print(time.time(), time.time_ns() / 1e9, time.monotonic(), sys.argv, flush=True)\n"
    )
    clock = SteppedClock(tmp_path)
    with subprocess.Popen(
        clock.command("watcher", "a", Path("b")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as watcher:
        assert watcher.stdin
        assert watcher.stdout
        for step, offset in ((0, 0), (3600, 3600), (-7200.5, -3600.5)):
            clock.step(step)
            before, monotonic = time.time(), time.monotonic()
            print("now", file=watcher.stdin, flush=True)
            wall, wall_ns, ticks, *arguments = watcher.stdout.readline().split(maxsplit=3)
            for seen in (float(wall), float(wall_ns)):
                assert before - 0.001 <= seen - offset <= time.time() + 0.001
            assert monotonic <= float(ticks) <= time.monotonic()
            assert arguments == [f"['{tmp_path}/watcher.py', 'a', 'b']\n"]
        watcher.stdin.close()
        assert watcher.wait(10) == 0
