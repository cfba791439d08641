"""The planner, model-checked: every interleaving of its steps with those of all around it, in small worlds.

What may go wrong is counted: of `Budget.any(1)` one thing of every kind there is, at any point. After every transition
the invariants are judged, and so is every state in which nothing happens any more: it is one of those to which the
same acts lead without faults (I10), where that is the same for all ways.
"""

from __future__ import annotations

import pytest
from model_check import Result, explore
from model_state import Budget
from model_worlds import WORLDS

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


@pytest.mark.parametrize("name", ["a virtual cluster and a pod beside it"])
def test_a_controller_that_wakes_up_late(name: str) -> None:
    judge(name, LATE, 60, whole=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a machine comes and goes", "two pods want one GPU"])
def test_a_controller_that_wakes_up_late_in_larger_worlds(name: str) -> None:
    judge(name, LATE, 120, whole=True)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize(
    "budget", [ONE_FAULT, LATE, Budget(crashes=1, losses=1, lags=1, total=2)], ids=["any", "late", "two"]
)
def test_every_world(name: str, budget: Budget) -> None:
    """As far as ten minutes of CPU go; what is cut is printed."""
    judge(name, budget, 600, whole=False)
