"""What exists: nodes, GPUs, pools and classes of the world, as the facts that the placement engine takes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmtenancy.api import cohort
from vmtenancy.api.cohort import Cohort
from vmtenancy.api.gpuclass import GpuClass
from vmtenancy.api.gpunode import GpuNode, ObservedGpu
from vmtenancy.api.gpupool import GpuPool
from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.names import (
    COUNT_LABEL,
    GPU_RESOURCE_PREFIXES,
    MEMORY_LABEL,
    PRODUCT_LABEL,
    WORKLOAD_CONFIG_LABEL,
)
from vmtenancy.api.quantity import Quantity, parse_quantity, to_bytes, to_milli
from vmtenancy.api.tenant import Tenant
from vmtenancy.api.tenant import TenantQuota as TenantPoolQuota
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import DeviceFacts, Mode, NodeFacts, Offering, Pool
from vmtenancy.core.quota.policy import BorrowWithinCohort, Fungibility, PreemptionPolicy, Preempts
from vmtenancy.core.quota.resources import BY_LABEL, Resource
from vmtenancy.core.quota.tree import CohortQuota, PoolQuota, QuotaTree, ResourceQuota, TenantQuota
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.pods import is_finished
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import View, by_name
from vmtenancy.reconcile.world import labels_of, uid_of

MIB = 1 << 20
#: What a launcher pod needs beside its guest: seen with two GPUs on KubeVirt 1.7, 1512Mi, rounded up.
LAUNCHER_MEMORY = 2 << 30
#: Most millicores and bytes of one pod that are counted: any more fits no node, and sums stay far from 64 bits.
MOST = 1 << 50


def fleet_of(view: View) -> Fleet:
    """The fleet with what foreign pods hold taken off, and nothing of ours on it."""
    used = _used_by_others(view)
    nodes = [facts for node in by_name(view.world.of("Node")) if (facts := node_facts(view, node, used))]
    fleet = Fleet.build(nodes, pools_of(view), offerings_of(view))
    known = {node.name for node in nodes}
    for pod in foreign_pods(view):
        name = pod["spec"]["nodeName"]
        if name in known:
            for resource, count in view.gpus(pod).items():
                fleet.hold_foreign(name, resource, count)
    return fleet


def foreign_pods(view: View) -> list[Object]:
    """Pods that hold GPUs of a node without a grant: they ran before us, or came by another way."""
    return [
        pod for pod in view.gpu_pods if pod["spec"].get("nodeName") and uid_of(pod) not in view.live_by_pod
    ]


def pools_of(view: View) -> list[Pool]:
    """Every valid pool."""
    pools = []
    for name, pool in view.all_of(GpuPool).items():
        selector = pool.spec.selector
        minimum = 0 if selector.min_memory is None else to_bytes(selector.min_memory)
        pools.append(Pool(name, frozenset(selector.products), minimum, selector.node_labels))
    return pools


def offerings_of(view: View) -> list[Offering]:
    """Every valid class whose pool exists."""
    pools = view.all_of(GpuPool)
    return [
        Offering(name, cls.spec.pool, cls.spec.parts, class_resources(cls))
        for name, cls in view.all_of(GpuClass).items()
        if cls.spec.pool in pools
    ]


def class_resources(cls: GpuClass) -> dict[Mode, str]:
    """The extended resource by which each node mode delivers a class."""
    ways = cls.spec.delivery
    pairs = ((Mode.CONTAINER, ways.container), (Mode.PASSTHROUGH, ways.passthrough), (Mode.VGPU, ways.vgpu))
    return {mode: way.resource for mode, way in pairs if way is not None}


def _tenant_quota(name: str, tenant: Tenant) -> TenantQuota:
    quota = tuple(map(pool_quota, tenant.spec.quota))
    preemption = tenant.spec.preemption
    borrowing = preemption.borrow_within_cohort
    policy = PreemptionPolicy(
        Preempts(preemption.within_tenant),
        Preempts(preemption.reclaim_within_cohort),
        BorrowWithinCohort(borrowing.max_priority_threshold) if borrowing.policy != "Never" else None,
        Preempts(preemption.fair_share_within_cohort),
    )
    wished = tenant.spec.class_fungibility
    fungibility = Fungibility(
        try_next_to_borrow=wished.when_can_borrow == "TryNextClass",
        try_next_to_preempt=wished.when_can_preempt == "TryNextClass",
    )
    weight, resources = tenant.spec.fair_share.weight, resource_quota(tenant.spec.resources)
    return TenantQuota(name, tenant.spec.cohort, quota, policy, weight, resources, fungibility)


def pool_quota(given: cohort.PoolQuota) -> PoolQuota:
    """Quota in one pool; a tenant's with the caps of its classes."""
    caps = {cap.name: cap.limit for cap in given.classes} if isinstance(given, TenantPoolQuota) else {}
    return PoolQuota(given.pool, given.nominal, given.borrowing_limit, given.lending_limit, caps)


