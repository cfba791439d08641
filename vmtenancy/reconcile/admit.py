"""The heart of a plan: release what has ended, decide what waits, and commit both as one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmtenancy.api.gpuclass import GpuClass
from vmtenancy.api.names import API_VERSION, MANAGED_BY, MANAGED_LABEL
from vmtenancy.core.admission import Admit, Wait, decide
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import Mode, Runtime
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.demands import Asked, Requests, Unclear, held, requests_of
from vmtenancy.reconcile.holders import ended
from vmtenancy.reconcile.ledger import allocation_name, batch_room, commit_chain
from vmtenancy.reconcile.steps import Chain, Object
from vmtenancy.reconcile.supply import class_resources, fleet_of, quota_tree_of
from vmtenancy.reconcile.view import LEDGER_NAME, View
from vmtenancy.reconcile.world import ref_of, uid_of


@dataclass(frozen=True, slots=True)
class Admission:
    """What was decided: the commit, if there is one, and why each other request waits, by the uid of its owner.

    `ending` names the grants that are released.
    """

    chain: Chain | None
    waits: Mapping[str, Wait] = field(default_factory=dict)
    unclear: Mapping[str, Unclear] = field(default_factory=dict)
    ending: frozenset[str] = frozenset()


def admit(view: View, fleet: Fleet, tree: QuotaTree) -> Admission:
    """Decide everything that waits, on what is free once the ended grants are released."""
    room = batch_room(view)
    releases = ended(view)[:room]
    ending = frozenset(grant.name for grant in releases)
    requests = requests_of(view, ending)
    waits: dict[str, Wait] = {}
    grants: list[Object] = []
    if requests.asked:
        demands = [asked.demand for asked in requests.asked.values()]
        try:
            decisions = decide(fleet, tree, held(view, ending), demands)
        except VmtError as error:
            # Live grants that contradict each other: nothing new may be granted, everything else goes on.
            decisions = []
            for asked in requests.asked.values():
                contradiction = Unclear(asked.owner, "LedgerContradiction", str(error))
                requests.unclear[uid_of(asked.owner)] = contradiction
        for decision in decisions:
            asked = requests.asked[decision.demand.key]
            if isinstance(decision, Wait):
                waits[uid_of(asked.owner)] = decision
            else:
                grants.append(_allocation(view, asked, decision))
    return Admission(commit_chain(view, grants[:room], releases), waits, requests.unclear, ending)


def explain_requests(view: View) -> tuple[Requests, Fleet, QuotaTree, list[Admit]]:
    """What `admit` would decide on, for explanations."""
    ending = frozenset(grant.name for grant in ended(view))
    return requests_of(view, ending), fleet_of(view), quota_tree_of(view), held(view, ending)


def _allocation(view: View, asked: Asked, decision: Admit) -> Object:
    owner = ref_of(asked.owner)
    if decision.placement is None:
        node, grants = "", _hold_grants(view, decision)
    else:
        node = decision.placement.node
        grants = [
            {
                "class": grant.offering,
                "pool": grant.pool,
                "count": grant.count,
                "mode": str(grant.mode),
                "resource": grant.resource,
                "devices": list(grant.devices),
                "parts": grant.parts,
            }
            for grant in decision.placement.grants
        ]
    spec = {
        "ledger": LEDGER_NAME,
        "epoch": view.head.epoch,
        "owner": {
            "kind": owner.kind,
            "namespace": owner.namespace,
            "name": owner.name,
            "uid": uid_of(asked.owner),
        },
        "tenant": asked.demand.tenant,
        "node": node,
        "grants": grants,
    }
    if asked.demand.runtime is Runtime.POD and asked.hold:
        spec["parent"] = asked.hold
    return {
        "apiVersion": API_VERSION,
        "kind": "GpuAllocation",
        "metadata": {"name": allocation_name(view, spec), "labels": {MANAGED_LABEL: MANAGED_BY}},
        "spec": spec,
    }


def _hold_grants(view: View, decision: Admit) -> list[Object]:
    classes = view.all_of(GpuClass)
    grants = []
    for name, count in decision.demand.requests:
        spec = classes[name].spec
        grants.append(
            {
                "class": name,
                "pool": spec.pool,
                "count": count,
                "mode": str(Mode.CONTAINER),
                "resource": class_resources(classes[name])[Mode.CONTAINER],
                "devices": [],
                "parts": spec.parts * count,
            }
        )
    return grants
