"""Every disagreement between the ledger, Kubernetes and the agents that one world shows, and what would mend it.

It judges by the same code as the controller: invariants, recovery, the troubles of nodes, what is rendered. Nothing is
written here; `mend` returns steps with preconditions, for the executor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.names import ADOPT_ANNOTATION, TENANT_LABEL
from vmtenancy.core.fleet.model import Mode
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.adoption import recover
from vmtenancy.reconcile.holders import pods_holding, vm_wants_devices
from vmtenancy.reconcile.invariants import check
from vmtenancy.reconcile.lineage import ancestor, machine_to_adopt
from vmtenancy.reconcile.machine import machine_objects
from vmtenancy.reconcile.node_trouble import trouble_of
from vmtenancy.reconcile.status import seconds
from vmtenancy.reconcile.steps import Apply, Chain, Object, Ref, Replace
from vmtenancy.reconcile.supply import foreign_pods, offerings_of
from vmtenancy.reconcile.tenancy import is_stray, namespace_owners
from vmtenancy.reconcile.view import View, by_name
from vmtenancy.reconcile.world import World, annotations_of, is_deleting, labels_of, ref_of, uid_of
from vmtenancy.runtimes.kubevirt import key_secret_names
from vmtenancy.runtimes.vm_adoption import differences, keep_device_names

#: What a controller at work clears away within seconds is a finding after this long.
STAYS_S: Final = 60.0
#: An end may have to wait for a guest that shuts down.
ENDS_S: Final = 600.0


class Severity(StrEnum):
    """A notice is how things are; a problem should be mended."""

    PROBLEM = "problem"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True)
class Finding:
    """One disagreement: a stable code, what it is about, what was seen, and what mends it."""

    code: str
    about: str
    message: str
    remedy: str
    severity: Severity = Severity.PROBLEM


@dataclass(frozen=True, slots=True)
class Installation:
    """What was seen of vmtenancy itself. `gate_holds` None: there was nothing to try it on.

    `missing` and `changed` are objects as they should be. `leader` is who holds the Lease now, `""` if nobody.
    """

    missing: tuple[Object, ...] = ()
    changed: tuple[Object, ...] = ()
    gate_holds: bool | None = None
    leader: str = ""


INSTALL: Final = "run `vmtenancy install`, or `vmtenancy doctor --fix`"
WAIT: Final = "the controller mends it; see its log if this stays"


def diagnose(world: World, now: float, installation: Installation) -> list[Finding]:
    """Every finding, by code and name. `now` in seconds since the epoch."""
    view = View(world, now)
    found = [
        *_invariants(world),
        *_foreign_pods(view),
        *_lost_grants(view),
        *_void_grants(view),
        *_nodes(view),
        *_ends(view),
        *_machines(view),
        *_namespaces(view),
        *_installation(installation),
    ]
    return sorted(found, key=lambda finding: (finding.code, finding.about, finding.message))


def mend(world: World, now: float, installation: Installation) -> list[Chain]:
    """What only an administrator can do: install again what is missing or changed, and adopt tenants' foreign pods.

    Everything else a controller at work does by itself.
    """
    chains = [
        Chain(f"install {ref_of(obj)}", (Apply(obj),))
        for obj in (*installation.missing, *installation.changed)
    ]
    view = View(world, now)
    for pod in _adoptable(view):
        marks = {**annotations_of(pod), ADOPT_ANNOTATION: "true"}
        marked = {**pod, "metadata": {**pod["metadata"], "annotations": marks}}
        chains.append(Chain(f"adopt {ref_of(pod)}", (Replace(marked),)))
    return chains


def _adoptable(view: View) -> list[Object]:
    """Foreign pods in tenants' namespaces that are no launchers, those of machines being adopted as such."""
    return [
        pod
        for pod in by_name(foreign_pods(view))
        if view.tenant_of(pod["metadata"]["namespace"])
        and ADOPT_ANNOTATION not in annotations_of(pod)
        and ancestor(view, pod, "VirtualMachineInstance") is None
    ]


def _invariants(world: World) -> Iterator[Finding]:
    for violation in check(world):
        number = int(violation.invariant.removeprefix("I"))
        is_over_use = (
            violation.invariant == "I2"
        )  # quota that was lowered since is over-use, and so is what was adopted
        remedy = "raise the quota, or stop something" if is_over_use else WAIT
        severity = Severity.NOTICE if is_over_use else Severity.PROBLEM
        yield Finding(f"VMT-X{number:03}", violation.invariant, violation.message, remedy, severity)


def _foreign_pods(view: View) -> Iterator[Finding]:
    for pod in foreign_pods(view):
        name, namespace = ref_of(pod), pod["metadata"]["namespace"]
        what = ", ".join(f"{count} x {resource}" for resource, count in sorted(view.gpus(pod).items()))
        message = f"runs with {what} on {pod['spec']['nodeName']} without a grant"
        if not view.tenant_of(namespace):
            remedy = "none is needed: it is subtracted from supply"
            yield Finding("VMT-X102", str(name), message, remedy, Severity.NOTICE)
        elif machine := ancestor(view, pod, "VirtualMachineInstance", "VirtualMachine"):
            remedy = f"`vmtenancy adopt vm/{machine['metadata']['name']} -n {namespace}`"
            yield Finding("VMT-X101", str(name), message, remedy)
        else:
            yield Finding("VMT-X101", str(name), message, f"`vmtenancy adopt pod/{name.name} -n {namespace}`")


