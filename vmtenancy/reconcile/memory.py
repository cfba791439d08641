"""A cluster in memory: the second executor of steps.

It keeps a `World` with the rules of the API server that the planner relies on: uids, resourceVersions and conflicts,
unchanged writes that change nothing, deletion with finalizers, garbage collection by owner references, namespaces
that empty themselves, and the admission policy that gates pods. It serves simulation, the demo on a machine without a
cluster and property tests. It never stands in for evidence about Kubernetes: the same scenarios run on the real
programs in `tests/e2e`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from vmtenancy.api.names import GATE, TENANT_LABEL
from vmtenancy.reconcile.pods import gpu_requests, is_finished
from vmtenancy.reconcile.status import timestamp
from vmtenancy.reconcile.steps import (
    Apply,
    Chain,
    Create,
    Delete,
    Emit,
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
        stored = copy.deepcopy(obj)
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
        wanted = copy.deepcopy(current)
        if status:
            wanted["status"] = copy.deepcopy(obj.get("status", {}))
        else:
            wanted = copy.deepcopy(obj)
            if "status" in current:
                wanted["status"] = copy.deepcopy(current["status"])
            for name in ("uid", "creationTimestamp", "generation", "deletionTimestamp"):
                if name in current["metadata"]:
                    wanted["metadata"][name] = current["metadata"][name]
        return self._update(current, wanted)

    def apply(self, obj: Object) -> Object:
        """Server-side apply: maps merge, everything else is replaced; no change is no write."""
        current = self.world.find(ref_of(obj))
        if current is None:
            return self.create(obj)
        wanted = {
            **copy.deepcopy(current),
            **copy.deepcopy({k: v for k, v in obj.items() if k != "metadata"}),
        }
        for name in ("labels", "annotations"):
            if added := obj["metadata"].get(name):
                wanted["metadata"][name] = {**(current["metadata"].get(name) or {}), **added}
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
            going = copy.deepcopy(obj)
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
                self.apply(obj)
            case Replace(obj, status):
                self.replace(obj, status=status)
            case Delete(ref, uid, resource_version):
                self.delete(ref, uid=uid, resource_version=resource_version)
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
        uid = uid_of(obj)
        for child in [
            ref_of(o) for kind in self.world.objects.values() for o in kind.values() if uid in owner_uids(o)
        ]:
            self.delete(child)
        if ref.namespace:
            self._finish(Ref("Namespace", "", ref.namespace))


def _without_version(obj: Object) -> dict[str, Any]:
    return {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}}
