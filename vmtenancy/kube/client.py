"""Requests to the Kubernetes API: plain JSON objects in and out, over the official async client's transport.

Of `kubernetes.aio` this uses the configuration loaders (kubeconfig, exec plugins, in cluster) and the REST
layer. Its dynamic client wraps every object and maps no errors, its `Watch` reconnects without backoff and
hides 410 once, so both are left out.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration

from vmtenancy.api.names import FIELD_MANAGER
from vmtenancy.kube import connection, errors
from vmtenancy.reconcile.kinds import KINDS, KindInfo
from vmtenancy.reconcile.steps import Object, Ref

JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"
#: Asks for names, labels and versions only: kinds whose objects are large (CRDs) are watched this way.
METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

PAGE: Final = 500
TIMEOUT_S: Final = 20.0
#: The API server sends a bookmark about every minute; silence for longer means that the connection is dead.
WATCH_SILENCE_S: Final = 150.0
_THROTTLED_ATTEMPTS: Final = 4
_READS: Final = frozenset({"GET", "HEAD"})


class Event(NamedTuple):
    """One event of a watch."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: Object


class Client:
    """One connection pool to one API server, as one user.

    Close it with `aclose`, or use it in `async with`.
    """

    def __init__(
        self, configuration: Configuration, reload: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """`reload` brings fresh credentials into `configuration`; it is awaited once they are refused."""
        self.configuration = configuration
        self._reload = reload
        self._api = ApiClient(configuration)
        self._api.user_agent = "vmtenancy"
        self._discovered: dict[str, dict[str, KindInfo]] = {}

    @classmethod
    async def connect(cls, kubeconfig: Path | None = None, context: str | None = None) -> Client:
        """Connect as `kubeconfig` says; no request is made.

        Without it: `$KUBECONFIG`, else the pod's service account, else `~/.kube/config`. Raises `KubeError`
        where that is not usable.
        """
        configuration = Configuration()

        async def load() -> None:
            await connection.load(configuration, kubeconfig, context)

        await load()
        return cls(configuration, load)

    async def as_service_account(self, namespace: str, name: str, *, lifetime_s: int = 3600) -> Client:
        """A client that acts as a service account, with tokens that this client asks for and renews.

        This client must stay open as long as the other is used. Raises `KubeError` (no such account, not
        allowed).
        """
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        wanted = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": lifetime_s},
        }
        mine = self.configuration
        configuration = Configuration(
            host=mine.host, ssl_ca_cert=mine.ssl_ca_cert, ca_cert_data=mine.ca_cert_data
        )
        for setting in ("verify_ssl", "tls_server_name", "proxy", "client_session_kwargs"):
            setattr(configuration, setting, getattr(mine, setting))
        renew_at = 0.0
        renewing = asyncio.Lock()

        async def renew() -> None:
            nonlocal renew_at
            token = await self.request("POST", path, body=wanted)
            configuration.api_key["BearerToken"] = "Bearer " + token["status"]["token"]
            renew_at = time.monotonic() + 0.8 * lifetime_s

        async def renew_if_due(_: Configuration) -> None:
            async with renewing:
                if time.monotonic() >= renew_at:
                    await renew()

        await renew()
        configuration.refresh_api_key_hook = renew_if_due  # type: ignore[assignment]
        return Client(configuration, renew)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection; open watches end."""
        await self._api.close()  # type: ignore[no-untyped-call]

    # -- any request -----------------------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = JSON,
        accept: str = JSON,
        timeout_s: float = TIMEOUT_S,
    ) -> Object:
        """One request; the decoded body of the response.

        Throttling (429) is waited out as `Retry-After` says, a few times. Raises `KubeError`; which one tells
        whether something may have been written.
        """
        response = await self._send(
            method,
            path,
            body=body,
            query=query,
            content_type=content_type,
            accept=accept,
            limits=aiohttp.ClientTimeout(total=timeout_s),
        )
        try:
            async with response:
                decoded: Object = json.loads(await response.read())
                return decoded
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _lost(method, path, error) from error

    async def _send(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None,
        content_type: str = JSON,
        accept: str,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """Send until there is an answer that is worth having: a 2xx whose body is not read yet."""
        refused = False
        attempts = 0
        while True:
            try:
                _, url, headers, *_ = await self._api.param_serialize(
                    method,
                    path,
                    query_params=list((query or {}).items()),
                    header_params={"Accept": accept, "Content-Type": content_type},
                    auth_settings=["BearerToken"],
                )
                response: aiohttp.ClientResponse = (
                    await self._api.rest_client.request(  # type: ignore[no-untyped-call]
                        method, url, headers=headers, body=body, _request_timeout=limits
                    )
                ).response
                if response.status < 300:
                    return response
                async with response:
                    error = _refusal(method, path, response, await response.read())
            except (aiohttp.ClientError, OSError, TimeoutError) as lost:
                raise _lost(method, path, lost) from lost
            if response.status == 401 and self._reload and not refused:
                refused = True
                await self._reload()
            elif response.status == 429 and attempts < _THROTTLED_ATTEMPTS:
                attempts += 1
                await asyncio.sleep(error.retry_after_s or 1.0)
            else:
                raise error

    # -- objects ---------------------------------------------------------------------------------------------

    async def kind(self, api_version: str, kind: str) -> KindInfo:
        """How a kind is reached: from our table, else from the API server's discovery.

        Raises `NotFoundError` where the cluster does not have it.
        """
        known = KINDS.get(kind)
        if known and known.api_version == api_version:
            return known
        found = self._discovered.get(api_version, {}).get(kind)
        if found is None:
            group = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
            listing = await self.request("GET", group)
            self._discovered[api_version] = {
                r["kind"]: KindInfo(r["kind"], api_version, r["name"], namespaced=r["namespaced"])
                for r in listing["resources"]
                if "/" not in r["name"]
            }
            found = self._discovered[api_version].get(kind)
        if found is None:
            raise errors.NotFoundError(f"the cluster has no kind {kind} in {api_version}")
        return found

    async def get(self, info: KindInfo, namespace: str, name: str) -> Object:
        """One object, read live. Raises `KubeError`."""
        return await self.request("GET", path_of(info, namespace, name))

    async def find(self, info: KindInfo, ref: Ref) -> Object | None:
        """One object, read live, or None. Raises `KubeError`, `NotFoundError` where the kind itself is missing."""
        query = {"fieldSelector": f"metadata.name={ref.name}"}
        found = await self.request("GET", path_of(info, ref.namespace), query=query)
        items = found["items"] or ()
        return {**items[0], "apiVersion": info.api_version, "kind": info.kind} if items else None

    async def list_all(self, info: KindInfo, *, accept: str = JSON) -> tuple[list[Object], str]:
        """All objects of a kind that its selectors want, and the resourceVersion they were read at.

        Raises `KubeError`; `ExpiredError` when a page came too late.
        """
        items: list[Object] = []
        version = ""
        async for page, version in self.pages(info, accept=accept):  # noqa: B007 - the last one counts
            items += page
        return items, version

    async def pages(
        self, info: KindInfo, *, at: str = "", accept: str = JSON, limit: int = PAGE
    ) -> AsyncGenerator[tuple[list[Object], str], None]:
        """The same page by page, as the objects were at resourceVersion `at`, or are now. Raises as `list_all`."""
        wanted = {**_selectors(info), "limit": str(limit)}
        query = dict(wanted)
        if at:
            query |= {"resourceVersion": at, "resourceVersionMatch": "Exact"}
        while True:
            page = await self.request("GET", path_of(info), query=query, accept=accept)
            # The items of a list do not name their kind; an empty list of metadata is null.
            named = {"apiVersion": info.api_version, "kind": info.kind}
            yield [{**item, **named} for item in page["items"] or ()], page["metadata"]["resourceVersion"]
            more = page["metadata"].get("continue")
            if not more:
                return
            # The token has the version in it.
            query = {**wanted, "continue": more}

    async def watch(
        self, info: KindInfo, resource_version: str, *, accept: str = JSON, duration_s: float = 300.0
    ) -> AsyncGenerator[Event, None]:
        """Events after `resource_version`, bookmarks included, until the server ends the stream.

        Raises `ExpiredError` (list again) and every other `KubeError`, also when the connection breaks or is
        silent.
        """
        path = path_of(info)
        query = {
            **_selectors(info),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(int(duration_s)),
        }
        limits = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=WATCH_SILENCE_S)
        response = await self._send("GET", path, query=query, accept=accept, limits=limits)
        try:
            async with response:
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise errors.from_status(status, int(status.get("code", 500)), write=False)
                    yield Event(event["type"], event["object"])
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _lost("GET", path, error) from error

    async def create(self, obj: Object, *, dry_run: bool = False) -> Object:
        """POST; unknown fields are refused. The object as stored. Raises `KubeError`."""
        info = await self.kind(obj["apiVersion"], obj["kind"])
        namespace = obj["metadata"].get("namespace", "")
        query = _write(strict=True, dry_run=dry_run)
        return await self.request("POST", path_of(info, namespace), body=obj, query=query)

    async def apply(self, obj: Object, *, dry_run: bool = False) -> Object:
        """Server-side apply with force as our one field owner; `metadata.resourceVersion` is a precondition.

        Unknown fields are refused. Raises `KubeError`.
        """
        query = {**_write(strict=True, dry_run=dry_run), "force": "true"}
        return await self.request("PATCH", await self._path(obj), body=obj, query=query, content_type=APPLY)

    async def replace(self, obj: Object, *, status: bool = False, dry_run: bool = False) -> Object:
        """PUT, compare-and-swap on `metadata.resourceVersion`; who owns fields stays as stored. Raises `KubeError`."""
        path = await self._path(obj) + ("/status" if status else "")
        metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
        body = {**obj, "metadata": metadata}
        return await self.request("PUT", path, body=body, query=_write(strict=False, dry_run=dry_run))

    async def delete(self, info: KindInfo, ref: Ref, *, uid: str = "", version: str = "") -> Object | None:
        """DELETE, only the object of this uid and resourceVersion where given.

        Dependants go in the background.

        The object where it stays for its finalizers or its grace period, None where it is gone. Raises
        `KubeError`.
        """
        wanted = {"uid": uid, "resourceVersion": version}
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if preconditions := {name: value for name, value in wanted.items() if value}:
            options["preconditions"] = preconditions
        answer = await self.request("DELETE", path_of(info, ref.namespace, ref.name), body=options)
        # What was removed at once comes back as it was last, some of it (pods) without a version.
        stays = answer.get("kind") != "Status" and "resourceVersion" in answer["metadata"]
        return answer if stays else None

    async def _path(self, obj: Object) -> str:
        info = await self.kind(obj["apiVersion"], obj["kind"])
        return path_of(info, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])


def path_of(info: KindInfo, namespace: str = "", name: str = "") -> str:
    """The REST path of a collection (all namespaces where none is given) or of one object."""
    root = f"/apis/{info.api_version}" if "/" in info.api_version else f"/api/{info.api_version}"
    middle = f"/namespaces/{namespace}" if info.namespaced and namespace else ""
    return f"{root}{middle}/{info.plural}" + (f"/{name}" if name else "")


def micro_time() -> str:
    """Now, as the API writes `MicroTime`."""
    return datetime.datetime.fromtimestamp(time.time(), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _selectors(info: KindInfo) -> dict[str, str]:
    wanted = {"labelSelector": info.selector, "fieldSelector": info.fields}
    return {name: value for name, value in wanted.items() if value}


def _write(*, strict: bool, dry_run: bool = False) -> dict[str, str]:
    query = {"fieldManager": FIELD_MANAGER}
    if strict:
        query["fieldValidation"] = "Strict"
    if dry_run:
        query["dryRun"] = "All"
    return query


def _refusal(method: str, path: str, response: aiohttp.ClientResponse, body: bytes) -> errors.KubeError:
    try:
        status = json.loads(body)
    except ValueError:  # a proxy in front, or a bare text answer
        status = {"message": body.decode(errors="replace")[:500]}
    error = errors.from_status(
        status if isinstance(status, dict) else {},
        response.status,
        write=method not in _READS,
        what=f"{method} {path}",
    )
    header = response.headers.get("Retry-After", "")
    if error.retry_after_s is None and header.isdigit():
        error.retry_after_s = float(header)
    return error


def _lost(method: str, path: str, error: Exception) -> errors.KubeError:
    """A request without an answer.

    Only a connection that never came to be is known to have written nothing.
    """
    message = f"{method} {path}: {error or type(error).__name__}"
    never_sent = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    if method in _READS or never_sent:
        return errors.UnavailableError(message)
    return errors.UnknownOutcomeError(message)
