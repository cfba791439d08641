"""Our finalizer: it keeps an owner until its devices are free and its children are gone."""

from __future__ import annotations

from vmtenancy.api.names import FINALIZER
from vmtenancy.reconcile.steps import Object, Replace


def with_finalizer(obj: Object) -> Replace | None:
    """The write that adds it, or None where it is there."""
    held = list(obj["metadata"].get("finalizers") or ())
    if FINALIZER in held:
        return None
    return Replace({**obj, "metadata": {**obj["metadata"], "finalizers": [*held, FINALIZER]}})


def without_finalizer(obj: Object) -> Replace | None:
    """The write that takes it away, or None where it is not there."""
    held = list(obj["metadata"].get("finalizers") or ())
    if FINALIZER not in held:
        return None
    left = [name for name in held if name != FINALIZER]
    return Replace({**obj, "metadata": {**obj["metadata"], "finalizers": left}})
