"""The format of quota cases, as models that refuse what they do not know: see ``docs/quota-cases.md``."""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from vmtenancy.api.cohort import PoolQuota, ResourceQuota
from vmtenancy.api.common import ApiModel, Items, ObjectName, Text
from vmtenancy.api.gpuclass import Share, share_parts
from vmtenancy.api.quantity import Amount, Quantity
from vmtenancy.api.tenant import BorrowWithinCohort, TenantQuota, TenantResourceQuota
from vmtenancy.core.explain.refusal import Reason
from vmtenancy.errors import Code, Problem, VmtError

_Amount = Annotated[str, Text(r"^[0-9]+(\.[0-9]{1,3}|/[1-9][0-9]*)?$", 16, 'GPUs: "2", "0.25", "3/7"')]
_Weight = Annotated[int, Field(ge=1, le=1000)]
_Count = Annotated[int, Field(ge=0, le=10_000)]


class GpuClassOf(ApiModel):
    """A class; every pool that a quota names is, besides, a class of its own name: a whole GPU."""

    name: ObjectName = Field(description="The class.")
    pool: ObjectName = Field(description="The pool that it is charged in.")
    share: Share = Field(default="1", description="How much of a GPU one unit is.")


class Node(ApiModel):
    """A node and its GPUs."""

    name: ObjectName = Field(description="The node.")
    pool: ObjectName = Field(description="The pool of its GPUs.")
    gpus: _Count = Field(description="How many GPUs it has.")
    mode: Literal["container", "vm-passthrough", "vm-vgpu"] = Field(
        default="vm-passthrough", description="What the node's GPUs are for."
    )


class Cohort(ApiModel):
    """A cohort: its members share quota."""

    name: ObjectName = Field(description="The cohort.")
    parent: ObjectName | None = Field(default=None, description="The cohort above; unset: a root.")
    quota: Annotated[tuple[PoolQuota, ...], Items(most=64, keys=("pool",))] = Field(
        default=(), description="Quota that any member may borrow."
    )
    resources: Annotated[tuple[ResourceQuota, ...], Items(most=3, keys=("name",))] = Field(
        default=(), description="The same of cpu, memory and storage."
    )
    weight: _Weight = Field(default=1, description="Its weight in fair shares.")


class Preemption(ApiModel):
    """Kueue's `preemption` of a ClusterQueue."""

    within_cluster_queue: Literal["Never", "LowerPriority", "LowerOrNewerEqualPriority"] = Field(
        default="Never", description="Workloads of the same queue."
    )
    reclaim_within_cohort: Literal["Never", "LowerPriority", "Any"] = Field(
        default="Never", description="Workloads of queues of the cohort that have borrowed."
    )
    borrow_within_cohort: BorrowWithinCohort = Field(
        default=BorrowWithinCohort(), description="The same, for requests that would borrow themselves."
    )


class FlavorFungibility(ApiModel):
    """Kueue's `flavorFungibility` of a ClusterQueue: a flavor is a class."""

    when_can_borrow: Literal["Borrow", "TryNextFlavor"] = Field(
        default="Borrow", description="Of a class that fits if it borrows: take it, or try the next first."
    )
    when_can_preempt: Literal["Preempt", "TryNextFlavor"] = Field(
        default="TryNextFlavor",
        description="Of a class that fits if others are preempted: take it, or try the next first.",
    )


class Queue(ApiModel):
    """A queue: a tenant, in Kueue a ClusterQueue."""

    name: ObjectName = Field(description="The queue.")
    cohort: ObjectName | None = Field(default=None, description="Its cohort; unset: it shares with nobody.")
    quota: Annotated[tuple[TenantQuota, ...], Items(most=64, keys=("pool",))] = Field(
        default=(), description="Its quota by pool, in whole GPUs; no other pool is open to it."
    )
    resources: Annotated[tuple[TenantResourceQuota, ...], Items(most=3, keys=("name",))] = Field(
        default=(), description="Its quota of cpu, memory and storage; what is not listed is not limited."
    )
    weight: _Weight = Field(default=1, description="Its weight in fair shares.")
    preemption: Preemption = Field(default=Preemption(), description="Whom its requests may preempt.")
    flavor_fungibility: FlavorFungibility = Field(
        default=FlavorFungibility(), description="When the next of several classes is tried."
    )


