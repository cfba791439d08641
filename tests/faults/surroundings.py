"""What has no real program in these tests, as a planner: virt-controller, vCluster's control plane, lost nodes.

The rules are those of `vmtenancy.testing.simulated`, run on a copy of what is observed; what they write there becomes
steps for the API server. Real are the API server, the scheduler, the controllers of kube-controller-manager and KWOK.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Final

from vmtenancy.reconcile.memory import ConflictError, MemoryCluster
from vmtenancy.reconcile.steps import Chain, Create, Delete, Object, Plan, Ref, Replace, Step
from vmtenancy.reconcile.world import World, is_deleting, owner_uids, ref_of, uid_of
from vmtenancy.testing.simulated import SimulatedCluster

#: The rules that are played. kube-controller-manager evicts from a lost node too, but 40 s later.
_PLAYED: Final = ("evict from a lost node", "run vCluster", "run machine", "run instance")
#: KWOK ends pods of machines when told to, rather than after a second or two.
AT_ONCE: Final = {f"pod-delete.stage.kwok.x-k8s.io/{which}": "1ms" for which in ("delay", "jitter-delay")}


def surroundings(world: World, now: float) -> Plan:
    """What those programs write next; nothing where they wait for others. Reads `world`, never changes it."""
    played = SimulatedCluster({}, now=now)
    recorder = _Recorder(
        replace(world, objects={kind: dict(objects) for kind, objects in world.objects.items()}), now=now
    )
    played.cluster = recorder
    for name, move in played.moves():
        if name.startswith(_PLAYED):
            with suppress(ConflictError):  # the name is still taken, or the namespace is going
                move()
    return Plan(tuple(Chain(str(ref), (step,)) for ref, step in recorder.steps.items()))


class _Recorder(MemoryCluster):
    """Notes the first write to each object: the next one waits until this one is observed."""

    def __init__(self, world: World, now: float) -> None:
        super().__init__(world, now=now)
        self.steps: dict[Ref, Step] = {}
        self._real = {uid_of(obj) for objects in world.objects.values() for obj in objects.values()}
        self._within = False

    def create(self, obj: Object) -> Object:
        stored = super().create(obj)
        if all(owner in self._real for owner in owner_uids(obj)):
            if obj["kind"] == "Pod":
                annotations = {**(obj["metadata"].get("annotations") or {}), **AT_ONCE}
                obj = {**obj, "metadata": {**obj["metadata"], "annotations": annotations}}
            self._note(ref_of(obj), Create(obj))
        return stored

    def replace(self, obj: Object, *, status: bool = False) -> Object:
        before = self.writes
        stored = super().replace(obj, status=status)
        # A StatefulSet's status is written by its real controller.
        if self.writes > before and obj["kind"] != "StatefulSet" and uid_of(stored) in self._real:
            # KubeVirt's instances have no status subresource.
            self._note(ref_of(obj), Replace(obj, status and obj["kind"] != "VirtualMachineInstance"))
        return stored

    def delete(self, ref: Ref, *, uid: str = "", resource_version: str = "") -> None:
        obj = self.world.find(ref)
        first, self._within = not self._within, True
        try:
            super().delete(ref, uid=uid, resource_version=resource_version)
        finally:
            self._within = not first
        # What goes along with it is left to the API server.
        if first and obj is not None and not is_deleting(obj) and uid_of(obj) in self._real:
            self._note(ref, Delete(ref, uid_of(obj)))

    def _note(self, ref: Ref, step: Step) -> None:
        self.steps.setdefault(ref, step)
