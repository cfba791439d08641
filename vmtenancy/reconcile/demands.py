"""Who asks for devices: waiting GpuVMs, virtual clusters and gated pods, and the grants that live, in one form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vmtenancy.api.gpuclass import GpuClass
from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.names import CLASS_ANNOTATION, GATE
from vmtenancy.api.quantity import to_bytes
from vmtenancy.api.tenant import Tenant
from vmtenancy.api.virtualcluster import VirtualCluster
from vmtenancy.core.admission import Admit, Demand
from vmtenancy.core.fleet.model import DeviceGrant, Mode, Placement, Runtime
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.gate import root_owner
from vmtenancy.reconcile.holders import owner_of, vm_is_holding, vm_wants_devices
from vmtenancy.reconcile.machine import machine_objects
from vmtenancy.reconcile.node_fit import fits_node, is_constrained, tolerates
from vmtenancy.reconcile.status import seconds
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.supply import MOST, pod_needs
from vmtenancy.reconcile.untyped import refuse_wrong_shapes
from vmtenancy.reconcile.view import Allocation, View
from vmtenancy.reconcile.world import annotations_of, is_deleting, ref_of, uid_of

#: What a launcher pod needs beside its guest: seen with two GPUs on KubeVirt 1.7, 1512Mi, rounded up.
LAUNCHER_MEMORY = 2 << 30
#: As many classes as one grant can have.
MOST_CLASSES = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """One waiting request: `owner` is the GpuVM, VirtualCluster or Pod; `hold` the allocation of a pod's parent."""

    owner: Object
    demand: Demand
    hold: str = ""


@dataclass(frozen=True, slots=True)
class Unclear:
    """A request that can not even be put as a demand; `reason` and `message` go into its condition."""

    owner: Object
    reason: str
    message: str


@dataclass(slots=True)
class Requests:
    """All waiting requests by the key of their demand, and those that are not clear by the uid of their owner."""

    asked: dict[str, Asked] = field(default_factory=dict)
    unclear: dict[str, Unclear] = field(default_factory=dict)


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
    return found


def _waiting(view: View, ending: frozenset[str]) -> Iterator[Asked | Unclear]:
    def has_grant(obj: Object) -> bool:
        grant = view.live_by_owner.get(uid_of(obj))
        return grant is not None and grant.name not in ending

    for obj in view.world.of("GpuVM"):
        namespace = obj["metadata"]["namespace"]
        if not is_deleting(obj) and not has_grant(obj) and not vm_is_holding(view, namespace, uid_of(obj)):
            vm = view.parsed(obj, GpuVM)
            if not isinstance(vm, VmtError) and vm_wants_devices(vm, None):
                yield _vm_demand(view, obj, vm)
    for obj in view.world.of("VirtualCluster"):
        if not is_deleting(obj) and not has_grant(obj):
            cluster = view.parsed(obj, VirtualCluster)
            if not isinstance(cluster, VmtError) and _guaranteed(cluster):
                yield _cluster_demand(view, obj, cluster)
    for pod in view.gated_pods:
        if not has_grant(pod) and not root_owner(view, pod):
            yield _pod_demand(view, pod)


def _guaranteed(cluster: VirtualCluster) -> tuple[tuple[str, int], ...]:
    return tuple((gpu.class_, gpu.guaranteed) for gpu in cluster.spec.gpus if gpu.guaranteed)


def _no_tenant(owner: Object, tenant: str) -> Unclear:
    namespace = owner["metadata"]["namespace"]
    if tenant:
        return Unclear(owner, "TenantNotFound", f"tenant {tenant} of namespace {namespace} does not exist")
    message = f"namespace {namespace} belongs to no tenant: add it to a Tenant's spec.namespaces"
    return Unclear(owner, "NoTenant", message)


def _tenant(view: View, owner: Object) -> tuple[str, Unclear | None]:
    tenant = view.tenant_of(owner["metadata"]["namespace"])
    obj = view.world.get("Tenant", "", tenant)
    if obj is None:
        return tenant, _no_tenant(owner, tenant)
    if isinstance(view.parsed(obj, Tenant), VmtError):
        return tenant, Unclear(owner, "TenantInvalid", f"tenant {tenant} is not valid: see its conditions")
    return tenant, None


