"""A small fleet in memory on which every step of the controller can be watched, refused or be its last."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any

from vmtenancy import resources
from vmtenancy.api.names import API_VERSION, APPLIED_ANNOTATION, GROUP_ANNOTATION
from vmtenancy.core.ledger.head import Head
from vmtenancy.reconcile import Plan, World, check, plan
from vmtenancy.reconcile.memory import ConflictError
from vmtenancy.reconcile.revocation import overdue
from vmtenancy.reconcile.status import condition, timestamp
from vmtenancy.reconcile.steps import Chain, Create, Object, Ref, Step
from vmtenancy.reconcile.view import LEDGER_NAME, View
from vmtenancy.reconcile.world import ref_of, uid_of
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.simulated import SimulatedCluster
from vmtenancy.testing.story import PASSTHROUGH, VGPU, gpu_node_facts

TEMPLATES = resources.templates()


class Fault(StrEnum):
    """What happens at one step."""

    KILLED_BEFORE = "killed before"
    KILLED_AFTER = "killed after"
    RESPONSE_LOST = "response lost"
    REFUSED = "refused"


class Lab(SimulatedCluster):
    """A simulated cluster whose controller is judged by `check` after each of its steps.

    `whys` are the reasons of all chains that ran, in order. `fault` strikes once, at the step of that number
    (from 0), counted from when it was set.
    """

    def __init__(self, identity: str = "controller-1") -> None:
        super().__init__(TEMPLATES, identity=identity)
        self.whys: list[str] = []
        self.steps: list[Step] = []
        self.fault: tuple[int, Fault] | None = None
        self.quota_just_decided = True
        self.ever_live: set[str] = set()

    # -- the controller ---------------------------------------------------------------------------------------

    def reconcile(self) -> bool:
        planned = self.plan()
        self.execute(planned)
        return bool(planned.chains)

    def plan(self) -> Plan:
        return plan(self.cluster.world, self.cluster.now)

    def execute(self, planned: Plan) -> None:
        """Run a plan step by step; a controller that is killed is replaced by another one, which plans anew."""
        try:
            for chain in planned.chains:
                self.run_chain(chain)
        except _KilledError:
            self.restart()

    def run_chain(self, chain: Chain, start: int = 0, end: int | None = None) -> bool:
        """Run the steps numbered `start` up to before `end`, until one fails. Whether all of them succeeded."""
        self.whys.append(chain.why)
        for step in chain.steps[start:end]:
            fault = self._fault_now()
            if fault is Fault.KILLED_BEFORE:
                raise _KilledError
            if fault is Fault.REFUSED:
                return False
            try:
                self.cluster.run_step(step)
            except ConflictError:
                return False
            self.steps.append(step)
            self.judge()
            if fault is Fault.KILLED_AFTER:
                raise _KilledError
            if fault is Fault.RESPONSE_LOST:
                return False
        return True

    def _fault_now(self) -> Fault | None:
        if self.fault is None:
            return None
        left, fault = self.fault
        self.fault = (left - 1, fault) if left else None
        return None if left else fault

    def restart(self) -> None:
        """Another process takes the place of the controller: it knows nothing but what the cluster says."""
        world = self.cluster.world
        number = int(world.identity.rpartition("-")[2])
        world.identity = f"controller-{number + 1}"
        world.charts = {}
        world.chart_errors = {}

    def judge(self, *, at_rest: bool = False) -> None:
        """Raise `AssertionError` where an invariant is broken, or the name of a grant is used again."""
        live = self.live_grants()
        step = self.steps[-1] if self.steps else None
        if isinstance(step, Create) and step.object["kind"] == "GpuAllocation":
            assert step.object["metadata"]["name"] not in self.ever_live
        self.ever_live |= live
        found = check(self.cluster.world, quota_just_decided=self.quota_just_decided, at_rest=at_rest)
        assert not found, "\n".join(map(str, found))

    def settle(self, rounds: int = 60) -> int:
        done = self.rest(rounds)
        self.judge(at_rest=True)
        left = self.plan().chains
        assert not left, f"not at rest: {[chain.why for chain in left]}"
        return done

    def rest(self, rounds: int = 60) -> int:
        """Let controller and surroundings act until neither has anything to do; returns the number of rounds."""
        return super().settle(rounds)

    def head(self) -> Head:
        return View(self.cluster.world, 0.0).head

    def wait_until(self, moment: float) -> None:
        """Nothing happens until then, except what the controller wants to be woken for."""
        for _ in range(20):
            due = self.plan().retry_at
            if due is None or due > moment:
                break
            self.cluster.now = due
            self.settle()
        self.cluster.now = max(self.cluster.now, moment)
        self.settle()

    def live_grants(self) -> set[str]:
        """Names of all grants that count."""
        return {grant.name for grant in View(self.cluster.world, 0.0).live}

    # -- what happens to nodes --------------------------------------------------------------------------------

    def report(self, node: str, *, ready: bool = True, **allocatable: int) -> None:
        """What a node says of itself; `allocatable` names resources by the last part of their name."""
        obj = self.get("Node", "", node)
        status = obj["status"]
        counts = {
            name: str(allocatable.get(name.rpartition("/")[2], count))
            for name, count in status["allocatable"].items()
        }
        conditions = [
            {
                "type": "Ready",
                "status": str(ready),
                "reason": "KubeletSilent" if not ready else "KubeletReady",
            }
        ]
        self.cluster.replace(
            {**obj, "status": {**status, "allocatable": counts, "conditions": conditions}}, status=True
        )

    def lose(self, node: str) -> None:
        """The Node and what its agent wrote are deleted."""
        self.delete("Node", "", node)
        self.delete("GpuNode", "", node)

    # -- the user ---------------------------------------------------------------------------------------------

    def apply(self, *objects: Object) -> None:
        for obj in objects:
            self.cluster.apply(obj)

    def edit(self, kind: str, namespace: str, name: str, **spec: Any) -> None:
        """Set fields of `spec`."""
        obj = self.get(kind, namespace, name)
        self.cluster.replace({**obj, "spec": {**obj["spec"], **spec}})

    def delete(self, kind: str, namespace: str, name: str) -> None:
        self.cluster.delete(Ref(kind, namespace, name))

    def get(self, kind: str, namespace: str, name: str) -> Object:
        obj = self.cluster.world.get(kind, namespace, name)
        assert obj is not None, f"no {kind} {namespace}/{name}"
        return obj

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        return self.cluster.world.get(kind, namespace, name)

    def status(self, kind: str, namespace: str, name: str) -> Mapping[str, Any]:
        return self.get(kind, namespace, name).get("status") or {}

    def reason(self, kind: str, namespace: str, name: str, of: str = "Ready") -> str:
        """The reason of a condition; `""` where there is none."""
        found = condition(self.get(kind, namespace, name), of)
        return str(found["reason"]) if found else ""

    def events(self, kind: str, namespace: str, name: str) -> list[str]:
        """Reasons of all events on an object, in order."""
        ref = Ref(kind, namespace, name)
        return [event.reason for event in self.cluster.events if ref_of(event.about) == ref]

    def grant(self, kind: str, namespace: str, name: str) -> Object | None:
        """The allocation of an owner, or None."""
        owner = self.get(kind, namespace, name)
        for obj in self.cluster.world.of("GpuAllocation"):
            if obj["spec"]["owner"]["uid"] == uid_of(owner):
                return obj
        return None

    def node_of(self, kind: str, namespace: str, name: str) -> str:
        """The node that an owner's grant names; `""` without a grant."""
        grant = self.grant(kind, namespace, name)
        return str(grant["spec"]["node"]) if grant else ""

    def pods(self, namespace: str) -> list[Object]:
        found = (pod for pod in self.cluster.world.of("Pod") if pod["metadata"]["namespace"] == namespace)
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    def inside(self, cluster: str, pod: Object, namespace: str = "llm") -> Object:
        """Create a pod in a virtual cluster; returns the host's copy."""
        home = self.status("VirtualCluster", namespace, cluster)["namespace"]
        return self.sync_pod(home, cluster, pod)


