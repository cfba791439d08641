"""Each fault of the proxy, on the real API server: it does what it says, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import math
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from vmtenancy.kube import errors
from vmtenancy.kube.client import Client
from vmtenancy.kube.reflector import Reflector
from vmtenancy.reconcile.kinds import KINDS, KindInfo
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.testing import build
from vmtenancy.testing.cleanup import Snapshot
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.faults import (
    Answer,
    Call,
    Cut,
    Delay,
    Expire,
    FaultProxy,
    Hold,
    LoseResponse,
    MissedError,
    ReplayList,
    Rule,
    SlowBody,
    StopAfter,
    StopBefore,
    paused,
)
from vmtenancy.testing.process import Process

pytestmark = pytest.mark.cluster

SECRETS = "/api/v1/namespaces/default/secrets"


def writing(call: Call) -> bool:
    return call.is_write


def always(_: Call) -> bool:
    return True


def watching(call: Call) -> bool:
    return call.verb == "watch" and call.resource == "configmaps"


async def until(condition: Callable[[], bool], deadline_s: float = 30.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - the condition is no event
            await asyncio.sleep(0.02)


class Maps:
    """The ConfigMaps of one test, told from others by a label."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.kind = replace(KINDS["ConfigMap"], selector=f"test={label}")

    def named(self, name: str, **data: str) -> Object:
        return self._object("ConfigMap", name) | {"data": data}

    def secret(self, name: str) -> Object:
        return self._object("Secret", name)

    def _object(self, kind: str, name: str) -> Object:
        meta = {"name": f"{self.label}-{name}", "namespace": "default", "labels": {"test": self.label}}
        return {"apiVersion": "v1", "kind": kind, "metadata": meta}

    def ref(self, name: str) -> Ref:
        return Ref("ConfigMap", "default", f"{self.label}-{name}")

    async def stored(self, client: Client) -> set[str]:
        items, _ = await client.list_all(self.kind)
        return {item["metadata"]["name"].removeprefix(f"{self.label}-") for item in items}


class Seen:
    """A sink that notes what it is told: the lists, and the events in their order."""

    def __init__(self, maps: Maps) -> None:
        self.names: set[str] = set()
        self.lists = 0
        self.events: list[tuple[str, str, str]] = []
        self._prefix = f"{maps.label}-"

    def newest(self, kind: str) -> int:
        return 0

    def relist(self, info: KindInfo, items: list[Object], resource_version: str, begun_at: int) -> None:
        self.lists += 1
        self.names = {self._name(item) for item in items}

    def observe(self, event_type: str, obj: Object) -> None:
        name = self._name(obj)
        self.events.append((event_type, name, obj.get("data", {}).get("step", "")))
        (self.names.discard if event_type == "DELETED" else self.names.add)(name)

    def _name(self, obj: Object) -> str:
        name: str = obj["metadata"]["name"]
        return name.removeprefix(self._prefix)


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    before = Snapshot.take(control_plane)
    yield control_plane
    before.restore()


@pytest.fixture
def maps(request: pytest.FixtureRequest) -> Maps:
    name = request.node.name.removeprefix("test_").replace("_", "-").replace("[", "-").replace("]", "")
    return Maps(name[:50].strip("-").lower())


@pytest.fixture
def proxy(plane: ControlPlane, tmp_path: Path) -> Iterator[FaultProxy]:
    with FaultProxy(plane.kubeconfig, tmp_path) as running:
        yield running


@pytest.fixture
async def behind(proxy: FaultProxy) -> AsyncIterator[Client]:
    async with await Client.connect(proxy.kubeconfig) as connected:
        yield connected


@pytest.fixture
async def direct(plane: ControlPlane) -> AsyncIterator[Client]:
    async with await Client.connect(plane.kubeconfig) as connected:
        yield connected


Following = Callable[..., Awaitable[Seen]]


@pytest.fixture
async def following(behind: Client, maps: Maps, proxy: FaultProxy) -> AsyncIterator[Following]:
    """Starts a reflector behind the proxy; its sink, once the watch is open."""
    tasks: list[asyncio.Task[None]] = []
    restarts: list[str] = []

    async def follow(info: KindInfo | None = None) -> Seen:
        seen = Seen(maps)
        reflector = Reflector(
            behind, info or maps.kind, seen, on_restart=lambda _, reason: restarts.append(reason)
        )
        before = len(proxy.watches())
        tasks.append(asyncio.create_task(reflector.run()))
        await until(lambda: seen.lists == 1 and len(proxy.watches()) > before)
        return seen

    yield follow
    for task in tasks:
        task.cancel()
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(end, asyncio.CancelledError), end


