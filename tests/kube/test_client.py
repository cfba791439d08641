from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from vmtenancy.errors import Code
from vmtenancy.kube import client as client_module
from vmtenancy.kube import errors
from vmtenancy.kube.client import Client, path_of
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.faults import FaultProxy, LoseResponse, Rule

CONFIG_MAPS = KINDS["ConfigMap"]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def config_map(name: str, **data: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"app.kubernetes.io/managed-by": "vmtenancy"},
        },
        "data": data,
    }


# -- what answers mean, on a server that says what the test wants --------------------------------------------


class Scripted:
    """A server on loopback whose answers are given one by one."""

    def __init__(self) -> None:
        self.answers: list[Handler] = []
        self.requests: list[str] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        return await self.answers.pop(0)(request)

    def says(self, status: int, body: object = None, **headers: str) -> None:
        async def answer(_: web.Request) -> web.StreamResponse:
            text = body if isinstance(body, str) else json.dumps(body or {})
            return web.Response(
                status=status, text=text, headers={k.replace("_", "-"): v for k, v in headers.items()}
            )

        self.answers.append(answer)

    def hangs_up(self) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            assert request.transport
            request.transport.abort()
            return web.Response()

        self.answers.append(answer)


@pytest.fixture
async def scripted(tmp_path: Path) -> AsyncIterator[tuple[Scripted, Client]]:
    script = Scripted()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", script.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "first"}}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    async with await Client.connect(tmp_path / "config") as client:
        yield script, client
    await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "reason", "read", "write"),
    [
        (400, "BadRequest", errors.InvalidError, errors.InvalidError),
        (401, "Unauthorized", errors.ForbiddenError, errors.ForbiddenError),
        (403, "Forbidden", errors.ForbiddenError, errors.ForbiddenError),
        (404, "NotFound", errors.NotFoundError, errors.NotFoundError),
        (409, "Conflict", errors.ConflictError, errors.ConflictError),
        (409, "AlreadyExists", errors.AlreadyExistsError, errors.AlreadyExistsError),
        (410, "Expired", errors.ExpiredError, errors.ExpiredError),
        (422, "Invalid", errors.InvalidError, errors.InvalidError),
        (500, "InternalError", errors.UnavailableError, errors.UnknownOutcomeError),
        (503, "ServiceUnavailable", errors.UnavailableError, errors.UnknownOutcomeError),
        (504, "Timeout", errors.UnavailableError, errors.UnknownOutcomeError),
    ],
)
async def test_each_status_has_one_meaning(
    scripted: tuple[Scripted, Client], status: int, reason: str, read: type[Exception], write: type[Exception]
) -> None:
    script, client = scripted
    for method, expected in (("GET", read), ("PUT", write)):
        for _ in range(2):  # 401 is asked twice: credentials may have been renewed
            script.says(status, {"kind": "Status", "reason": reason, "message": "because"})
        with pytest.raises(errors.KubeError) as caught:
            await client.request(method, "/x", body={} if method == "PUT" else None)
        assert type(caught.value) is expected
        assert caught.value.code is Code.CLUSTER
        assert "because" in str(caught.value)
        script.answers.clear()


@pytest.mark.parametrize(
    ("method", "expected"), [("GET", errors.UnavailableError), ("POST", errors.UnknownOutcomeError)]
)
async def test_an_answer_that_never_comes(
    scripted: tuple[Scripted, Client], method: str, expected: type[Exception]
) -> None:
    script, client = scripted
    for _ in range(3):
        script.hangs_up()
    with pytest.raises(expected):
        await client.request(method, "/x", body={"a": 1} if method == "POST" else None)
    if method == "POST":
        assert script.requests == ["POST /x"], "what may have been written is not sent again"


async def test_an_answer_that_is_no_json_leaves_a_write_unknown(scripted: tuple[Scripted, Client]) -> None:
    script, client = scripted
    script.says(200, "<html>")
    with pytest.raises(errors.UnknownOutcomeError):
        await client.request("POST", "/x", body={"a": 1})


async def test_a_refused_connection_has_written_nothing(tmp_path: Path) -> None:
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    async with await Client.connect(tmp_path / "config") as client:
        with pytest.raises(errors.UnavailableError):
            await client.request("POST", "/x", body={"a": 1})