class _KilledError(Exception):
    """The controller's process ends here."""


def fork(lab: Lab) -> Lab:
    """A copy that goes its own way. Objects are shared: they never change."""
    twin = copy.copy(lab)
    world = lab.cluster.world
    twin.cluster = dataclasses.replace(
        lab.cluster,
        world=dataclasses.replace(
            world,
            objects={kind: dict(objects) for kind, objects in world.objects.items()},
            charts=dict(world.charts),
            chart_errors=dict(world.chart_errors),
            memo=dict(world.memo),
        ),
        events=list(lab.cluster.events),
    )
    twin.whys, twin.steps, twin.ever_live = list(lab.whys), list(lab.steps), set(lab.ever_live)
    return twin


# -- what people write ------------------------------------------------------------------------------------------------


def manifest(kind: str, name: str, spec: Object, namespace: str = "") -> Object:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def gpu_class(name: str, share: str = "1", pool: str = "h100", **delivery: str) -> Object:
    ways = {way: {"resource": resource} for way, resource in delivery.items()}
    return manifest("GpuClass", name, {"pool": pool, "share": share, "delivery": ways})


def tenant(name: str, nominal: int, borrowing: int | None = 0, **spec: Any) -> Object:
    quota: Object = {"pool": "h100", "nominal": nominal}
    if borrowing is not None:
        quota["borrowingLimit"] = borrowing
    return manifest("Tenant", name, {"namespaces": [name], "cohort": "research", "quota": [quota], **spec})


def gpu_vm(name: str, count: int = 1, *, of: str = "whole", namespace: str = "vision", **spec: Any) -> Object:
    base = {"gpus": [{"class": of, "count": count}], "cpu": {"cores": 2}, "memory": "4Gi"}
    return manifest("GpuVM", name, base | spec, namespace)


def virtual_cluster(
    name: str = "lab", guaranteed: int = 1, most: int = 2, *, namespace: str = "llm", **spec: Any
) -> Object:
    gpus = [{"class": "whole", "guaranteed": guaranteed, "max": most}]
    return manifest("VirtualCluster", name, {"gpus": gpus, **spec}, namespace)


