"""Who asks for devices: waiting GpuVMs, virtual clusters and gated pods, and the grants that live, in one form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vmtenancy.api.gpuclass import GpuClass
from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.names import CLASS_ANNOTATION, GATE
from vmtenancy.api.tenant import Tenant
from vmtenancy.api.virtualcluster import VirtualCluster
from vmtenancy.core.calendar import Reserved
from vmtenancy.core.fleet.model import DeviceGrant, Mode, Placement, Runtime
from vmtenancy.core.options import Units
from vmtenancy.core.requests import Admit, Demand
from vmtenancy.errors import VmtError
from vmtenancy.reconcile import volumes
from vmtenancy.reconcile.gate import root_owner
from vmtenancy.reconcile.groups import gather, group_of
from vmtenancy.reconcile.holders import is_ending, owner_of, vm_is_holding, vm_wants_devices
from vmtenancy.reconcile.leases import ends_of, refusal
from vmtenancy.reconcile.lineage import running_launchers
from vmtenancy.reconcile.machine import machine_objects
from vmtenancy.reconcile.node_fit import fits_node, is_constrained, tolerates
from vmtenancy.reconcile.requests import Asked, Requests, Unclear, tenant_for, unresolved
from vmtenancy.reconcile.reservations import asking, end_of, machine_refusal, of_machine, reserved
from vmtenancy.reconcile.revocation import avoided_nodes
from vmtenancy.reconcile.status import seconds
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.supply import pod_needs, vm_needs
from vmtenancy.reconcile.tenure import tenure_of
from vmtenancy.reconcile.untyped import refuse_wrong_shapes
from vmtenancy.reconcile.view import Allocation, View
from vmtenancy.reconcile.world import annotations_of, is_deleting, ref_of, uid_of

#: As many classes as one grant can have.
MOST_CLASSES = 8


def key_of(obj: Object) -> str:
    """The key of an owner's demand and grant, as people read it: `GpuVM vision/trainer`."""
    return str(ref_of(obj))


def requests_of(view: View, ending: frozenset[str]) -> Requests:
    """Everything that waits. `ending` are the names of grants that are being released in this plan."""
    found = Requests()
    for asked in _waiting(view, ending):
        if isinstance(asked, Unclear):
            found.unclear[uid_of(asked.owner)] = asked
        else:
            found.asked[asked.demand.key] = asked
    gather(view, found, ending)
    return found


def _waiting(view: View, ending: frozenset[str]) -> Iterator[Asked | Unclear]:
    def has_grant(obj: Object) -> bool:
        grant = view.live_by_owner.get(uid_of(obj))
        return grant is not None and grant.name not in ending

    for obj in view.world.of("GpuVM"):
        namespace = obj["metadata"]["namespace"]
        if not is_deleting(obj) and not has_grant(obj) and not vm_is_holding(view, namespace, uid_of(obj)):
            if running_launchers(view, obj):
                continue  # its machine runs on devices already: they are recovered, never asked for
            vm = view.parsed(obj, GpuVM)
            if not isinstance(vm, VmtError) and vm_wants_devices(view, vm, None):
                refused = unresolved(obj) or machine_refusal(view, obj, vm) or refusal(view, obj)
                yield refused or _vm_demand(view, obj, vm)
    for obj in view.world.of("VirtualCluster"):
        if not is_deleting(obj) and not has_grant(obj):
            cluster = view.parsed(obj, VirtualCluster)
            if isinstance(cluster, VmtError):
                continue
            if refused := refusal(view, obj):
                yield refused
            elif guaranteed_of(cluster):
                yield cluster_demand(view, obj, cluster)
    yield from asking(view)
    for pod in view.gated_pods:
        if not has_grant(pod) and not root_owner(view, pod):
            yield refusal(view, pod) or pod_demand(view, pod)


def guaranteed_of(cluster: VirtualCluster) -> tuple[tuple[str, int], ...]:
    """Units by class that it holds from its creation on."""
    return tuple((gpu.class_, gpu.guaranteed) for gpu in cluster.spec.gpus if gpu.guaranteed)


def _vm_demand(view: View, obj: Object, vm: GpuVM) -> Asked | Unclear:
    tenant, unclear = tenant_for(view, obj)
    if unclear:
        return unclear
    try:  # what can not be rendered would hold GPUs for nothing
        machine_objects(view, obj, vm, tenant, None)
        with refuse_wrong_shapes("spec.vm.template.spec.tolerations"):
            allowed_nodes = _nodes_tolerated(view, vm)
        storage = volumes.asked(view, obj, vm, tenant)
    except VmtError as error:
        return Unclear(obj, "CannotRender", str(error))
    cpu, memory = vm_needs(vm)
    reservation = of_machine(view, vm.metadata.namespace, vm.spec)
    hold = view.live_by_owner.get(uid_of(reservation)) if reservation else None
    demand = Demand(
        key=key_of(obj),
        tenant=tenant,
        runtime=Runtime.VM,
        requests=vm.spec.first_choice,
        priority=vm.spec.priority,
        created=created(obj),
        cpu=cpu,
        memory=memory,
        allowed_nodes=allowed_nodes,
        parent=key_of(reservation) if reservation else None,
        avoided_nodes=frozenset(avoided_nodes(obj)),
        preemptible=vm.spec.preemptible,
        ends=ends_of(view, obj),
        storage=storage.new,
        alternatives=vm.spec.alternatives,
        minimum=vm.spec.minimum,
    )
    return Asked(obj, demand, hold.name if hold else "", storage.total)


