"""Every write the controller ever makes, as data.

A step is safe to repeat: it carries the precondition under which it was decided (a resourceVersion or a uid), or it is
idempotent by nature (creating a name that is derived from a uid). Steps that depend on each other
stand in one `Chain`: they run in order, and the first failure stops the chain; the next plan starts from what is then
observed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

Object: TypeAlias = dict[str, Any]
"""A Kubernetes object as JSON. What came out of a world is never changed in place."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Names one object: kind as in `vmtenancy.reconcile.kinds`, namespace `""` for cluster scope."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace + '/' if self.namespace else ''}{self.name}"


@dataclass(frozen=True, slots=True)
class Create:
    """POST. `AlreadyExists` is a failure: someone else has made it, so observe again."""

    object: Object


#: A resourceVersion that no object has: one that is applied with it must not exist yet.
NEVER: Final = "1"


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply with force and our one field owner.

    `metadata.resourceVersion` and `uid`, where given, are preconditions: the object must be at this version, and with
    a uid it must exist. With `NEVER` it must not.
    """

    object: Object


@dataclass(frozen=True, slots=True)
class Replace:
    """PUT, compare-and-swap on `metadata.resourceVersion`; `status=True` writes the status subresource."""

    object: Object
    status: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """DELETE with the uid as precondition, and the resourceVersion too where given. Gone already is success."""

    ref: Ref
    uid: str
    resource_version: str = ""


@dataclass(frozen=True, slots=True)
class Absent:
    """A live read, no write: fails the chain if the object with this uid still exists, whatever was observed."""

    ref: Ref
    uid: str


@dataclass(frozen=True, slots=True)
class Granted:
    """A live read of the head, no write: fails the chain unless it is still of `epoch` and has not released `name`."""

    ledger: Ref
    epoch: int
    name: str


@dataclass(frozen=True, slots=True)
class Emit:
    """A Kubernetes Event on `about`. Only at transitions: at rest none is written (I7)."""

    about: Object
    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class RenderChart:
    """Have the vCluster chart rendered (no write to the cluster); the result comes back as `World.charts[key]`."""

    key: str
    release: str
    namespace: str
    values: Mapping[str, Any]


Step: TypeAlias = Create | Apply | Replace | Delete | Absent | Granted | Emit | RenderChart


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps that run in order; `why` says in a few words what they are for (logs, traces, the demo)."""

    why: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now. `retry_at` (seconds, same clock as `now`): plan again then even if nothing was observed."""

    chains: tuple[Chain, ...] = field(default=())
    retry_at: float | None = None
