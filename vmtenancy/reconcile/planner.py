"""`plan(world, now) -> Plan`: every write that the controller makes, decided by one pure function.

It is level-triggered: it looks at what is, never at what changed, so it can be asked at any time and after any
failure. In a world that is as it should be it plans nothing (I7).
"""

from __future__ import annotations

from vmtenancy.reconcile.admit import admit
from vmtenancy.reconcile.adoption import record_chains
from vmtenancy.reconcile.gate import gate_chains
from vmtenancy.reconcile.gpuvm import gpuvm_chains
from vmtenancy.reconcile.groups import group_chains
from vmtenancy.reconcile.leases import lease_chains, next_lease_event
from vmtenancy.reconcile.ledger import housekeeping, take_over_chain
from vmtenancy.reconcile.orphans import orphan_chains
from vmtenancy.reconcile.reservations import next_window, reservation_chains
from vmtenancy.reconcile.revocation import next_deadline, revocation_chains
from vmtenancy.reconcile.steps import Plan
from vmtenancy.reconcile.supply import fleet_of, quota_tree_of
from vmtenancy.reconcile.tenancy import tenancy_chains
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.virtualcluster import virtualcluster_chains
from vmtenancy.reconcile.waiting_pods import waiting_pod_chains
from vmtenancy.reconcile.world import World


def plan(world: World, now: float) -> Plan:
    """What to do now; `now` in seconds since the epoch. Reads `world`, never changes it."""
    view = View(world, now)
    take_over = take_over_chain(view)
    if take_over is not None:
        return Plan((take_over,))
    fleet, tree = fleet_of(view), quota_tree_of(view)
    tenancy = tenancy_chains(view, fleet, tree)
    admission = admit(view, fleet, tree)
    chains = [admission.chain] if admission.chain else []
    chains += record_chains(view, admission.ending)
    chains += gate_chains(view, admission.ending)
    chains += admission.preemptions
    chains += lease_chains(view)
    chains += revocation_chains(view)
    chains += housekeeping(view)
    chains += tenancy
    chains += gpuvm_chains(view, admission)
    chains += virtualcluster_chains(view, admission)
    chains += waiting_pod_chains(view, admission)
    chains += reservation_chains(view, admission.waits, admission.unclear)
    if admission.chain is None:  # else its members are about to change
        chains += group_chains(view, admission.waits, admission.unclear)
    chains += orphan_chains(view)
    stops = min((w.stops_from for w in admission.waits.values() if w.stops_from is not None), default=None)
    times = (next_deadline(view), next_lease_event(view), next_window(view), stops)
    due = [time for time in times if time is not None]
    return Plan(tuple(chains), retry_at=min(due, default=None))
