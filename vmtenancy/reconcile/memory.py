"""A cluster in memory: the second executor of steps.

It keeps a `World` with the rules of the API server that the planner relies on: uids, resourceVersions and conflicts,
unchanged writes that change nothing, deletion with finalizers, garbage collection by owner references, namespaces
that empty themselves, and the admission policy that gates pods. It serves simulation, the demo on a machine without a
cluster and property tests. It never stands in for evidence about Kubernetes: the same scenarios run on the real
programs in `tests/e2e`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from vmtenancy.api.names import FIELD_MANAGER, GATE, TENANT_LABEL
from vmtenancy.core.ledger.head import Head
from vmtenancy.reconcile.ownership import fields_of, without_changed
from vmtenancy.reconcile.pods import gpu_requests, is_finished
from vmtenancy.reconcile.status import timestamp
from vmtenancy.reconcile.steps import (
    Absent,
    Apply,
    Chain,
    Create,
    Delete,
    Emit,
    Granted,
    Object,
    Plan,
    Ref,
    RenderChart,
    Replace,
    Step,
)
from vmtenancy.reconcile.world import World, labels_of, owner_uids, ref_of, uid_of


class ConflictError(Exception):
    """The precondition of a write did not hold: another resourceVersion or uid, the name taken, the object gone."""


Renderer = Callable[[RenderChart], Iterable[Object]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one chain: how many steps were done, and the error that stopped it, if one did."""

    chain: Chain
    done: int
    error: str = ""


