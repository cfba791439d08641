"""Applying children: only what differs from what was applied last, or was changed by hand since, is written (I7)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Final

from vmtenancy.api.names import APPLIED_ANNOTATION, MANAGED_BY, MANAGED_LABEL, OWNER_UID_LABEL
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.ownership import lost_fields
from vmtenancy.reconcile.steps import NEVER, Apply, Delete, Emit, Object, Ref
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import annotations_of, is_deleting, labels_of, owner_uids, ref_of, uid_of

DRIFT_REPAIRED: Final = "DriftRepaired"


def changes(view: View, owner: Object, wanted: Iterable[Object]) -> list[Apply | Emit]:
    """The applies that bring the world to `wanted`, in its order. One that is being deleted is left to go first.

    An annotation says what was applied last, by digest. Fields that were changed by hand are applied again, and
    `owner` gets an event. The annotation then says which they were, too: where something insists (a webhook that
    writes its own value), the same fields are lost again at once, and are left alone.
    """
    steps: list[Apply | Emit] = []
    for obj in wanted:
        found = view.world.find(ref_of(obj))
        mark = digest = _digest(obj)
        lost: list[str] = []
        if found is not None:
            if is_deleting(found):
                continue
            shown = annotations_of(found).get(APPLIED_ANNOTATION, "")
            if shown.partition("-")[0] == digest:
                lost = _lost(view, _marked(obj, digest), found)
                mark = f"{digest}-{_digest(lost)[:8]}" if lost else digest
            if shown == mark:
                continue
        steps.append(Apply(_guarded(_marked(obj, mark), found)))
        if lost:
            message = f"{ref_of(obj)}: set again what was changed by hand: {', '.join(lost)}"
            steps.append(Emit(owner, DRIFT_REPAIRED, message))
    return steps


def leftovers(children: Iterable[Object], wanted: Iterable[Object]) -> list[Delete]:
    """The deletions of `children`, all of one owner, that we made for an earlier spec of it."""
    kept = {ref_of(obj) for obj in wanted}
    return [
        Delete(ref_of(child), uid_of(child), child["metadata"]["resourceVersion"])
        for child in children
        if ref_of(child) not in kept
        and labels_of(child).get(MANAGED_LABEL) == MANAGED_BY
        and not is_deleting(child)
    ]


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


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _marked(obj: Object, mark: str) -> Object:
    metadata = obj["metadata"]
    annotations = {**(metadata.get("annotations") or {}), APPLIED_ANNOTATION: mark}
    return {**obj, "metadata": {**metadata, "annotations": annotations}}


def _lost(view: View, marked: Object, found: Object) -> list[str]:
    digest = marked["metadata"]["annotations"][APPLIED_ANNOTATION]
    return view.remembered(found, lambda stored: lost_fields(marked, stored), f"/lost/{digest}")


def _guarded(obj: Object, found: Object | None) -> Object:
    """Only the object that was seen may be written, as it was seen: a late apply must not undo a newer one.

    One that was not seen must not exist; but of a kind that is watched by our label, it may have lost that.
    """
    guard = {}
    if found is not None:
        guard = {"uid": uid_of(found), "resourceVersion": found["metadata"]["resourceVersion"]}
    elif not KINDS[obj["kind"]].selector:
        guard = {"resourceVersion": NEVER}
    return {**obj, "metadata": {**obj["metadata"], **guard}}
