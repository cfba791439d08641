"""Every write of every scenario is, in turn, the last of a controller, one without an answer, and one refused."""

from __future__ import annotations

import pytest
from crash_points import crash_points, late_controllers, without_faults
from lab import small_lab
from scenarios import SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_crash_point_leads_to_the_same_end(name: str) -> None:
    lab = small_lab()
    points = [crash_points(without_faults(lab, act)) for act in SCENARIOS[name]]
    assert all(points), points
    print(f"{sum(points)} points, 0 violations")


@pytest.mark.parametrize("name", SCENARIOS)
def test_i8_a_controller_that_wakes_up_late_changes_nothing(name: str) -> None:
    lab = small_lab()
    points = [late_controllers(without_faults(lab, act)) for act in SCENARIOS[name]]
    assert all(points), points
    print(f"{sum(points)} points, 0 violations")
