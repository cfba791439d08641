"""A pod that was let through has to be bound in time; else its grant is taken back (I10), and never wrongly."""

from __future__ import annotations

import pytest
from lab import Lab, add_node, fork, gpu_pod, gpu_vm

from vmtenancy.reconcile.memory import ConflictError
from vmtenancy.reconcile.pods import is_gated
from vmtenancy.reconcile.status import seconds
from vmtenancy.reconcile.steps import Delete, Object
from vmtenancy.reconcile.world import uid_of
from vmtenancy.testing.fleet import gpu_node
from vmtenancy.testing.story import PASSTHROUGH

A = ("GpuVM", "vision", "a")
P = ("Pod", "llm", "p")
DEADLINE = 300.0
MORE = gpu_node("more", mode="vm-passthrough", gpus=8, resources={PASSTHROUGH: 8})


def stuck_machine(lab: Lab, *, elsewhere: bool = True) -> str:
    """A machine whose launcher was let go to a node that does not take it; its node."""
    if elsewhere:
        add_node(lab, MORE)
    lab.refusing = frozenset({"machines"})
    lab.apply(gpu_vm("a", 2))
    lab.settle()
    assert lab.node_of(*A) == "machines"
    return "machines"


def says(lab: Lab, pod: Object, message: str) -> None:
    """What the scheduler writes into a pod that it can not place."""
    found = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    lab.cluster.replace({**pod, "status": {**(pod.get("status") or {}), "conditions": [found]}}, status=True)


def test_the_moment_is_recorded_and_the_plan_names_the_deadline(lab: Lab) -> None:
    stuck_machine(lab)
    grant = lab.grant(*A)
    assert grant
    let_go = seconds(grant["status"]["letGoAt"])
    assert let_go <= lab.cluster.now
    assert lab.plan().retry_at == let_go + DEADLINE
    lab.refusing = frozenset()
    lab.settle()
    assert lab.plan().retry_at is None


def test_it_is_as_long_as_the_controller_was_told(lab: Lab) -> None:
    lab.cluster.world.bind_deadline = 20.0
    stuck_machine(lab)
    lab.cluster.now += 20.0
    lab.settle()
    assert lab.node_of(*A) == "more"


def test_a_machine_is_placed_on_another_node(lab: Lab) -> None:
    node = stuck_machine(lab)
    first = lab.grant(*A)
    pod = lab.pods("vision")[0]
    says(lab, pod, "0/5 nodes are available: volume node affinity conflict")
    lab.cluster.now += DEADLINE
    lab.settle()
    assert lab.status(*A)["phase"] == "Running"
    assert lab.node_of(*A) == "more" != node
    second = lab.grant(*A)
    assert first
    assert second
    assert uid_of(first) != uid_of(second)
    assert "avoidedNodes" not in lab.status(*A), "it runs, so nothing is held against a node"
    assert lab.events(*A) == ["Admitted", "NotBound", "Admitted", "Running"]
    (told,) = [event.message for event in lab.cluster.events if event.reason == "NotBound"]
    assert "volume node affinity conflict" in told
    assert f"was let go to node {node}" in told


def test_where_no_other_node_fits_it_is_tried_there_again(lab: Lab) -> None:
    node = stuck_machine(lab, elsewhere=False)
    lab.cluster.now += DEADLINE
    lab.settle()
    assert lab.node_of(*A) == node
    assert lab.status(*A)["avoidedNodes"] == [node]
    assert lab.plan().retry_at
    lab.refusing = frozenset()
    lab.settle()
    assert lab.status(*A)["phase"] == "Running"


def test_a_pod_is_deleted_and_its_devices_are_given_on(lab: Lab) -> None:
    lab.refusing = frozenset({"pods-1", "pods-2"})
    lab.apply(gpu_pod("p", 2, namespace="llm"))
    lab.settle()
    assert not is_gated(lab.get(*P))
    says(lab, lab.get(*P), "port 80 is taken")
    lab.cluster.now += DEADLINE - 10
    lab.settle()
    assert lab.find(*P)
    lab.cluster.now += 10
    lab.settle()
    assert lab.find(*P) is None
    assert not lab.live_grants()
    (told,) = lab.cluster.events
    assert told.reason == "NotBound"
    assert "port 80 is taken" in told.message


@pytest.mark.parametrize("of_machine", [True, False])
def test_one_that_is_bound_at_the_last_moment_stays(lab: Lab, of_machine: bool) -> None:
    """The plan is made, then the scheduler binds the pod, then the plan is run."""
    if of_machine:
        stuck_machine(lab)
    else:
        lab.refusing = frozenset({"pods-1", "pods-2"})
        lab.apply(gpu_pod("p", 2, namespace="llm"))
        lab.settle()
    grants = lab.live_grants()
    lab.cluster.now += DEADLINE
    deleting = [lambda step: isinstance(step, Delete) and step.ref.kind == "Pod"]
    while not any(deleting[0](step) for chain in lab.plan().chains for step in chain.steps):
        lab.reconcile()
    late = lab.plan()
    lab.refusing = frozenset()
    lab.surroundings()
    lab.execute(late)
    lab.settle()
    assert lab.live_grants() == grants
    (pod,) = lab.pods("vision" if of_machine else "llm")
    assert pod["spec"]["nodeName"]
    if of_machine:
        assert lab.status(*A)["phase"] == "Running"
        assert "revoked" not in (lab.grant(*A) or {})["status"]
        assert "NotBound" not in lab.events(*A)


def test_the_deletion_of_an_overdue_pod_carries_its_version(lab: Lab) -> None:
    """So that binding it and deleting it can not both succeed."""
    lab.refusing = frozenset({"pods-1", "pods-2"})
    lab.apply(gpu_pod("p", 2, namespace="llm"))
    lab.settle()
    lab.cluster.now += DEADLINE
    pod = lab.get(*P)
    (delete,) = [step for chain in lab.plan().chains for step in chain.steps if isinstance(step, Delete)]
    assert (delete.uid, delete.resource_version) == (uid_of(pod), pod["metadata"]["resourceVersion"])
    bound = fork(lab)
    bound.refusing = frozenset()
    bound.surroundings()
    with pytest.raises(ConflictError):
        bound.cluster.run_step(delete)


def test_the_deadline_begins_when_the_gate_is_lifted_not_when_it_was_first_tried(lab: Lab) -> None:
    """Recorded, then nobody controls for an hour; the lift that follows has its own time."""
    lab.apply(gpu_pod("p", 2, namespace="llm"))
    lab.refusing = frozenset({"pods-1", "pods-2"})
    while is_gated(lab.get(*P)):
        for chain in lab.plan().chains:
            if chain.why.startswith("let Pod"):
                assert lab.run_chain(chain, 0, len(chain.steps) - 1)
                lab.cluster.now += 3600
                lab.restart()
                lab.settle()
                assert not is_gated(lab.get(*P))
                return
            lab.run_chain(chain)
    pytest.fail("never let through")


def test_bound_pods_have_no_deadline(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2), gpu_pod("p", 2, namespace="llm"))
    lab.settle()
    before = lab.cluster.writes
    lab.cluster.now += 10 * DEADLINE
    assert lab.plan().retry_at is None
    lab.settle()
    assert lab.cluster.writes == before
