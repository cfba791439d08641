"""A VirtualCluster's life: hold, chart, host namespace, kubeconfig, status, and an end that leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

from vmtenancy.api.gpuclass import GpuClass
from vmtenancy.api.virtualcluster import VirtualCluster
from vmtenancy.core.fleet.model import Mode
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.reconcile.admit import Admission
from vmtenancy.reconcile.apply import changes, leftovers, taken_by_others
from vmtenancy.reconcile.finalizer import with_finalizer, without_finalizer
from vmtenancy.reconcile.holders import is_revoked
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.leases import ending_conditions, status_of
from vmtenancy.reconcile.status import Condition, status_steps
from vmtenancy.reconcile.steps import Chain, Delete, Object, RenderChart, Step
from vmtenancy.reconcile.supply import class_resources
from vmtenancy.reconcile.untyped import refuse_wrong_shapes
from vmtenancy.reconcile.view import Allocation, View, by_name
from vmtenancy.reconcile.world import is_deleting, ref_of, uid_of
from vmtenancy.runtimes import vcluster
from vmtenancy.runtimes.vcluster import VcInputs, VcObservation


def virtualcluster_chains(view: View, admission: Admission) -> list[Chain]:
    """What all VirtualClusters need now."""
    chains: list[Chain] = []
    for obj in by_name(view.world.of("VirtualCluster")):
        chains += _end(view, obj) if is_deleting(obj) else _live(view, obj, admission)
    return chains


def _live(view: View, obj: Object, admission: Admission) -> list[Chain]:
    name, uid = ref_of(obj), uid_of(obj)
    finalizer = with_finalizer(obj)
    if finalizer:
        return [Chain(f"keep {name} until its GPUs are free", (finalizer,))]
    vc = view.parsed(obj, VirtualCluster)
    if isinstance(vc, VmtError):
        invalid = [Condition("Admitted", False, "Invalid", str(vc), event=True, warning=True)]
        return _status(view, obj, {"phase": "Degraded", "message": str(vc)[:1024]}, invalid, 0)
    grant = view.live_by_owner.get(uid)
    guaranteed = {gpu.class_: gpu.guaranteed for gpu in vc.spec.gpus if gpu.guaranteed}
    steps: list[Step] = []
    problem: VmtError | None = None
    if grant is not None or not guaranteed:
        steps, problem = _children(view, obj, vc, grant)
    before = int((obj.get("status") or {}).get("observedGeneration") or 0)
    # What is held stays what it was at the admission (I12).
    outdated = grant is not None and grant.wanted != guaranteed
    generation = before if steps or problem or outdated else int(obj["metadata"]["generation"])
    chains = [Chain(f"apply {name}", tuple(steps))] if steps else []
    seen = vcluster.observe(vc, _observed(view, vc, uid))
    return chains + _report(view, obj, vc, grant, seen, admission, problem, generation)


def _children(
    view: View, obj: Object, vc: VirtualCluster, grant: Allocation | None
) -> tuple[list[Step], VmtError | None]:
    """The chart to render, or what to apply of it, then the kubeconfig once vCluster has written one."""
    tenant = view.tenant_of(vc.metadata.namespace)
    uid = uid_of(obj)
    try:
        if not tenant or view.world.get("Tenant", "", tenant) is None:
            message = f"namespace {vc.metadata.namespace} belongs to no tenant"
            raise VmtError(Problem(Code.UNKNOWN_REFERENCE, "metadata.namespace", message))
        resources = _resources(view, vc)
        with refuse_wrong_shapes("spec.values"):
            values = vcluster.chart_values(vc, view.world.vcluster_values)
        namespace = vcluster.host_namespace(vc.metadata.namespace, vc.metadata.name)
        release = vcluster.release_name(vc)
        text = json.dumps([release, namespace, values], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        if key in view.world.chart_errors:
            raise VmtError(Problem(Code.HELM, "spec.values", view.world.chart_errors[key]))
        if key not in view.world.charts:
            return [RenderChart(key, release, namespace, values)], None
        inputs = VcInputs(tenant, view.world.charts[key], resources)
        wanted = vcluster.objects(vc, grant.grants if grant else (), inputs)
        seen = vcluster.observe(vc, _observed(view, vc, uid))
        if seen.kubeconfig:
            wanted = [*wanted, vcluster.kubeconfig_secret(vc, seen.kubeconfig)]
    except VmtError as error:
        return [], error
    if taken := taken_by_others(view, wanted, uid):
        found = ", ".join(map(str, taken))
        return [], VmtError(
            Problem(Code.CLUSTER, "metadata.name", "the name is taken by another object", found)
        )
    # The kubeconfig that was handed out stays while vCluster writes a new one.
    ours = [child for child in view.labelled.get(uid, ()) if not _is_beside(obj, child)]
    return [*changes(view, obj, wanted), *leftovers(ours, wanted)], None


def _resources(view: View, vc: VirtualCluster) -> dict[str, str]:
    """The resource that delivers each class to pods. Raises `VmtError` where one can not be."""
    classes = view.all_of(GpuClass)
    found = {}
    for index, gpu in enumerate(vc.spec.gpus):
        path = f"spec.gpus[{index}].class"
        cls = classes.get(gpu.class_)
        if cls is None:
            known = ", ".join(sorted(classes)) or "none"
            problem = Problem(Code.UNKNOWN_REFERENCE, path, "no such GpuClass", gpu.class_, f"one of {known}")
            raise VmtError(problem)
        resource = class_resources(cls).get(Mode.CONTAINER)
        if resource is None:
            message = "this class is not delivered to pods"
            raise VmtError(
                Problem(Code.NOT_DELIVERABLE, path, message, gpu.class_, "a class with delivery.container")
            )
        found[gpu.class_] = resource
    return found


def _observed(view: View, vc: VirtualCluster, uid: str) -> dict[str, list[Object]]:
    """The host namespace and what is in it, by kind; only if the namespace was made for this VirtualCluster."""
    children: dict[str, list[Object]] = defaultdict(list)
    for obj in view.labelled.get(uid, ()):
        children[obj["kind"]].append(obj)
    if children["Namespace"]:
        home = children["Namespace"][0]["metadata"]["name"]
        children["Pod"] = view.pods_by_namespace.get(home, [])
        secret = view.world.get("Secret", home, vcluster.kubeconfig_source(vc))
        children["Secret"] = [secret] if secret else []
    return children


def _report(
    view: View,
    obj: Object,
    vc: VirtualCluster,
    grant: Allocation | None,
    seen: VcObservation,
    admission: Admission,
    problem: VmtError | None,
    generation: int,
) -> list[Chain]:
    uid = uid_of(obj)
    wait, unclear = admission.waits.get(uid), admission.unclear.get(uid)
    position = None
    revoked = grant is not None and is_revoked(view, grant)
    held = grant.wanted if grant and not revoked else {}
    kubeconfig = vcluster.kubeconfig_name(vc)
    handed_out = view.world.get("Secret", vc.metadata.namespace, kubeconfig) is not None
    if grant is not None and revoked:
        admitted = Condition("Admitted", False, grant.revoked, grant.revoked_message, True, warning=True)
        phase, message = "Pending", grant.revoked_message
    elif grant is not None or not (unclear or any(gpu.guaranteed for gpu in vc.spec.gpus)):
        what = ", ".join(f"{count} x {name}" for name, count in held.items())
        message = f"holds {what}" if what else "nothing is guaranteed, so nothing is held"
        admitted = Condition("Admitted", True, "Admitted", message, event=True)
        phase, message = ("Degraded", str(problem)) if problem else (seen.phase, seen.message)
        if seen.ready and not handed_out and not problem:
            phase, message = "Provisioning", "its kubeconfig is being handed out"
    elif wait is not None or unclear is not None:
        reason = str(wait.reason) if wait else unclear.reason if unclear else ""
        message = wait.message if wait else unclear.message if unclear else ""
        position = (wait.position or None) if wait else None
        admitted = Condition("Admitted", False, reason, message, event=True, warning=True)
        phase = "Pending"
    else:
        return []  # decided in this very plan
    reason = "CannotRender" if problem else phase
    is_ready = seen.ready and handed_out and not problem
    ready = Condition("Ready", is_ready, reason, message, True, warning=problem is not None)
    used = _used(view, vc, uid)
    fields = {
        "phase": phase,
        "namespace": vcluster.host_namespace(vc.metadata.namespace, vc.metadata.name),
        "kubeconfigSecret": kubeconfig if handed_out else None,
        "gpus": [
            {
                "class": g.class_,
                "guaranteed": held.get(g.class_, 0),
                "max": g.max,
                "used": used.get(g.class_, 0),
            }
            for g in vc.spec.gpus
        ],
        "queuePosition": position,
        "lease": status_of(view, obj),
        "message": message[:1024],
    }
    return _status(view, obj, fields, [admitted, ready, *ending_conditions(view, obj)], generation)


def _used(view: View, vc: VirtualCluster, uid: str) -> dict[str, int]:
    """Units that pods of the virtual cluster were granted, by class."""
    home = vcluster.host_namespace(vc.metadata.namespace, vc.metadata.name)
    used: dict[str, int] = defaultdict(int)
    for grant in view.live:
        if grant.owner_kind == "Pod" and grant.owner_namespace == home:
            for name, count in grant.wanted.items():
                used[name] += count
    return used


def _status(
    view: View, obj: Object, fields: Mapping[str, object], conditions: Sequence[Condition], generation: int
) -> list[Chain]:
    steps = status_steps(obj, fields, conditions, generation=generation, now=view.now)
    return [Chain(f"report {ref_of(obj)}: {fields['phase']}", steps)] if steps else []


def _end(view: View, obj: Object) -> list[Chain]:
    """Delete all that was made for it, wait until that and the grants are gone, then let it go (I9)."""
    name, uid = ref_of(obj), uid_of(obj)
    children = sorted(view.labelled.get(uid, ()), key=lambda child: str(ref_of(child)))
    # The namespace takes what is in it along; what is elsewhere has to be named.
    going = [
        child
        for child in children
        if not is_deleting(child)
        and (child["kind"] == "Namespace" or not KINDS[child["kind"]].namespaced or _is_beside(obj, child))
    ]
    if going:
        steps = tuple(Delete(ref_of(child), uid_of(child)) for child in going)
        return [Chain(f"delete what {name} had", steps)]
    has_grant = any(allocation.owner_uid == uid for allocation in view.allocations)
    release = without_finalizer(obj)
    if release and not has_grant and not children:
        return [Chain(f"let {name} go", (release,))]
    vc = view.parsed(obj, VirtualCluster)
    if isinstance(vc, VmtError) or release is None:
        return []
    conditions = [
        Condition("Admitted", has_grant, "Deleting", "it is being deleted"),
        Condition("Ready", False, "Deleting", "it is being deleted"),
    ]
    status = obj.get("status") or {}
    fields = {"phase": "Deleting", "namespace": status.get("namespace")}
    return _status(view, obj, fields, conditions, int(status.get("observedGeneration") or 0))


def _is_beside(obj: Object, child: Object) -> bool:
    return bool(child["metadata"].get("namespace") == obj["metadata"]["namespace"])
