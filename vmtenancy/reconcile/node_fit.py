"""Whether a pod's own wishes let it run on a node: node selector, required node affinity, taints.

The scheduler decides in the end; this keeps us from granting a node that it would refuse. Rules as in the Kubernetes
documentation of "Assigning Pods to Nodes" and "Taints and Tolerations".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.world import labels_of

#: Longer texts are refused although Go reads leading zeros: no number of 64 bits needs more.
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,64}")


def is_constrained(pod: Mapping[str, Any]) -> bool:
    """Whether the pod names nodes at all; most do not, and need no look at each node."""
    return bool(pod["spec"].get("nodeSelector") or _required_terms(pod) is not None)


def fits_node(pod: Mapping[str, Any], node: Object) -> bool:
    """Whether selector, required affinity and tolerations of `pod` admit `node`."""
    labels = labels_of(node)
    selector = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        return False
    terms = _required_terms(pod)
    if terms is not None and not any(_term_matches(term, node) for term in terms):
        return False
    return tolerates(pod["spec"].get("tolerations") or (), node)


def tolerates(tolerations: Any, node: Object) -> bool:
    """Whether no taint of `node` keeps new pods with these tolerations away."""
    taints = node.get("spec", {}).get("taints") or ()
    return all(
        taint["effect"] == "PreferNoSchedule"
        or any(_tolerated(toleration, taint) for toleration in tolerations)
        for taint in taints
    )


def _tolerated(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    same_key = bool(toleration.get("key") == taint["key"])
    return same_key and bool(toleration.get("value", "") == taint.get("value", ""))


def _required_terms(pod: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return None if required is None else required.get("nodeSelectorTerms") or []


def _term_matches(term: Mapping[str, Any], node: Object) -> bool:
    expressions = term.get("matchExpressions") or []
    fields = term.get("matchFields") or []
    if not expressions and not fields:
        return False  # an empty term matches nothing
    labels = labels_of(node)
    name = node["metadata"]["name"]
    return all(_holds(e, labels.get(e["key"])) for e in expressions) and all(
        _holds(f, name if f["key"] == "metadata.name" else None) for f in fields
    )


def _holds(expression: Mapping[str, Any], value: str | None) -> bool:
    values = expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            found, bound = _int64(value or ""), _int64(values[0])
            if found is None or bound is None:
                return False
            return found > bound if operator == "Gt" else found < bound
        case _:
            return False


def _int64(text: str) -> int | None:
    """What Go's `strconv.ParseInt(text, 10, 64)` makes of it; None where that is an error."""
    number = int(text) if _INTEGER.fullmatch(text) else None
    return number if number is not None and -(1 << 63) <= number < 1 << 63 else None