class Workload(ApiModel):
    """A workload that runs or waits."""

    name: ObjectName = Field(description="Unique in the case.")
    queue: ObjectName = Field(description="Its queue.")
    gpus: dict[ObjectName, _Count] = Field(description="Units by class; of a VirtualCluster its guarantee.")
    priority: int = Field(default=0, description="Higher goes first.")
    age: int = Field(default=0, ge=0, description="Seconds since it came, or got its quota.")
    runtime: Literal["VM", "Pod", "VirtualCluster"] = Field(default="VM", description="What it is.")
    max: dict[ObjectName, _Count] = Field(
        default_factory=dict,
        description="Of a VirtualCluster: the most units by class that its pods may use.",
    )
    parent: ObjectName | None = Field(default=None, description="Of a Pod: the VirtualCluster that it is in.")
    group: ObjectName | None = Field(
        default=None, description="Workloads of one group are admitted and preempted together."
    )
    cpu: Amount = Field(default=Amount("0"), description="Of a VM or Pod: the processor that it takes.")
    memory: Amount = Field(default=Amount("0"), description="Of a VM or Pod: the memory that it takes.")
    storage: Amount = Field(
        default=Amount("0"), description="Of a VM: the size of its volumes, which stay when it is stopped."
    )


class Running(Workload):
    """A workload that runs."""

    node: ObjectName | None = Field(
        default=None, description="The node that it runs on; unset: the one that it best fits on."
    )
    ending: bool = Field(default=False, description="It is being stopped already, and still holds its GPUs.")
    stopped: bool = Field(default=False, description="Of a VM: it was stopped, and has its volumes alone.")
    work: int = Field(
        default=0, ge=0, description="Seconds of work that it would lose, since it was saved last."
    )
    safe: Annotated[tuple[Literal["withinTenant", "withinCohort"], ...], Items(most=2, unique=True)] = Field(
        default=(), description="For whom it has not run for its least time yet."
    )


class Incoming(Workload):
    """A workload that waits."""

    promised: bool = Field(default=False, description="Others were stopped for it already.")
    alternatives: dict[ObjectName, Annotated[tuple[ObjectName, ...], Items(most=16, unique=True)]] = Field(
        default_factory=dict, description="By class of `gpus`, other classes that would do, in their order."
    )
    min: dict[ObjectName, _Count] = Field(
        default_factory=dict, description="By class of `gpus`, the fewest units that will do."
    )


class Expected(ApiModel):
    """What is decided in one round."""

    admitted: Annotated[tuple[ObjectName, ...], Items(most=1000, unique=True)] = Field(
        default=(), description="Incoming workloads that are admitted; every other one waits."
    )
    granted: dict[ObjectName, dict[ObjectName, _Count]] = Field(
        default_factory=dict,
        description="Units by class of each admitted workload that gets another class, or fewer, than `gpus`.",
    )
    borrowed: dict[ObjectName, dict[ObjectName, _Amount]] = Field(
        default_factory=dict,
        description="What each admitted workload brings its queue above nominal, by pool.",
    )
    borrowed_resources: dict[ObjectName, dict[Literal["cpu", "memory", "storage"], Quantity]] = Field(
        default_factory=dict, description="The same of cpu, memory and storage."
    )
    victims: Annotated[tuple[ObjectName, ...], Items(most=1000, unique=True)] = Field(
        default=(), description="Running workloads that have to make room."
    )
    reasons: dict[ObjectName, Literal[tuple(reason.value for reason in Reason)]] = Field(  # type: ignore[valid-type]
        default_factory=dict, description="Why each incoming workload that is not admitted waits."
    )


class QuotaCase(ApiModel):
    """One case: the rules, what runs, what comes, and what is expected."""

    name: ObjectName = Field(description="Unique in its file.")
    shows: Annotated[str, Text(r"^[^\n]{10,}$", 300, "one sentence")] = Field(
        description="What the case shows, in one sentence."
    )
    fair_sharing: bool = Field(
        default=False,
        description="Shares decide whom to preempt, of those that `reclaimWithinCohort` allows by priority.",
    )
    classes: Annotated[tuple[GpuClassOf, ...], Items(most=64, keys=("name",))] = Field(
        default=(), description="Classes that are not whole GPUs of a pool."
    )
    nodes: Annotated[tuple[Node, ...], Items(most=1000, keys=("name",))] | None = Field(
        default=None, description="The fleet; unset: one in which quota alone decides."
    )
    cohorts: Annotated[tuple[Cohort, ...], Items(most=1000, keys=("name",))] = Field(
        default=(), description="The cohorts."
    )
    queues: Annotated[tuple[Queue, ...], Items(most=1000, least=1, keys=("name",))] = Field(
        description="The queues."
    )
    running: Annotated[tuple[Running, ...], Items(most=10_000, keys=("name",))] = Field(
        default=(), description="What runs; it may be above its quota (which was lowered)."
    )
    incoming: Annotated[tuple[Incoming, ...], Items(most=10_000, least=1, keys=("name",))] = Field(
        description="What waits."
    )
    expected: Expected = Field(description="What is decided.")