def cluster_demand(view: View, obj: Object, cluster: VirtualCluster) -> Asked | Unclear:
    """What a virtual cluster holds from its creation on."""
    tenant, unclear = tenant_for(view, obj)
    if unclear:
        return unclear
    demand = Demand(
        key=key_of(obj),
        tenant=tenant,
        runtime=Runtime.HOLD,
        requests=guaranteed_of(cluster),
        priority=cluster.spec.priority,
        created=created(obj),
        maximum=_maximum(cluster),
        ends=ends_of(view, obj),
    )
    return Asked(obj, demand)


def _maximum(cluster: VirtualCluster) -> tuple[tuple[str, int], ...]:
    return tuple((gpu.class_, gpu.max) for gpu in cluster.spec.gpus)


def pod_demand(view: View, pod: Object) -> Asked | Unclear:
    """What a pod that is nobody's launcher asks for."""
    tenant, unclear = tenant_for(view, pod)
    if unclear:
        return unclear
    if pod["spec"].get("resourceClaims"):
        return Unclear(
            pod, "NotDeliverable", "resource claims are not granted yet: ask for an extended resource"
        )
    if not view.gpus(pod):
        return Unclear(pod, "NothingRequested", f"it has the scheduling gate {GATE} but asks for no GPUs")
    cluster_obj = view.cluster_of(pod["metadata"]["namespace"])
    cluster = view.parsed(cluster_obj, VirtualCluster) if cluster_obj else None
    if isinstance(cluster, VmtError):
        return Unclear(pod, "InvalidVirtualCluster", str(cluster))
    if len(view.gpus(pod)) > MOST_CLASSES:
        return Unclear(pod, "NotDeliverable", f"it asks for GPUs of more than {MOST_CLASSES} kinds")
    offered = {gpu.class_ for gpu in cluster.spec.gpus} if cluster else classes_of_tenant(view, tenant)
    requests = []
    for resource, count in sorted(view.gpus(pod).items()):
        name = _class_for(view, pod, resource, offered)
        if name is None:
            whose = f"virtual cluster {cluster.metadata.name}" if cluster else f"tenant {tenant}"
            message = f"no class of {whose} delivers {resource} to pods"
            return Unclear(pod, "NotDeliverable", message)
        requests.append((name, count))
    cpu, memory = view.remembered(pod, pod_needs, "/needs")
    hold = view.live_by_owner.get(uid_of(cluster_obj)) if cluster_obj else None
    demand = Demand(
        key=key_of(pod),
        tenant=tenant,
        runtime=Runtime.POD,
        requests=tuple(requests),
        priority=cluster.spec.priority if cluster else 0,
        created=created(pod),
        cpu=cpu,
        memory=memory,
        parent=key_of(cluster_obj) if cluster_obj else None,
        allowed_nodes=_nodes_that_fit(view, pod),
        ends=ends_of(view, cluster_obj) if cluster_obj else None,
    )
    return Asked(pod, demand, hold.name if hold else "")


def classes_of_tenant(view: View, tenant: str) -> set[str]:
    """Classes of the pools that are open to a tenant that exists."""
    pools = {quota.pool for quota in view.all_of(Tenant)[tenant].spec.quota}
    return {name for name, cls in view.all_of(GpuClass).items() if cls.spec.pool in pools}


def _class_for(view: View, pod: Object, resource: str, offered: set[str]) -> str | None:
    """The class that a pod means by a resource: the one it names, else the first by name that delivers it."""
    classes = view.all_of(GpuClass)
    named = annotations_of(pod).get(CLASS_ANNOTATION)
    for name in [named] if named else sorted(offered):
        cls = classes.get(name)
        way = cls.spec.delivery.container if cls else None
        if name in offered and way is not None and way.resource == resource:
            return name
    return None


def created(obj: Object) -> float:
    """When an object was created, in seconds; older requests go first."""
    return seconds(obj["metadata"]["creationTimestamp"])


def _gpu_nodes(view: View) -> Mapping[str, Object]:
    return {name: node for (_, name), node in view.world.objects["Node"].items()}


def _nodes_that_fit(view: View, pod: Object) -> frozenset[str] | None:
    nodes = _gpu_nodes(view)
    if not is_constrained(pod) and not any((node.get("spec") or {}).get("taints") for node in nodes.values()):
        return None
    return frozenset(name for name, node in nodes.items() if fits_node(pod, node))


