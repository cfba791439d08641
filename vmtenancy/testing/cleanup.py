"""Bringing a shared control plane back to what it was, in about a second.

The namespace controller waits 5 s before it looks at a deleted namespace, so its work is done here: the
contents are deleted, and only then is the namespace finalized.
"""

import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Self

from vmtenancy.testing.cluster import Cluster

_DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_NAMES_ONLY = "application/json;g=meta.k8s.io;v=v1;as=PartialObjectMetadataList"
_OWN_GROUP = "vmtenancy.io"
_PATIENCE_S = 3.0
_DEADLINE_S = 30.0

# Cluster-scoped kinds that a test may leave behind and that would change what the next one sees. CRDs stay:
# they are installed once, and the garbage collector takes up to 30 s to learn a new one.
_CLUSTER_SCOPED = {
    ("", "namespaces"),
    ("", "nodes"),
    ("", "persistentvolumes"),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicies"),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicybindings"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("resource.k8s.io", "deviceclasses"),
    ("resource.k8s.io", "resourceslices"),
    ("scheduling.k8s.io", "priorityclasses"),
}


@dataclass(frozen=True, slots=True)
class _Resource:
    group: str
    version: str
    plural: str
    namespaced: bool

    def path(self, namespace: str = "", name: str = "") -> str:
        base = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        middle = f"/namespaces/{namespace}" if namespace else ""
        return f"{base}{middle}/{self.plural}" + (f"/{name}" if name else "")


@dataclass(frozen=True, slots=True)
class _Found:
    resource: _Resource
    metadata: dict[str, Any]

    @property
    def path(self) -> str:
        return self.resource.path(self.metadata.get("namespace", ""), self.metadata["name"])


class Snapshot:
    """What a control plane held at one moment; ``restore`` deletes what came since.

    In scope: namespaces and their contents, what is new in ``default``, nodes, policies, cluster roles, DRA
    and priority classes, and every object of ``vmtenancy.io``.
    """

    def __init__(self, cluster: Cluster, before: Collection[str]) -> None:
        self._cluster = cluster
        self._before = frozenset(before)

    @classmethod
    def take(cls, cluster: Cluster) -> Self:
        """Remember every object in scope."""
        everything = cls(cluster, ())
        return cls(cluster, {found.metadata["uid"] for found in everything._news()})

    def restore(self) -> None:
        """Delete what came since. Raises ``TimeoutError`` naming what is left once nothing more goes."""
        least, progress = sys.maxsize, time.monotonic()
        while left := self._news():
            if len(left) < least:
                least, progress = len(left), time.monotonic()
            waited = time.monotonic() - progress
            if waited > _DEADLINE_S:
                raise TimeoutError(f"still there after clean-up: {', '.join(f.path for f in left)}")
            # Namespaces first: nothing new can be created in one that is being deleted.
            namespaces = [f for f in left if f.resource.plural == "namespaces"]
            rest = [f for f in left if f.resource.plural != "namespaces"]
            for found in [*namespaces, *rest]:
                self._delete(found, strip=waited > _PATIENCE_S)
            if not rest:
                for found in namespaces:
                    self._finalize(found.metadata["name"])
            time.sleep(0.05)

    def _news(self) -> list[_Found]:
        resources = list(_discover(self._cluster))
        cluster_scoped = [f for r in resources if not r.namespaced for f in self._list(r)]
        ours = {f.metadata["name"] for f in cluster_scoped if f.resource.plural == "namespaces"} | {"default"}
        inside = [
            f
            for r in resources
            if r.namespaced
            for f in self._list(r)
            if r.group == _OWN_GROUP or f.metadata["namespace"] in ours
        ]
        return cluster_scoped + inside

    def _list(self, resource: _Resource) -> Iterator[_Found]:
        answer = self._try("GET", resource.path(), accept=_NAMES_ONLY)
        for item in answer.get("items") or ():
            if item["metadata"]["uid"] not in self._before:
                yield _Found(resource, item["metadata"])

    def _delete(self, found: _Found, *, strip: bool) -> None:
        if "deletionTimestamp" not in found.metadata:
            self._try("DELETE", found.path, {"gracePeriodSeconds": 0, "propagationPolicy": "Background"})
        elif found.metadata.get("finalizers") and (strip or found.resource.group == _OWN_GROUP):
            # Nobody who would answer for the finalizer runs any more.
            patch = {"metadata": {"finalizers": None}}
            self._try("PATCH", found.path, patch, content_type="application/merge-patch+json")

    def _finalize(self, name: str) -> None:
        path = f"/api/v1/namespaces/{name}"
        self._try("DELETE", f"{path}/events")
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {}}
        self._try("PUT", f"{path}/finalize", body)

    def _try(self, method: str, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
        from kubernetes.client import ApiException

        try:
            answer: dict[str, Any] = self._cluster.request(method, path, body, **headers)
        except ApiException as error:
            # Gone or changed meanwhile, refused by an admission policy that goes in this round too, or an
            # aggregated API or a webhook does not answer: the next round decides.
            if error.status not in (403, 404, 405, 409, 422) and error.status < 500:
                raise
            return {}
        return answer


def _discover(cluster: Cluster) -> Iterator[_Resource]:
    """Every kind in scope that can be listed and deleted, in its preferred version."""
    seen = set()
    for root in ("/api", "/apis"):
        for group in cluster.request("GET", root, accept=_DISCOVERY)["items"]:
            name = group["metadata"].get("name", "")
            for version in group["versions"]:
                for resource in version.get("resources", ()):
                    key = (name, resource["resource"])
                    if key in seen or not {"list", "delete"} <= set(resource["verbs"] or ()):
                        continue
                    seen.add(key)
                    namespaced = resource["scope"] == "Namespaced"
                    # Events are written by others and expire; a namespace takes its own along.
                    if key[1] == "events" or not (namespaced or name == _OWN_GROUP or key in _CLUSTER_SCOPED):
                        continue
                    yield _Resource(name, version["version"], key[1], namespaced)