# -- without faults ------------------------------------------------------------------------------------------


def kubectl(proxy: FaultProxy, *args: str) -> str:
    command = [str(build.resolve("kubectl")), f"--kubeconfig={proxy.kubeconfig}", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_kubectl_works_through_it_and_keeps_who_it_is(plane: ControlPlane, proxy: FaultProxy) -> None:
    def who(*flags: str) -> str:
        user: str = json.loads(kubectl(proxy, "auth", "whoami", "-o", "json", *flags))["status"]["userInfo"][
            "username"
        ]
        return user

    assert who() == "admin"
    assert who("--as", "somebody") == "somebody"
    plain = json.loads(plane.kubectl("get", "namespaces", "-o", "json"))
    assert json.loads(kubectl(proxy, "get", "namespaces", "-o", "json")) == plain
    listed = [call for call in proxy.calls() if call.verb == "list"]
    assert [(call.resource, call.status, call.fault) for call in listed] == [("namespaces", 200, "")]
    assert "kubectl" in listed[0].user_agent
    assert not proxy.writes(), "reviews of oneself are stored nowhere"


async def test_a_token_keeps_who_it_is(behind: Client, proxy: FaultProxy) -> None:
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    async with await behind.as_service_account("default", "default") as account:
        answer = await account.request("POST", path, body=review)
    assert answer["status"]["userInfo"]["username"] == "system:serviceaccount:default:default"
    assert [call.resource for call in proxy.calls()] == ["serviceaccounts", "selfsubjectreviews"]
    assert not proxy.writes(), "neither is stored"


async def test_what_is_written_is_noted(
    behind: Client, direct: Client, proxy: FaultProxy, maps: Maps
) -> None:
    made = await behind.create(maps.named("a"))
    await behind.create(maps.named("b"), dry_run=True)
    await behind.replace({**made, "data": {"x": "1"}})
    await behind.apply({**maps.named("a"), "data": {"x": "2"}})
    await behind.delete(maps.kind, maps.ref("a"))
    with pytest.raises(errors.NotFoundError):
        await behind.delete(maps.kind, maps.ref("a"))
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
    await behind.create({**lease, "metadata": {"name": maps.label, "namespace": "default"}})
    await direct.create(maps.named("c"))
    name = f"{maps.label}-a"
    noted = [(call.verb, call.namespace, call.name, call.status) for call in proxy.writes()]
    assert noted == [
        ("create", "default", name, 201),
        ("update", "default", name, 200),
        ("patch", "default", name, 200),
        ("delete", "default", name, 200),
        ("delete", "default", name, 404),
    ]
    assert len(proxy.writes(leases=True)) == 6
    assert [call.number for call in proxy.calls()] == list(range(1, len(proxy.calls()) + 1))


async def test_a_large_object_passes(
    behind: Client, direct: Client, following: Following, maps: Maps
) -> None:
    seen = await following()
    large = "x" * 900_000
    await behind.create(maps.named("a", large=large))
    await until(lambda: seen.names == {"a"})
    assert (await behind.get(maps.kind, "default", maps.ref("a").name))["data"]["large"] == large


async def test_a_client_that_goes_away_ends_its_watch_at_the_api_server(proxy: FaultProxy) -> None:
    nothing_to_tell = "/api/v1/configmaps?watch=true&labelSelector=test%3Dnobody"
    like_go = {"Accept": "application/vnd.kubernetes.protobuf, application/json"}
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{proxy.port}") as session,
        session.get(nothing_to_tell, headers=like_go) as response,
    ):
        assert (response.status, response.content_type) == (200, "application/json")
        assert [call.path for call in proxy.watches()] == [nothing_to_tell]
    await until(lambda: not proxy.watches(), 10)


# -- requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "stored"), [(StopBefore, 2), (StopAfter, 3)])
async def test_a_process_is_killed_at_its_third_write(
    proxy: FaultProxy, direct: Client, maps: Maps, tmp_path: Path, action: type, stored: int
) -> None:
    script = tmp_path / "writer.py"
    script.write_text(_WRITER)
    process = Process(
        "writer",
        [sys.executable, script, proxy.kubeconfig, json.dumps(maps.named("x"))],
        log=tmp_path / "log",
    )
    rule = proxy.add(Rule(writing, action(lambda: process.signal(signal.SIGKILL)), skip=2))
    process.start()
    try:
        await until(lambda: not process.alive, 60)
    finally:
        process.stop()
    assert rule.struck == 1, process.tail()
    assert process.tail() == "wrote 0\nwrote 1"
    assert await maps.stored(direct) == {f"x{n}" for n in range(stored)}
    written = proxy.writes()
    assert [call.status for call in written] == [201, 201, 201 if stored == 3 else None]
    assert written[-1].fault == action.__name__