def _vm_demand(view: View, obj: Object, vm: GpuVM) -> Asked | Unclear:
    tenant, unclear = _tenant(view, obj)
    if unclear:
        return unclear
    try:  # what can not be rendered would hold GPUs for nothing
        machine_objects(view, obj, vm, tenant, None)
        with refuse_wrong_shapes("spec.vm.template.spec.tolerations"):
            allowed_nodes = _nodes_tolerated(view, vm)
    except VmtError as error:
        return Unclear(obj, "CannotRender", str(error))
    requests = tuple((gpu.class_, gpu.count) for gpu in vm.spec.gpus)
    cpu, memory = vm_needs(vm)
    demand = Demand(
        key=key_of(obj),
        tenant=tenant,
        runtime=Runtime.VM,
        requests=requests,
        priority=vm.spec.priority,
        created=created(obj),
        cpu=cpu,
        memory=memory,
        allowed_nodes=allowed_nodes,
    )
    return Asked(obj, demand)


def _cluster_demand(view: View, obj: Object, cluster: VirtualCluster) -> Asked | Unclear:
    tenant, unclear = _tenant(view, obj)
    if unclear:
        return unclear
    demand = Demand(
        key=key_of(obj),
        tenant=tenant,
        runtime=Runtime.HOLD,
        requests=_guaranteed(cluster),
        priority=cluster.spec.priority,
        created=created(obj),
        maximum=_maximum(cluster),
    )
    return Asked(obj, demand)


def _maximum(cluster: VirtualCluster) -> tuple[tuple[str, int], ...]:
    return tuple((gpu.class_, gpu.max) for gpu in cluster.spec.gpus)


def _pod_demand(view: View, pod: Object) -> Asked | Unclear:
    tenant, unclear = _tenant(view, pod)
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
    offered = {gpu.class_ for gpu in cluster.spec.gpus} if cluster else _classes_of_tenant(view, tenant)
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
    )
    return Asked(pod, demand, hold.name if hold else "")


def _classes_of_tenant(view: View, tenant: str) -> set[str]:
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


def vm_needs(vm: GpuVM) -> tuple[int, int]:
    """What a GpuVM takes of its node: (millicores, bytes), the launcher's own memory included."""
    return vm.spec.cpu.cores * 1000, min(to_bytes(vm.spec.memory) + LAUNCHER_MEMORY, MOST)


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


def held(view: View, ending: frozenset[str]) -> list[Admit]:
    """Live grants, less those that end in this plan, in the form that the engine takes."""
    admits = [_admit(view, grant) for grant in view.live if grant.name not in ending]
    # A virtual cluster with nothing guaranteed has no grant of its own, but a maximum for its pods.
    for obj in view.world.of("VirtualCluster"):
        cluster = view.parsed(obj, VirtualCluster)
        if not isinstance(cluster, VmtError) and not _guaranteed(cluster):
            tenant = view.tenant_of(obj["metadata"]["namespace"])
            admits.append(
                Admit(Demand(key_of(obj), tenant, Runtime.HOLD, (), maximum=_maximum(cluster)), None)
            )
    return admits


def _admit(view: View, grant: Allocation) -> Admit:
    owner = owner_of(view, grant)
    key = str(Ref(grant.owner_kind, grant.owner_namespace, grant.owner_name))
    requests = tuple((g.class_, g.count) for g in grant.grants)
    if grant.owner_kind == "VirtualCluster":
        cluster = view.parsed(owner, VirtualCluster) if owner else None
        maximum = requests if cluster is None or isinstance(cluster, VmtError) else _maximum(cluster)
        charged: dict[str, int] = {}
        for g in grant.grants:
            charged[g.pool] = charged.get(g.pool, 0) + g.parts
        return Admit(Demand(key, grant.tenant, Runtime.HOLD, requests, maximum=maximum), None, charged)
    runtime = Runtime.VM if grant.owner_kind == "GpuVM" else Runtime.POD
    parent = None
    if grant.owner_kind == "Pod" and (cluster_obj := view.cluster_of(grant.owner_namespace)):
        parent = key_of(cluster_obj)
    cpu, memory = _needs(view, owner)
    devices = tuple(
        DeviceGrant(g.class_, g.pool, g.count, Mode(g.mode), g.resource, g.devices, g.parts)
        for g in grant.grants
    )
    return Admit(
        Demand(key, grant.tenant, runtime, requests, cpu=cpu, memory=memory, parent=parent),
        Placement(grant.node, devices, cpu, memory),
    )


def _needs(view: View, owner: Object | None) -> tuple[int, int]:
    if owner is None:
        return 0, 0
    if owner["kind"] == "Pod":
        return view.remembered(owner, pod_needs, "/needs")
    vm = view.parsed(owner, GpuVM)
    return (0, 0) if isinstance(vm, VmtError) else vm_needs(vm)
