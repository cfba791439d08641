"""The smallest client: one connection, one request at a time, nothing but the standard library.

For the agent, which runs on every node and may not cost much memory: the full client (`client`) takes tens of
megabytes.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import os
import ssl
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from vmtenancy.kube import errors

Object = dict[str, Any]

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S: Final = 15.0
_BODY_MOST: Final = 16 << 20
#: What is read of a kubeconfig, and what changes nothing here. Anything else would change where we go or who we are.
_CLUSTER_FIELDS: Final = frozenset(
    {"server", "certificate-authority", "certificate-authority-data", "insecure-skip-tls-verify"}
    | {"disable-compression", "extensions"}
)
_CREDENTIALS: Final = frozenset(
    {"token", "tokenFile", "client-certificate", "client-certificate-data", "client-key", "client-key-data"}
)
_USER_FIELDS: Final = _CREDENTIALS | {"extensions"}


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the API server is and who we are. `token_file` is read anew for each request: tokens are rotated."""

    url: str
    tls: ssl.SSLContext
    token: str = field(default="", repr=False)
    token_file: Path | None = None


def connection(kubeconfig: Path | None = None, context: str | None = None) -> Connection:
    """From `kubeconfig`, else `$KUBECONFIG` (its first file), else the pod's service account, else `~/.kube/config`.

    Raises `KubeError` where nothing is usable, and for what is not supported: credentials that a program makes
    (`exec`), acting as another (`as`), passwords, proxies, another name of the server, credentials without TLS.
    """
    named = str(kubeconfig or os.environ.get("KUBECONFIG", "").split(os.pathsep)[0])
    if not named and "KUBERNETES_SERVICE_HOST" in os.environ:
        return _of_account()
    path = Path(named or "~/.kube/config").expanduser()
    try:
        return _of_file(path, context)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, ssl.SSLError) as error:
        raise errors.KubeError(
            f"no usable kubeconfig ({path}): {error!r}; give --kubeconfig or set KUBECONFIG"
        ) from error


def _of_account() -> Connection:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"[{host}]" if ":" in host else host
    try:
        tls = ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt"))
        (_ACCOUNT / "token").read_text()
    except (OSError, ssl.SSLError) as error:
        raise errors.KubeError(f"no usable service account in this pod: {error}") from error
    return Connection(f"https://{host}:{port}", tls, token_file=_ACCOUNT / "token")


def _of_file(path: Path, context: str | None) -> Connection:
    import yaml

    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML: {error}") from error
    chosen = _named(config["contexts"], context or config.get("current-context"))["context"]
    cluster = _named(config["clusters"], chosen["cluster"])["cluster"]
    user = _named(config.get("users") or [], chosen["user"])["user"] or {}
    _check(cluster, user)
    authority = _data(cluster, "certificate-authority")
    file = None if authority else cluster.get("certificate-authority")
    tls = ssl.create_default_context(
        cafile=path.parent / file if file else None, cadata=authority.decode() if authority else None
    )
    if cluster.get("insecure-skip-tls-verify"):
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    _load_certificate(tls, user, path.parent)
    token_file = user.get("tokenFile")
    return Connection(
        cluster["server"], tls, user.get("token") or "", path.parent / token_file if token_file else None
    )


def _named(items: list[Object], name: str | None) -> Object:
    for item in items:
        if item["name"] == name:
            return item
    raise ValueError(f"it has no entry named {name}")


def _check(cluster: Mapping[str, Any], user: Mapping[str, Any]) -> None:
    """Raises ValueError for what would be left out silently."""
    for whose, entry, known in (("cluster", cluster, _CLUSTER_FIELDS), ("user", user, _USER_FIELDS)):
        if unknown := sorted(name for name, value in entry.items() if value and name not in known):
            raise ValueError(f"its {whose} has {', '.join(unknown)}, which the agent does not support")
    at = urlsplit(cluster["server"])
    if at.scheme not in ("https", "http") or not at.hostname or at.username:
        raise ValueError("its server is not https://HOST:PORT")
    if at.scheme == "http" and (sent := sorted(name for name in _CREDENTIALS if user.get(name))):
        raise ValueError(f"its user has {', '.join(sent)}, and its server is http://: anyone could read it")