_WRITER = """
import asyncio, json, sys
from pathlib import Path
from vmtenancy.kube.client import Client

async def main():
    async with await Client.connect(Path(sys.argv[1])) as client:
        for number in range(10):
            obj = json.loads(sys.argv[2])
            obj["metadata"]["name"] += str(number)
            await client.create(obj)
            print("wrote", number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize(("action", "stored"), [(StopBefore(), set()), (LoseResponse(), {"a"})])
async def test_a_write_without_an_answer(
    behind: Client,
    direct: Client,
    proxy: FaultProxy,
    maps: Maps,
    action: StopBefore | LoseResponse,
    stored: set[str],
) -> None:
    proxy.add(Rule(writing, action))
    with pytest.raises(errors.UnknownOutcomeError):
        await behind.create(maps.named("a"))
    assert await maps.stored(direct) == stored
    await behind.create(maps.named("b"))


async def test_the_answer_to_a_put_is_lost_once(
    behind: Client, direct: Client, proxy: FaultProxy, maps: Maps
) -> None:
    """aiohttp sends a PUT again when a connection that it used before breaks; the proxy itself does not."""
    made = await behind.create(maps.named("a"))
    proxy.add(Rule(writing, LoseResponse()))
    with pytest.raises((errors.ConflictError, errors.UnknownOutcomeError)):
        await behind.replace({**made, "data": {"step": "1"}})
    updates = [call for call in proxy.writes() if call.verb == "update"]
    assert (updates[0].status, updates[0].fault) == (200, "LoseResponse")
    assert all(call.status == 409 for call in updates[1:])
    assert (await direct.get(maps.kind, "default", maps.ref("a").name))["data"] == {"step": "1"}


async def test_a_delayed_write_arrives_after_its_client_gave_up(
    behind: Client, direct: Client, proxy: FaultProxy, maps: Maps
) -> None:
    proxy.add(Rule(writing, Delay(math.inf)))
    path = "/api/v1/namespaces/default/configmaps"
    with pytest.raises(errors.UnknownOutcomeError):
        await behind.request("POST", path, body=maps.named("a"), timeout_s=0.5)
    assert await maps.stored(direct) == set()
    assert proxy.clear() == ()
    await until(lambda: proxy.writes()[0].status == 201)
    assert await maps.stored(direct) == {"a"}


async def test_a_delayed_answer_hides_what_was_written(
    behind: Client, direct: Client, proxy: FaultProxy, maps: Maps
) -> None:
    proxy.add(Rule(writing, Delay(math.inf, answer=True)))
    hanging = asyncio.create_task(behind.create(maps.named("a")))
    await until(lambda: bool(proxy.writes()) and proxy.writes()[0].status == 201)
    assert await maps.stored(direct) == {"a"}
    assert not hanging.done()
    proxy.clear()
    assert (await hanging)["metadata"]["name"] == maps.ref("a").name


async def test_a_delay_takes_its_time(behind: Client, proxy: FaultProxy) -> None:
    await behind.request("GET", "/version")
    proxy.add(Rule(always, Delay(0.4)))
    began = time.monotonic()
    await behind.request("GET", "/version")
    assert time.monotonic() - began >= 0.4


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (409, errors.ConflictError),
        (410, errors.ExpiredError),
        (500, errors.UnknownOutcomeError),
        (503, errors.UnknownOutcomeError),
    ],
)
async def test_answers_in_the_api_servers_stead(
    behind: Client, direct: Client, proxy: FaultProxy, maps: Maps, status: int, error: type[Exception]
) -> None:
    proxy.add(Rule(writing, Answer(status)))
    with pytest.raises(errors.KubeError, match="a fault on purpose: create") as caught:
        await behind.create(maps.named("a"))
    assert type(caught.value) is error
    assert await maps.stored(direct) == set()
    assert (proxy.writes()[0].status, proxy.writes()[0].fault) == (status, "Answer")
    await behind.create(maps.named("a"))
    assert proxy.writes()[1].status == 201


async def test_throttled_it_comes_again_as_late_as_it_was_told(
    behind: Client, proxy: FaultProxy, maps: Maps
) -> None:
    proxy.add(Rule(writing, Answer(429, retry_after=1)))
    began = time.monotonic()
    await behind.create(maps.named("a"))
    assert time.monotonic() - began >= 1
    assert [call.status for call in proxy.writes()] == [429, 201]


async def test_an_error_that_hides_a_write(
    behind: Client, direct: Client, proxy: FaultProxy, maps: Maps
) -> None:
    proxy.add(Rule(writing, Answer(500, forwarded=True)))
    with pytest.raises(errors.UnknownOutcomeError):
        await behind.create(maps.named("a"))
    assert await maps.stored(direct) == {"a"}
    proxy.add(Rule(writing, Answer(409, reason="AlreadyExists")))
    with pytest.raises(errors.AlreadyExistsError):
        await behind.create(maps.named("b"))
    assert await maps.stored(direct) == {"a"}


def test_kubectl_tells_of_an_answer_as_of_the_api_servers(proxy: FaultProxy) -> None:
    proxy.add(Rule(lambda call: call.resource == "namespaces", Answer(503)))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        kubectl(proxy, "get", "namespaces")
    assert "ServiceUnavailable" in caught.value.stderr
    assert "default" in kubectl(proxy, "get", "namespaces")


async def test_a_slow_body_comes_whole(behind: Client, direct: Client, proxy: FaultProxy, maps: Maps) -> None:
    await direct.create(maps.named("a", large="x" * 100_000))
    listing = f"/api/v1/configmaps?labelSelector=test%3D{maps.label}"
    proxy.add(Rule(lambda call: call.verb == "list", SlowBody(0.5)))
    began = time.monotonic()
    slow = await behind.request("GET", listing)
    assert time.monotonic() - began >= 0.5
    assert slow["items"] == (await direct.request("GET", listing))["items"]
    proxy.add(Rule(lambda call: call.verb == "list", SlowBody(60)))
    with pytest.raises(errors.UnavailableError):
        await behind.request("GET", listing, timeout_s=0.5)


async def test_an_old_list_again(behind: Client, direct: Client, proxy: FaultProxy, maps: Maps) -> None:
    rule = proxy.add(Rule(always, ReplayList()))
    assert await behind.list_all(maps.kind) == ([], (await behind.list_all(maps.kind))[1])
    assert rule.struck == 1, "only the second had an earlier one"
    await direct.create(maps.named("a"))
    one, version = await behind.list_all(maps.kind)
    await direct.create(maps.named("b"))
    proxy.add(Rule(always, ReplayList(index=-1)))
    assert await behind.list_all(maps.kind) == (one, version)
    assert len((await behind.list_all(maps.kind))[0]) == 2


async def test_nobody_listens(behind: Client, direct: Client, proxy: FaultProxy, maps: Maps) -> None:
    await behind.request("GET", "/version")
    with proxy.refusing():
        with pytest.raises(errors.UnavailableError):
            await behind.request("GET", "/version")  # meets the old connection
        with pytest.raises(errors.UnavailableError):  # never sent, and so not written
            await behind.create(maps.named("a"))
    await behind.create(maps.named("b"))
    assert await maps.stored(direct) == {"b"}


async def test_while_etcd_stands_still_requests_hang(
    plane: ControlPlane, behind: Client, direct: Client, maps: Maps
) -> None:
    (etcd,) = (process for process in plane.processes if process.name == "etcd")
    with paused(etcd):
        hanging = asyncio.create_task(behind.create(maps.named("a")))
        path = "/api/v1/namespaces/default/configmaps"
        with pytest.raises(errors.UnknownOutcomeError):
            await direct.request("POST", path, body=maps.named("b"), timeout_s=1)
        assert not hanging.done()
    await hanging
    assert "a" in await maps.stored(direct)


# -- watches -------------------------------------------------------------------------------------------------


async def test_a_cut_watch_goes_on_where_it_was(
    direct: Client, proxy: FaultProxy, following: Following, maps: Maps
) -> None:
    seen = await following()
    rule = proxy.add(Rule(watching, Cut(after_events=1)))
    await direct.create(maps.named("a"))
    await until(lambda: bool(rule.struck))
    await until(lambda: len(proxy.watches()) == 1)
    assert proxy.cut(watching) == 1
    await direct.create(maps.named("b"))
    await until(lambda: seen.names == {"a", "b"})
    assert seen.lists == 1
    assert [event[:2] for event in seen.events] == [("ADDED", "a"), ("ADDED", "b")]
    assert len([call for call in proxy.calls() if watching(call)]) == 3


async def test_an_expired_watch_lists_again(
    direct: Client, proxy: FaultProxy, following: Following, maps: Maps
) -> None:
    seen = await following()
    proxy.add(Rule(watching, Expire(after_events=1)))
    await direct.create(maps.named("a"))
    await until(lambda: seen.lists == 2)
    assert seen.names == {"a"}
    await direct.create(maps.named("b"))
    await until(lambda: seen.names == {"a", "b"})
    assert seen.lists == 2


async def test_what_happened_first_is_seen_last(
    direct: Client, proxy: FaultProxy, following: Following, maps: Maps
) -> None:
    """Two kinds of object are reordered against each other."""
    seen = await following()
    secrets = await following(replace(KINDS["Secret"], selector=f"test={maps.label}"))
    hold = Hold()
    rule = proxy.add(Rule(watching, hold))
    await direct.create(maps.named("a"))
    await direct.create(maps.secret("s"))
    await until(lambda: secrets.names == {"s"} and rule.struck == 1)
    assert seen.events == []
    hold.release()
    await until(lambda: seen.names == {"a"})


async def test_events_come_late_and_whole(
    direct: Client, proxy: FaultProxy, following: Following, maps: Maps
) -> None:
    seen = await following()
    proxy.add(Rule(watching, Hold(seconds=0.5)))
    began = time.monotonic()
    for step in range(3):
        await direct.apply(maps.named("a", step=str(step)))
    await until(lambda: len(seen.events) == 3)
    assert time.monotonic() - began >= 0.5
    assert [event[2] for event in seen.events] == ["0", "1", "2"]


async def test_what_lies_between_is_never_seen(
    direct: Client, proxy: FaultProxy, following: Following, maps: Maps
) -> None:
    seen = await following()
    await direct.apply(maps.named("old", step="0"))
    await until(lambda: len(seen.events) == 1)
    hold = Hold(newest_only=True)
    rule = proxy.add(Rule(watching, hold))
    for step in range(3):
        await direct.apply(maps.named("new", step=str(step)))
        await direct.apply(maps.named("old", step=str(step + 1)))
    await direct.delete(maps.kind, maps.ref("old"))
    await until(lambda: rule.struck == 7)
    hold.release()
    await until(lambda: len(seen.events) == 3)
    assert seen.events[1:] == [("ADDED", "new", "2"), ("DELETED", "old", "3")]
    assert hold.dropped == 5
    await direct.apply(maps.named("new", step="3"))
    await until(lambda: seen.events[-1] == ("MODIFIED", "new", "3"))
    assert seen.lists == 1


async def test_a_stale_list_is_made_good_by_the_watch_from_it(
    direct: Client, proxy: FaultProxy, following: Following, maps: Maps
) -> None:
    seen = await following()
    await direct.create(maps.named("a"))
    await until(lambda: seen.names == {"a"})
    listing = proxy.add(Rule(lambda call: call.verb == "list", ReplayList()))
    hold = Hold()
    proxy.add(Rule(watching, Expire()))
    events = proxy.add(Rule(watching, hold, times=None))
    await until(lambda: events.struck == 1)
    assert (listing.struck, seen.lists) == (1, 2)
    assert seen.names == set(), "back in the past"
    hold.release()
    await until(lambda: seen.names == {"a"})


# -- what must not go unnoticed ------------------------------------------------------------------------------


def leave(plane: ControlPlane, folder: Path, rule: Rule, error: Exception | None = None) -> None:
    """Make one request with a rule in force, and leave the proxy, with `error` where there is one."""
    with FaultProxy(plane.kubeconfig, folder) as proxy:
        proxy.add(rule)
        with contextlib.suppress(OSError, http.client.HTTPException):
            urllib.request.urlopen(f"http://127.0.0.1:{proxy.port}/version").close()
        if error:
            raise error


def test_a_fault_that_never_struck_fails_the_test(plane: ControlPlane, tmp_path: Path) -> None:
    rule = Rule(lambda call: call.resource == "nothings", LoseResponse())
    with pytest.raises(MissedError, match=r"never struck: .*LoseResponse"):
        leave(plane, tmp_path, rule)
    with pytest.raises(ZeroDivisionError):  # what went wrong first is what is told
        leave(plane, tmp_path, rule, ZeroDivisionError())
    with FaultProxy(plane.kubeconfig, tmp_path) as proxy:
        proxy.add(rule)
        assert proxy.clear() == (rule,)


@pytest.mark.parametrize("part", ["match", "callback"])
def test_what_a_rule_raises_fails_the_test(plane: ControlPlane, tmp_path: Path, part: str) -> None:
    def wrong(*_: object) -> bool:
        raise LookupError(part)

    rule = Rule(wrong, LoseResponse()) if part == "match" else Rule(always, StopBefore(wrong))
    with pytest.raises(LookupError, match=part):
        leave(plane, tmp_path, rule)


async def test_no_usable_kubeconfig_is_said_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(errors.KubeError, match="no usable kubeconfig"),
        FaultProxy(tmp_path / "missing", tmp_path),
    ):
        pass
