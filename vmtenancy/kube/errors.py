"""What can go wrong with a request, as a few classes that callers decide by.

The important line is between `Unavailable` (nothing was written) and `UnknownOutcomeError` (it may have
been).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmtenancy.errors import Code, Problem, VmtError


class KubeError(VmtError):
    """A request that the API server did not carry out, or may not have."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(Problem(Code.CLUSTER, "", " ".join(message.split())))
        self.retry_after_s = retry_after_s


class ConflictError(KubeError):
    """The resourceVersion or uid that was expected is not the one stored."""


class AlreadyExistsError(KubeError):
    """The name is taken."""


class NotFoundError(KubeError):
    """No such object, namespace or kind."""


class InvalidError(KubeError):
    """Refused for what it says.

    Schema, CEL rule, admission policy. The same request will be refused again.
    """


class ForbiddenError(KubeError):
    """Not allowed, not authenticated, over a ResourceQuota, or into a namespace that is going away."""


class ExpiredError(KubeError):
    """The resourceVersion of a watch, or the token of a paged list, is too old: list again."""


class UnavailableError(KubeError):
    """The API server did not do it (refused connection, throttled) or could not answer a read. Try later."""


class UnknownOutcomeError(KubeError):
    """A write whose answer was lost: it may or may not have happened. Read before the next attempt."""


_BY_STATUS: Mapping[int, type[KubeError]] = {
    400: InvalidError,
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    405: InvalidError,
    406: InvalidError,
    409: ConflictError,
    410: ExpiredError,
    413: InvalidError,
    415: InvalidError,
    422: InvalidError,
    429: UnavailableError,
}


def from_status(status: Mapping[str, Any], code: int, *, write: bool, what: str = "") -> KubeError:
    """The error that a `Status` object (or any body of a failed response) stands for.

    `code` is the HTTP status. A 5xx answers a write that may have reached etcd, so it is unknown; 429 is sent
    before a request is handled.
    """
    kind = _BY_STATUS.get(code)
    if kind is None:
        kind = UnknownOutcomeError if write else UnavailableError
    elif kind is ConflictError and status.get("reason") == "AlreadyExists":
        kind = AlreadyExistsError
    message = str(status.get("message") or f"HTTP {code}").strip()
    retry_after = (status.get("details") or {}).get("retryAfterSeconds")
    return kind(f"{what}: {message}" if what else message, retry_after_s=retry_after)
