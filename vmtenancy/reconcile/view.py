"""A world made ready for planning: parsed, indexed, and with the ledger applied.

Built once for each plan in one pass over the objects; parsed forms are remembered by resourceVersion, so that an
unchanged object costs a dictionary look-up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from vmtenancy.api import parse
from vmtenancy.api.common import Kind
from vmtenancy.api.gpuallocation import Grant
from vmtenancy.api.names import OWNER_UID_LABEL, TENANT_LABEL
from vmtenancy.api.quantity import to_bytes, to_milli
from vmtenancy.core.ledger.head import Head, is_live
from vmtenancy.core.options import Units
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.pods import gpu_requests, is_finished, is_gated
from vmtenancy.reconcile.status import seconds
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.world import World, is_deleting, labels_of, owner_uids, uid_of
from vmtenancy.render.catalog import Catalog, parse_catalog

R = TypeVar("R", bound=Kind)
T = TypeVar("T")

LEDGER_NAME = "fleet"
"""The name of the one shard's `GpuLedger`."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """One `GpuAllocation` with what the head says of it: `mark` is its own proof of the commit (0: none yet).

    `cpu` in millicores and `memory` in bytes as they were charged to the node, `storage` in bytes as it was to the
    tenant; `let_go_at` in seconds. `revoked` is the reason for which it is taken back, `""` if it is not; it stands
    from `revoked_since` (seconds) on, and once the pod `unless_bound`, where one is named, is gone; `preemptor` is the
    key of the demand that it makes room for, `promised` the units by class that this one, and the others of its group,
    get by their keys, where they leave a choice.
    """

    object: Object
    name: str
    uid: str
    owner_kind: str
    owner_namespace: str
    owner_name: str
    owner_uid: str
    tenant: str
    parent: str
    epoch: int
    node: str
    grants: tuple[Grant, ...]
    cpu: int
    memory: int
    storage: int
    preemptible: bool
    pod_uids: tuple[str, ...]
    let_go_at: float | None
    revoked: str
    revoked_message: str
    revoked_since: float
    unless_bound: str
    preemptor: str
    promised: Mapping[str, Units]
    mark: int
    live: bool

    @property
    def wanted(self) -> dict[str, int]:
        """Count by class, as it was granted."""
        return {grant.class_: grant.count for grant in self.grants}

    @property
    def resources(self) -> dict[str, int]:
        """Count by extended resource, as a pod has to ask for it."""
        total: dict[str, int] = {}
        for grant in self.grants:
            total[grant.resource] = total.get(grant.resource, 0) + grant.count
        return total


class View:
    """One plan's reading of the world."""

    def __init__(self, world: World, now: float) -> None:
        self.world = world
        self.now = now
        self._derived: dict[Callable[[View], Any], Any] = {}

    def derived(self, make: Callable[[View], T]) -> T:
        """`make(self)`, computed once in this plan."""
        if make not in self._derived:
            self._derived[make] = make(self)
        found: T = self._derived[make]
        return found

    # -- parsed forms -----------------------------------------------------------------------------------------

    def remembered(
        self, obj: Object, make: Callable[[Object], T], what: str = "", *, by: str = "resourceVersion"
    ) -> T:
        """`make(obj)`, computed once for each `by` of the object: `generation` where only its spec matters."""
        meta = obj["metadata"]
        key = (obj["kind"] + what, meta.get("uid", ""), str(meta.get(by, "")))
        memo = self.world.memo
        if key not in memo:
            memo[key] = make(obj)
        found: T = memo[key]
        return found

    def parsed(self, obj: Object, model: type[R]) -> R | VmtError:
        """The typed form of one of our objects, or what is wrong with it."""

        def attempt(raw: Object) -> Kind | VmtError:
            try:
                return parse(raw)
            except VmtError as error:
                return error

        result = self.remembered(obj, attempt)
        assert isinstance(result, model | VmtError)  # noqa: S101 - parse goes by kind
        return result

    def all_of(self, model: type[R]) -> dict[str, R]:
        """Every valid object of a cluster-scoped kind by name; invalid ones are left out."""
        found = {}
        for obj in self.world.of(model.__name__):
            typed = self.parsed(obj, model)
            if not isinstance(typed, VmtError):
                found[obj["metadata"]["name"]] = typed
        return found

    @cached_property
    def catalog(self) -> Catalog:
        """The VM templates. Raises `VmtError` where a shipped template is broken."""
        memo = self.world.memo
        key = ("Catalog", str(id(self.world.templates)), "")
        if key not in memo:
            memo[key] = parse_catalog(self.world.templates)
        catalog: Catalog = memo[key]
        return catalog

    # -- indexes ----------------------------------------------------------------------------------------------

    @cached_property
    def owned(self) -> Mapping[tuple[str, str], list[Object]]:
        """Objects by their namespace and the uid of each owner that they reference.

        A reference into another namespace is void in Kubernetes too: else it would tie one tenant to another.
        """
        index: dict[tuple[str, str], list[Object]] = defaultdict(list)
        for kind in ("VirtualMachine", "VirtualMachineInstance", "Pod", "Secret"):
            for obj in self.world.of(kind):
                for uid in owner_uids(obj):
                    index[(obj["metadata"]["namespace"], uid)].append(obj)
        return index

    @cached_property
    def labelled(self) -> Mapping[str, list[Object]]:
        """Objects that we made in other namespaces or cluster-wide, by the uid of the object that they are for.

        Tenants can put the label on what they make (the syncer copies labels, too), but not on a namespace: what is
        in one counts only if the namespace has it, or the object references an owner beside it (I11).
        """
        namespaces = self.world.objects["Namespace"].items()
        beside = {uid: obj["metadata"]["namespace"] for uid, obj in self.virtual_clusters_by_uid.items()}
        homes = {name: labels_of(home).get(OWNER_UID_LABEL) for (_, name), home in namespaces}
        index: dict[str, list[Object]] = defaultdict(list)
        for objects in self.world.objects.values():
            for (namespace, _), obj in objects.items():
                uid = labels_of(obj).get(OWNER_UID_LABEL)
                if not uid:
                    continue
                referenced = namespace == beside.get(uid) and uid in owner_uids(obj)
                if not namespace or homes.get(namespace) == uid or referenced:
                    index[uid].append(obj)
        return index

    @cached_property
    def gpu_pods(self) -> list[Object]:
        """Pods that ask for GPUs and have not finished."""
        return [pod for pod in self.world.of("Pod") if not is_finished(pod) and self.gpus(pod)]

    @cached_property
    def gpu_pods_by_uid(self) -> Mapping[str, Object]:
        """The same by uid."""
        return {uid_of(pod): pod for pod in self.gpu_pods}

    @cached_property
    def pods_by_namespace(self) -> Mapping[str, list[Object]]:
        """All pods by namespace."""
        index: dict[str, list[Object]] = defaultdict(list)
        for pod in self.world.of("Pod"):
            index[pod["metadata"]["namespace"]].append(pod)
        return index

    @cached_property
    def virtual_clusters_by_uid(self) -> Mapping[str, Object]:
        """VirtualClusters by uid."""
        return {uid_of(obj): obj for obj in self.world.of("VirtualCluster")}

    @cached_property
    def gated_pods(self) -> list[Object]:
        """Pods that our gate holds, neither finished nor going, in the order of their names."""
        pods = by_name(self.world.of("Pod"))
        return [pod for pod in pods if is_gated(pod) and not is_finished(pod) and not is_deleting(pod)]

    def gpus(self, pod: Object) -> dict[str, int]:
        """GPUs that a pod asks for, by resource."""
        return self.remembered(pod, gpu_requests, "/gpus")

    def descendants(self, namespace: str, uid: str) -> list[Object]:
        """Everything below an owner: GpuVM → VirtualMachine → VirtualMachineInstance → launcher pods."""
        found: list[Object] = []
        waiting = [uid]
        seen = {uid}
        while waiting:
            for child in self.owned.get((namespace, waiting.pop()), ()):
                child_uid = uid_of(child)
                if child_uid not in seen:
                    seen.add(child_uid)
                    found.append(child)
                    waiting.append(child_uid)
        return found

    def tenant_of(self, namespace: str) -> str:
        """The tenant that owns a namespace, by the label that only the controller can set; `""` if none."""
        home = self.world.get("Namespace", "", namespace)
        return labels_of(home).get(TENANT_LABEL, "") if home else ""

    def cluster_of(self, namespace: str) -> Object | None:
        """The VirtualCluster whose host namespace this is."""
        home = self.world.get("Namespace", "", namespace)
        uid = labels_of(home).get(OWNER_UID_LABEL, "") if home else ""
        return self.virtual_clusters_by_uid.get(uid)

    # -- the ledger -------------------------------------------------------------------------------------------

    @cached_property
    def ledger(self) -> Object | None:
        """The head as an object."""
        return self.world.get("GpuLedger", "", LEDGER_NAME)

    @cached_property
    def head(self) -> Head:
        """The head; an empty one before the first controller."""
        return Head.from_spec(self.ledger["spec"]) if self.ledger else Head()

    @cached_property
    def allocations(self) -> list[Allocation]:
        """Every allocation object, live or not, in the order of their names."""
        objects = sorted(self.world.of("GpuAllocation"), key=lambda obj: str(obj["metadata"]["name"]))
        return [self._allocation(obj) for obj in objects]

    @cached_property
    def live(self) -> list[Allocation]:
        """The grants that count."""
        return [allocation for allocation in self.allocations if allocation.live]

    @cached_property
    def live_by_name(self) -> Mapping[str, Allocation]:
        """Live grants by their names."""
        return {allocation.name: allocation for allocation in self.live}

    @cached_property
    def live_by_owner(self) -> Mapping[str, Allocation]:
        """Live grants by the uid of their owner."""
        return {allocation.owner_uid: allocation for allocation in self.live}

    @cached_property
    def live_by_pod(self) -> Mapping[str, Allocation]:
        """Live grants by the uid of each pod that was bound with them."""
        return {uid: allocation for allocation in self.live for uid in allocation.pod_uids}

    @cached_property
    def granted_units(self) -> Mapping[tuple[str, str], int]:
        """Units that live grants have, by node and extended resource."""
        units: dict[tuple[str, str], int] = defaultdict(int)
        for allocation in self.live:
            for resource, count in allocation.resources.items():
                units[allocation.node, resource] += count
        return units

    def _allocation(self, obj: Object) -> Allocation:
        spec: Mapping[str, Any] = obj["spec"]
        status: Mapping[str, Any] = obj.get("status") or {}
        owner = spec["owner"]
        name = str(obj["metadata"]["name"])
        mark = int(status.get("sequence") or 0)
        revoked: Mapping[str, Any] = status.get("revoked") or {}
        cpu, memory, storage = self.remembered(obj, _needs, "/needs")
        return Allocation(
            object=obj,
            name=name,
            uid=uid_of(obj),
            owner_kind=owner["kind"],
            owner_namespace=owner["namespace"],
            owner_name=owner["name"],
            owner_uid=owner["uid"],
            tenant=spec["tenant"],
            parent=spec.get("parent") or "",
            epoch=spec["epoch"],
            node=spec.get("node") or "",
            grants=self.remembered(obj, _grants, "/grants"),
            cpu=cpu,
            memory=memory,
            storage=storage,
            preemptible=spec.get("preemptible", True),
            pod_uids=tuple(status.get("podUIDs") or ()),
            let_go_at=seconds(status["letGoAt"]) if status.get("letGoAt") else None,
            revoked=revoked.get("reason", ""),
            revoked_message=revoked.get("message", ""),
            revoked_since=seconds(revoked["since"]) if revoked.get("since") else 0.0,
            unless_bound=revoked.get("podUID", ""),
            preemptor=revoked.get("preemptor", ""),
            promised=_promised(revoked.get("promised") or ()),
            mark=mark,
            live=is_live(self.head, name, mark),
        )


def _promised(listed: Iterable[Object]) -> dict[str, Units]:
    found: dict[str, Units] = {}
    for gpu in listed:
        found[gpu["request"]] = (*found.get(gpu["request"], ()), (gpu["class"], gpu["count"]))
    return found


def _needs(obj: Object) -> tuple[int, int, int]:
    spec = obj["spec"]
    memory, storage = (to_bytes(spec.get(name) or "0") for name in ("memory", "storage"))
    return to_milli(spec.get("cpu") or "0"), memory, storage


def _grants(obj: Object) -> tuple[Grant, ...]:
    return tuple(Grant.model_validate(grant) for grant in obj["spec"]["grants"])


def by_name(objects: Iterable[Object]) -> list[Object]:
    """Objects in the order of namespace and name, so that equal worlds give equal plans."""
    return sorted(objects, key=lambda o: (o["metadata"].get("namespace", ""), o["metadata"]["name"]))
