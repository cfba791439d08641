"""People, nodes and a controller that loses writes act in any order: no invariant breaks, and it all comes to rest."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lab import Fault, Lab, fork, gpu_pod, gpu_vm, group, nodes, small_lab, tenant, virtual_cluster

from vmtenancy.api.names import TENANT_LABEL
from vmtenancy.reconcile.memory import ConflictError
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.world import labels_of
from vmtenancy.testing.story import leftovers


def busy_lab() -> Lab:
    """A machine that runs, one that waits, a virtual cluster with pods inside, and a pod beside it."""
    lab = small_lab()
    lab.apply(gpu_vm("a", 2), gpu_vm("b", 3), virtual_cluster(guaranteed=1, most=2))
    lab.settle()
    for name in "pq":
        lab.inside("lab", gpu_pod(name))
    lab.apply(gpu_pod("p", namespace="llm"))
    lab.settle()
    return lab


_BUSY = busy_lab()
TENANTS = ("vision", "llm")
FLEET = {str(node["metadata"]["name"]): node for node in nodes()}
NODES = sorted(FLEET)

homes = st.sampled_from([*TENANTS, *TENANTS, "shared"])
machines = st.sampled_from("ab")
pods = st.sampled_from("pqr")


class AnythingGoes(RuleBasedStateMachine):
    """`lab` judges itself after each step of the controller."""

    @initialize()
    def start(self) -> None:
        self.lab: Lab = fork(_BUSY)
        self.lab.quota_just_decided = False

    # -- people -----------------------------------------------------------------------------------------------

    @rule(
        home=homes,
        name=machines,
        count=st.integers(1, 3),
        of=st.sampled_from(["whole", "quarter"]),
        more=st.sampled_from([{}, {}, {"priority": 5}, {"group": "g"}]),
    )
    def machine(self, home: str, name: str, count: int, of: str, more: Object) -> None:
        self._create(gpu_vm(name, count, of=of, namespace=home, **more))

    @rule(home=homes, members=st.integers(2, 3))
    def group(self, home: str, members: int) -> None:
        self._create(group("g", members, namespace=home))

    @rule(home=homes)
    def delete_group(self, home: str) -> None:
        self.lab.delete("GpuGroup", home, "g")

    @rule(
        home=homes,
        within=st.sampled_from(["Never", "LowerPriority"]),
        reclaim=st.sampled_from(["Never", "LowerPriority", "Any"]),
    )
    def preemption(self, home: str, within: str, reclaim: str) -> None:
        self._edit("Tenant", "", home, preemption={"withinTenant": within, "reclaimWithinCohort": reclaim})

    @rule(home=homes, name=machines, strategy=st.sampled_from(["Always", "Halted", "RerunOnFailure"]))
    def run_strategy(self, home: str, name: str, strategy: str) -> None:
        self._edit("GpuVM", home, name, runStrategy=strategy)

    @rule(home=homes, name=machines, policy=st.sampled_from(["Release", "Hold"]))
    def when_stopped(self, home: str, name: str, policy: str) -> None:
        self._edit("GpuVM", home, name, whenStopped=policy)

    @rule(home=homes, name=machines, count=st.integers(1, 4))
    def resize(self, home: str, name: str, count: int) -> None:
        self._edit("GpuVM", home, name, gpus=[{"class": "whole", "count": count}])

    @rule(home=homes, name=machines)
    def restart_machine(self, home: str, name: str) -> None:
        self.lab.delete("VirtualMachineInstance", home, name)

    @rule(home=homes, guaranteed=st.integers(0, 2), more=st.integers(0, 2))
    def cluster(self, home: str, guaranteed: int, more: int) -> None:
        self._create(virtual_cluster("lab", guaranteed, max(1, guaranteed + more), namespace=home))

    @rule(home=homes, guaranteed=st.integers(0, 2), more=st.integers(0, 2))
    def resize_cluster(self, home: str, guaranteed: int, more: int) -> None:
        gpus = virtual_cluster("lab", guaranteed, max(1, guaranteed + more))["spec"]["gpus"]
        self._edit("VirtualCluster", home, "lab", gpus=gpus)

    @rule(home=homes, pod=pods, count=st.integers(1, 2))
    def pod_inside(self, home: str, pod: str, count: int) -> None:
        namespace = f"vc-{home}--lab"
        if self.lab.find("Namespace", "", namespace):
            self._create(gpu_pod(self.lab.host_name(pod, "default", "lab"), count, namespace=namespace))

    @rule(home=homes, name=pods, count=st.integers(1, 2))
    def pod(self, home: str, name: str, count: int) -> None:
        there = self.lab.find("Namespace", "", home)
        if there and TENANT_LABEL in labels_of(
            there
        ):  # elsewhere nothing gates it, and it would be a foreign one
            self._create(gpu_pod(name, count, namespace=home))

    @rule(data=st.data(), how=st.sampled_from(["delete", "finish"]))
    def pod_ends(self, data: st.DataObject, how: str) -> None:
        found = sorted(self.lab.cluster.world.objects["Pod"])
        if not found:
            return
        namespace, name = data.draw(st.sampled_from(found))
        pod = self.lab.get("Pod", namespace, name)
        if how == "delete":
            self.lab.delete("Pod", namespace, name)
        elif (pod.get("status") or {}).get("phase") == "Running":
            self.lab.cluster.replace({**pod, "status": {"phase": "Succeeded"}}, status=True)

    @rule(home=homes, name=machines)
    def delete_machine(self, home: str, name: str) -> None:
        self.lab.delete("GpuVM", home, name)

    @rule(home=homes)
    def delete_cluster(self, home: str) -> None:
        self.lab.delete("VirtualCluster", home, "lab")

    @rule(home=homes, shared=st.booleans())
    def namespaces(self, home: str, shared: bool) -> None:
        """Ask for a namespace that the other tenant may have, or give it up."""
        self._edit("Tenant", "", home, namespaces=[home, "shared"] if shared else [home])

    @rule(home=homes, nominal=st.integers(0, 5), borrowing=st.sampled_from([0, 2, None]))
    def quota(self, home: str, nominal: int, borrowing: int | None) -> None:
        self._edit("Tenant", "", home, quota=tenant(home, nominal, borrowing)["spec"]["quota"])

    @rule(home=homes, cpu=st.sampled_from([None, "4", "8"]), storage=st.sampled_from([None, "10Gi", "30Gi"]))
    def resources(self, home: str, cpu: str | None, storage: str | None) -> None:
        given = {"cpu": cpu, "storage": storage}
        rows = [{"name": name, "nominal": nominal} for name, nominal in given.items() if nominal]
        self._edit("Tenant", "", home, resources=rows)

    @rule(home=homes, name=machines, sizes=st.lists(st.sampled_from(["10Gi", "20Gi"]), max_size=2))
    def disks(self, home: str, name: str, sizes: list[str]) -> None:
        disks = [{"name": f"d{i}", "image": {"blank": {}}, "size": size} for i, size in enumerate(sizes)]
        self._edit("GpuVM", home, name, disks=disks)

    # -- nodes ------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NODES), status=st.sampled_from(["True", "False", "Unknown"]))
    def readiness(self, name: str, status: str) -> None:
        node = self.lab.find("Node", "", name)
        if node is None:  # it comes back
            node = self.lab.cluster.create(FLEET[name])
        conditions = [{"type": "Ready", "status": status}]
        self.lab.cluster.replace(
            {**node, "status": {**node["status"], "conditions": conditions}}, status=True
        )

    @rule(name=st.sampled_from(NODES))
    def loss(self, name: str) -> None:
        self.lab.delete("Node", "", name)

    @rule(name=st.sampled_from(NODES), cordoned=st.booleans())
    def cordon(self, name: str, cordoned: bool) -> None:
        facts = self.lab.get("GpuNode", "", name)
        devices = [facts["status"]["gpus"][0]["pciAddress"]] if cordoned else []
        self.lab.cluster.replace({**facts, "spec": {"cordonedDevices": devices}})

    # -- the controller and what is around it -----------------------------------------------------------------

    @rule(turns=st.lists(st.sampled_from(["controller", "surroundings", "both"]), min_size=1, max_size=4))
    def turns(self, turns: list[str]) -> None:
        for turn in turns:
            if turn != "surroundings":
                self.lab.reconcile()
            if turn != "controller":
                self.lab.surroundings()

    @rule(turns=st.integers(1, 5), eager=st.integers(1, 3))
    def time_goes_by(self, turns: int, eager: int) -> None:
        """The controller is as fast as all others together, or faster."""
        for _ in range(turns):
            for _ in range(eager):
                self.lab.reconcile()
            self.lab.surroundings()
            self.lab.cluster.now += 1

    @rule(step=st.integers(0, 5), fault=st.sampled_from(list(Fault)))
    def faulty_turn(self, step: int, fault: Fault) -> None:
        self.lab.fault = (step, fault)
        self.lab.reconcile()
        self.lab.fault = None

    @rule(data=st.data())
    def only_some_chains(self, data: st.DataObject) -> None:
        for chain in self.lab.plan().chains:
            if data.draw(st.booleans()):
                self.lab.run_chain(chain)

    @rule(acts=st.lists(st.sampled_from(["turn", "surroundings"]), max_size=3))
    def an_old_plan(self, acts: list[str]) -> None:
        """A plan is carried out late, by a controller that lost the head meanwhile."""
        planned = self.lab.plan()
        self.lab.restart()
        for act in acts:
            self.lab.reconcile() if act == "turn" else self.lab.surroundings()
        if "turn" in acts:
            self.lab.execute(planned)

    @rule()
    def at_rest(self) -> None:
        self.lab.settle()

    @precondition(lambda self: hasattr(self, "lab"))
    @invariant()
    def no_violation(self) -> None:
        self.lab.judge()

    def teardown(self) -> None:
        if not hasattr(self, "lab"):
            return
        lab = self.lab
        lab.settle()
        for name in NODES:
            self.readiness(name, "True")
        for kind in ("GpuVM", "VirtualCluster", "GpuGroup", "Tenant", "Cohort", "GpuClass", "GpuPool"):
            for namespace, name in list(lab.cluster.world.objects[kind]):
                lab.delete(kind, namespace, name)
        for namespace, name in list(lab.cluster.world.objects["Pod"]):
            lab.delete("Pod", namespace, name)
        lab.settle()
        assert leftovers(lab.cluster.world) == []

    # -- helpers ----------------------------------------------------------------------------------------------

    def _create(self, obj: Object) -> None:
        with contextlib.suppress(ConflictError):  # the name is taken, or its namespace is going
            self.lab.cluster.create(obj)

    def _edit(self, kind: str, home: str, name: str, **spec: object) -> None:
        if self.lab.find(kind, home, name):
            self.lab.edit(kind, home, name, **spec)


STEPS = 50


def steps_in(runs: int) -> int:
    """Let anything go in so many runs of up to `STEPS` steps; how many steps it were."""
    count = 0

    class Counted(AnythingGoes):
        @invariant()
        def another_step(self) -> None:
            nonlocal count
            count += 1

    run_state_machine_as_test(Counted, settings=settings(max_examples=runs, stateful_step_count=STEPS))
    print(f"{count} steps, 0 violations")
    return count


def test_anything_goes() -> None:
    assert steps_in(32) >= 1_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_anything_goes_for_ten_thousand_steps() -> None:
    assert steps_in(240) >= 10_000


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_anything_goes_for_fifty_thousand_steps() -> None:
    assert steps_in(1200) >= 50_000
