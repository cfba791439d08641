"""The observed world: every object that matters, as the API server last told it.

A `World` is plain data. The Kubernetes cache keeps one current from watches, the in-memory cluster *is* one; the
planner reads it and never changes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import Object, Ref

T = TypeVar("T")
BIND_DEADLINE_S: Final = 300.0
Key = tuple[str, str]
"""(namespace, name); the namespace of a cluster-scoped object is `""`."""


def ref_of(obj: Mapping[str, Any]) -> Ref:
    """The name of an object."""
    meta = obj["metadata"]
    return Ref(obj["kind"], meta.get("namespace", ""), meta["name"])


def uid_of(obj: Mapping[str, Any]) -> str:
    """`metadata.uid`, or `""` for an object that was never stored."""
    return str(obj["metadata"].get("uid", ""))


def labels_of(obj: Mapping[str, Any]) -> Mapping[str, str]:
    """`metadata.labels`, empty where there are none."""
    return obj["metadata"].get("labels") or {}


def annotations_of(obj: Mapping[str, Any]) -> Mapping[str, str]:
    """`metadata.annotations`, empty where there are none."""
    return obj["metadata"].get("annotations") or {}


def is_deleting(obj: Mapping[str, Any]) -> bool:
    """Whether deletion has begun."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def owner_uids(obj: Mapping[str, Any]) -> Iterator[str]:
    """The uids of all owner references."""
    for owner in obj["metadata"].get("ownerReferences") or ():
        yield owner["uid"]


@dataclass(slots=True)
class World:
    """Objects by kind and key; `identity` names the controller that plans, `charts` what Helm rendered for it.

    `chart_errors` why Helm could not, both by the key of the step `RenderChart`.
    `templates` are the texts of the VM templates by file name.
    """

    identity: str = "vmtenancy"
    objects: dict[str, dict[Key, Object]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    charts: dict[str, tuple[Object, ...]] = field(default_factory=dict)
    chart_errors: dict[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    vcluster_values: Mapping[str, Any] = field(default_factory=dict)
    """The administrator's values of vCluster's chart, for all virtual clusters."""
    head_seen: tuple[int, int] = (0, 0)
    """The highest (epoch, sequence) of the ledger that this controller has seen."""
    bind_deadline: float = BIND_DEADLINE_S
    """Seconds from lifting a pod's gate after which its grant is taken back, unless it is bound by then."""
    memo: dict[tuple[str, str, str], Any] = field(default_factory=dict, repr=False)
    """Parsed forms by (kind, uid, resourceVersion): a cache of pure functions, never a source of truth."""

    def of(self, kind: str) -> Iterable[Object]:
        """All objects of a kind, in no order that means anything."""
        return self.objects[kind].values()

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """One object, or None."""
        return self.objects[kind].get((namespace, name))

    def find(self, ref: Ref) -> Object | None:
        """One object by its name, or None."""
        return self.get(ref.kind, ref.namespace, ref.name)

    def put(self, obj: Object) -> None:
        """Store an object as observed."""
        meta = obj["metadata"]
        self.objects[obj["kind"]][(meta.get("namespace", ""), meta["name"])] = obj

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """Forget an object; unknown ones are fine."""
        self.objects[kind].pop((namespace, name), None)
