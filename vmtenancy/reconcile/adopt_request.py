"""What an administrator asks for with `vmtenancy adopt`, and what would come of it: by the code that will decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from vmtenancy.api import parse
from vmtenancy.api.gpuclass import GpuClass
from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.names import ADOPT_ANNOTATION
from vmtenancy.core.fleet.model import MODES, Runtime
from vmtenancy.core.requests import Admit
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.reconcile.adoption import recover
from vmtenancy.reconcile.charges import charges, gpus_text
from vmtenancy.reconcile.demands import classes_of_tenant
from vmtenancy.reconcile.lineage import ancestor
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.supply import class_resources, quota_tree_of
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import World, annotations_of, ref_of, uid_of
from vmtenancy.runtimes import kubevirt
from vmtenancy.runtimes.kubevirt import VmInputs
from vmtenancy.runtimes.vm_adoption import differences, gpuvm_for


@dataclass(frozen=True, slots=True)
class Proposal:
    """`write` is to be stored: a Pod with the annotation, or a new GpuVM. `grant` is what it will get.

    None for a machine that is stopped: it asks for GPUs once it starts. `over_use` says, per pool, where the tenant
    will hold more than it may.
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
    marks = {**annotations_of(pod), ADOPT_ANNOTATION: "true"}
    return _judged(view, pod | {"metadata": pod["metadata"] | {"annotations": marks}})


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
    proposal = _judged(view, stored)
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


def _judged(view: View, write: Object) -> Proposal:
    """What the planner would decide with `write` stored."""
    tenant = _tenant(view, write["metadata"]["namespace"])
    world = view.world
    objects = {**world.objects, write["kind"]: dict(world.objects[write["kind"]])}
    twin = World(objects=objects, templates=world.templates)
    twin.put(write)
    recovery = recover(View(twin, view.now), frozenset())
    for refused in recovery.refused:
        if uid_of(refused.owner) == uid_of(write):
            raise _refused(refused.message, str(ref_of(write)), "what a grant could name")
    mine = [admit for asked, admit in recovery.grants if uid_of(asked.owner) == uid_of(write)]
    grant = mine[0] if mine else None
    return Proposal(write, tenant, grant, tuple(_over_use(view, tenant, grant)) if grant else ())


def _over_use(view: View, tenant: str, grant: Admit) -> Iterator[str]:
    tree, usage = quota_tree_of(view), charges(view)
    for (name, pool), parts in usage.items():
        tree.charge(name, pool, parts, name)
    added: dict[str, int] = {}
    for part in grant.placement.grants if grant.placement else ():
        added[part.pool] = added.get(part.pool, 0) + part.parts
    for pool, parts in sorted(added.items()):
        if not tree.fits(tenant, pool, parts):
            total = gpus_text(usage.get((tenant, pool), 0) + parts)
            yield f"tenant {tenant} then holds {total} GPUs of pool {pool}, more than it may"


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
