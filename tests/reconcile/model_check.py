"""Visits every state of a model, breadth first, and judges each way from one to the next."""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lab import differences
from model_moves import Model, Move
from model_state import State

from vmtenancy.api.names import ALLOCATION_ANNOTATION
from vmtenancy.core.ledger.head import Head, is_live
from vmtenancy.reconcile import World, check
from vmtenancy.reconcile.gate import root_owner
from vmtenancy.reconcile.pods import is_gated
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import LEDGER_NAME, View
from vmtenancy.reconcile.world import annotations_of, is_deleting, ref_of, uid_of
from vmtenancy.testing.story import PASSTHROUGH

End = dict[str, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was broken, and the shortest way there from the beginning."""

    message: str
    trace: tuple[str, ...]
    world: World

    def __str__(self) -> str:
        steps = [f"{number:3} {what}" for number, what in enumerate(self.trace, 1)]
        return "\n".join(
            [self.message, *steps, "    and then:", *(f"    {line}" for line in picture(self.world))]
        )


@dataclass(slots=True)
class Result:
    """`states` that were reached, `transitions` between them, `rests`: what it comes to, by acts of the script that are
    done. `complete`: nothing was left out of what the budget allows."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    seconds: float = 0.0
    complete: bool = True
    findings: list[Finding] = field(default_factory=list)
    rests: dict[int, list[End]] = field(default_factory=dict)

    def __str__(self) -> str:
        how = "exhaustive" if self.complete else "cut"
        ends = sum(map(len, self.rests.values()))
        return (
            f"{self.states} states, {self.transitions} transitions, depth {self.depth}, {ends} ends, "
            f"{len(self.findings)} violations, {how}, {self.seconds:.1f} s of CPU"
        )


def explore(
    model: Model,
    *,
    ends: dict[int, list[End]] | None = None,
    most_states: int = 10_000_000,
    most_seconds: float = 3600.0,
    most_findings: int = 1,
) -> Result:
    """Visit all states that can be reached. `ends`: what it may come to, by acts done; else anything (I10)."""
    return _Search(model, ends, most_states, most_seconds, most_findings).run()


@dataclass(slots=True)
class _Search:
    model: Model
    ends: dict[int, list[End]] | None
    most_states: int
    most_seconds: float
    most_findings: int
    result: Result = field(default_factory=Result)
    came: dict[int, tuple[int, str]] = field(default_factory=dict)
    calmly: dict[int, int] = field(default_factory=dict)
    judged: dict[int, list[str]] = field(default_factory=dict)

    def run(self) -> Result:
        started = time.process_time()
        first = self.model.start
        key = first.key()
        self.came[key] = (0, "")
        queue = deque([(first, key, 0)])
        while queue:
            if len(self.came) > self.most_states or time.process_time() - started > self.most_seconds:
                self.result.complete = False
                break
            state, key, self.result.depth = queue.popleft()
            for move, new in self._leave(state, key):
                queue.append((move.state, new, self.result.depth + 1))
            if len(self.result.findings) >= self.most_findings:
                self.result.complete = False
                break
        else:
            self._loops()
        self.result.states = len(self.came)
        self.result.seconds = time.process_time() - started
        return self.result

    def _leave(self, state: State, key: int) -> Iterator[tuple[Move, int]]:
        """All that can happen in a state; yields what leads to new ones."""
        calm = False
        for move in self.model.moves(state):
            self.result.transitions += 1
            broken = self._judge(state, move)
            new = move.state.key()
            if move.calm and not calm:
                calm, self.calmly[key] = True, new
            if broken:
                self._found(broken, key, move.state.world, move.what)
            elif new not in self.came:
                self.came[new] = (key, move.what)
                yield move, new
        if not calm:
            self._at_rest(state, key)

    # -- judging ----------------------------------------------------------------------------------------------

    def _judge(self, before: State, move: Move) -> list[str]:
        after = move.state
        if after.cluster.writes == before.cluster.writes:
            return []
        signature = after.cluster.signature()
        broken = self.judged.get(signature)
        if broken is None:
            found = check(after.world, at_rest=False)
            # Until it is collected, what a late controller makes is left of an owner that is gone.
            lateness = after.budget.pauses < self.model.start.budget.pauses
            broken = [str(violation) for violation in found if not (lateness and violation.invariant == "I9")]
            broken += _let_go_without_grant(after.world)
            self.judged[signature] = broken
        return [*broken, *_wrong_turns(before.world, after.world, move)]

    def _at_rest(self, state: State, key: int) -> None:
        """Nothing happens by itself any more (I7): it has come to what was wished (I10), with nothing left (I9)."""
        broken = [str(violation) for violation in check(state.world)]
        broken += _wishes_not_met(state.world)
        end = outcome(state.world)
        known = self.result.rests.setdefault(state.acted, [])
        if end not in known:
            known.append(end)
            allowed = self.ends.get(state.acted, []) if self.ends is not None else [end]
            if end not in allowed:
                nearest = min((differences(right, end) for right in allowed), key=len, default=["anything"])
                broken.append("I10: not an end without faults: " + "; ".join(nearest))
        if broken:
            self._found(broken, key, state.world)

    def _loops(self) -> None:
        """From every state it comes to rest if nothing else goes wrong (I10)."""
        home: set[int] = set()
        for start in self.calmly:
            way: list[int] = []
            at, on_way = start, set[int]()
            while at in self.calmly and at not in home and at not in on_way:
                way.append(at)
                on_way.add(at)
                at = self.calmly[at]
            if at in on_way:
                loop = [*way[way.index(at) :], at]
                self._found(
                    [f"I10: it goes round for ever, in {len(loop) - 1} steps"], start, self.model.start.world
                )
                return
            home.update(way)

    def _found(self, broken: Sequence[str], key: int, world: World, *last: str) -> None:
        trace = list(last)
        while key in self.came and self.came[key][1]:
            key, what = self.came[key]
            trace.insert(len(trace) - len(last), what)
        steps = (*reversed(trace[: len(trace) - len(last)]), *last)
        self.result.findings.append(Finding("; ".join(broken), steps, world))


def _let_go_without_grant(world: World) -> list[str]:
    """A pod may go on only while the grant that it was let go with is live (I3, before the pod is bound)."""
    view = View(world, 0.0)
    return [
        f"I3: {ref_of(pod)} was let go, but no live grant names it"
        for pod in view.gpu_pods
        if ALLOCATION_ANNOTATION in annotations_of(pod) and not is_gated(pod) and not is_deleting(pod)
        and uid_of(pod) not in view.live_by_pod
    ]  # fmt: skip


def _wishes_not_met(world: World) -> list[str]:
    """At rest all that has a grant runs, and nothing waits for what is free (I10). Quota is never short here."""
    view = View(world, 0.0)
    free: dict[tuple[str, str], int] = {}
    for node in world.of("Node"):
        for resource, count in node["status"]["allocatable"].items():
            free[node["metadata"]["name"], resource] = int(count) if resource.startswith("nvidia.com/") else 0
    held = 0
    for grant in view.live:
        for resource, count in grant.resources.items():
            if grant.node:
                free[grant.node, resource] = free.get((grant.node, resource), 0) - count
            elif not any(other.parent == grant.name for other in view.live):
                held += count
    found = []
    for owner, wanted in _wishes(view):
        own = view.live_by_owner.get(uid_of(owner))
        if own is None:
            fits = (node for (node, resource), left in free.items() if left >= wanted.get(resource, left + 1))
            if sum(free.values()) - held >= sum(wanted.values()) and (node := next(fits, "")):
                found.append(f"I10: {ref_of(owner)} waits, and {node} is free")
        elif own.node and world.get("Node", "", own.node) is None:
            found.append(f"I10: {ref_of(owner)} keeps its grant on {own.node}, which does not exist")
        elif own.node and not _runs(view, owner):
            found.append(f"I10: {ref_of(owner)} has a grant and does not run")
    return found


def _wishes(view: View) -> Iterator[tuple[Object, dict[str, int]]]:
    """Who is meant to run, and what it needs, by resource."""
    for obj in view.world.of("GpuVM"):
        if not is_deleting(obj) and obj["spec"].get("runStrategy") != "Halted":
            yield obj, {PASSTHROUGH: sum(gpu["count"] for gpu in obj["spec"]["gpus"])}
    for pod in view.gpu_pods:
        if not root_owner(view, pod):
            yield pod, view.gpus(pod)


def _runs(view: View, owner: Object) -> bool:
    pods = view.descendants(owner["metadata"]["namespace"], uid_of(owner)) or [owner]
    return any(pod["kind"] == "Pod" and (pod.get("status") or {}).get("phase") == "Running" for pod in pods)


def _head(world: World) -> Head:
    obj = world.get("GpuLedger", "", LEDGER_NAME)
    return Head.from_spec(obj["spec"]) if obj else Head()


def _live(world: World) -> set[str]:
    head = _head(world)
    return {
        str(obj["metadata"]["name"])
        for obj in world.of("GpuAllocation")
        if is_live(head, obj["metadata"]["name"], int((obj.get("status") or {}).get("sequence") or 0))
    }


def _wrong_turns(before: World, after: World, move: Move) -> list[str]:
    """What no single world can show: who changed the ledger (I8), and which names came alive."""
    found = []
    old, new = _head(before), _head(after)
    if new != old:
        takes_over = (new.epoch, new.holder) == (old.epoch + 1, move.actor)
        if old.holder != move.actor and not takes_over:
            found.append(f"I8: {move.actor or 'someone'} changed the head, which {old.holder} holds")
        elif not takes_over and (new.epoch, new.sequence) != (old.epoch, old.sequence + 1):
            found.append("I8: a commit that is not the next one")
    numbers = f"-{new.epoch}-{new.sequence}-"
    for name in sorted(_live(after) - _live(before)):
        if numbers not in name or new == old:
            found.append(f"I1: {name} became live, but not by the commit that its name carries")
    return found


def replay(model: Model, trace: Sequence[str]) -> Iterator[Move]:
    """The same way again. Raises `KeyError` where it can not be gone any more."""
    state = model.start
    for what in trace:
        move = {move.what: move for move in model.moves(state)}[what]
        yield move
        state = move.state


def outcome(world: World) -> End:
    """What people see of a world at rest, and what exists: how it was told on the way there does not count."""
    view = View(world, 0.0)
    owners = {uid_of(obj): _name(obj) for objects in world.objects.values() for obj in objects.values()}
    end = {
        f"grant of {owners.get(grant.owner_uid, 'nobody')}": f"{'' if grant.live else 'not '}live on {grant.node}, "
        f"{[part.devices for part in grant.grants]}, pods {[owners.get(uid) for uid in grant.pod_uids]}"
        for grant in view.allocations
    }
    for kind, objects in world.objects.items():
        for obj in objects.values() if kind not in ("GpuAllocation", "GpuLedger") else ():
            status = obj.get("status") or {}
            told = status.get("conditions") or () if kind != "Pod" or is_gated(obj) else ()
            seen = sorted((c["type"], c["status"], c.get("reason", "")) for c in told)
            end[_name(obj)] = (
                f"{status.get('phase', '')} {obj.get('spec', {}).get('nodeName', '')} {is_deleting(obj)} {seen}"
            )
    return end


def _name(obj: Object) -> str:
    """Its reference, without what KubeVirt makes up for a launcher."""
    return re.sub(r"(?<=/virt-launcher-)(.*)-\d{6}$", r"\1", str(ref_of(obj)))


def picture(world: World) -> Iterator[str]:
    """What matters of a world, a line each."""
    view, head = View(world, 0.0), _head(world)
    yield f"head: epoch {head.epoch} of {head.holder}, sequence {head.sequence}, released {sorted(head.released)}"
    for grant in view.allocations:
        what = "live" if grant.live else "not live"
        devices = [device for part in grant.grants for device in part.devices]
        where = f"{devices} on {grant.node}, pods {grant.pod_uids}"
        yield f"{grant.name} of {grant.owner_kind} {grant.owner_name}: {what}, {where}"
    for kind in ("GpuVM", "VirtualCluster", "VirtualMachine", "VirtualMachineInstance", "Pod"):
        for obj in world.of(kind):
            gone = ", deleting" if is_deleting(obj) else ""
            phase = (obj.get("status") or {}).get("phase", "")
            gate = ", gated" if kind == "Pod" and is_gated(obj) else ""
            node = f", on {obj['spec']['nodeName']}" if obj["spec"].get("nodeName") else ""
            yield f"{ref_of(obj)} ({uid_of(obj)}): {phase}{gate}{node}{gone}"
    yield f"nodes: {dict(Counter(str(obj['metadata']['name']) for obj in world.of('Node')))}"