@dataclass(slots=True)
class MemoryCluster:
    """Objects in memory. `now` is set by the owner (seconds since the epoch); `writes` counts changes made."""

    world: World = field(default_factory=World)
    now: float = 0.0
    renderer: Renderer | None = None
    events: list[Emit] = field(default_factory=list)
    writes: int = 0
    _counter: int = 0

    # -- the verbs of the API ---------------------------------------------------------------------------------

    def create(self, obj: Object) -> Object:
        """POST. Raises `ConflictError` where the name is taken or the namespace is missing or going."""
        ref = ref_of(obj)
        if self.world.find(ref):
            raise ConflictError(f"{ref} already exists")
        if ref.namespace:
            home = self.world.get("Namespace", "", ref.namespace)
            if home is None or home["metadata"].get("deletionTimestamp"):
                raise ConflictError(f"namespace {ref.namespace} not found or terminating")
        stored: Object = _copied(obj)
        meta = stored["metadata"]
        self._counter += 1
        meta |= {
            "uid": f"uid-{self._counter:06d}",
            "creationTimestamp": timestamp(self.now),
            "generation": 1,
        }
        if stored["kind"] == "Pod":
            self._gate(stored)
        self._store(stored)
        return stored

    def replace(self, obj: Object, *, status: bool = False) -> Object:
        """PUT with compare-and-swap. Raises `ConflictError` where the object is gone or changed."""
        ref = ref_of(obj)
        current = self.world.find(ref)
        if current is None:
            raise ConflictError(f"{ref} not found")
        if obj["metadata"].get("resourceVersion") != current["metadata"]["resourceVersion"]:
            raise ConflictError(f"{ref} was changed meanwhile")
        wanted = _copied(current)
        if status:
            wanted["status"] = _copied(obj.get("status", {}))
        else:
            wanted = _copied(obj)
            if "status" in current:
                wanted["status"] = _copied(current["status"])
            for name in ("uid", "creationTimestamp", "generation", "deletionTimestamp"):
                if name in current["metadata"]:
                    wanted["metadata"][name] = current["metadata"][name]
            if account := current["metadata"].get("managedFields"):
                wanted["metadata"]["managedFields"] = [
                    {**entry, "fieldsV1": without_changed(entry["fieldsV1"], current, wanted)}
                    for entry in account
                ]
        return self._update(current, wanted)

    def apply(self, obj: Object, manager: str = "") -> Object:
        """Server-side apply: maps merge, everything else is replaced; no change is no write.

        `metadata.uid` and `resourceVersion` are preconditions. With `manager` the fields are accounted to it.
        """
        current = self.world.find(ref_of(obj))
        uid, version = (obj["metadata"].get(name) for name in ("uid", "resourceVersion"))
        if current is None and uid:
            raise ConflictError(f"{ref_of(obj)} not found")
        if current and (
            (version or current["metadata"]["resourceVersion"]) != current["metadata"]["resourceVersion"]
        ):
            raise ConflictError(f"{ref_of(obj)} was changed meanwhile")
        account = {"manager": manager, "operation": "Apply", "fieldsV1": fields_of(obj)}
        accounts = {"managedFields": [account]} if manager else {}
        if current is None:
            return self.create({**obj, "metadata": {**obj["metadata"], **accounts}})
        wanted = {
            **_copied(current),
            **_copied({k: v for k, v in obj.items() if k != "metadata"}),
        }
        for name in ("labels", "annotations"):
            if added := obj["metadata"].get(name):
                wanted["metadata"][name] = {**(current["metadata"].get(name) or {}), **added}
        wanted["metadata"] |= accounts
        return self._update(current, wanted)

    def delete(self, ref: Ref, *, uid: str = "", resource_version: str = "") -> None:
        """DELETE. Gone already is fine; another uid or resourceVersion raises `ConflictError`."""
        obj = self.world.find(ref)
        if obj is None:
            return
        meta = obj["metadata"]
        if (uid and uid != meta["uid"]) or (resource_version and resource_version != meta["resourceVersion"]):
            raise ConflictError(f"{ref} is another one now")
        if not meta.get("deletionTimestamp"):
            going = _copied(obj)
            going["metadata"]["deletionTimestamp"] = timestamp(self.now)
            self._store(going)
        if ref.kind == "Namespace":
            for inside in [ref_of(o) for kind in self.world.objects.values() for o in kind.values()]:
                if inside.namespace == ref.name:
                    self.delete(inside)
        self._finish(ref)

    # -- steps ------------------------------------------------------------------------------------------------

    def run(self, plan: Plan) -> list[Outcome]:
        """Run every chain; a failure stops its own chain only."""
        return [self._run_chain(chain) for chain in plan.chains]

    def _run_chain(self, chain: Chain) -> Outcome:
        for done, step in enumerate(chain.steps):
            try:
                self.run_step(step)
            except ConflictError as error:
                return Outcome(chain, done, str(error))
        return Outcome(chain, len(chain.steps))

    def run_step(self, step: Step) -> None:
        """Run one step. Raises `ConflictError`."""
        match step:
            case Create(obj):
                self.create(obj)
            case Apply(obj):
                self.apply(obj, manager=FIELD_MANAGER)
            case Replace(obj, status):
                self.replace(obj, status=status)
            case Delete(ref, uid, resource_version):
                self.delete(ref, uid=uid, resource_version=resource_version)
            case Absent(ref, uid):
                found = self.world.find(ref)
                if found is not None and uid_of(found) == uid:
                    raise ConflictError(f"{ref} still exists")
            case Granted(ledger, epoch, name):
                found = self.world.find(ledger)
                if found is None or not Head.from_spec(found["spec"]).still_grants(epoch, name):
                    raise ConflictError(f"{ledger} does not grant {name} any more")
            case Emit():
                self.events.append(step)
            case RenderChart(key):
                if self.renderer is None:
                    self.world.chart_errors[key] = "no vCluster chart is configured"
                else:
                    self.world.charts[key] = tuple(self.renderer(step))

    # -- how the API server behaves ---------------------------------------------------------------------------

    def _gate(self, pod: Object) -> None:
        """As the admission policy: a pod with GPUs in a tenant's namespace gets the gate."""
        home = self.world.get("Namespace", "", pod["metadata"]["namespace"])
        if home is None or TENANT_LABEL not in labels_of(home):
            return
        if gpu_requests(pod) or pod["spec"].get("resourceClaims"):
            gates = pod["spec"].setdefault("schedulingGates", [])
            if {"name": GATE} not in gates:
                gates.append({"name": GATE})

    def _update(self, current: Object, wanted: Object) -> Object:
        if _without_version(current) == _without_version(wanted):
            return current
        if any(current.get(k) != wanted.get(k) for k in {*current, *wanted} - {"metadata", "status"}):
            wanted["metadata"]["generation"] = current["metadata"].get("generation", 1) + 1
        self._store(wanted)
        self._finish(ref_of(wanted))
        return wanted

    def _store(self, obj: Object) -> None:
        self._counter += 1
        self.writes += 1
        obj["metadata"]["resourceVersion"] = str(self._counter)
        self.world.put(obj)

    def _finish(self, ref: Ref) -> None:
        """Remove an object whose deletion has begun and that nothing holds any more, then what it owned."""
        obj = self.world.find(ref)
        if obj is None or not obj["metadata"].get("deletionTimestamp") or obj["metadata"].get("finalizers"):
            return
        if ref.kind == "Namespace" and any(
            key[0] == ref.name for kind in self.world.objects.values() for key in kind
        ):
            return
        if ref.kind == "Pod" and obj["spec"].get("nodeName") and not is_finished(obj):
            return  # its node still runs it; whoever plays the kubelet reports the end
        self.world.remove(ref.kind, ref.namespace, ref.name)
        self.writes += 1
        self._orphan(uid_of(obj))
        if ref.namespace:
            self._finish(Ref("Namespace", "", ref.namespace))

    def _orphan(self, uid: str) -> None:
        """As the garbage collector: what an object owned goes after it."""
        owned = [
            ref_of(o) for kind in self.world.objects.values() for o in kind.values() if uid in owner_uids(o)
        ]
        for child in owned:
            self.delete(child)


def _copied(value: Any) -> Any:
    """A deep copy of JSON; the general one is four times as slow, and most of what a simulation does."""
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _without_version(obj: Object) -> dict[str, Any]:
    return {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}}
