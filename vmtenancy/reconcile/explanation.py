"""Why a workload of the cluster waits, by the same code that the controller decides with."""

from __future__ import annotations

from dataclasses import replace

from vmtenancy.core.explain.change import Explanation, explain
from vmtenancy.core.requests import Demand
from vmtenancy.reconcile.admit import explain_requests
from vmtenancy.reconcile.demands import key_of, key_of_grant
from vmtenancy.reconcile.holders import owner_of
from vmtenancy.reconcile.leases import end_of_lease
from vmtenancy.reconcile.requests import Unclear
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import uid_of


class NothingAsked(Exception):  # noqa: N818 (an answer, no error)
    """The workload asks for nothing now: it is stopped, or is going."""


def why_waiting(view: View, obj: Object) -> Explanation | Unclear | None:
    """Why a GpuVM, VirtualCluster or Pod without a grant waits; None where it can be admitted now.

    Raises NothingAsked.
    """
    requests, fleet, tree, holds, now = explain_requests(view)
    if unclear := requests.unclear.get(uid_of(obj)):
        return unclear
    if key_of(obj) not in requests.asked:
        raise NothingAsked
    owners = _owners(view)
    live = [replace(admit, demand=_with_end(view, admit.demand, owners)) for admit in holds]
    owners |= {key: asked.owner for key, asked in requests.asked.items()}
    demands = [_with_end(view, asked.demand, owners) for asked in requests.asked.values()]
    standing = now.ending, now.promised, now.reserved, now.promises
    return explain(fleet, tree, live, demands, key_of(obj), *standing, now=view.now)


def _owners(view: View) -> dict[str, Object]:
    """Owners of all that lives, by key; of a virtual cluster also where it holds nothing."""
    owners = {key_of(obj): obj for obj in view.world.of("VirtualCluster")}
    for grant in view.live:
        if (owner := owner_of(view, grant)) is not None:
            owners[key_of_grant(grant)] = owner
    return owners


def _with_end(view: View, demand: Demand, owners: dict[str, Object]) -> Demand:
    """With the end of its lease: the controller looks for ends only where something is reserved."""
    owner = owners.get(demand.key)
    if owner is None or demand.quota_alone:
        return demand
    leased = view.cluster_of(owner["metadata"]["namespace"]) if owner["kind"] == "Pod" else owner
    return demand if leased is None else replace(demand, ends=end_of_lease(view, leased))
