"""Random fault schedules on the real API server: no violation in any state, and the right one within seconds."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from arena import arena
from schedules import Outcome, Schedules

from vmtenancy.testing import history
from vmtenancy.testing.controlplane import ControlPlane

pytestmark = pytest.mark.cluster

#: From the end of the faults to the right state, for 95 of 100 schedules.
P95_S = 30.0
CLEAN_EVERY = 5


async def play(cluster: ControlPlane, folder: Path, seeds: Iterable[int], for_s: float) -> list[Outcome]:
    """Play schedules until they are all played or `for_s` seconds have passed."""
    log_size = cluster.audit_log.stat().st_size
    outcomes: list[Outcome] = []
    async with arena(cluster, folder) as made:
        schedules = Schedules(made, cluster, await made.rest())
        end = time.monotonic() + for_s
        for number, seed in enumerate(seeds, start=1):
            outcomes.append(await schedules.play(seed))
            if number % CLEAN_EVERY == 0:
                outcomes[-1].wrong += await schedules.clean_up()
            if time.monotonic() > end:
                break
        outcomes[-1].wrong += await schedules.clean_up()
    outcomes[-1].wrong += history.replay(history.read(cluster.audit_log, log_size)).problems
    return outcomes


def judge(outcomes: list[Outcome], least: int) -> None:
    seconds = sorted(outcome.seconds for outcome in outcomes)
    p95 = statistics.quantiles(seconds, n=20)[-1]
    struck = sum(outcome.struck for outcome in outcomes)
    print(
        f"{len(outcomes)} schedules, {struck} faults, right state after p95 {p95:.1f} s, max {seconds[-1]:.1f} s"
    )
    wrong = {outcome.seed: outcome.wrong for outcome in outcomes if outcome.wrong}
    assert not wrong
    assert len(outcomes) >= least
    assert struck >= len(outcomes), "hardly any fault struck"
    assert p95 <= P95_S


def test_random_schedules(cluster: ControlPlane, tmp_path: Path) -> None:
    judge(asyncio.run(play(cluster, tmp_path, range(100), for_s=90)), least=10)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shard", range(4))
def test_a_thousand_schedules(cluster: ControlPlane, tmp_path: Path, shard: int) -> None:
    outcomes = asyncio.run(play(cluster, tmp_path, range(shard * 250, (shard + 1) * 250), for_s=3300))
    judge(outcomes, least=250)
