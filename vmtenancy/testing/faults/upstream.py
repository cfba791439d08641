"""The proxy's way to the API server, with credentials of its own or with those that the client sent."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import aiohttp
from aiohttp import web
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from multidict import CIMultiDict
from yarl import URL

from vmtenancy.kube import connection
from vmtenancy.testing.faults.actions import REASONS, Answer
from vmtenancy.testing.faults.calls import Call

#: Meant for one connection, and there are two (RFC 9110, 7.6.1); host and length are written anew.
_OWN_HEADERS: Final = frozenset(
    ("connection", "content-length", "host", "keep-alive", "proxy-connection", "te", "trailer")
) | {"transfer-encoding", "upgrade"}
_CONNECT_S: Final = 20.0
#: What can go wrong on the way.
LOST: Final = (aiohttp.ClientError, OSError)


class Answered(NamedTuple):
    """A whole answer; the body is as it came, compressed or not."""

    status: int
    headers: CIMultiDict[str]
    body: bytes


class Upstream:
    """Connections to the API server of a kubeconfig. Close it."""

    def __init__(self, configuration: Configuration, authorization: str | None) -> None:
        self._base = configuration.host.rstrip("/")
        self._authorization = authorization
        nobody = copy.copy(configuration)
        nobody.cert_file = nobody.key_file = None
        self._as_owner, self._as_bearer = _session(configuration), _session(nobody)

    @classmethod
    async def connect(cls, kubeconfig: Path) -> Self:
        """No request is made. Raises `KubeError` where the kubeconfig is not usable."""
        configuration = Configuration()
        await connection.load(configuration, kubeconfig, None)
        return cls(configuration, await configuration.get_api_key_with_prefix("BearerToken"))

    async def close(self) -> None:
        """Break every connection."""
        await self._as_owner.close()
        await self._as_bearer.close()

    async def forward(self, request: web.Request, body: bytes) -> Answered:
        """The whole answer to a request. Raises what is in `LOST`."""
        async with await self._send(request, passed_on(request.headers), body) as response:
            return Answered(response.status, passed_on(response.headers), await response.read())

    async def watch(self, request: web.Request) -> aiohttp.ClientResponse:
        """The answer to a watch, in lines of JSON, its body not read yet. Raises what is in `LOST`."""
        headers = passed_on(request.headers)
        offered = ",".join(headers.popall("Accept", [])).split(",")
        in_json = [one.strip() for one in offered if one.strip().startswith("application/json")]
        headers["Accept"] = ",".join(in_json) or "application/json"
        return await self._send(request, headers, b"")

    async def _send(
        self, request: web.Request, headers: CIMultiDict[str], body: bytes
    ) -> aiohttp.ClientResponse:
        session = self._as_bearer if "Authorization" in headers else self._as_owner
        if self._authorization:
            headers.setdefault("Authorization", self._authorization)
        url = URL(self._base + request.raw_path, encoded=True)
        return await session.request(
            request.method, url, headers=headers, data=body or None, allow_redirects=False
        )


def passed_on(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The headers that are meant for the other end."""
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _OWN_HEADERS)


def refusal(call: Call, answer: Answer) -> Answered:
    """The API server's answer to a call that it does not carry out: a `Status`, and `Retry-After` where wanted."""
    details: dict[str, Any] = {"name": call.name, "group": call.group, "kind": call.resource}
    headers = CIMultiDict({"Content-Type": "application/json"})
    if answer.retry_after is not None:
        details["retryAfterSeconds"] = answer.retry_after
        headers["Retry-After"] = str(answer.retry_after)
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"a fault on purpose: {call.verb} {call.path}",
        "reason": answer.reason or REASONS[answer.status],
        "details": details,
        "code": answer.status,
    }
    return Answered(answer.status, headers, json.dumps(status).encode())


def _session(configuration: Configuration) -> aiohttp.ClientSession:
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=RESTClientObject(configuration).ssl_context),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        **(configuration.client_session_kwargs or {}),
    )
    # It would send PUT and DELETE again when a connection breaks: what became of the first is the client's to ask.
    session._retry_connection = False
    return session
