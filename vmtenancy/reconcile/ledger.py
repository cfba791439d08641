"""The ledger's steps: take over, commit a batch, mark, trim, and clear away what no longer counts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from vmtenancy.api.names import API_VERSION
from vmtenancy.core.ledger.head import Head, commit, room, take_over, trim
from vmtenancy.core.options import Units
from vmtenancy.reconcile.status import timestamp
from vmtenancy.reconcile.steps import Chain, Create, Delete, Object, Ref, Replace
from vmtenancy.reconcile.view import LEDGER_NAME, Allocation, View

_NOTHING: Mapping[str, Units] = MappingProxyType({})


def take_over_chain(view: View) -> Chain | None:
    """Raise the epoch where this controller does not hold the head yet; nothing else may be planned before (I8).

    So too where the head is missing or behind what it once said: it was deleted, or comes from a backup.
    """
    known = _not_behind(view)
    head = take_over(known, view.world.identity)
    if view.ledger is None:
        obj = {"apiVersion": API_VERSION, "kind": "GpuLedger", "metadata": {"name": LEDGER_NAME}}
        return Chain("start the ledger", (Create({**obj, "spec": head.to_spec()}),))
    if view.head.holder != view.world.identity or known != view.head:
        return Chain(f"take over the ledger as epoch {head.epoch}", (_write_head(view.ledger, head),))
    return None


def _not_behind(view: View) -> Head:
    """The head, with no epoch or sequence below one that a mark shows or that this process has seen.

    A name is made of both, so neither may come twice.
    """
    epoch, sequence = view.world.head_seen
    return replace(
        view.head,
        epoch=max([view.head.epoch, epoch, *(allocation.epoch for allocation in view.allocations)]),
        sequence=max([view.head.sequence, sequence, *(allocation.mark for allocation in view.allocations)]),
    )


def allocation_name(view: View, spec: Mapping[str, Any]) -> str:
    """A name for one grant and no other: owner, epoch, sequence of the coming commit, and a digest of the spec.

    With the digest, a commit that arrives late (its answer was lost, and another plan was made meanwhile) can not
    make a different grant true under the same name.
    """
    owner = spec["owner"]
    short = {"GpuVM": "vm", "VirtualCluster": "vc", "GpuReservation": "res", "Pod": "pod"}[owner["kind"]]
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
    return f"{short}-{owner['uid']}-{view.head.epoch}-{view.head.sequence + 1}-{digest}"


def batch_room(view: View) -> int:
    """How many grants, and how many releases, one commit can take now; the rest waits for the next plan."""
    return room(_trimmed(view))


def commit_chain(view: View, grants: Sequence[Object], releases: Sequence[Allocation]) -> Chain | None:
    """One batch: write the allocations, which mean nothing yet, then the head, which makes all of it true at once.

    Both must fit: see `batch_room`. Whoever cuts a batch has to do it before devices are given on that are not
    released then.
    """
    ledger = view.ledger
    if ledger is None:
        return None
    head = _trimmed(view)
    ended = [allocation.name for allocation in releases]
    new = list(grants)
    if not new and not ended:
        return None
    head = commit(head, grants=[obj["metadata"]["name"] for obj in new], releases=ended)
    why = f"commit {head.sequence}: {len(new)} granted, {len(ended)} released"
    return Chain(why, (*(Create(obj) for obj in new), _write_head(ledger, head)))


def _trimmed(view: View) -> Head:
    existing = {allocation.name for allocation in view.allocations}
    marked = {allocation.name for allocation in view.allocations if allocation.mark}
    return trim(view.head, marked=marked, existing=existing)


def housekeeping(view: View) -> list[Chain]:
    """Mark what the head committed; delete what it released, and what it never knew (a batch that did not commit)."""
    chains = []
    for allocation in view.allocations:
        if not allocation.live:
            # One of a later epoch is another controller's: it knows whether that batch was committed, we do not.
            if allocation.epoch > view.head.epoch:
                continue
            ref = Ref("GpuAllocation", "", allocation.name)
            # Not once it was marked meanwhile.
            version = allocation.object["metadata"]["resourceVersion"]
            steps: tuple[Replace | Delete, ...] = (Delete(ref, allocation.uid, version),)
            if view.ledger is not None and allocation.name not in view.head.released:
                # Nor if the head has moved: the answer to our own commit may have been lost. Unchanged it is no write.
                steps = (Replace(view.ledger), *steps)
            chains.append(Chain(f"clear away {allocation.name}", steps))
        elif not allocation.mark:
            sequence = view.head.committed[allocation.name]
            chains.append(Chain(f"mark {allocation.name}", (write_status(allocation, sequence=sequence),)))
    return chains


def write_status(allocation: Allocation, **fields: Any) -> Replace:
    """Write fields of an allocation's status, named as the API names them; None takes one away."""
    status = {**(allocation.object.get("status") or {}), **fields}
    status = {name: value for name, value in status.items() if value is not None}
    return Replace({**allocation.object, "status": status}, status=True)


def revoke(
    allocation: Allocation,
    reason: str,
    message: str,
    now: float,
    *,
    unless_bound: str = "",
    preemptor: str = "",
    promised: Mapping[str, Units] = _NOTHING,
    since: float | None = None,
) -> Replace:
    """Take a grant back: its GpuVM is stopped, or its pod deleted, and it is released once nothing holds it (I4).

    With `unless_bound`, the uid of a pod, that stands only once this pod is gone; with `since`, from then on.
    `preemptor` is the key of the demand that it makes room for, `promised` the units by class that this one, and the
    others of its group, get by their keys, where they leave a choice.
    """
    revoked: Object = {"reason": reason, "message": message[:1024], "at": timestamp(now)}
    revoked |= {"podUID": unless_bound} if unless_bound else {}
    revoked |= {"preemptor": preemptor} if preemptor else {}
    revoked |= {"since": timestamp(since)} if since is not None else {}
    if promised:
        revoked["promised"] = [
            {"request": key, "class": name, "count": count}
            for key, units in promised.items()
            for name, count in units
        ]
    return write_status(allocation, revoked=revoked)


def _write_head(ledger: Object, head: Head) -> Replace:
    return Replace({**ledger, "spec": head.to_spec()})
