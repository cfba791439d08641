"""What can be done to a request, to an open watch and to a list."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

#: The statuses that the API server answers with, and the reason it gives.
REASONS: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}

# -- requests ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StopBefore:
    """Not forwarded; `callback` runs (kill the controller here), then the connection breaks.

    Callbacks run in a thread of their own, so they may block, also on the proxy; they should return once what they
    do is done. What one raises is raised by the proxy's exit.
    """

    callback: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class StopAfter:
    """Forwarded and answered by the API server; then `callback` runs as in `StopBefore`, and the connection breaks."""

    callback: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class LoseResponse:
    """Forwarded and answered by the API server; the connection breaks before the client hears of it."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Forwarded `seconds` later, even if the client has gone by then: a write that was long under way.

    With `answer`, forwarded at once and answered that much later. `math.inf`: until the proxy is cleared.
    """

    seconds: float
    answer: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """Answered with a `Status` of the API's form, and not forwarded.

    With `forwarded`, the API server carries it out first: what a 500, 503 or 504 may hide. `retry_after` is in
    seconds. `reason` is the usual one of the status where none is given.
    """

    status: int
    retry_after: int | None = None
    reason: str = ""
    forwarded: bool = False

    def __post_init__(self) -> None:
        if self.status not in REASONS:
            raise ValueError(f"the API server does not answer {self.status}; known: {sorted(REASONS)}")


@dataclass(frozen=True, slots=True)
class SlowBody:
    """The answer's head at once, its body little by little over `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class ReplayList:
    """A list is answered as it was earlier, with its old resourceVersion; not forwarded.

    `index` chooses among the earlier answers to the same request, oldest first, as in a Python list (16 are kept).
    Strikes only lists that were answered before. The API server does this for lists at `resourceVersion=0` only;
    for a consistent read (none given) it stands for a store that was set back.
    """

    index: int = 0


# -- watches -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection breaks once `after_events` more events have passed (bookmarks do not count)."""

    after_events: int = 0


@dataclass(frozen=True, slots=True)
class Expire:
    """After `after_events` more events the stream says 410 Expired and ends: the client has to list again."""

    after_events: int = 0


@dataclass(slots=True, eq=False)
class Hold:
    """Each event is held for `seconds`, or until `release`. Within one watch the order stays.

    Watches of other resources go on, so what is seen of different resources is reordered. With `newest_only` an
    event is dropped when a newer one of the same object (by uid) comes while it is held; a deletion never is.
    """

    seconds: float = math.inf
    newest_only: bool = False
    dropped: int = 0
    """Events dropped so far."""
    _released: bool = field(default=False, repr=False)
    _wake: list[Callable[[], object]] = field(default_factory=list, repr=False)

    def release(self) -> None:
        """Let everything go, now and from now on. Callable from any thread."""
        self._released = True
        for wake in self._wake:
            wake()

    def wait_s(self, arrived: float, now: float) -> float:
        """How much longer an event stays; zero or less: it may go."""
        return 0.0 if self._released else arrived + self.seconds - now

    def subscribe(self, wake: Callable[[], object]) -> None:
        """Call `wake` on release."""
        self._wake.append(wake)


RequestAction = StopBefore | StopAfter | LoseResponse | Delay | Answer | SlowBody | ReplayList
StreamAction = Cut | Expire | Hold
Action = RequestAction | StreamAction
