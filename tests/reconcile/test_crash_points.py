"""Every write of every scenario is, in turn, the last of a controller, one without an answer, and one refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from crash_points import Way, crash_points, late_controllers, without_faults
from lab import Fault, Lab, small_lab
from scenarios import SCENARIOS

from vmtenancy import resources
from vmtenancy.reconcile import Plan, World
from vmtenancy.reconcile.steps import Object
from vmtenancy.testing.stage_memory import MemoryStage
from vmtenancy.testing.story import tell

#: Played in every check; the rest of them takes minutes.
QUICK = (
    "create and delete a machine",
    "over quota, until room is made",
    "a virtual cluster and its pods",
    "a more urgent machine makes another one stop",
    "a group, complete only with its last member",
    "a node is lost",
)
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SCENARIOS]


@pytest.mark.parametrize("name", NAMES)
def test_every_crash_point_leads_to_the_same_end(name: str) -> None:
    lab = small_lab()
    points = [crash_points(without_faults(lab, act)) for act in SCENARIOS[name]]
    assert all(points), points
    print(f"{sum(points)} points, 0 violations")


@pytest.mark.parametrize("name", NAMES)
def test_i8_a_controller_that_wakes_up_late_changes_nothing(name: str) -> None:
    lab = small_lab()
    points = [late_controllers(without_faults(lab, act)) for act in SCENARIOS[name]]
    assert all(points), points
    print(f"{sum(points)} points, 0 violations")


class FaultyStage(MemoryStage):
    """The stage of the story, where everything that follows from an act is also played once per crash point."""

    def __init__(self, strike: Callable[[Way], int]) -> None:
        self.simulated: Lab = Lab()
        self.strike = strike
        self.points: list[int] = []

    def wait(self, what: str, ready: Callable[[World], bool], timeout: float = 0.0) -> World:
        self.points.append(self.strike(without_faults(self.simulated, lambda lab: None)))
        return super().wait(what, ready, timeout)


def manifests() -> dict[str, list[Object]]:
    files = sorted(resources.folder("quickstart").glob("*.yaml"))
    return {file.name: list(resources.objects(file)) for file in files}


@pytest.mark.parametrize("strike", [crash_points, late_controllers])
def test_the_story_has_no_point_at_which_it_breaks(strike: Callable[[Way], int]) -> None:
    stage = FaultyStage(strike)
    scenes = list(tell(stage, manifests()))
    assert len(scenes) == 8
    assert sum(map(bool, stage.points)) >= 8
    print(f"the story: {sum(stage.points)} points, 0 violations")


@pytest.mark.parametrize("every", [3, 4, 5])
def test_the_story_is_told_to_its_end_by_controllers_that_are_killed_again_and_again(every: int) -> None:
    """Not one fault and then peace: each controller takes `every` steps at most, then it dies.

    To let a pod go takes three.
    """

    class Mortal(Lab):
        def plan(self) -> Plan:
            self.fault = (every, Fault.KILLED_BEFORE)
            return super().plan()

    stage = MemoryStage({})
    stage.simulated = Mortal()
    scenes = list(tell(stage, manifests()))
    assert len(scenes) == 8
    assert int(stage.simulated.cluster.world.identity.rpartition("-")[2]) > 5
