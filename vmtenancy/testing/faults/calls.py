"""What a request asks of the API server, read from its method, path and body as the API server reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

_VERBS: Final = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
#: Reviews and tokens are answers: they are created and stored nowhere.
_NEVER_STORED: Final = frozenset({"authentication.k8s.io", "authorization.k8s.io"})


@dataclass(frozen=True, slots=True)
class Call:
    """One request that reached the proxy.

    Discovery, `/version` and the like have no `resource`. Objects of the core group have the group "".
    """

    number: int
    """1 for the first request of this proxy."""
    verb: str
    """create, update, patch, delete, deletecollection, get, list or watch."""
    path: str
    """As it was asked for, with its query."""
    group: str = ""
    resource: str = ""
    """The plural: `pods`."""
    subresource: str = ""
    namespace: str = ""
    """Empty for what is in no namespace, and for requests over all namespaces."""
    name: str = ""
    """For a create, the name in the body; empty where the API server makes it up."""
    user_agent: str = ""
    dry_run: bool = False
    status: int | None = None
    """HTTP status of the API server's answer, also where the client did not get it, or of the one given in its
    stead. None as long as there is no answer."""
    fault: str = ""
    """Class name of the action that struck it when it came in."""

    @property
    def is_write(self) -> bool:
        """Whether it changes what is stored, if it succeeds."""
        return (
            self.verb in ("create", "update", "patch", "delete", "deletecollection")
            and not self.dry_run
            and self.resource != ""
            and self.group not in _NEVER_STORED
            and (self.resource, self.subresource) != ("serviceaccounts", "token")
        )


def describe(number: int, method: str, target: str, user_agent: str, body: bytes) -> Call:
    """The call that a request is. `target` is path and query as sent; `body` is empty where there is none."""
    parts = urlsplit(target)
    query = parse_qs(parts.query)
    group, resource, subresource, namespace, name = _of_path(parts.path)
    verb = _VERBS.get(method, "get")
    if verb == "get" and resource and not name:
        verb = "watch" if query.get("watch", ["false"])[-1] in ("true", "1") else "list"
    elif verb == "delete" and not name:
        verb = "deletecollection"
    elif verb == "create" and not name:
        name = _name_in(body)
    return Call(
        number,
        verb,
        target,
        group=group,
        resource=resource,
        subresource=subresource,
        namespace=namespace,
        name=name,
        user_agent=user_agent,
        dry_run="dryRun" in query,
    )


def _of_path(path: str) -> tuple[str, str, str, str, str]:
    """Group, resource, subresource, namespace and name; all empty where the path names no resource."""
    match [unquote(part) for part in path.split("/") if part]:
        case ["api", _, *rest]:
            group = ""
        case ["apis", group, _, *rest]:
            pass
        case _:
            rest, group = [], ""
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces" and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    if not rest:
        return "", "", "", "", ""
    resource, name, subresource = (*rest, "", "", "")[:3]
    return group, resource, subresource, namespace, name


def _name_in(body: bytes) -> str:
    try:
        return str(json.loads(body)["metadata"]["name"])
    except (ValueError, LookupError, TypeError):  # protobuf, generateName, or what the API server will refuse
        return ""