def reservation(
    name: str, count: int, start: float, end: float, *, of: str = "whole", namespace: str = "vision"
) -> Object:
    window = {"start": timestamp(start), "end": timestamp(end)}
    return manifest("GpuReservation", name, {"class": of, "count": count, **window}, namespace)


def group(name: str, members: int, *, namespace: str = "vision") -> Object:
    return manifest("GpuGroup", name, {"members": members}, namespace)


def gpu_pod(
    name: str,
    count: int = 1,
    *,
    namespace: str = "default",
    resource: str = "nvidia.com/gpu",
    group: str = "",
    **spec: Any,
) -> Object:
    container = {"name": "main", "resources": {"limits": {resource: count}}} if count else {"name": "main"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace}
        | ({"annotations": {GROUP_ANNOTATION: group}} if group else {}),
        "spec": {"containers": [container], **spec},
    }


def namespace(name: str, **labels: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


READY = {"conditions": [{"type": "Ready", "status": "True"}]}


def nodes() -> Iterator[Object]:
    """Four nodes: two with 2 GPUs for pods, one with 4 for passthrough, one with 1 for vGPUs."""
    yield gpu_node("pods-1", gpus=2)
    yield gpu_node("pods-2", gpus=2)
    yield gpu_node("machines", mode="vm-passthrough", gpus=4, resources={PASSTHROUGH: 4})
    yield gpu_node("slices", mode="vm-vgpu", gpus=1, resources={VGPU: 4})


def add_node(lab: Lab, node: Object) -> None:
    """A node that is ready, with the facts that its agent published."""
    lab.cluster.create({**node, "status": {**node["status"], **READY}})
    lab.cluster.create(gpu_node_facts(node))


def described() -> list[Object]:
    """One pool, two classes, two tenants that lend to each other; 9 GPUs exist, 3 + 3 are nominal."""
    return [
        manifest("GpuPool", "h100", {"selector": {}}),
        gpu_class("whole", container="nvidia.com/gpu", passthrough=PASSTHROUGH),
        gpu_class("quarter", "1/4", vgpu=VGPU),
        manifest("Cohort", "research", {}),
        tenant("vision", 3, 1),
        tenant("llm", 3, 1),
    ]


def small_lab(identity: str = "controller-1") -> Lab:
    """The fleet with its tenants, at rest."""
    lab = Lab(identity)
    for node in nodes():
        add_node(lab, node)
    lab.apply(*described())
    lab.settle()
    return lab


# -- end states -------------------------------------------------------------------------------------------------------

_UID = re.compile(
    r"(?:(?:vm|vc|pod)-)?uid-\d{6}(?:-\d+-\d+-[0-9a-f]{8})?|(?<=virt-launcher-)[-a-z0-9]+-\d{6}"
)
_OF_THE_MOMENT = re.compile(
    r'("(?:uid|resourceVersion|creationTimestamp|lastTransitionTime|deletionTimestamp|letGoAt'
    rf'|{re.escape(APPLIED_ANNOTATION)})": )"[^"]*"|("(?:generation|sequence|epoch)": )\d+'
    r"|\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"
)


_texts: dict[int, tuple[Object, str]] = {}


def _text(obj: Object) -> str:
    """An object as JSON without what is of the moment; remembered, since objects never change and most are shared."""
    found = _texts.get(id(obj))
    if found is None:
        found = _texts[id(obj)] = obj, _OF_THE_MOMENT.sub(r"\1\2*", json.dumps(obj, sort_keys=True))
    return found[1]


def end_state(world: World) -> dict[str, str]:
    """What a world comes to, without what differs from run to run: uids, versions, times, epochs, names of grants."""
    known: dict[str, str] = {}

    def named(match: re.Match[str]) -> str:
        text = match[0]
        if (at := text.find("uid-")) < 0:  # the end of a launcher's name
            return text[:-7]
        owner = known.get(text[at : at + 10], "gone")
        return owner if at == 0 else f"grant of {owner}"

    everything = [
        obj for kind, objects in world.objects.items() if kind != "GpuLedger" for obj in objects.values()
    ]
    for obj in everything:
        if obj["kind"] != "GpuAllocation":
            known[uid_of(obj)] = _UID.sub(named, str(ref_of(obj)))
    return {_UID.sub(named, str(ref_of(obj))): _UID.sub(named, _text(obj)) for obj in everything}


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Where two end states differ, in words."""
    return [
        f"{name}: expected {expected.get(name)}, found {found.get(name)}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]


def state(lab: Lab) -> int:
    """All that the next turns depend on, apart from what `end_state` leaves out: equal states have equal futures."""
    world = lab.cluster.world
    ledger = world.get("GpuLedger", "", LEDGER_NAME)
    holds_head = ledger is not None and ledger["spec"]["holder"] == world.identity
    view = View(world, lab.cluster.now)
    live = sorted((grant.owner_uid, overdue(view, grant) is not None) for grant in view.live)
    return hash(repr((end_state(world), holds_head, live, sorted(world.charts))))


Act = Callable[[Lab], None]