def _nodes_tolerated(view: View, vm: GpuVM) -> frozenset[str] | None:
    nodes = _gpu_nodes(view)
    if not any((node.get("spec") or {}).get("taints") for node in nodes.values()):
        return None
    spec = (vm.spec.vm.get("template") or {}).get("spec") or {}
    return frozenset(name for name, node in nodes.items() if tolerates(spec.get("tolerations") or (), node))


# -- what lives already -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands already, as the engine takes it: the keys of grants that are `ending`, and `promised` demands.

    Those of reservations that have begun are promised too; `reserved` are windows to come. `promises` are what those
    that leave a choice are promised.
    """

    ending: frozenset[str]
    promised: frozenset[str]
    reserved: Sequence[Reserved]
    promises: Mapping[str, Units]


def standing(view: View, released: frozenset[str]) -> Standing:
    """Which live grants will end soon, and for which demands grants were taken back; `released` are ending now."""
    begun = (asked.demand.key for asked in asking(view) if isinstance(asked, Asked))
    return Standing(
        frozenset(
            key_of_grant(grant)
            for grant in view.live
            if grant.name not in released and is_ending(view, grant)
        ),
        frozenset([*begun, *(grant.preemptor for grant in view.live if grant.preemptor)]),
        reserved(view),
        {key: units for grant in view.live for key, units in grant.promised.items()},
    )


def held(view: View, ending: frozenset[str]) -> list[Admit]:
    """Live grants, less those that end in this plan, and volumes, in the form that the engine takes."""
    admits = [_admit(view, grant) for grant in view.live if grant.name not in ending]
    admits += volumes.charged(view, ending)
    # A virtual cluster with nothing guaranteed has no grant of its own, but a maximum for its pods.
    for obj in view.world.of("VirtualCluster"):
        cluster = view.parsed(obj, VirtualCluster)
        if not isinstance(cluster, VmtError) and not guaranteed_of(cluster):
            tenant = view.tenant_of(obj["metadata"]["namespace"])
            admits.append(
                Admit(Demand(key_of(obj), tenant, Runtime.HOLD, (), maximum=_maximum(cluster)), None)
            )
    return admits


def key_of_grant(grant: Allocation) -> str:
    """The key of a grant's owner."""
    return str(Ref(grant.owner_kind, grant.owner_namespace, grant.owner_name))


def _admit(view: View, grant: Allocation) -> Admit:
    owner = owner_of(view, grant)
    key = key_of_grant(grant)
    requests = tuple((g.class_, g.count) for g in grant.grants)
    if grant.owner_kind == "GpuReservation":
        end = end_of(view, owner) if owner else None
        hold = Demand(key, grant.tenant, Runtime.HOLD, requests, maximum=requests, ends=end, quota_alone=True)
        return Admit(hold, None, _charged(grant))
    if grant.owner_kind == "VirtualCluster":
        cluster = view.parsed(owner, VirtualCluster) if owner else None
        maximum = requests if cluster is None or isinstance(cluster, VmtError) else _maximum(cluster)
        ends = ends_of(view, owner) if owner else None
        return Admit(
            Demand(key, grant.tenant, Runtime.HOLD, requests, maximum=maximum, ends=ends),
            None,
            _charged(grant),
        )
    runtime = Runtime.VM if grant.owner_kind == "GpuVM" else Runtime.POD
    parent, priority, leased = None, 0, owner
    if grant.owner_kind == "GpuVM" and (held_by := view.live_by_name.get(grant.parent)):
        parent = key_of_grant(held_by)
    if owner and grant.owner_kind == "GpuVM" and not isinstance(vm := view.parsed(owner, GpuVM), VmtError):
        priority = vm.spec.priority
    if grant.owner_kind == "Pod" and (cluster_obj := view.cluster_of(grant.owner_namespace)):
        parent, leased = key_of(cluster_obj), cluster_obj
        if not isinstance(of := view.parsed(cluster_obj, VirtualCluster), VmtError):
            priority = of.spec.priority
    devices = tuple(
        DeviceGrant(g.class_, g.pool, g.count, Mode(g.mode), g.resource, g.devices, g.parts)
        for g in grant.grants
    )
    return Admit(
        Demand(
            key,
            grant.tenant,
            runtime,
            requests,
            priority,
            created(owner) if owner else 0.0,
            cpu=grant.cpu,
            memory=grant.memory,
            parent=parent,
            group=group_of(view, owner) if owner else "",
            preemptible=grant.preemptible,
            ends=ends_of(view, leased) if leased and leased["kind"] != "Pod" else None,
        ),
        Placement(grant.node, devices, grant.cpu, grant.memory),
        tenure=tenure_of(view, grant, owner),
    )


def _charged(grant: Allocation) -> dict[str, int]:
    charged: dict[str, int] = {}
    for part in grant.grants:
        charged[part.pool] = charged.get(part.pool, 0) + part.parts
    return charged
