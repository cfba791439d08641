"""What a pod asks for, whether it still holds it, and how it is tied to a node."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from vmtenancy.api.names import ALLOCATION_ANNOTATION, GATE, GPU_RESOURCE_PREFIXES
from vmtenancy.api.quantity import to_bytes
from vmtenancy.reconcile.steps import Object

#: Most units of one resource that are counted: no node has as many, and the fleet's arrays are of small integers.
MOST_UNITS = 1 << 16


def is_finished(pod: Mapping[str, Any]) -> bool:
    """Whether all its containers have ended for good: the kubelet has given its devices back."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def is_gated(pod: Mapping[str, Any]) -> bool:
    """Whether our scheduling gate holds it."""
    return any(gate["name"] == GATE for gate in pod["spec"].get("schedulingGates") or ())


def is_bound(pod: Mapping[str, Any]) -> bool:
    """Whether the scheduler has given it a node."""
    return bool(pod["spec"].get("nodeName"))


def gpu_requests(pod: Mapping[str, Any]) -> dict[str, int]:
    """GPUs by resource name, as the scheduler counts them.

    Containers and sidecars (init containers with restartPolicy Always) add up; an ordinary init container runs alone
    with the sidecars started before it, so the largest counts. Extended resources are whole numbers, and their
    requests equal their limits.
    """
    spec = pod["spec"]
    total: dict[str, int] = {}
    for container in spec.get("containers") or ():
        _add(total, _gpus_of(container))
    peak: dict[str, int] = {}
    sidecars: dict[str, int] = {}
    for container in spec.get("initContainers") or ():
        own = _gpus_of(container)
        if container.get("restartPolicy") == "Always":
            _add(sidecars, own)
            own = {}
        for name in {*sidecars, *own}:
            peak[name] = max(peak.get(name, 0), sidecars.get(name, 0) + own.get(name, 0))
    _add(total, sidecars)
    for name, count in peak.items():
        total[name] = max(total.get(name, 0), count)
    return {name: count for name, count in total.items() if count}


def _gpus_of(container: Mapping[str, Any]) -> dict[str, int]:
    resources = container.get("resources") or {}
    amounts = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    # The API server writes 1000 as "1k".
    return {
        name: min(to_bytes(value), MOST_UNITS)
        for name, value in amounts.items()
        if name.startswith(GPU_RESOURCE_PREFIXES)
    }


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        total[name] = total.get(name, 0) + count


def released_to(pod: Object, node: str, allocation: str) -> Object:
    """The pod with our gate lifted and narrowed to one node, as an update that a gated pod allows.

    Existing node-selector terms are alternatives, so the node is added to each of them.
    """
    lifted = copy.deepcopy(pod)
    spec = lifted["spec"]
    spec["schedulingGates"] = [gate for gate in spec["schedulingGates"] if gate["name"] != GATE]
    if not spec["schedulingGates"]:
        del spec["schedulingGates"]
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required = affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    here = {"key": "metadata.name", "operator": "In", "values": [node]}
    terms = required.setdefault("nodeSelectorTerms", [])
    for term in terms:
        if term:  # an empty term matches no node, and must go on doing so
            term.setdefault("matchFields", []).append(here)
    if not terms:
        terms.append({"matchFields": [here]})
    lifted["metadata"].setdefault("annotations", {})[ALLOCATION_ANNOTATION] = allocation
    return lifted