def resource_quota(given: Iterable[cohort.ResourceQuota]) -> tuple[ResourceQuota, ...]:
    """Quota of cpu, memory and storage in the units that are counted: never more than was given."""
    return tuple(
        ResourceQuota(
            BY_LABEL[quota.name],
            units(BY_LABEL[quota.name], quota.nominal),
            *(
                None if limit is None else units(BY_LABEL[quota.name], limit)
                for limit in (quota.borrowing_limit, quota.lending_limit)
            ),
        )
        for quota in given
    )


def units(resource: Resource, amount: Quantity) -> int:
    """Millicores or bytes, rounded down."""
    return int(parse_quantity(amount) * (1000 if resource is Resource.CPU else 1))


def limits(view: View) -> Mapping[str, frozenset[Resource]]:
    """The resources that each valid tenant is limited in."""
    return view.derived(_limits)


def _limits(view: View) -> Mapping[str, frozenset[Resource]]:
    tenants = view.all_of(Tenant).items()
    return {name: frozenset(BY_LABEL[quota.name] for quota in t.spec.resources) for name, t in tenants}


def quota_tree_of(view: View) -> QuotaTree:
    """The quota tree of all tenants and cohorts."""
    tenants = [_tenant_quota(name, tenant) for name, tenant in view.all_of(Tenant).items()]
    cohorts = [
        CohortQuota(
            name,
            node.spec.parent,
            tuple(map(pool_quota, node.spec.quota)),
            node.spec.fair_share.weight,
            resource_quota(node.spec.resources),
        )
        for name, node in view.all_of(Cohort).items()
    ]
    return QuotaTree.build(tenants, cohorts)


def node_facts(view: View, node: Object, used: Mapping[str, tuple[int, int]]) -> NodeFacts | None:
    """Facts about one node, or None where it has no GPUs.

    The agent's GpuNode is believed before labels and capacities; until it has looked after a boot, no device there is
    healthy. `used` is (millicores, bytes) by node that pods
    without a grant ask for.
    """
    name = node["metadata"]["name"]
    labels = labels_of(node)
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    capacity = {
        resource: to_bytes(count)
        for resource, count in allocatable.items()
        if resource.startswith(GPU_RESOURCE_PREFIXES)
    }
    seen = view.world.get("GpuNode", "", name)
    agent = view.parsed(seen, GpuNode) if seen else None
    if isinstance(agent, VmtError):
        agent = None
    if not capacity and agent is None:
        return None
    mode = labels.get(WORKLOAD_CONFIG_LABEL, "")
    product, memory = labels.get(PRODUCT_LABEL, ""), _number(labels.get(MEMORY_LABEL)) * MIB
    devices = tuple(DeviceFacts(f"gpu-{index}") for index in range(_number(labels.get(COUNT_LABEL))))
    if agent is not None and agent.status.conditions and not agent.status.gpus:
        devices = ()  # its agent sees none
    elif agent is not None and agent.status.gpus:
        cordoned = set(agent.spec.cordoned_devices)
        gpus = sorted(agent.status.gpus, key=lambda gpu: gpu.pci_address)
        product, memory = _kind_of(gpus)
        known = _is_of_this_boot(node, agent)
        devices = tuple(
            DeviceFacts(
                g.pci_address, known and g.healthy and g.product == product, g.pci_address in cordoned
            )
            for g in gpus
        )
        mode = agent.status.mode or mode
    cpu_used, memory_used = used.get(name, (0, 0))
    return NodeFacts(
        name=name,
        mode=Mode(mode) if mode in set(Mode) else None,
        schedulable=_is_schedulable(node),
        product=product,
        gpu_memory=memory,
        labels=labels,
        devices=devices,
        capacity=capacity,
        cpu=min(to_milli(allocatable.get("cpu", "0")), MOST) - cpu_used,
        memory=min(to_bytes(allocatable.get("memory", "0")), MOST) - memory_used,
    )