def check_names(case: QuotaCase) -> None:
    """Refuse names that are of nothing. Raises VmtError."""
    incoming, running = {w.name for w in case.incoming}, {w.name for w in case.running}
    queues = {queue.name for queue in case.queues}
    expected = case.expected
    known: list[tuple[str, Iterable[str], set[str]]] = [
        ("running", (w.queue for w in case.running), queues),
        ("running", (w.node for w in case.running if w.node), {node.name for node in case.nodes or ()}),
        ("expected.admitted", expected.admitted, incoming),
        ("expected.granted", expected.granted, set(expected.admitted)),
        ("expected.borrowed", expected.borrowed, set(expected.admitted)),
        ("expected.borrowedResources", expected.borrowed_resources, set(expected.admitted)),
        ("expected.victims", expected.victims, running),
        ("expected.reasons", expected.reasons, incoming - set(expected.admitted)),
    ]
    problems = [
        Problem(
            Code.UNKNOWN_REFERENCE, path, "no such name", name, f"one of {', '.join(sorted(names)) or 'none'}"
        )
        for path, found, names in known
        for name in found
        if name not in names
    ]
    problems += [
        Problem(Code.INVALID_FIELD, f"incoming[{i}].name", "also runs", w.name, "a name of its own")
        for i, w in enumerate(case.incoming)
        if w.name in running
    ]
    problems += [
        Problem(
            Code.INVALID_FIELD,
            f"classes[{i}].share",
            "is not exact",
            c.share,
            "a share that vmtenancy counts",
        )
        for i, c in enumerate(case.classes)
        if share_parts(c.share) is None
    ]
    workloads = [("running", case.running), ("incoming", case.incoming)]
    for name, listed in workloads:
        for i, w in enumerate(listed):
            if w.max and w.runtime != "VirtualCluster":
                problems.append(_only(f"{name}[{i}].max", w.name, "a VirtualCluster has a maximum"))
            if w.parent and w.runtime != "Pod":
                problems.append(_only(f"{name}[{i}].parent", w.name, "a Pod is in a VirtualCluster"))
            if w.runtime == "VirtualCluster" and (w.cpu.milli or w.memory.bytes):
                problems.append(_only(f"{name}[{i}]", w.name, "VMs and Pods take cpu and memory"))
            if w.runtime != "VM" and (w.storage.bytes or (isinstance(w, Running) and w.stopped)):
                problems.append(_only(f"{name}[{i}]", w.name, "a VM has volumes, and stops"))
    for i, each in enumerate(case.incoming):
        problems += [
            Problem(Code.UNKNOWN_REFERENCE, f"incoming[{i}].{field}", "is not in gpus", name, "one of gpus")
            for field, named in (("alternatives", each.alternatives), ("min", each.min))
            for name in named
            if name not in each.gpus
        ]
        problems += [
            Problem(Code.INVALID_FIELD, f"incoming[{i}].min.{name}", "is more than gpus", str(count), "less")
            for name, count in each.min.items()
            if count > each.gpus.get(name, count)
        ]
        names = [*each.gpus, *(name for names in each.alternatives.values() for name in names)]
        if len(set(names)) < len(names):
            twice = ", ".join(name for name, count in Counter(names).items() if count > 1)
            where = f"incoming[{i}].alternatives"
            problems.append(Problem(Code.INVALID_FIELD, where, "names a class twice", twice, "each once"))
    if problems:
        raise VmtError.of(problems)


def _only(path: str, found: str, expected: str) -> Problem:
    return Problem(Code.INVALID_FIELD, path, "does not apply", found, f"nothing: only {expected}")
