"""Children of virtual clusters that are gone: a write that was on its way when the owner went may make one anew.

What has an owner reference is collected by Kubernetes; across namespaces there can be none.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmtenancy.api.names import (
    MANAGED_BY,
    MANAGED_LABEL,
    OWNER_UID_LABEL,
    VIRTUAL_CLUSTER_LABEL,
    VIRTUAL_CLUSTER_NAMESPACE_LABEL,
)
from vmtenancy.reconcile.steps import Absent, Chain, Delete, Object, Ref
from vmtenancy.reconcile.view import View, by_name
from vmtenancy.reconcile.world import is_deleting, labels_of, ref_of, uid_of


def orphan_chains(view: View) -> list[Chain]:
    """Delete each orphan, once a live read has said that its owner is gone."""
    chains = []
    for objects in view.world.objects.values():
        for obj, owner, uid in _orphans(view, by_name(objects.values())):
            version = obj["metadata"]["resourceVersion"]
            steps = (Absent(owner, uid), Delete(ref_of(obj), uid_of(obj), version))
            chains.append(Chain(f"clear away {ref_of(obj)}: {owner} is gone", steps))
    return chains


def _orphans(view: View, objects: list[Object]) -> Iterator[tuple[Object, Ref, str]]:
    for obj in objects:
        labels = labels_of(obj)
        uid, name = labels.get(OWNER_UID_LABEL), labels.get(VIRTUAL_CLUSTER_LABEL)
        home = labels.get(VIRTUAL_CLUSTER_NAMESPACE_LABEL)
        if (
            labels.get(MANAGED_LABEL) == MANAGED_BY
            and uid
            and name
            and home
            and uid not in view.virtual_clusters_by_uid
            and not obj["metadata"].get("ownerReferences")
            and not is_deleting(obj)
        ):
            yield obj, Ref("VirtualCluster", home, name), uid