def _data(entry: Mapping[str, Any], name: str) -> bytes:
    text = entry.get(f"{name}-data")
    try:
        return base64.b64decode(text, validate=True) if text else b""
    except binascii.Error as error:
        raise ValueError(f"{name}-data is not base64") from error


def _load_certificate(tls: ssl.SSLContext, user: Mapping[str, Any], home: Path) -> None:
    """The client's certificate. OpenSSL takes it from files only: what is given inline becomes one for a moment."""
    certificate, key = _data(user, "client-certificate"), _data(user, "client-key")
    if certificate and key:
        with tempfile.NamedTemporaryFile("wb") as file:  # readable by its owner alone
            file.write(certificate + b"\n" + key)
            file.flush()
            tls.load_cert_chain(file.name)
    elif user.get("client-certificate") and user.get("client-key"):
        tls.load_cert_chain(home / user["client-certificate"], home / user["client-key"])
    elif any(user.get(name) for name in _CREDENTIALS if name.startswith("client-")):
        raise ValueError("its user needs client-certificate and client-key, both as files or both as data")


class PlainClient:
    """Requests to one API server. For one thread."""

    def __init__(self, to: Connection) -> None:
        self._to = to
        self._http: http.client.HTTPConnection | None = None

    def get(self, path: str) -> Object:
        """An object. Raises `KubeError`."""
        return self._request("GET", path)

    def create(self, path: str, obj: Object, manager: str) -> Object:
        """Create an object. Raises `KubeError`."""
        return self._request("POST", f"{path}?fieldManager={quote(manager)}", obj, "application/json")

    def apply(self, path: str, obj: Object, manager: str) -> Object:
        """Apply server-side, taking over what others wrote of the same fields. Raises `KubeError`."""
        query = f"?fieldManager={quote(manager)}&force=true"
        return self._request("PATCH", path + query, obj, "application/apply-patch+yaml")

    def close(self) -> None:
        """Drop the connection."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def _request(self, method: str, path: str, body: Object | None = None, content: str = "") -> Object:
        """One request. A write whose answer is lost is not repeated: `UnknownOutcomeError`."""
        write = method != "GET"
        headers = {"Accept": "application/json", "User-Agent": "vmtenancy-agent"}
        if body is not None:
            headers["Content-Type"] = content
        if token := self._token():
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        reused = self._http is not None
        try:
            status, text = self._send(method, path, data, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if reused and not write:  # the server closed a connection that was idle
                return self._request(method, path, body, content)
            kind = errors.UnknownOutcomeError if write and reused else errors.UnavailableError
            raise kind(f"{method} {self._to.url}{path}: {error!r}") from error
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            answer = {"message": text[:200].decode("utf-8", "replace")}
        if status >= 300:
            raise errors.from_status(answer, status, write=write, what=f"{method} {path}")
        return answer

    def _token(self) -> str:
        if self._to.token_file is None:
            return self._to.token
        with suppress(OSError):
            return self._to.token_file.read_text().strip()
        return ""

    def _send(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        if self._http is None:
            at = urlsplit(self._to.url)
            if at.scheme == "https":
                self._http = http.client.HTTPSConnection(
                    at.hostname or "", at.port or 443, timeout=_TIMEOUT_S, context=self._to.tls
                )
            else:
                self._http = http.client.HTTPConnection(at.hostname or "", at.port or 80, timeout=_TIMEOUT_S)
        base = urlsplit(self._to.url).path.rstrip("/")
        self._http.request(method, base + path, data, dict(headers))
        answer = self._http.getresponse()
        return answer.status, answer.read(_BODY_MOST)
