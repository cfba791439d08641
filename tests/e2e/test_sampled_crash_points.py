"""Crash points with the real KubeVirt and vCluster: one in each scene of the story, chosen by a seed.

All of them, with the node side played, are struck by `make crash-points`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmtenancy.reconcile import check
from vmtenancy.reconcile.steps import Object
from vmtenancy.testing.cluster import Cluster
from vmtenancy.testing.controller import ControllerProcess
from vmtenancy.testing.faults import Call, FaultProxy, LoseResponse, Rule, StopAfter, StopBefore
from vmtenancy.testing.stage_cluster import ClusterStage
from vmtenancy.testing.story import leftovers, tell

pytestmark = [pytest.mark.cluster, pytest.mark.kubevirt, pytest.mark.vcluster]

#: Most scenes have as many writes; where one has fewer, nothing is struck there.
_EARLY = 6


def _is_write(call: Call) -> bool:
    return call.is_write and call.resource != "leases"


@pytest.fixture
def proxy(virtualization: Cluster, tmp_path: Path) -> Iterator[FaultProxy]:
    with FaultProxy(virtualization.kubeconfig, tmp_path) as proxy:
        yield proxy
        proxy.clear()


@pytest.fixture
def controller(proxy: FaultProxy, tmp_path: Path) -> Iterator[ControllerProcess]:
    with ControllerProcess(proxy.kubeconfig, tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 20))]
)
def test_the_story_is_told_to_its_end_with_a_fault_in_each_scene(
    proxy: FaultProxy,
    controller: ControllerProcess,
    stage: ClusterStage,
    manifests: dict[str, list[Object]],
    seed: int,
) -> None:
    chance, kill = random.Random(seed), controller.kill_and_restart
    rules: list[Rule] = []
    struck = []

    def during(title: str) -> None:
        action = chance.choice([StopBefore(kill), StopAfter(kill), LoseResponse()])
        rules.append(proxy.add(Rule(_is_write, action, skip=chance.randrange(_EARLY))))

    for scene in tell(stage, manifests, during=during):
        proxy.clear()
        if rules[-1].struck:
            struck.append(scene.title)
        assert check(scene.world) == [], scene.title
    assert leftovers(stage.world()) == []
    assert len(rules) == 8
    assert len(struck) >= 4, struck
    print(f"seed {seed}: {len(struck)} points, 0 violations")
