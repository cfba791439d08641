"""vCluster: a VirtualCluster becomes a host namespace with vCluster's chart in it, bounded and walled off."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vmtenancy.api import names
from vmtenancy.api.gpuallocation import Grant
from vmtenancy.api.virtualcluster import VirtualCluster
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.runtimes.base import Children, Object, Observation
from vmtenancy.runtimes.vc_network import MANAGED_BY_VCLUSTER, network_policy_specs
from vmtenancy.runtimes.vc_values import (
    chart_values,
    host_namespace,
    kubeconfig_name,
    kubeconfig_source,
    release_name,
)

__all__ = [
    "VcInputs",
    "VcObservation",
    "chart_values",
    "host_namespace",
    "kubeconfig_name",
    "kubeconfig_secret",
    "kubeconfig_source",
    "objects",
    "observe",
    "release_name",
]

#: Kinds that the chart may make, in apply order: what others refer to goes first.
_NAMESPACED: Final = (
    *("ServiceAccount", "Role", "RoleBinding", "Secret", "ConfigMap", "Service", "StatefulSet", "Deployment"),
)
_CLUSTER: Final = ("ClusterRole", "ClusterRoleBinding")
_ORDER: Final = {kind: rank for rank, kind in enumerate((*_CLUSTER, *_NAMESPACED))}
_READ: Final = frozenset({"get", "list", "watch"})
#: Never for a control plane that a tenant can drive, over all namespaces.
_PRIVATE: Final = frozenset({"*", "secrets", "configmaps", "pods", "nodes/proxy"})
_BROKEN: Final = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImagePull",
        "ImagePullBackOff",
    }
)


@dataclass(frozen=True, slots=True)
class VcInputs:
    """What `objects` needs from outside.

    `chart`: the objects Helm made of `chart_values` for release `release_name` in `host_namespace`. `resources`: for
    each GPU class of the VirtualCluster, the extended resource that delivers it to pods.
    """

    tenant: str
    chart: Sequence[Object]
    resources: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class VcObservation(Observation):
    """`phase` is one of VirtualCluster's; `kubeconfig` is the text that vCluster wrote, `""` until it did.

    `holding` is True while the host namespace, or a pod in it that is not finished, exists.
    """

    kubeconfig: str = ""


def objects(vc: VirtualCluster, grants: Sequence[Grant], inputs: VcInputs) -> list[Object]:
    """Return Namespace, ResourceQuota, NetworkPolicies and the chart's objects, in apply order.

    What is held changes none of them (`grants`): the quota is the maximum, and the gate decides below it. Raises
    `VmtError` (OUTPUT_REFUSED) where the chart made what does not belong into the host namespace.
    """
    namespace = host_namespace(vc.metadata.namespace, vc.metadata.name)
    problems = list(_violations(inputs.chart, namespace))
    if problems:
        raise VmtError.of(problems)
    labels = _labels(vc, inputs.tenant)

    def own(api_version: str, kind: str, name: str, spec: dict[str, Any]) -> Object:
        metadata = {"name": name, "namespace": namespace, "labels": labels}
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}

    most = Counter[str]()
    for gpu in vc.spec.gpus:
        most[f"requests.{inputs.resources[gpu.class_]}"] += gpu.max
    policies = network_policy_specs(release_name(vc), inputs.tenant)
    chart = [_adopted(obj, namespace, labels) for obj in inputs.chart]
    return [
        _namespace(namespace, labels),
        own("v1", "ResourceQuota", "vmtenancy-gpus", {"hard": {name: str(n) for name, n in most.items()}}),
        *(own("networking.k8s.io/v1", "NetworkPolicy", name, spec) for name, spec in policies.items()),
        *sorted(chart, key=lambda obj: _ORDER[obj["kind"]]),
    ]


def observe(vc: VirtualCluster, children: Children) -> VcObservation:
    """Read `Namespace`, `StatefulSet`, `Deployment`, `Pod` and `Secret`: the host namespace and what is in it."""
    home = next(iter(children.get("Namespace", ())), None)
    pods = children.get("Pod", ())
    kubeconfig = _kubeconfig(vc, children.get("Secret", ()))
    holding = home is not None or any(_phase(pod) not in ("Succeeded", "Failed") for pod in pods)
    release = release_name(vc)
    planes = [
        plane
        for kind in ("StatefulSet", "Deployment")
        for plane in children.get(kind, ())
        if plane["metadata"]["name"] == release
    ]
    serving = any((plane.get("status") or {}).get("readyReplicas") for plane in planes)
    if home is None or _phase(home) == "Terminating":
        phase = "Pending" if home is None else "Deleting"
        return VcObservation(phase=phase, ready=False, holding=holding)
    if serving and kubeconfig:
        return VcObservation(phase="Ready", ready=True, holding=holding, kubeconfig=kubeconfig)
    trouble = next(_troubles(pods, release), "")
    waiting = "its kubeconfig is awaited" if serving else "its control plane is not ready"
    was_ready = vc.status.phase in ("Ready", "Degraded")
    return VcObservation(
        phase="Degraded" if was_ready else "Provisioning",
        ready=False,
        message=trouble or waiting,
        failed=bool(trouble),
        holding=holding,
        kubeconfig=kubeconfig,
    )


def kubeconfig_secret(vc: VirtualCluster, kubeconfig: str) -> Object:
    """Return the Secret beside the VirtualCluster that its users read, with the kubeconfig at key `config`."""
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": "VirtualCluster",
        "name": vc.metadata.name,
        "uid": vc.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    labels = {
        names.MANAGED_LABEL: names.MANAGED_BY,
        names.VIRTUAL_CLUSTER_LABEL: vc.metadata.name,
        names.OWNER_UID_LABEL: vc.metadata.uid,
    }
    metadata = {
        "name": kubeconfig_name(vc),
        "namespace": vc.metadata.namespace,
        "labels": labels,
        "ownerReferences": [owner],
    }
    data = {"config": base64.b64encode(kubeconfig.encode()).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}


def _labels(vc: VirtualCluster, tenant: str) -> dict[str, str]:
    return {
        names.MANAGED_LABEL: names.MANAGED_BY,
        names.TENANT_LABEL: tenant,
        names.VIRTUAL_CLUSTER_LABEL: vc.metadata.name,
        names.VIRTUAL_CLUSTER_NAMESPACE_LABEL: vc.metadata.namespace,
        names.OWNER_UID_LABEL: vc.metadata.uid,
    }


def _namespace(name: str, labels: Mapping[str, str]) -> Object:
    # vCluster copies pods as they are: without this a tenant's privileged pod, or one with a host path, would run.
    enforced = {**labels, "pod-security.kubernetes.io/enforce": "baseline"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": enforced}}


def _adopted(obj: Object, namespace: str, labels: Mapping[str, str]) -> Object:
    metadata = {**obj["metadata"], "labels": {**(obj["metadata"].get("labels") or {}), **labels}}
    if obj["kind"] in _NAMESPACED:
        metadata["namespace"] = namespace
    return {**obj, "metadata": metadata}


def _violations(chart: Iterable[Object], namespace: str) -> Iterator[Problem]:
    """What in the chart's objects would reach beyond the host namespace."""
    made = {(obj["kind"], obj["metadata"]["name"]) for obj in chart}
    for obj in chart:
        kind, metadata = obj["kind"], obj["metadata"]
        path = f"chart: {kind} {metadata['name']}"

        def refuse(message: str, found: Any = "", path: str = path) -> Problem:
            return Problem(Code.OUTPUT_REFUSED, path, message, str(found))

        if kind not in _ORDER:
            yield refuse("objects of this kind are not allowed")
        elif kind in _NAMESPACED and metadata.get("namespace", namespace) != namespace:
            yield refuse(f"is not in namespace {namespace}", metadata["namespace"])
        if kind in ("RoleBinding", "ClusterRoleBinding"):
            ref = obj["roleRef"]
            if (ref["kind"], ref["name"]) not in made:
                yield refuse("binds a role that is not the chart's own", f"{ref['kind']} {ref['name']}")
            for subject in obj.get("subjects") or ():
                if subject["kind"] != "ServiceAccount" or subject.get("namespace", namespace) != namespace:
                    yield refuse("gives rights to someone else", f"{subject['kind']} {subject['name']}")
        if kind == "ClusterRole":
            for rule in obj.get("rules") or ():
                resources, verbs = set(rule.get("resources") or ()), set(rule.get("verbs") or ())
                if not verbs <= _READ or resources & _PRIVATE or not resources:
                    yield refuse("gives too many rights on the whole cluster", rule)


def _phase(obj: Object) -> str:
    return str((obj.get("status") or {}).get("phase", ""))


def _kubeconfig(vc: VirtualCluster, secrets: Iterable[Object]) -> str:
    for secret in secrets:
        if secret["metadata"]["name"] == kubeconfig_source(vc):
            return base64.b64decode((secret.get("data") or {}).get("config", "")).decode(errors="replace")
    return ""


def _troubles(pods: Iterable[Object], release: str) -> Iterator[str]:
    """Why pods of the control plane do not start."""
    for pod in pods:
        labels = pod["metadata"].get("labels") or {}
        if labels.get("release") != release or MANAGED_BY_VCLUSTER in labels:
            continue
        status = pod.get("status") or {}
        for container in (
            *(status.get("initContainerStatuses") or ()),
            *(status.get("containerStatuses") or ()),
        ):
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") in _BROKEN:
                detail = f": {waiting['message']}" if waiting.get("message") else ""
                yield f"pod {pod['metadata']['name']}: {waiting['reason']}{detail}"
        for condition in status.get("conditions") or ():
            if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
                yield f"pod {pod['metadata']['name']} can not be placed: {condition.get('message', '')}"
