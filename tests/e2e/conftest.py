from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from vmtenancy import resources
from vmtenancy.reconcile.steps import Object
from vmtenancy.testing import vcluster
from vmtenancy.testing.controller import ControllerProcess, install_into
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.kubevirt import KubeVirt
from vmtenancy.testing.stage_cluster import ClusterStage
from vmtenancy.testing.vcluster import VClusterRunner


@pytest.fixture(scope="session")
def manifests() -> dict[str, list[Object]]:
    folder = resources.folder("quickstart")
    return {path.name: list(yaml.safe_load_all(path.read_text())) for path in sorted(folder.glob("*.yaml"))}


@pytest.fixture(scope="module")
def virtualization(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """KubeVirt, vCluster's node and vmtenancy itself on the control plane of this run."""
    if reason := vcluster.can_run():
        pytest.skip(reason)
    with KubeVirt(control_plane), VClusterRunner(control_plane):
        install_into(control_plane.kubeconfig)
        yield control_plane


@pytest.fixture
def controller(virtualization: ControlPlane, tmp_path: Path) -> Iterator[ControllerProcess]:
    with ControllerProcess(virtualization.kubeconfig, tmp_path) as running:
        yield running


@pytest.fixture
def stage(virtualization: ControlPlane) -> Iterator[ClusterStage]:
    with ClusterStage(virtualization.kubeconfig, "real") as stage:
        yield stage