def _lost_grants(view: View) -> Iterator[Finding]:
    for refused in recover(view, frozenset()).refused:
        remedy = "see what else is granted on the node (`vmtenancy fleet`), and stop one of them"
        yield Finding("VMT-X103", str(ref_of(refused.owner)), f"{refused.reason}: {refused.message}", remedy)


def _void_grants(view: View) -> Iterator[Finding]:
    for grant in view.allocations:
        if not grant.live and view.now - seconds(grant.object["metadata"]["creationTimestamp"]) > STAYS_S:
            state = "was released" if grant.name in view.head.released else "was never committed"
            yield Finding("VMT-X104", f"GpuAllocation {grant.name}", f"{state}, but is still there", WAIT)


def _nodes(view: View) -> Iterator[Finding]:
    for grant in view.live:
        if trouble := trouble_of(view, grant):
            owner = Ref(grant.owner_kind, grant.owner_namespace, grant.owner_name)
            reason, message = trouble
            yield Finding(
                "VMT-X105", str(owner), f"{reason}: {message}", "repair the node, or stop what runs on it"
            )
    for node in by_name(view.world.of("Node")):
        counts = (node.get("status") or {}).get("allocatable") or {}
        providers: dict[str, set[str]] = {}
        for offering in offerings_of(view):
            for mode, resource in offering.resources.items():
                if counts.get(resource, "0") != "0":
                    kind = "pods" if mode is Mode.CONTAINER else "machines"
                    providers.setdefault(kind, set()).add(resource)
        if len(providers) > 1:
            names = "; ".join(
                f"{kind}: {', '.join(sorted(found))}" for kind, found in sorted(providers.items())
            )
            remedy = "leave the node one mode, and one device plugin or DRA driver"
            yield Finding(
                "VMT-X106", str(ref_of(node)), f"two providers offer its GPUs at once ({names})", remedy
            )


def _ends(view: View) -> Iterator[Finding]:
    for kind in ("GpuVM", "VirtualCluster"):
        for obj in view.world.of(kind):
            since = obj["metadata"].get("deletionTimestamp")
            if not since or view.now - seconds(since) < ENDS_S:
                continue
            uid, namespace = uid_of(obj), obj["metadata"]["namespace"]
            left = [*view.descendants(namespace, uid), *view.labelled.get(uid, ())]
            left += [
                pod for grant in view.live if grant.owner_uid == uid for pod in pods_holding(view, grant)
            ]
            names = (
                ", ".join(sorted({str(ref_of(child)) for child in left}))
                or "nothing: its finalizer is left over"
            )
            yield Finding(
                "VMT-X107", str(ref_of(obj)), f"is being deleted since {since}; held by {names}", WAIT
            )


def _machines(view: View) -> Iterator[Finding]:
    """VirtualMachines that are not as their GpuVM says."""
    for obj in by_name(view.world.of("GpuVM")):
        grant = view.live_by_owner.get(uid_of(obj))
        machine = view.world.get("VirtualMachine", obj["metadata"]["namespace"], obj["metadata"]["name"])
        vm = view.parsed(obj, GpuVM)
        if machine is None or isinstance(vm, VmtError) or is_deleting(obj) or machine_to_adopt(view, obj):
            continue
        if key_secret_names(vm) or (grant is None and vm_wants_devices(view, vm, None)):
            continue  # keys are in Secrets, which are not read here; what waits is told by its conditions
        try:
            wanted = machine_objects(view, obj, vm, view.tenant_of(vm.metadata.namespace), grant)[-1]
        except VmtError:
            continue  # told by its conditions
        paths = list(differences(keep_device_names(wanted, machine)["spec"], machine["spec"]))
        if paths:
            message = f"its VirtualMachine was changed by hand at {', '.join(paths)}"
            yield Finding("VMT-X108", str(ref_of(obj)), message, WAIT)


def _namespaces(view: View) -> Iterator[Finding]:
    owners = namespace_owners(view)
    for name, tenant in sorted(owners.items()):
        home = view.world.get("Namespace", "", name)
        has = view.tenant_of(name)
        if home is not None and has != tenant:
            message = f"belongs to tenant {tenant}, its label says {has or 'nobody'}: its pods are not gated"
            message = message if not has else message.partition(": its pods")[0]
            yield Finding("VMT-X109", str(ref_of(home)), message, WAIT)
    for home in by_name(view.world.of("Namespace")):
        if is_stray(home, owners):
            message = f"has the label of tenant {labels_of(home)[TENANT_LABEL]}, which does not name it"
            yield Finding("VMT-X109", str(ref_of(home)), message, WAIT)


def _installation(seen: Installation) -> Iterator[Finding]:
    for obj, code, what in (
        *((obj, "VMT-X201", "is missing") for obj in seen.missing),
        *((obj, "VMT-X202", "is not as this version installs it") for obj in seen.changed),
    ):
        yield Finding(code, str(ref_of(obj)), what, INSTALL)
    if seen.gate_holds is False:
        message = "a pod with GPUs in a tenant's namespace would be let through"
        yield Finding("VMT-X203", "MutatingAdmissionPolicy gate.vmtenancy.io", message, INSTALL)
    if not seen.leader:
        yield Finding(
            "VMT-X204", "Lease vmtenancy-controller", "no controller leads", "start `vmtenancy controller`"
        )


def lasting(first: Sequence[Finding], second: Sequence[Finding]) -> list[Finding]:
    """The findings of `second` that `first` had too: lists of different kinds are not read at one moment."""
    before = {(finding.code, finding.about) for finding in first}
    return [finding for finding in second if (finding.code, finding.about) in before]
