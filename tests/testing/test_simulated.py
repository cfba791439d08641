"""The cluster in memory: the rules of Kubernetes that it plays, and the story on it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest

from vmtenancy import resources
from vmtenancy.api.names import GATE, TENANT_LABEL
from vmtenancy.reconcile import Plan, World, check, plan
from vmtenancy.reconcile.memory import ConflictError, MemoryCluster
from vmtenancy.reconcile.pods import is_gated
from vmtenancy.reconcile.steps import Apply, Chain, Create, Delete, Emit, Object, Ref, RenderChart, Replace
from vmtenancy.reconcile.world import is_deleting, ref_of, uid_of
from vmtenancy.testing.simulated import NotSettledError, SimulatedCluster
from vmtenancy.testing.stage_memory import MemoryStage
from vmtenancy.testing.story import StoryError, leftovers, quickstart_nodes, tell

GPU = "nvidia.com/gpu"


def config_map(name: str = "a", **metadata: object) -> Object:
    home = {} if "namespace" in metadata else {"namespace": "home"}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, **home, **metadata},
        "data": {},
    }


def pod(name: str = "p", count: int = 1, **spec: object) -> Object:
    container = {"name": "main", "resources": {"limits": {GPU: count}}}
    metadata = {"name": name, "namespace": "home"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [container], **spec},
    }


def owned_by(obj: Object, *owners: Object) -> Object:
    references = [
        {"apiVersion": o["apiVersion"], "kind": o["kind"], "name": o["metadata"]["name"], "uid": uid_of(o)}
        for o in owners
    ]
    return {**obj, "metadata": {**obj["metadata"], "ownerReferences": references}}


@pytest.fixture
def cluster() -> MemoryCluster:
    made = MemoryCluster(now=1_800_000_000.0)
    made.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "home"}})
    return made


@pytest.fixture
def simulated() -> SimulatedCluster:
    made = SimulatedCluster({})
    made.cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "home"}})
    return made


def add_node(simulated: SimulatedCluster, name: str = "n", count: int = 2, ready: str = "True") -> Object:
    status = {"allocatable": {GPU: str(count)}, "conditions": [{"type": "Ready", "status": ready}]}
    return simulated.cluster.create(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {}},
            "spec": {},
            "status": status,
        }
    )


class TestWrites:
    def test_what_is_stored_has_its_own_identity(self, cluster: MemoryCluster) -> None:
        given = config_map()
        before = copy.deepcopy(given)
        first = cluster.create(given)
        second = cluster.create(config_map("b"))
        assert given == before
        assert first["metadata"]["creationTimestamp"] == "2027-01-15T08:00:00Z"
        assert first["metadata"]["generation"] == 1
        for field in ("uid", "resourceVersion"):
            assert first["metadata"][field] != second["metadata"][field]

    def test_a_name_is_taken_once(self, cluster: MemoryCluster) -> None:
        cluster.create(config_map())
        with pytest.raises(ConflictError, match="already exists"):
            cluster.create(config_map())

    def test_a_namespace_has_to_be_there_and_stay(self, cluster: MemoryCluster) -> None:
        with pytest.raises(ConflictError, match="namespace nowhere"):
            cluster.create(config_map(namespace="nowhere"))
        held = config_map(finalizers=["example.com/held"])
        cluster.create(held)
        cluster.delete(Ref("Namespace", "", "home"))
        with pytest.raises(ConflictError, match="terminating"):
            cluster.create(config_map("b"))

    def test_a_put_needs_the_version_that_is_stored(self, cluster: MemoryCluster) -> None:
        old = cluster.create(config_map())
        new = cluster.replace({**old, "data": {"x": "1"}})
        assert new["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"]
        with pytest.raises(ConflictError, match="changed meanwhile"):
            cluster.replace({**old, "data": {"x": "2"}})
        cluster.delete(ref_of(old))
        with pytest.raises(ConflictError, match="not found"):
            cluster.replace(new)

    def test_status_and_spec_are_written_apart(self, cluster: MemoryCluster) -> None:
        old = cluster.create(pod())
        mixed = {**old, "spec": {**old["spec"], "priority": 1}, "status": {"phase": "Running"}}
        told = cluster.replace(mixed, status=True)
        assert ("priority" in told["spec"], told["status"]["phase"]) == (False, "Running")
        assert told["metadata"]["generation"] == 1
        meant = cluster.replace(
            {**told, "spec": {**old["spec"], "priority": 1}, "status": {"phase": "Failed"}}
        )
        assert (meant["spec"]["priority"], meant["status"]["phase"]) == (1, "Running")
        assert meant["metadata"]["generation"] == 2

    def test_what_changes_nothing_is_no_write(self, cluster: MemoryCluster) -> None:
        old = cluster.create(config_map(labels={"a": "1"}))
        writes = cluster.writes
        assert cluster.replace(old) is old
        assert cluster.apply(config_map(labels={"a": "1"})) is old
        assert cluster.writes == writes

    def test_an_apply_merges_labels_and_keeps_what_others_set(self, cluster: MemoryCluster) -> None:
        cluster.create(config_map(labels={"a": "1", "theirs": "x"}))
        found = cluster.apply(config_map(labels={"a": "2"}))
        assert found["metadata"]["labels"] == {"a": "2", "theirs": "x"}

    def test_what_came_out_is_never_changed_in_place(self, cluster: MemoryCluster) -> None:
        old = cluster.create(config_map())
        before = copy.deepcopy(old)
        cluster.apply({**config_map(), "data": {"x": "1"}})
        cluster.delete(ref_of(old))
        assert old == before


class TestDeletion:
    def test_the_preconditions_are_kept(self, cluster: MemoryCluster) -> None:
        old = cluster.create(config_map())
        with pytest.raises(ConflictError):
            cluster.delete(ref_of(old), uid="another")
        with pytest.raises(ConflictError):
            cluster.delete(ref_of(old), resource_version="1")
        cluster.delete(ref_of(old), uid=uid_of(old), resource_version=old["metadata"]["resourceVersion"])
        cluster.delete(ref_of(old), uid=uid_of(old))
        assert cluster.world.find(ref_of(old)) is None

    def test_a_finalizer_holds_until_it_is_taken_away(self, cluster: MemoryCluster) -> None:
        ref = ref_of(cluster.create(config_map(finalizers=["example.com/held"])))
        cluster.delete(ref)
        going = cluster.world.find(ref)
        assert going
        assert is_deleting(going)
        cluster.replace({**going, "metadata": {**going["metadata"], "finalizers": []}})
        assert cluster.world.find(ref) is None

    def test_what_it_owned_goes_too(self, cluster: MemoryCluster) -> None:
        top = cluster.create(config_map("top"))
        middle = cluster.create(owned_by(config_map("middle"), top))
        cluster.create(owned_by(config_map("bottom"), middle))
        cluster.create(config_map("other"))
        cluster.delete(ref_of(top))
        assert [o["metadata"]["name"] for o in cluster.world.of("ConfigMap")] == ["other"]

    def test_a_namespace_goes_once_it_is_empty(self, cluster: MemoryCluster) -> None:
        held = cluster.create(config_map("held", finalizers=["example.com/held"]))
        cluster.create(config_map("free"))
        home = Ref("Namespace", "", "home")
        cluster.delete(home)
        assert [o["metadata"]["name"] for o in cluster.world.of("ConfigMap")] == ["held"]
        assert cluster.world.find(home)
        going = cluster.world.find(ref_of(held)) or {}
        cluster.replace({**going, "metadata": {**going["metadata"], "finalizers": []}})
        assert cluster.world.find(home) is None

    def test_a_pod_on_a_node_goes_once_its_kubelet_says_so(self, cluster: MemoryCluster) -> None:
        ref = ref_of(cluster.create(pod(nodeName="n")))
        cluster.delete(ref)
        going = cluster.world.find(ref)
        assert going
        cluster.replace({**going, "status": {"phase": "Succeeded"}}, status=True)
        assert cluster.world.find(ref) is None


class TestSteps:
    def test_the_first_failure_stops_its_chain_alone(self, cluster: MemoryCluster) -> None:
        old = cluster.create(config_map())
        stale = {**old, "metadata": {**old["metadata"], "resourceVersion": "1"}, "data": {"x": "1"}}
        failing = Chain("fails", (Create(config_map("b")), Replace(stale), Create(config_map("c"))))
        outcomes = cluster.run(Plan((failing, Chain("goes on", (Create(config_map("d")),)))))
        assert [(outcome.done, bool(outcome.error)) for outcome in outcomes] == [(1, True), (1, False)]
        assert sorted(o["metadata"]["name"] for o in cluster.world.of("ConfigMap")) == ["a", "b", "d"]

    def test_every_kind_of_step_is_run(self, cluster: MemoryCluster) -> None:
        old = cluster.create(config_map())
        cluster.renderer = lambda step: [config_map(step.release)]
        steps = (
            Apply(config_map("b")),
            Emit(old, "Reason", "message"),
            RenderChart("key", "lab", "home", {}),
            Delete(ref_of(old), uid_of(old)),
        )
        (outcome,) = cluster.run(Plan((Chain("all", steps),)))
        assert (outcome.done, outcome.error) == (4, "")
        assert [o["metadata"]["name"] for o in cluster.world.of("ConfigMap")] == ["b"]
        assert [event.reason for event in cluster.events] == ["Reason"]
        assert cluster.world.charts["key"] == (config_map("lab"),)

    def test_without_a_chart_the_reason_is_kept(self, cluster: MemoryCluster) -> None:
        cluster.run_step(RenderChart("key", "lab", "home", {}))
        assert "no vCluster chart" in cluster.world.chart_errors["key"]


class TestGate:
    @pytest.mark.parametrize("asks", [{}, {"resourceClaims": [{"name": "gpu"}]}])
    def test_it_is_put_on_pods_with_gpus_in_namespaces_of_tenants(
        self, cluster: MemoryCluster, asks: dict[str, object]
    ) -> None:
        count = 0 if asks else 1
        assert not is_gated(cluster.create(pod("before", count, **asks)))
        home = cluster.world.get("Namespace", "", "home") or {}
        cluster.replace({**home, "metadata": {**home["metadata"], "labels": {TENANT_LABEL: "t"}}})
        assert is_gated(cluster.create(pod("after", count, **asks)))
        gates = cluster.create(pod("twice", count, schedulingGates=[{"name": GATE}], **asks))
        assert gates["spec"]["schedulingGates"] == [{"name": GATE}]
        assert not is_gated(cluster.create(pod("none", 0)))


class TestScheduler:
    def bound(self, simulated: SimulatedCluster, name: str = "p") -> str:
        found = simulated.cluster.world.get("Pod", "home", name) or {"spec": {}}
        return str(found["spec"].get("nodeName", ""))

    def test_a_pod_is_bound_where_there_is_room(self, simulated: SimulatedCluster) -> None:
        add_node(simulated, "full", 1)
        add_node(simulated, "roomy", 2)
        simulated.cluster.create(pod("p", 2))
        simulated.cluster.create(pod("q", 2))
        simulated.surroundings()
        assert (self.bound(simulated, "p"), self.bound(simulated, "q")) == ("roomy", "")
        simulated.cluster.delete(Ref("Pod", "home", "p"))
        simulated.surroundings()
        simulated.surroundings()
        assert self.bound(simulated, "q") == "roomy"

    @pytest.mark.parametrize(
        "spec",
        [{"schedulingGates": [{"name": "x"}]}, {"nodeSelector": {"nowhere": "true"}}],
        ids=["gate", "selector"],
    )
    def test_gates_and_selectors_are_kept(self, simulated: SimulatedCluster, spec: dict[str, object]) -> None:
        add_node(simulated)
        simulated.cluster.create(pod(**spec))
        simulated.surroundings()
        assert self.bound(simulated) == ""

    def test_a_silent_node_gets_nothing_and_ends_nothing(self, simulated: SimulatedCluster) -> None:
        node = add_node(simulated)
        simulated.cluster.create(pod("p"))
        simulated.surroundings()
        conditions = [{"type": "Ready", "status": "Unknown"}]
        node = simulated.cluster.replace(
            {**node, "status": {**node["status"], "conditions": conditions}}, status=True
        )
        simulated.cluster.create(pod("q"))
        simulated.cluster.delete(Ref("Pod", "home", "p"))
        simulated.surroundings()
        assert (self.bound(simulated, "p"), self.bound(simulated, "q")) == ("n", "")

    def test_the_pods_of_a_lost_node_are_gone(self, simulated: SimulatedCluster) -> None:
        add_node(simulated)
        simulated.cluster.create(pod("p"))
        simulated.surroundings()
        simulated.cluster.delete(Ref("Node", "", "n"))
        simulated.surroundings()
        assert not list(simulated.cluster.world.of("Pod"))

    def test_a_child_made_after_its_owner_went_goes_too(self, simulated: SimulatedCluster) -> None:
        owner = simulated.cluster.create(config_map("owner"))
        simulated.cluster.delete(ref_of(owner))
        simulated.cluster.create(owned_by(config_map("late"), owner))
        simulated.surroundings()
        assert not list(simulated.cluster.world.of("ConfigMap"))


class TestKubeVirt:
    VM = Ref("VirtualMachine", "home", "m")
    VMI = Ref("VirtualMachineInstance", "home", "m")

    @pytest.fixture
    def running(self, simulated: SimulatedCluster) -> SimulatedCluster:
        add_node(simulated)
        devices = {"gpus": [{"name": "gpu0", "deviceName": GPU}]}
        simulated.cluster.create(
            {
                "apiVersion": "kubevirt.io/v1",
                "kind": "VirtualMachine",
                "metadata": {"name": "m", "namespace": "home"},
                "spec": {"runStrategy": "Always", "template": {"spec": {"domain": {"devices": devices}}}},
            }
        )
        for _ in range(3):
            simulated.surroundings()
        return simulated

    def phase(self, simulated: SimulatedCluster) -> str:
        found = simulated.cluster.world.find(self.VMI)
        return str(found["status"]["phase"]) if found else ""

    def change(self, simulated: SimulatedCluster, **spec: object) -> None:
        vm = simulated.cluster.world.find(self.VM) or {}
        simulated.cluster.replace({**vm, "spec": {**vm["spec"], **spec}})

    def launcher(self, simulated: SimulatedCluster) -> Object:
        (found,) = simulated.cluster.world.of("Pod")
        return found

    def turn(self, simulated: SimulatedCluster, times: int = 5) -> None:
        for _ in range(times):
            simulated.surroundings()

    def test_a_machine_gets_an_instance_and_a_launcher(self, running: SimulatedCluster) -> None:
        assert self.phase(running) == "Running"
        launcher = self.launcher(running)
        assert launcher["spec"]["containers"][0]["resources"]["limits"] == {GPU: "1"}
        assert launcher["spec"]["nodeName"] == "n"
        vm = running.cluster.world.find(self.VM)
        assert vm
        assert vm["status"] == {"created": True, "ready": True, "printableStatus": "Running"}

    def test_stop_and_start(self, running: SimulatedCluster) -> None:
        self.change(running, runStrategy="Halted")
        self.turn(running)
        assert (self.phase(running), list(running.cluster.world.of("Pod"))) == ("", [])
        self.change(running, runStrategy="Always")
        self.turn(running)
        assert self.phase(running) == "Running"

    def test_a_launcher_that_ends_ends_the_instance_and_another_one_comes(
        self, running: SimulatedCluster
    ) -> None:
        first = self.launcher(running)
        running.cluster.replace({**first, "status": {"phase": "Failed"}}, status=True)
        running.surroundings()
        assert self.phase(running) == "Failed"
        self.turn(running)
        assert self.phase(running) == "Running"
        assert uid_of(self.launcher(running)) != uid_of(first)

    def test_a_machine_outlives_its_instance(self, running: SimulatedCluster) -> None:
        running.cluster.delete(self.VM)
        assert running.cluster.world.find(self.VM)
        self.turn(running)
        assert running.cluster.world.find(self.VM) is None
        assert running.cluster.world.find(self.VMI) is None
        assert not list(running.cluster.world.of("Pod"))


class TestSettle:
    def test_a_loop_is_noticed(self) -> None:
        class Restless(SimulatedCluster):
            def reconcile(self) -> bool:
                return True

        with pytest.raises(NotSettledError):
            Restless({}).settle(rounds=3)

    def test_at_rest_it_takes_no_time(self) -> None:
        simulated = SimulatedCluster({})
        simulated.settle()
        then = simulated.cluster.now
        assert simulated.settle() == 0
        assert simulated.cluster.now == then


# -- the story --------------------------------------------------------------------------------------------------------


def manifests(turn: Callable[[list[Object]], None] = lambda objects: None) -> dict[str, list[Object]]:
    found = {}
    for file in sorted(resources.folder("quickstart").glob("*.yaml")):
        objects = list(resources.objects(file))
        turn(objects)
        found[file.name] = objects
    return found


def stage() -> MemoryStage:
    return MemoryStage(resources.templates())


def judged(world: World) -> None:
    assert check(world) == []
    assert plan(world, 2_000_000_000.0) == Plan()


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_the_story_ends_without_a_violation_in_any_order_of_its_manifests(seed: int | None) -> None:
    turn = random.Random(seed).shuffle if seed else lambda objects: None
    titles = []
    for scene in tell(stage(), manifests(turn)):
        judged(scene.world)
        titles.append(scene.title)
        assert scene.asked
        assert scene.observed
    assert len(titles) == 8
    assert leftovers(scene.world) == []


def test_the_story_with_the_tenants_in_each_others_place() -> None:
    """The one that lends is the other one: nothing hangs on who was created first."""

    def exchanged(objects: list[Object]) -> None:
        objects.reverse()

    for scene in tell(stage(), manifests(exchanged)):
        judged(scene.world)


def test_the_story_says_which_scene_did_not_happen() -> None:
    broken = manifests()
    broken["3-trainer.yaml"][0]["spec"]["gpus"][0]["class"] = "nosuch"
    with pytest.raises(StoryError, match="GpuVM vision/trainer"):
        list(tell(stage(), broken))


def test_the_same_story_comes_to_the_same_world_each_time() -> None:
    first, second = (
        [copy.deepcopy(scene.world.objects) for scene in tell(stage(), manifests())] for _ in range(2)
    )
    assert first == second


def test_the_fleet_of_the_story_has_every_mode() -> None:
    modes = {node["metadata"]["labels"]["nvidia.com/gpu.workload.config"] for node in quickstart_nodes()}
    assert modes == {"container", "vm-passthrough", "vm-vgpu"}
