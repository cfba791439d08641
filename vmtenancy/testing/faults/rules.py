"""Which request an action strikes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vmtenancy.testing.faults.actions import Action
from vmtenancy.testing.faults.calls import Call


class MissedError(AssertionError):
    """A fault that a test asked for never happened, so the test showed nothing."""


@dataclass(slots=True, eq=False)
class Rule:
    """`action` strikes the calls that `match`, after the first `skip` of them, at most `times` times (None: all).

    Calls are counted when they come in. At one call one action strikes: the first whose turn it is, in the order
    in which the rules were added. An action on watches also takes those that are open when the rule is added, and
    `times` counts watches then.

    `match` is asked in the proxy's thread: it must be quick and must not call the proxy.
    """

    match: Callable[[Call], bool]
    action: Action
    skip: int = 0
    times: int | None = 1
    struck: int = field(default=0, init=False)
    """How often it had an effect: requests answered by it, watches cut or expired, events held."""
    _seen: int = field(default=0, init=False, repr=False)
    _taken: int = field(default=0, init=False, repr=False)

    def due(self, call: Call) -> bool:
        """Count a call that came in; whether it is this rule's turn."""
        if not self.match(call):
            return False
        self._seen += 1
        return self._seen > self.skip and (self.times is None or self._taken < self.times)

    def take(self) -> None:
        """It strikes the call that it was due for."""
        self._taken += 1

    def give_back(self) -> None:
        """The watch that it was to strike ended before it could."""
        self._taken -= 1
