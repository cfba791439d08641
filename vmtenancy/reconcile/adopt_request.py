"""What an administrator asks for with `vmtenancy adopt`, and what would come of it: by the code that will decide."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmtenancy.api import parse
from vmtenancy.api.gpuclass import GpuClass
from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.names import ADOPT_ANNOTATION
from vmtenancy.core.fleet.model import MODES, Runtime
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.core.requests import Admit
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.reconcile.adoption import recover
from vmtenancy.reconcile.charges import charges, gpus_text
from vmtenancy.reconcile.demands import classes_of_tenant
from vmtenancy.reconcile.lineage import ancestor
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.supply import class_resources, quota_tree_of
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import World, annotations_of, labels_of, ref_of, uid_of
from vmtenancy.runtimes import kubevirt
from vmtenancy.runtimes.kubevirt import VmInputs
from vmtenancy.runtimes.vc_network import MANAGED_BY_VCLUSTER
from vmtenancy.runtimes.vm_adoption import differences, gpuvm_for


@dataclass(frozen=True, slots=True)
class Proposal:
    """`write` is to be stored: a Pod with the annotation, or a new GpuVM. `grant` is what it will get.

    None for a machine that is stopped: it asks for GPUs once it starts. `over_use` says, per pool, where the tenant
    will hold more than it may, with this and those before it.
    """

    write: Object
    tenant: str
    grant: Admit | None
    over_use: tuple[str, ...] = ()


def propose_pod(view: View, namespace: str, name: str) -> Proposal:
    """Take in a pod that runs on GPUs. Raises `VmtError` (ADOPT, UNKNOWN_REFERENCE) with the reason if it can not."""
    pod = _existing(view, Ref("Pod", namespace, name))
    if grant := view.live_by_pod.get(uid_of(pod)):
        raise _refused(f"Pod {namespace}/{name} has a grant already", grant.name, "a pod without one")
    if machine := ancestor(view, pod, "VirtualMachineInstance", "VirtualMachine"):
        raise _refused(
            "it is the launcher of a machine", str(ref_of(pod)), f"vm/{machine['metadata']['name']}"
        )
    if not pod["spec"].get("nodeName"):
        raise _refused("it is not bound to a node, so it holds nothing", str(ref_of(pod)), "a running pod")
    if uid_of(pod) not in view.gpu_pods_by_uid:
        raise _refused("it has finished, or asks for no GPUs", str(ref_of(pod)), "a running pod with GPUs")
    (proposal,) = _judged(view, [_marked(pod)])
    return proposal


def propose_virtual_cluster(view: View, namespace: str, name: str) -> list[Proposal]:
    """Take in all pods on GPUs of a vCluster that somebody installed in a tenant's namespace.

    Those of a vCluster are the ones with its syncer's label. Raises `VmtError` (ADOPT) where one can not be taken in.
    """
    pods = [
        pod
        for pod in view.pods_by_namespace.get(namespace, ())
        if labels_of(pod).get(MANAGED_BY_VCLUSTER) == name
        and uid_of(pod) in view.gpu_pods_by_uid
        and pod["spec"].get("nodeName")
        and uid_of(pod) not in view.live_by_pod
    ]
    if not pods:
        expected = f"pods with the label {MANAGED_BY_VCLUSTER}={name} that run on GPUs without a grant"
        raise _refused("nothing of this vCluster is to be taken in", f"{namespace}/{name}", expected)
    return _judged(view, [_marked(pod) for pod in sorted(pods, key=lambda pod: str(ref_of(pod)))])


def _marked(pod: Object) -> Object:
    marks = {**annotations_of(pod), ADOPT_ANNOTATION: "true"}
    return pod | {"metadata": pod["metadata"] | {"annotations": marks}}


def propose_vm(view: View, namespace: str, name: str, class_: str | None = None) -> Proposal:
    """Make a VirtualMachine a GpuVM's, of class `class_` where several would deliver its GPUs.

    Raises `VmtError` (ADOPT, UNKNOWN_REFERENCE, …) for what a GpuVM can not say, or where what runs would change.
    """
    machine = _existing(view, Ref("VirtualMachine", namespace, name))
    meta = machine["metadata"]
    for reference in meta.get("ownerReferences") or ():
        if reference.get("controller"):
            raise _refused(
                "something else controls it", f"{reference['kind']} {reference['name']}", "no controller"
            )
    if view.world.get("GpuVM", namespace, name):
        raise _refused("there is a GpuVM of its name", f"GpuVM {namespace}/{name}", "none")
    tenant = _tenant(view, namespace)
    manifest = gpuvm_for(machine, _classes_by_device(view, tenant, class_))
    stored = manifest | {"metadata": manifest["metadata"] | _as_stored(machine)}
    vm = parse(stored)
    assert isinstance(vm, GpuVM)  # noqa: S101 - parse goes by kind
    (rendered,) = kubevirt.objects(vm, (), VmInputs(tenant, view.catalog))
    spec = {key: value for key, value in rendered["spec"].items() if key != "runStrategy"}
    spec["template"] = {"spec": spec["template"]["spec"]}
    if paths := list(differences(spec, machine["spec"])):
        raise _refused(
            "what runs would change, at its next start or before", ", ".join(paths), "a spec that stays"
        )
    (proposal,) = _judged(view, [stored])
    return dataclasses.replace(proposal, write=manifest)


def _as_stored(machine: Object) -> Object:
    """What the API server would give it: enough for the planner to look at it."""
    meta = machine["metadata"]
    return {
        "uid": f"adopts-{meta['uid']}",
        "generation": 1,
        "resourceVersion": meta["resourceVersion"],
        "creationTimestamp": meta["creationTimestamp"],
    }


def _judged(view: View, writes: Sequence[Object]) -> list[Proposal]:
    """What the planner would decide with `writes`, all of one namespace, stored."""
    tenant = _tenant(view, writes[0]["metadata"]["namespace"])
    world = view.world
    objects = {kind: dict(objs) for kind, objs in world.objects.items()}
    twin = World(objects=objects, templates=world.templates)
    for write in writes:
        twin.put(write)
    recovery = recover(View(twin, view.now), frozenset())
    refused = {uid_of(each.owner): each.message for each in recovery.refused}
    grants = {uid_of(asked.owner): admit for asked, admit in recovery.grants}
    tree, held = quota_tree_of(view), Counter[str]()
    for (name, pool), parts in charges(view).items():
        tree.charge(name, pool, parts, name)
        if name == tenant:
            held[pool] += parts
    proposals = []
    for write in writes:
        if message := refused.get(uid_of(write)):
            raise _refused(message, str(ref_of(write)), "what a grant could name")
        grant = grants.get(uid_of(write))
        over_use = tuple(_charge(tree, tenant, held, grant)) if grant else ()
        proposals.append(Proposal(write, tenant, grant, over_use))
    return proposals


def _charge(tree: QuotaTree, tenant: str, held: Counter[str], grant: Admit) -> Iterator[str]:
    """Charge a grant, and say in which pools its tenant then holds more than it may."""
    added = Counter[str]()
    for part in grant.placement.grants if grant.placement else ():
        added[part.pool] += part.parts
    for pool, parts in sorted(added.items()):
        fits = tree.fits(tenant, pool, parts)
        tree.charge(tenant, pool, parts, grant.demand.key)
        held[pool] += parts
        if not fits:
            yield f"tenant {tenant} then holds {gpus_text(held[pool])} GPUs of pool {pool}, more than it may"


def _classes_by_device(view: View, tenant: str, class_: str | None) -> dict[str, str]:
    """The class by the device name that it delivers to machines: the named one, else the first by name."""
    found: dict[str, str] = {}
    classes = view.all_of(GpuClass)
    if class_ is not None and class_ not in classes:
        known = f"one of {', '.join(sorted(classes)) or 'none'}"
        raise VmtError(Problem(Code.UNKNOWN_REFERENCE, "--class", "no such GpuClass", class_, known))
    offered = classes_of_tenant(view, tenant) if class_ is None else {class_}
    for name in sorted(offered):
        ways = class_resources(classes[name])
        for mode in MODES[Runtime.VM]:
            if mode in ways:
                found.setdefault(ways[mode], name)
    return found


def _tenant(view: View, namespace: str) -> str:
    tenant = view.tenant_of(namespace)
    if view.world.get("Tenant", "", tenant) is None:
        found = f"namespace {namespace}"
        raise _refused(
            "its namespace belongs to no tenant", found, "a namespace in spec.namespaces of a Tenant"
        )
    return tenant


def _existing(view: View, ref: Ref) -> Object:
    obj = view.world.find(ref)
    if obj is None:
        raise VmtError(Problem(Code.UNKNOWN_REFERENCE, "", f"there is no {ref}"))
    return obj


def _refused(message: str, found: str, expected: str) -> VmtError:
    return VmtError(Problem(Code.ADOPT, "", message, found, expected))