def _is_of_this_boot(node: Object, agent: GpuNode) -> bool:
    """Whether the agent looked since the node's last boot, as far as both say: what was healthy before may be gone."""
    boot = ((node.get("status") or {}).get("nodeInfo") or {}).get("bootID")
    return not boot or not agent.status.boot_id or agent.status.boot_id == boot


def _kind_of(gpus: Sequence[ObservedGpu]) -> tuple[str, int]:
    """Product and memory (bytes; 0 for unknown) that stand for a node: what most of its healthy GPUs are.

    What is known of a sick GPU may be wrong, so it has a say only where all are sick. GPUs of another product than
    their node's get no grants: whoever asks for one product must not be given another.
    """
    healthy = [gpu for gpu in gpus if gpu.healthy] or gpus
    counts = Counter(gpu.product for gpu in healthy)
    product = min(counts, key=lambda name: (-counts[name], name))
    # Most often one text, which is read once.
    return product, min(
        to_bytes(memory or 0) for memory in {g.memory for g in healthy if g.product == product}
    )


def _number(label: str | None) -> int:
    """The number that a label is; 0 for any other text, since whoever may label a node may write anything."""
    return int(label) if label and label.isdecimal() else 0


def _is_schedulable(node: Object) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and not (node.get("spec") or {}).get("unschedulable")


def _used_by_others(view: View) -> dict[str, tuple[int, int]]:
    used: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for pod in view.world.of("Pod"):
        node = pod["spec"].get("nodeName")
        if node and uid_of(pod) not in view.live_by_pod and not is_finished(pod):
            cpu, memory = view.remembered(pod, pod_needs, "/needs")
            used[node] = (used[node][0] + cpu, used[node][1] + memory)
    return used


def vm_needs(vm: GpuVM) -> tuple[int, int]:
    """What a GpuVM takes of its node: (millicores, bytes), the launcher's own memory included."""
    return vm.spec.cpu.cores * 1000, min(to_bytes(vm.spec.memory) + LAUNCHER_MEMORY, MOST)


def pod_needs(pod: Mapping[str, Any]) -> tuple[int, int]:
    """What a pod asks for: (millicores, bytes), as the scheduler counts containers and the pod's overhead."""
    spec = pod["spec"]
    running = [*(spec.get("containers") or ())]
    running += [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    total = [_asks(c) for c in running]
    first = [_asks(c) for c in spec.get("initContainers") or ()]
    overhead = _amounts(spec.get("overhead") or {})
    cpu = max(sum(c for c, _ in total), max((c for c, _ in first), default=0)) + overhead[0]
    memory = max(sum(m for _, m in total), max((m for _, m in first), default=0)) + overhead[1]
    return min(cpu, MOST), min(memory, MOST)


def _asks(container: Mapping[str, Any]) -> tuple[int, int]:
    resources = container.get("resources") or {}
    return _amounts({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _amounts(amounts: Mapping[str, Any]) -> tuple[int, int]:
    return to_milli(amounts.get("cpu", "0")), to_bytes(amounts.get("memory", "0"))
