from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from vmtenancy import resources
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.world import ref_of
from vmtenancy.testing import vcluster
from vmtenancy.testing.cleanup import Snapshot
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
def virtualization(control_plane: ControlPlane, kubevirt: KubeVirt) -> Iterator[ControlPlane]:
    """KubeVirt, vCluster's node and vmtenancy itself on the control plane of this run."""
    if reason := vcluster.can_run():
        pytest.skip(reason)
    before = Snapshot.take(control_plane)
    with VClusterRunner(control_plane):
        install_into(control_plane.kubeconfig)
        yield control_plane
    before.restore()


@pytest.fixture
def controller(virtualization: ControlPlane, tmp_path: Path) -> Iterator[ControllerProcess]:
    with ControllerProcess(virtualization.kubeconfig, tmp_path) as running:
        yield running


@pytest.fixture
def stage(virtualization: ControlPlane) -> Iterator[ClusterStage]:
    with ClusterStage(virtualization.kubeconfig, "real") as stage:
        yield stage
        # What a failed test left must not disturb the next one; the controller still runs.
        for kinds in (("GpuVM", "VirtualCluster"), ("Tenant", "Cohort", "GpuClass", "GpuPool")):
            for ref in [ref_of(obj) for kind in kinds for obj in stage.world().of(kind)]:
                stage.delete(ref)
            stage.wait(
                f"{kinds} to be gone",
                lambda world, kinds=kinds: not any(len(world.objects[k]) for k in kinds),
            )
