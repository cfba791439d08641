"""Conditions and time stamps by the Kubernetes API conventions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from vmtenancy.reconcile.steps import Emit, Object, Replace, Step


def timestamp(now: float) -> str:
    """Seconds since the epoch as Kubernetes writes a time (RFC 3339, UTC, whole seconds)."""
    return datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(stamp: str) -> float:
    """A Kubernetes time, with or without fractions, as seconds since the epoch."""
    return datetime.fromisoformat(stamp).timestamp()


#: As long as the CRDs let a message be.
MOST_MESSAGE = 4096


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition as wanted now. `event`: a transition into it is worth an Event.

    With `each_message_is_new` another message is a transition too. A longer message is cut here, so that what is shown
    can be compared with what is wanted.
    """

    type: str
    status: bool
    reason: str
    message: str = ""
    event: bool = False
    warning: bool = False
    each_message_is_new: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", self.message[:MOST_MESSAGE])


def condition(obj: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """The condition of a type as observed, or None."""
    for found in (obj.get("status") or {}).get("conditions") or ():
        if found["type"] == kind:
            return dict(found)
    return None


def is_true(obj: Mapping[str, Any], kind: str) -> bool:
    """Whether the condition of this type is `True`."""
    found = condition(obj, kind)
    return found is not None and found["status"] == "True"


def merged(
    obj: Mapping[str, Any], wanted: Iterable[Condition], generation: int, now: float
) -> list[dict[str, Any]]:
    """The condition list: times move only when a status turns, so equal wishes give an equal list."""
    result = []
    for want in wanted:
        old = condition(obj, want.type)
        status = "True" if want.status else "False"
        turned = old is None or old["status"] != status
        result.append(
            {
                "type": want.type,
                "status": status,
                "reason": want.reason,
                "message": want.message,
                "observedGeneration": generation,
                "lastTransitionTime": timestamp(now) if turned or old is None else old["lastTransitionTime"],
            }
        )
    return result


def status_steps(
    obj: Object,
    fields: Mapping[str, Any],
    conditions: Iterable[Condition],
    *,
    generation: int,
    now: float,
) -> tuple[Step, ...]:
    """The write that brings `obj.status` to what is wanted, and its events; nothing where it is so already (I7).

    `fields` are the other status fields; None and empty ones are left out. `generation` is the newest one that was
    really acted on (I12).
    """
    conditions = tuple(conditions)
    status = {name: value for name, value in fields.items() if value not in (None, "", [], {})}
    status["conditions"] = merged(obj, conditions, generation, now)
    status["observedGeneration"] = generation
    if status == obj.get("status"):
        return ()
    events = []
    for want in conditions:
        if want.event and _is_transition(condition(obj, want.type), want):
            events.append(Emit(obj, want.reason, want.message, want.warning))
    return (Replace({**obj, "status": status}, status=True), *events)


def _is_transition(old: Mapping[str, Any] | None, want: Condition) -> bool:
    if old is None or (old["reason"], old["status"]) != (want.reason, str(want.status)):
        return True
    return want.each_message_is_new and old["message"] != want.message
