"""What people do to a small fleet, as lists of acts; their crash points are enumerated from the writes they take."""

from __future__ import annotations

from collections.abc import Sequence

from lab import (
    Act,
    Lab,
    add_node,
    gpu_pod,
    gpu_vm,
    group,
    namespace,
    reservation,
    tenant,
    virtual_cluster,
)

from vmtenancy.api.names import MANAGED_LABEL
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.story import PASSTHROUGH

MORE = gpu_node("more", mode="vm-passthrough", gpus=4, resources={PASSTHROUGH: 4})

PREEMPT = {"whenCanPreempt": "Preempt"}


def applying(*objects: dict[str, object]) -> Act:
    return lambda lab: lab.apply(*objects)


def deleting(kind: str, home: str, *names: str) -> Act:
    def act(lab: Lab) -> None:
        for name in names:
            lab.delete(kind, home, name)

    return act


def editing(kind: str, home: str, name: str, **spec: object) -> Act:
    return lambda lab: lab.edit(kind, home, name, **spec)


def running_inside(*pods: dict[str, object]) -> Act:
    def act(lab: Lab) -> None:
        for pod in pods:
            lab.inside("lab", pod)

    return act


def _ended_inside(lab: Lab) -> None:
    for pod in lab.pods("vc-llm--lab"):
        lab.cluster.replace({**pod, "status": {"phase": "Succeeded"}}, status=True)


def passing(seconds: float) -> Act:
    def act(lab: Lab) -> None:
        lab.cluster.now += seconds

    return act


def losing(*nodes: str) -> Act:
    def act(lab: Lab) -> None:
        add_node(lab, MORE)
        for node in nodes:
            lab.lose(node)

    return act


def reporting(ready: bool) -> Act:
    def act(lab: Lab) -> None:
        for node in ("machines", "pods-1", "pods-2"):
            lab.report(node, ready=ready)

    return act


def _lost_under_a_pod_that_waits(lab: Lab) -> None:
    """Its grant is committed, its gate not lifted yet."""
    lab.apply(gpu_pod("p", namespace="llm"))
    lab.reconcile()
    lab.lose("pods-1")


def _bound_nowhere(lab: Lab) -> None:
    add_node(lab, MORE)
    lab.refusing = frozenset({"machines", "pods-1", "pods-2"})
    lab.apply(gpu_vm("a", 2), gpu_pod("p", 2, namespace="llm"))


def _changed_by_hand(lab: Lab) -> None:
    machine = lab.get("VirtualMachine", "vision", "a")
    metadata = {**machine["metadata"], "labels": {**machine["metadata"]["labels"], MANAGED_LABEL: "me"}}
    lab.cluster.replace(
        {**machine, "metadata": metadata, "spec": {**machine["spec"], "runStrategy": "Halted"}}
    )
    lab.edit("ResourceQuota", "vc-llm--lab", "vmtenancy-gpus", hard={"requests.nvidia.com/gpu": "99"})


def _restarted(lab: Lab) -> None:
    lab.delete("VirtualMachineInstance", "vision", "a")


