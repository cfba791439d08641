"""The heart of a plan: release what has ended, decide what waits, and commit both as one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from vmtenancy.api.gpuclass import GpuClass
from vmtenancy.api.lease import seconds_of
from vmtenancy.api.names import API_VERSION, MANAGED_BY, MANAGED_LABEL
from vmtenancy.api.quantity import cpu_text, memory_text
from vmtenancy.core.admission import decide
from vmtenancy.core.explain.refusal import Reason
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import Mode
from vmtenancy.core.options import Units
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.core.requests import Admit, Wait
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.adoption import recover
from vmtenancy.reconcile.demands import (
    Standing,
    held,
    key_of_grant,
    requests_of,
    standing,
)
from vmtenancy.reconcile.holders import ended, has_notice
from vmtenancy.reconcile.ledger import allocation_name, batch_room, commit_chain, revoke, write_status
from vmtenancy.reconcile.requests import Asked, Requests, Unclear
from vmtenancy.reconcile.status import timestamp
from vmtenancy.reconcile.steps import Chain, Object
from vmtenancy.reconcile.supply import class_resources, fleet_of, quota_tree_of
from vmtenancy.reconcile.tenure import preemption_of, promised_at
from vmtenancy.reconcile.view import LEDGER_NAME, View
from vmtenancy.reconcile.world import ref_of, uid_of

#: Reason of a grant that is taken back to make room.
PREEMPTED = "Preempted"


@dataclass(frozen=True, slots=True)
class Admission:
    """What was decided: the commit, if there is one, and why each other request waits, by the uid of its owner.

    `ending` names the grants that are released, `preemptions` take others back to make room.
    """

    chain: Chain | None
    waits: Mapping[str, Wait] = field(default_factory=dict)
    unclear: Mapping[str, Unclear] = field(default_factory=dict)
    ending: frozenset[str] = frozenset()
    preemptions: tuple[Chain, ...] = ()


def admit(view: View, fleet: Fleet, tree: QuotaTree) -> Admission:
    """Decide everything that waits, on what is free once the ended grants are released."""
    room = batch_room(view)
    releases = ended(view)[:room]
    ending = frozenset(grant.name for grant in releases)
    requests = requests_of(view, ending)
    recovery = recover(view, ending)
    requests.unclear |= {uid_of(refused.owner): refused for refused in recovery.refused}
    if recovery.grants or recovery.superseded:
        # What runs comes first: what waits is decided on a ledger that has it.
        releases = [*releases, *recovery.superseded][:room]
        ending = frozenset(grant.name for grant in releases)
        since = promised_at(view, (asked.demand for asked, _ in recovery.grants))
        given = [_allocation(view, asked, decision, since) for asked, decision in recovery.grants[:room]]
        return Admission(commit_chain(view, given, releases), {}, requests.unclear, ending)
    waits: dict[str, Wait] = {}
    admits: list[Admit] = []
    if requests.asked:
        demands = [asked.demand for asked in requests.asked.values()]
        try:
            now = standing(view, ending)
            decisions = decide(
                fleet, tree, held(view, ending), demands, now.ending, now.promised, now.reserved, now.promises
            )
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
                admits.append(decision)
    since = promised_at(view, (decision.demand for decision in admits))
    grants = [_allocation(view, requests.asked[a.demand.key], a, since) for a in _cut(admits, room)]
    chain = commit_chain(view, grants, releases)
    return Admission(chain, waits, requests.unclear, ending, _preemptions(view, ending, waits.values()))


def _cut(admits: Sequence[Admit], room: int) -> Sequence[Admit]:
    """The first of them that one commit has room for; no group is split."""
    end = min(room, len(admits))
    while (
        0 < end < len(admits)
        and (group := admits[end].demand.group)
        and admits[end - 1].demand.group == group
    ):
        end -= 1
    return admits[:end]


def _preemptions(view: View, ending: frozenset[str], waits: Collection[Wait]) -> tuple[Chain, ...]:
    """Take back the grants of those that are stopped to make room, and let those be whose room nobody needs now."""
    by_key = {key_of_grant(grant): grant for grant in view.live if grant.name not in ending}
    promised: dict[str, dict[str, Units]] = defaultdict(dict)
    for wait in waits:
        if wait.nominated:
            promised[wait.demand.together][wait.demand.key] = wait.nominated
    chains = []
    for wait in waits:
        for victim in wait.victims:
            message = f"it makes room for {wait.demand.key} (priority {wait.demand.priority})"
            notice = preemption_of(view, by_key[victim].tenant).notice
            since = None
            if notice:
                since = float(int(view.now)) + seconds_of(notice)
                message += f" at {timestamp(since)}"
            step = revoke(
                by_key[victim],
                PREEMPTED,
                message,
                view.now,
                preemptor=wait.demand.key,
                promised=promised[wait.demand.together],
                since=since,
            )
            chains.append(Chain(f"preempt {victim} for {wait.demand.key}", (step,)))
    wanted = {wait.demand.key for wait in waits if wait.reason is Reason.NOMINATED}
    for victim, grant in by_key.items():
        if has_notice(view, grant) and grant.preemptor not in wanted:
            chains.append(Chain(f"leave {victim} its grant", (write_status(grant, revoked=None),)))
    return tuple(chains)


def explain_requests(view: View) -> tuple[Requests, Fleet, QuotaTree, list[Admit], Standing]:
    """What `admit` would decide on, for explanations."""
    ending = frozenset(grant.name for grant in ended(view))
    live = held(view, ending)
    return requests_of(view, ending), fleet_of(view), quota_tree_of(view), live, standing(view, ending)


def _allocation(view: View, asked: Asked, decision: Admit, since: Mapping[str, str]) -> Object:
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
    if asked.demand.cpu:
        spec["cpu"] = cpu_text(asked.demand.cpu)
    if asked.demand.memory:
        spec["memory"] = memory_text(asked.demand.memory)
    if asked.storage:
        spec["storage"] = memory_text(asked.storage)
    if not asked.demand.preemptible:
        spec["preemptible"] = False
    if asked.hold:
        spec["parent"] = asked.hold
    if promised := since.get(asked.demand.together):
        spec["promisedAt"] = promised
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
        spec, ways = classes[name].spec, class_resources(classes[name])
        mode = Mode.CONTAINER if Mode.CONTAINER in ways else min(ways)  # of a reservation of machines
        grants.append(
            {
                "class": name,
                "pool": spec.pool,
                "count": count,
                "mode": str(mode),
                "resource": ways[mode],
                "devices": [],
                "parts": spec.parts * count,
            }
        )
    return grants
