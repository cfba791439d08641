"""Crash points on the real API server: a share of them here, all of them nightly and with `make crash-points`."""

from __future__ import annotations

import pytest
from api_crash_points import chosen_shard, play_all, summary
from api_scenarios import SCENARIOS
from points import Walks

pytestmark = pytest.mark.cluster

#: Points of each scenario.
_SHARE = 2


@pytest.mark.timeout(300)
def test_a_share_of_all_crash_points_leads_to_the_same_end() -> None:
    tallies = play_all(SCENARIOS, lambda name: Walks(SCENARIOS[name], most=_SHARE))
    assert [tally.violations for tally in tallies.values()] == [[]] * len(SCENARIOS)
    struck = sum(tally.points + len(tally.missed) for tally in tallies.values())
    assert struck == _SHARE * len(SCENARIOS), summary(tallies.values())


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_crash_point_leads_to_the_same_end(name: str) -> None:
    chosen = chosen_shard()
    tally = play_all([name], lambda name: Walks(SCENARIOS[name], chosen=chosen))[name]
    assert tally.violations == []
    assert tally.points