async def test_throttling_is_waited_out(
    scripted: tuple[Scripted, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, client = scripted
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(client_module.asyncio, "sleep", sleep)
    script.says(429, {}, Retry_After="7")
    script.says(429, {"details": {"retryAfterSeconds": 3}})
    script.says(200, {"ok": True})
    assert await client.request("POST", "/x", body={}) == {"ok": True}
    assert waited == [7, 3]


async def test_refused_credentials_are_read_again_once(
    scripted: tuple[Scripted, Client], tmp_path: Path
) -> None:
    script, client = scripted
    seen: list[str] = []

    async def note(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers["Authorization"])
        return web.json_response({}, status=200 if len(seen) > 1 else 401)

    script.answers += [note, note]
    config = yaml.safe_load((tmp_path / "config").read_text())
    config["users"][0]["user"]["token"] = "second"
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    await client.request("GET", "/x")
    assert seen == ["Bearer first", "Bearer second"]


async def test_no_kubeconfig_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(errors.KubeError, match="no usable kubeconfig"):
        await Client.connect(tmp_path / "missing")


@pytest.mark.parametrize(
    "text",
    [
        "x: [",
        "[]",
        "just words",
        "",
        "current-context: c",
        "{current-context: c, contexts: [], clusters: [], users: []}",
        "{current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], "
        "clusters: [{name: c, cluster: {server: 'https://x', certificate-authority-data: '%%'}}], "
        "users: [{name: u, user: {}}]}",
        "{current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], "
        "clusters: [{name: c, cluster: {server: 'https://x'}}], "
        "users: [{name: u, user: {client-certificate-data: eA==, client-key-data: eA==}}]}",
    ],
)
async def test_a_broken_kubeconfig_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(errors.KubeError) as caught:
        await Client.connect(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


async def test_a_pod_without_its_account_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(errors.KubeError, match="no usable service account"):
        await Client.connect()


def test_paths() -> None:
    assert path_of(KINDS["Pod"]) == "/api/v1/pods"
    assert path_of(KINDS["Pod"], "ns", "p") == "/api/v1/namespaces/ns/pods/p"
    assert path_of(KINDS["Node"], "", "n") == "/api/v1/nodes/n"
    assert path_of(KINDS["GpuVM"], "ns") == "/apis/vmtenancy.io/v1alpha1/namespaces/ns/gpuvms"


# -- on the real API server ----------------------------------------------------------------------------------


@pytest.mark.cluster
async def test_create_read_write_delete(client: Client) -> None:
    made = await client.create(config_map("a", x="1"))
    with pytest.raises(errors.AlreadyExistsError):
        await client.create(config_map("a"))
    changed = await client.replace({**made, "data": {"x": "2"}})
    with pytest.raises(errors.ConflictError):
        await client.replace({**made, "data": {"x": "3"}})
    assert (await client.get(CONFIG_MAPS, "default", "a"))["data"] == {"x": "2"}
    ref = Ref("ConfigMap", "default", "a")
    with pytest.raises(errors.ConflictError):
        await client.delete(CONFIG_MAPS, ref, uid="00000000-0000-0000-0000-000000000000")
    with pytest.raises(errors.ConflictError):
        await client.delete(CONFIG_MAPS, ref, version=made["metadata"]["resourceVersion"])
    uid, version = changed["metadata"]["uid"], changed["metadata"]["resourceVersion"]
    assert await client.delete(CONFIG_MAPS, ref, uid=uid, version=version) is None
    with pytest.raises(errors.NotFoundError):
        await client.get(CONFIG_MAPS, "default", "a")


@pytest.mark.cluster
async def test_unknown_fields_are_refused(client: Client) -> None:
    wrong = config_map("a") | {"dota": {}}
    with pytest.raises(errors.InvalidError, match="dota"):
        await client.create(wrong)
    with pytest.raises(errors.KubeError, match="dota"):
        await client.apply(wrong)


@pytest.mark.cluster
async def test_an_apply_that_changes_nothing_writes_nothing(client: Client) -> None:
    first = await client.apply(config_map("a", x="1"))
    again = await client.apply(config_map("a", x="1"))
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    other = await client.apply(config_map("a", x="2"))
    assert int(other["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    fields = other["metadata"]["managedFields"]
    assert [(f["manager"], f["operation"]) for f in fields] == [("vmtenancy", "Apply")]


@pytest.mark.cluster
async def test_a_write_without_managed_fields_keeps_them(client: Client) -> None:
    """The cache drops managedFields; what is written from it must not disown everybody."""
    stored = await client.apply(config_map("a", x="1"))
    stored["metadata"].pop("managedFields")
    after = await client.replace({**stored, "data": {"x": "1", "y": "2"}})
    assert {f["operation"] for f in after["metadata"]["managedFields"]} == {"Apply", "Update"}


@pytest.mark.cluster
async def test_pages_make_one_consistent_list(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PAGE", 2)
    for number in range(5):
        await client.create(config_map(f"cm-{number}"))
    items, version = await client.list_all(CONFIG_MAPS)
    assert [item["metadata"]["name"] for item in items] == [f"cm-{n}" for n in range(5)]
    assert {(item["apiVersion"], item["kind"]) for item in items} == {("v1", "ConfigMap")}
    assert int(version) >= max(int(item["metadata"]["resourceVersion"]) for item in items)


@pytest.mark.cluster
async def test_kinds_outside_the_table_are_discovered(client: Client) -> None:
    info = await client.kind("coordination.k8s.io/v1", "Lease")
    assert (info.plural, info.namespaced) == ("leases", True)
    with pytest.raises(errors.NotFoundError, match="no kind Unheard"):
        await client.kind("coordination.k8s.io/v1", "Unheard")


@pytest.mark.cluster
async def test_acting_as_a_service_account(cluster: ControlPlane, client: Client) -> None:
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "actor", "namespace": "default"},
    }
    await client.create(account)
    async with await client.as_service_account("default", "actor", lifetime_s=600) as actor:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = await actor.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=review)
        assert answer["status"]["userInfo"]["username"] == "system:serviceaccount:default:actor"
        with pytest.raises(errors.ForbiddenError):
            await actor.list_all(KINDS["Node"])
        # A token that stops working (the account was made anew) is replaced by a new one.
        await client.delete(KINDS["ServiceAccount"], Ref("ServiceAccount", "default", "actor"))
        await client.create(account)
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = await actor.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=review)
        assert answer["status"]["userInfo"]["username"] == "system:serviceaccount:default:actor"


@pytest.mark.cluster
async def test_a_write_whose_answer_is_lost_is_unknown(
    behind_proxy: Client, proxy: FaultProxy, client: Client
) -> None:
    proxy.add(Rule(lambda call: call.is_write, LoseResponse()))
    with pytest.raises(errors.UnknownOutcomeError):
        await behind_proxy.create(config_map("a"))
    assert await client.get(CONFIG_MAPS, "default", "a"), "it had happened"
