"""Grants for what runs without one: allocations that were lost, and what an administrator has us adopt.

What really runs decides. A bound, unfinished pod that went through our gate, or that is to be adopted, gets a grant of
the devices that it has, above quota too: over-use is told, never hidden (I2 speaks of admissions). It is committed like
every other grant. A virtual cluster that was admitted gets its hold again. Where the node can not have as many devices
free, nothing is written, and the owner is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.names import ALLOCATION_ANNOTATION
from vmtenancy.api.virtualcluster import VirtualCluster
from vmtenancy.core.fleet.arrays import MOST_UNITS, Fleet
from vmtenancy.core.fleet.model import DeviceFacts, Mode, Placement, Runtime
from vmtenancy.core.options import has_options
from vmtenancy.core.placement.best_fit import NoPlacement, Obstacle, Request, best_fit
from vmtenancy.core.requests import Admit, Demand
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.demands import (
    cluster_demand,
    guaranteed_of,
    held,
    key_of,
    pod_demand,
)
from vmtenancy.reconcile.granted import as_running
from vmtenancy.reconcile.holders import pods_holding
from vmtenancy.reconcile.ledger import write_status
from vmtenancy.reconcile.lineage import gpuvm_of, is_claimed
from vmtenancy.reconcile.requests import Asked, Unclear, tenant_for
from vmtenancy.reconcile.steps import Chain, Object
from vmtenancy.reconcile.supply import MOST, foreign_pods, node_facts, offerings_of, pools_of, vm_needs
from vmtenancy.reconcile.view import Allocation, View, by_name
from vmtenancy.reconcile.world import annotations_of, is_deleting, ref_of, uid_of

#: Reasons in the owner's condition.
LOST, NOT_ADOPTABLE = "GrantLost", "CannotAdopt"


@dataclass(slots=True)
class Recovery:
    """What to commit now: `grants`, and the end of `superseded` ones, which name what their owner does not use.

    `refused` can not be granted: why, for the owner.
    """

    grants: list[tuple[Asked, Admit]] = field(default_factory=list)
    superseded: list[Allocation] = field(default_factory=list)
    refused: list[Unclear] = field(default_factory=list)


def recover(view: View, ending: frozenset[str]) -> Recovery:
    """Every grant that has to follow what runs. `ending` are the names of grants that are released in this plan."""
    found = Recovery()
    for asked in _lost_holds(view):
        found.grants.append((asked, Admit(asked.demand, None)))
    seats = _Seats(view, ending)
    served: set[str] = set()
    for pod in _claimed(view):
        owner = gpuvm_of(view, pod) or pod
        live = view.live_by_owner.get(uid_of(owner))
        if live is not None and live.name in ending:
            continue
        if live is not None and _is_what_runs(view, live, pod):
            continue  # only the record of the pod is missing: `record_chains`
        if uid_of(owner) in served or (live is not None and pods_holding(view, live)):
            found.refused.append(_refuse(owner, pod, "another pod of it has what it was granted"))
        elif live is not None:
            found.superseded.append(live)  # what runs gets its grant once this one is gone
        else:
            granted = seats.grant(pod, owner)
            if isinstance(granted, Unclear):
                found.refused.append(granted)
            else:
                found.grants.append(granted)
                served.add(uid_of(owner))
    return found


def record_chains(view: View, ending: frozenset[str]) -> list[Chain]:
    """Write the pod into the grant that was given for what it has already, so that it holds the devices (I4)."""
    chains = []
    for pod in _claimed(view):
        grant = view.live_by_owner.get(uid_of(gpuvm_of(view, pod) or pod))
        if grant is None or not grant.mark or grant.name in ending or pods_holding(view, grant):
            continue
        if _is_what_runs(view, grant, pod):
            record = write_status(grant, podUIDs=[uid_of(pod)])
            chains.append(Chain(f"record that {ref_of(pod)} has {grant.name}", (record,)))
    return chains


def _claimed(view: View) -> Iterator[Object]:
    """Bound pods without a grant that should have one, in namespaces of tenants."""
    pods = [pod for pod in foreign_pods(view) if view.tenant_of(pod["metadata"]["namespace"])]
    return (pod for pod in by_name(pods) if is_claimed(view, pod))


def _is_what_runs(view: View, grant: Allocation, pod: Object) -> bool:
    return grant.node == pod["spec"]["nodeName"] and grant.resources == view.gpus(pod)


def _lost_holds(view: View) -> Iterator[Asked]:
    """Virtual clusters that were admitted, by the status that only we write, and have no hold now."""
    for obj in by_name(view.world.of("VirtualCluster")):
        cluster = None if is_deleting(obj) else view.parsed(obj, VirtualCluster)
        if cluster is None or isinstance(cluster, VmtError) or uid_of(obj) in view.live_by_owner:
            continue
        reported = {gpu.class_: gpu.guaranteed for gpu in cluster.status.gpus if gpu.guaranteed}
        wanted = guaranteed_of(cluster)
        if not wanted or dict(wanted) != reported or not view.labelled.get(uid_of(obj)):
            continue
        asked = cluster_demand(view, obj, cluster)
        offered = {offering.name: offering for offering in offerings_of(view)}
        delivered = all(name in offered and Mode.CONTAINER in offered[name].resources for name, _ in wanted)
        if isinstance(asked, Asked) and delivered:
            yield asked


def _refuse(owner: Object, pod: Object, message: str) -> Unclear:
    return Unclear(owner, LOST if ALLOCATION_ANNOTATION in annotations_of(pod) else NOT_ADOPTABLE, message)


class _Seats:
    """The nodes of pods without a grant, one at a time, with only the grants that live on them."""

    def __init__(self, view: View, ending: frozenset[str]) -> None:
        self._view, self._ending = view, ending
        self._fleets: dict[str, Fleet | str] = {}
        self._live: Mapping[str, list[Placement]] | None = None

    def grant(self, pod: Object, owner: Object) -> tuple[Asked, Admit] | Unclear:
        """The grant of what `pod` has, for `owner`; the next call counts with it."""
        view = self._view
        asked = _vm_asked(view, owner) if owner["kind"] == "GpuVM" else pod_demand(view, pod)
        if isinstance(asked, Unclear):
            return asked
        node = pod["spec"]["nodeName"]
        fleet = self._fleet(node)
        if isinstance(fleet, str):
            return _refuse(owner, pod, fleet)
        if not has_options([asked.demand]):
            return self._seat(pod, asked, fleet)
        told = {gpu["class"]: gpu["count"] for gpu in _told(owner)}
        found = as_running(asked.demand, told, view.gpus(pod), fleet.offerings)
        for demand in found:
            answer = self._seat(pod, replace(asked, demand=demand), fleet)
            if not isinstance(answer, Unclear):
                return answer
        return self._seat(pod, asked, fleet)

    def _seat(self, pod: Object, asked: Asked, fleet: Fleet) -> tuple[Asked, Admit] | Unclear:
        view, owner, demand = self._view, asked.owner, asked.demand
        node = pod["spec"]["nodeName"]
        unknown = [name for name, _ in demand.requests if name not in fleet.offerings]
        if unknown:
            return _refuse(owner, pod, f"there is no GpuClass {', '.join(unknown)}")
        units = tuple((fleet.offerings[name], count) for name, count in demand.requests)
        seat = best_fit(fleet, Request(demand.runtime, units))
        wanted = ", ".join(f"{count} x {name}" for name, count in demand.requests)
        if isinstance(seat, NoPlacement):
            return _refuse(owner, pod, f"it runs with {wanted} on {node}, which {_why(seat)}")
        has: dict[str, int] = {}
        for grant in seat.grants:
            has[grant.resource] = has.get(grant.resource, 0) + grant.count
        if has != view.gpus(pod):
            running = ", ".join(f"{count} x {name}" for name, count in sorted(view.gpus(pod).items()))
            return _refuse(
                owner, pod, f"it runs with {running} on {node}, and {wanted} would be another thing"
            )
        fleet.hold(seat)
        return asked, Admit(demand, replace(seat, cpu=demand.cpu, memory=demand.memory))

    def _fleet(self, name: str) -> Fleet | str:
        if name not in self._fleets:
            self._fleets[name] = self._build(name)
        return self._fleets[name]

    def _build(self, name: str) -> Fleet | str:
        """One node, taken as it must be since its pods run: schedulable, healthy, with all its devices and room."""
        node = self._view.world.get("Node", "", name)
        facts = node_facts(self._view, node, {}) if node else None
        if facts is None:
            return f"nothing is known of GPUs on node {name}"
        offerings = offerings_of(self._view)
        resources = {resource for offering in offerings for resource in offering.resources.values()}
        facts = replace(
            facts,
            schedulable=True,
            devices=tuple(DeviceFacts(device.id) for device in facts.devices),
            capacity=dict.fromkeys(resources, MOST_UNITS),
            cpu=MOST,
            memory=MOST,
        )
        fleet = Fleet.build([facts], pools_of(self._view), offerings)
        try:
            for placement in self._placements().get(name, ()):
                fleet.hold(placement)
        except VmtError as error:
            return str(error)
        return fleet

    def _placements(self) -> Mapping[str, list[Placement]]:
        if self._live is None:
            live: dict[str, list[Placement]] = {}
            self._live = live
            for admit in held(self._view, self._ending):
                if admit.placement is not None:
                    live.setdefault(admit.placement.node, []).append(admit.placement)
        return self._live


def _vm_asked(view: View, obj: Object) -> Asked | Unclear:
    """What a GpuVM has, without a look at whether it could be rendered now."""
    tenant, unclear = tenant_for(view, obj)
    if unclear:
        return unclear
    vm = view.parsed(obj, GpuVM)
    if isinstance(vm, VmtError):
        return Unclear(obj, "Invalid", str(vm))
    cpu, memory = vm_needs(vm)
    demand = Demand(
        key=key_of(obj),
        tenant=tenant,
        runtime=Runtime.VM,
        requests=vm.spec.first_choice,
        cpu=cpu,
        memory=memory,
        preemptible=vm.spec.preemptible,
        alternatives=vm.spec.alternatives,
        minimum=vm.spec.minimum,
    )
    return Asked(obj, demand)


def _told(vm: Object) -> list[Object]:
    """What the status, that only we write, says a GpuVM was granted."""
    return ((vm.get("status") or {}).get("allocation") or {}).get("gpus") or []


def _why(seat: NoPlacement) -> str:
    if not seat.obstacles:
        return "has no GPUs of that pool"
    return "is in another mode" if Obstacle.MODE in seat.obstacles else "has fewer GPUs that no grant names"
