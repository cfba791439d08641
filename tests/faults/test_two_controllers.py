"""Two controllers, one paused longer than its Lease and woken up: nothing is granted twice (I1, I8)."""

from __future__ import annotations

import asyncio
import itertools
import random
from functools import partial
from pathlib import Path

import pytest
from arena import arena
from pair import LEASE_S, MOMENTS, Pair, Try

from vmtenancy.testing import history
from vmtenancy.testing.controlplane import ControlPlane

pytestmark = pytest.mark.cluster

#: From the moment at which the leader stops to the first write of the next one.
TAKEOVER_S = LEASE_S + 5.0


async def tries(cluster: ControlPlane, folder: Path, count: int, seed: int) -> list[Try]:
    log_size = cluster.audit_log.stat().st_size
    make = partial(Pair, kubeconfig=cluster.kubeconfig, folder=folder)
    chance = random.Random(seed)
    async with arena(cluster, folder, make) as pair:
        done = [
            await pair.pause_at(moment, chance)
            for moment in itertools.islice(itertools.cycle(MOMENTS), count)
        ]
    done[-1].wrong += history.replay(history.read(cluster.audit_log, log_size)).problems
    return done


def judge(done: list[Try]) -> None:
    slowest = max(one.takeover_s for one in done)
    print(f"{len(done)} tries, takeover after at most {slowest:.1f} s")
    assert not [one for one in done if one.wrong]
    assert slowest <= TAKEOVER_S


def test_one_that_wakes_up_late_grants_nothing_twice(cluster: ControlPlane, tmp_path: Path) -> None:
    judge(asyncio.run(tries(cluster, tmp_path, len(MOMENTS), seed=0)))


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_two_hundred_times(cluster: ControlPlane, tmp_path: Path) -> None:
    judge(asyncio.run(tries(cluster, tmp_path, 200, seed=1)))
