"""Commits: one for everything that is decided together, cut where the head has no room, void where it never came."""

from __future__ import annotations

import pytest
from lab import Lab, fork, gpu_pod, gpu_vm

from vmtenancy.core.ledger import head as ledger
from vmtenancy.reconcile.steps import Create, Replace
from vmtenancy.reconcile.view import LEDGER_NAME

NAMES = ("p", "q", "r", "s")


def commit_of(lab: Lab) -> list[str]:
    """The kinds that the commit of the next plan writes, in order; empty where there is none."""
    chains = [chain for chain in lab.plan().chains if chain.why.startswith("commit ")]
    assert len(chains) <= 1
    return [
        str(step.object["kind"])
        for chain in chains
        for step in chain.steps
        if isinstance(step, Create | Replace)
    ]


def test_one_write_makes_the_whole_batch_true(lab: Lab) -> None:
    lab.apply(*(gpu_pod(name, namespace="llm") for name in NAMES[:3]))
    assert commit_of(lab) == ["GpuAllocation"] * 3 + ["GpuLedger"]
    for chain in lab.plan().chains:
        if chain.why.startswith("commit "):
            lab.run_chain(chain, 0, 3)
            assert not lab.live_grants()
            lab.run_chain(chain, 3)
            assert len(lab.live_grants()) == 3


def test_releases_and_grants_are_one_batch(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 4))
    lab.settle()
    lab.apply(gpu_vm("b", 4))
    lab.settle()
    lab.delete("GpuVM", "vision", "a")
    while not commit_of(lab):
        lab.reconcile()
        lab.surroundings()
    assert commit_of(lab) == ["GpuAllocation", "GpuLedger"]
    before = lab.head().sequence
    lab.settle()
    assert lab.status("GpuVM", "vision", "b")["phase"] == "Running"
    assert lab.head().sequence == before + 1


def test_what_the_head_never_knew_is_deleted(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    for chain in lab.plan().chains:
        if chain.why.startswith("commit "):
            lab.run_chain(chain, 0, 1)
    (void,) = lab.cluster.world.of("GpuAllocation")
    lab.restart()
    lab.reconcile()
    lab.settle()
    (kept,) = lab.cluster.world.of("GpuAllocation")
    assert void["metadata"]["name"] != kept["metadata"]["name"]
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"


def test_the_log_is_trimmed_by_the_next_commit(lab: Lab) -> None:
    lab.apply(gpu_vm("a"))
    lab.settle()
    assert lab.head().committed
    lab.delete("GpuVM", "vision", "a")
    lab.settle()
    assert (set(lab.head().committed), len(lab.head().released)) == (set(), 1)
    lab.apply(gpu_vm("b"))
    lab.settle()
    assert (len(lab.head().committed), lab.head().released) == (1, frozenset())


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_batch_that_does_not_fit_is_cut(lab: Lab, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(ledger, "MAX_LOG", most)
    lab.apply(*(gpu_pod(name, namespace="llm") for name in NAMES))
    lab.reconcile()
    assert len(lab.live_grants()) == most
    lab.settle()
    assert len(lab.live_grants()) == 4


@pytest.mark.parametrize("most", [1, 2, 3])
def test_i1_devices_are_not_given_on_whose_release_did_not_fit(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """The cut of the releases comes before the decision on what is free."""
    lab.apply(*(gpu_pod(name, namespace="llm") for name in NAMES))
    lab.settle()
    # The first to be released are on one node, the first to be granted want the other.
    last = {"kubernetes.io/hostname": lab.node_of("Pod", "llm", NAMES[-1])}
    assert last["kubernetes.io/hostname"] != lab.node_of("Pod", "llm", NAMES[0])
    lab.apply(*(gpu_pod(f"next-{name}", namespace="llm", nodeSelector=last) for name in NAMES[:2]))
    lab.apply(*(gpu_pod(f"next-{name}", namespace="llm") for name in NAMES[2:]))
    lab.settle()
    monkeypatch.setattr(ledger, "MAX_LOG", most)
    for name in NAMES:
        lab.cluster.replace({**lab.get("Pod", "llm", name), "status": {"phase": "Succeeded"}}, status=True)
    lab.settle(200)
    for name in NAMES:
        assert lab.get("Pod", "llm", f"next-{name}")["status"]["phase"] == "Running"
    assert len(lab.live_grants()) == 4


def test_i8_the_commit_of_a_controller_that_lost_the_head_fails(lab: Lab) -> None:
    lab.apply(gpu_vm("a", 2))
    planned = lab.plan()
    late = fork(lab)
    late.restart()
    late.reconcile()
    (commit,) = [chain for chain in planned.chains if chain.why.startswith("commit ")]
    assert not late.run_chain(commit)
    assert not late.live_grants()
    late.settle()
    assert len(late.live_grants()) == 1


def test_i8_a_controller_that_still_believes_in_its_head_deletes_nothing_of_its_successor(lab: Lab) -> None:
    """It sees everything anew but the head: to it, what its successor has just committed was never committed."""
    lab.apply(gpu_vm("a", 2))
    old = lab.get("GpuLedger", "", LEDGER_NAME)
    new = fork(lab)
    new.restart()
    new.reconcile()
    new.reconcile()
    granted = new.live_grants()
    assert granted
    late = fork(new)
    late.cluster.world.identity = lab.cluster.world.identity
    late.cluster.world.put(old)
    planned = late.plan()
    new.execute(planned)
    assert new.live_grants() == granted
    new.settle()
    assert new.live_grants() == granted


def test_i8_two_controllers_that_both_believe_to_lead_take_turns_without_harm(lab: Lab) -> None:
    """Each takes over again and again: slow, but nothing is granted twice."""
    lab.apply(gpu_vm("a", 2), gpu_vm("b", 2), gpu_pod("p", 2, namespace="llm"))
    plans = {}
    for turn in range(40):
        lab.cluster.world.identity = f"controller-{turn % 2 + 1}"
        if (held := plans.pop(turn % 2, None)) is not None and turn % 3 == 0:
            lab.execute(held)  # decided before the other one's turn
        plans[turn % 2] = lab.plan()
        if turn % 3:
            lab.reconcile()
        lab.surroundings()
    lab.settle()
    assert len(lab.live_grants()) == 3
