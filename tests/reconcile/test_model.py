"""The planner, model-checked: every interleaving of its steps with those of all around it, in small worlds.

What may go wrong is counted: of `Budget.any(1)` one thing of every kind there is, at any point. After every transition
the invariants are judged, and so is every state in which nothing happens any more: it is one of those to which the
same acts lead without faults (I10), where that is the same for all ways.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from model_check import Result, explore, replay
from model_state import Budget
from model_worlds import WORLDS

from vmtenancy.api.names import API_VERSION
from vmtenancy.controller import allocator
from vmtenancy.core.ledger.head import Head
from vmtenancy.reconcile import gate, holders, ledger, planner, revocation, waiting_pods
from vmtenancy.reconcile.pods import is_finished, is_gated
from vmtenancy.reconcile.steps import Apply, Object
from vmtenancy.reconcile.view import LEDGER_NAME, Allocation, View
from vmtenancy.reconcile.world import is_deleting

#: Kinds of faults other than time: with slowness a pod may miss its deadline, which is another right end.
ONE_FAULT = Budget.any(1, slowness=0, pauses=0)
LATE = Budget(pauses=1)
#: Worlds in which all ways without faults lead to what those with faults may lead to.
SAME_ENDS = (
    "a machine comes and goes",
    "two machines want one GPU",
    "two pods want one GPU",
    "a virtual cluster and a pod beside it",
)


def judge(name: str, budget: Budget, most_seconds: float, *, whole: bool) -> Result:
    calm = explore(WORLDS[name].model(Budget()), most_seconds=most_seconds)
    print(f"{name}: {calm}")
    assert not calm.findings, str(calm.findings[0])
    ends = calm.rests if name in SAME_ENDS and calm.complete else None
    found = explore(WORLDS[name].model(budget), ends=ends, most_seconds=most_seconds)
    print(f"   {budget}: {found}")
    assert not found.findings, str(found.findings[0])
    assert found.complete or not whole
    return found


@pytest.mark.parametrize("name", ["a machine comes and goes", "a virtual cluster and a pod beside it"])
def test_one_fault_anywhere(name: str) -> None:
    assert judge(name, ONE_FAULT, 60, whole=True).states > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["two machines want one GPU", "two pods want one GPU", "a pod's node vanishes and comes back"]
)
def test_one_fault_anywhere_in_larger_worlds(name: str) -> None:
    judge(name, ONE_FAULT, 120, whole=True)


@pytest.mark.parametrize("name", ["a pod's node vanishes", "two pods want one GPU"])
def test_a_controller_that_wakes_up_late(name: str) -> None:
    judge(name, LATE, 60, whole=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a machine comes and goes", "a virtual cluster and a pod beside it"])
def test_a_controller_that_wakes_up_late_in_larger_worlds(name: str) -> None:
    judge(name, LATE, 120, whole=True)


def test_an_answer_that_was_lost_and_nothing_heard_since() -> None:
    """The head is committed, and its writer goes on from the one before: what it then clears away was granted."""
    judge("two pods want one GPU", Budget(losses=1, lags=1, total=2), 60, whole=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two pods want one GPU", "a machine comes and goes"])
def test_a_late_controller_that_does_not_know_it_and_plans_once_more(name: str) -> None:
    judge(name, Budget(pauses=1, delusions=1, total=2), 120, whole=True)


# -- the checker itself: each of these bugs is found, in a world of one or two nodes ----------------------------------

Break = Callable[[pytest.MonkeyPatch], None]


def _no_compare_and_swap(patch: pytest.MonkeyPatch) -> None:
    def write(_: Object, head: Head) -> Apply:
        spec = head.to_spec()
        metadata = {"name": LEDGER_NAME}
        return Apply({"apiVersion": API_VERSION, "kind": "GpuLedger", "metadata": metadata, "spec": spec})

    patch.setattr(ledger, "_write_head", write)


def _released_as_its_deletion_begins(patch: pytest.MonkeyPatch) -> None:
    def ended(view: View, allocation: Allocation) -> bool:
        pod = holders.owner_of(view, allocation)
        return pod is None or is_finished(pod) or is_deleting(pod)

    patch.setattr(holders, "_pod_ended", ended)


def _released_before_the_pod_is_told(patch: pytest.MonkeyPatch) -> None:
    def ended(view: View, allocation: Allocation) -> bool:
        pod = holders.owner_of(view, allocation)
        lost = view.world.get("Node", "", allocation.node) is None
        return pod is None or is_finished(pod) or (is_gated(pod) and (is_deleting(pod) or lost))

    patch.setattr(holders, "_pod_ended", ended)
    for module in (gate, revocation, waiting_pods):
        patch.setattr(module, "must_be_told", lambda view, pod: None, raising=False)


def _stale_lists_are_trusted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(allocator, "DECISIVE", ())


def _nothing_is_cleared_away(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(planner, "housekeeping", lambda view: [])


@pytest.mark.parametrize(
    ("name", "budget", "bug", "found"),
    [
        ("two pods want one GPU", LATE, _no_compare_and_swap, "I8"),
        ("two pods want one GPU", Budget(), _released_as_its_deletion_begins, "I4"),
        ("a pod's node vanishes", LATE, _released_before_the_pod_is_told, "I3"),
        ("two pods want one GPU", Budget(crashes=1, lags=1, total=2), _stale_lists_are_trusted, "I1:"),
        ("two pods want one GPU", Budget(), _nothing_is_cleared_away, "I10"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_seeded_bug_is_found(
    name: str, budget: Budget, bug: Break, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    small = WORLDS[name]
    model = small.model(budget, standby_laggards=("GpuAllocation", "GpuLedger", "Pod"))
    result = explore(model, most_seconds=60)
    assert result.findings, str(result)
    (finding,) = result.findings
    print(finding)
    assert found in finding.message
    *_, last = replay(model, finding.trace)
    assert last.what == finding.trace[-1]


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize(
    "budget", [ONE_FAULT, LATE, Budget(crashes=1, losses=1, lags=1, total=2)], ids=["any", "late", "two"]
)
def test_every_world(name: str, budget: Budget) -> None:
    """As far as ten minutes of CPU go; what is cut is printed."""
    judge(name, budget, 600, whole=False)
