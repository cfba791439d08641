"""Applying children: only what differs from what was applied last is written (I7)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from vmtenancy.api.names import APPLIED_ANNOTATION, OWNER_UID_LABEL
from vmtenancy.reconcile.steps import Apply, Object, Ref
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import annotations_of, is_deleting, labels_of, owner_uids, ref_of


def with_digest(obj: Object) -> Object:
    """The object with an annotation that is its own digest."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:20]
    metadata = obj["metadata"]
    annotations = {**(metadata.get("annotations") or {}), APPLIED_ANNOTATION: digest}
    return {**obj, "metadata": {**metadata, "annotations": annotations}}


def changes(view: View, wanted: Iterable[Object]) -> list[Apply]:
    """The applies that bring the world to `wanted`, in its order. One that is being deleted is left to go first."""
    steps = []
    for obj in wanted:
        marked = with_digest(obj)
        found = view.world.find(ref_of(obj))
        if found is not None:
            same = annotations_of(found).get(APPLIED_ANNOTATION) == annotations_of(marked)[APPLIED_ANNOTATION]
            if same or is_deleting(found):
                continue
        steps.append(Apply(marked))
    return steps


def taken_by_others(view: View, wanted: Iterable[Object], owner_uid: str) -> list[Ref]:
    """Objects in the way: they have the name of a child of ours but were not made for this owner."""
    taken = []
    for obj in wanted:
        found = view.world.find(ref_of(obj))
        if (
            found is None
            or labels_of(found).get(OWNER_UID_LABEL) == owner_uid
            or owner_uid in owner_uids(found)
        ):
            continue
        taken.append(ref_of(obj))
    return taken