SCENARIOS: dict[str, Sequence[Act]] = {
    "create and delete a machine": [applying(gpu_vm("a", 2)), deleting("GpuVM", "vision", "a")],
    "a machine and its keys": [
        applying(gpu_vm("a", sshKeys=[{"publicKey": "ssh-ed25519 AAAA ada"}])),
        deleting("GpuVM", "vision", "a"),
    ],
    "over quota, until room is made": [
        applying(gpu_vm("a", 3), gpu_vm("b", 2)),
        deleting("GpuVM", "vision", "a"),
        deleting("GpuVM", "vision", "b"),
    ],
    "stop and start, released": [
        applying(gpu_vm("a", 2)),
        editing("GpuVM", "vision", "a", runStrategy="Halted"),
        applying(gpu_vm("b", 4)),
        editing("GpuVM", "vision", "a", runStrategy="Always"),
        deleting("GpuVM", "vision", "b"),
    ],
    "stop and start, held": [
        applying(gpu_vm("a", 2, whenStopped="Hold")),
        editing("GpuVM", "vision", "a", runStrategy="Halted"),
        editing("GpuVM", "vision", "a", runStrategy="Always"),
        deleting("GpuVM", "vision", "a"),
    ],
    "restart": [applying(gpu_vm("a", 2)), _restarted],
    "other GPUs for a machine": [
        applying(gpu_vm("a")),
        editing("GpuVM", "vision", "a", gpus=[{"class": "quarter", "count": 2}]),
        editing("GpuVM", "vision", "a", gpus=[{"class": "whole", "count": 3}]),
    ],
    "quarters of one GPU": [
        applying(*(gpu_vm(name, of="quarter") for name in "abc")),
        deleting("GpuVM", "vision", "b"),
        applying(gpu_vm("d", 2, of="quarter", namespace="llm")),
    ],
    "a virtual cluster and its pods": [
        applying(virtual_cluster(guaranteed=1, most=2)),
        running_inside(gpu_pod("p"), gpu_pod("q"), gpu_pod("r")),
        _ended_inside,
        deleting("VirtualCluster", "llm", "lab"),
    ],
    "leases end, and one is renewed": [
        applying(gpu_vm("a", 2, lease={"duration": "2h"}), virtual_cluster(most=2, lease={"duration": "2h"})),
        running_inside(gpu_pod("p")),
        passing(90 * 60),
        passing(90 * 60),
        editing(
            "VirtualCluster", "llm", "lab", lease={"duration": "2h", "renewedAt": "2027-01-15T11:00:00Z"}
        ),
        deleting("VirtualCluster", "llm", "lab"),
    ],
    "a window is kept clear, used, and ends": [
        applying(
            tenant("vision", 3, 0),
            reservation("r", 2, 1_800_000_000 + 7200, 1_800_000_000 + 14400),
            gpu_vm("a", reservation="r"),
        ),
        applying(gpu_vm("late", 2), gpu_vm("short", 2, lease={"duration": "1h", "warnBefore": []})),
        passing(7200),
        passing(7200),
        deleting("GpuReservation", "vision", "r"),
    ],
    "a virtual cluster goes with all in it": [
        applying(virtual_cluster(guaranteed=0, most=2)),
        running_inside(gpu_pod("p"), gpu_pod("q")),
        deleting("VirtualCluster", "llm", "lab"),
    ],
    "pods in a tenant's namespace": [
        applying(gpu_pod("p", 2, namespace="llm"), gpu_pod("q", namespace="llm")),
        deleting("Pod", "llm", "p"),
        deleting("Pod", "llm", "q"),
    ],
    "a namespace that moves": [
        applying(namespace("shared"), tenant("vision", 3, namespaces=["vision", "shared"])),
        applying(gpu_vm("a", namespace="shared")),
        applying(tenant("vision", 3), tenant("llm", 3, namespaces=["llm", "shared"])),
        deleting("GpuVM", "shared", "a"),
    ],
    "a more urgent machine makes another one stop": [
        applying(tenant("vision", 3, preemption={"withinTenant": "LowerPriority"}), gpu_vm("a", 2)),
        applying(gpu_vm("urgent", 2, priority=5)),
        deleting("GpuVM", "vision", "urgent"),
    ],
    "what was lent is taken back from a virtual cluster": [
        applying(tenant("vision", 3, preemption={"reclaimWithinCohort": "Any"}), tenant("llm", 1, 3)),
        applying(virtual_cluster(guaranteed=1, most=4)),
        running_inside(gpu_pod("p", 2), gpu_pod("q")),
        applying(gpu_pod("mine", 2, namespace="vision")),
    ],
    "fewer of another class, for which another one stops": [
        applying(
            tenant("vision", 4, 0, preemption={"withinTenant": "LowerPriority"}, classFungibility=PREEMPT),
            gpu_vm("a", 3),
        ),
        applying(
            gpu_vm("b", gpus=[{"class": "whole", "count": 2, "alternatives": ["quarter"], "minCount": 1}])
        ),
        applying(gpu_vm("c", gpus=[{"class": "whole", "count": 4, "minCount": 2}], priority=5)),
        deleting("GpuVM", "vision", "c"),
    ],
    "a group, complete only with its last member": [
        applying(group("g", 2), gpu_vm("a", 2, group="g")),
        applying(gpu_pod("p", namespace="vision", group="g")),
        deleting("GpuVM", "vision", "a"),
        deleting("Pod", "vision", "p"),
    ],
    "a group makes others stop": [
        applying(
            tenant("vision", 4, preemption={"withinTenant": "LowerPriority"}), gpu_vm("a", 2), gpu_vm("b", 2)
        ),
        applying(group("g", 2), *(gpu_vm(name, 2, group="g", priority=5) for name in "xy")),
        deleting("GpuVM", "vision", "x"),
        deleting("GpuVM", "vision", "y"),
    ],
    "a node is lost": [
        applying(gpu_vm("a", 2), gpu_pod("p", 2, namespace="llm")),
        losing("machines", "pods-1", "pods-2"),
        deleting("GpuVM", "vision", "a"),
    ],
    "a node is lost under a pod that waits": [
        _lost_under_a_pod_that_waits,
    ],
    "a node is silent for a while": [
        applying(gpu_vm("a", 2), gpu_pod("p", 2, namespace="llm")),
        reporting(False),
        reporting(True),
    ],
    "no node takes what was let through": [
        _bound_nowhere,
        passing(301.0),
        deleting("GpuVM", "vision", "a"),
    ],
    "changed by hand": [
        applying(gpu_vm("a", 2), virtual_cluster()),
        _changed_by_hand,
        deleting("GpuVM", "vision", "a"),
        deleting("VirtualCluster", "llm", "lab"),
    ],
    "everything at once, then nothing": [
        applying(gpu_vm("a", 2), gpu_vm("b", 2), virtual_cluster(), gpu_pod("p", namespace="llm")),
        lambda lab: [act(lab) for act in _DELETE_ALL] and None,
    ],
}
_DELETE_ALL = (
    deleting("GpuVM", "vision", "a", "b"),
    deleting("VirtualCluster", "llm", "lab"),
    deleting("Pod", "llm", "p"),
    deleting("Tenant", "", "vision", "llm"),
)
