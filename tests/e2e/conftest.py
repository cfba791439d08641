from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from audit import Audit

from vmtenancy import resources
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.world import ref_of
from vmtenancy.testing import vcluster
from vmtenancy.testing.cleanup import Snapshot
from vmtenancy.testing.cluster import Cluster
from vmtenancy.testing.controller import ControllerProcess, install_into
from vmtenancy.testing.kubevirt import KubeVirt
from vmtenancy.testing.stage_cluster import ClusterStage
from vmtenancy.testing.vcluster import VClusterRunner


@pytest.fixture(scope="session")
def manifests() -> dict[str, list[Object]]:
    folder = resources.folder("quickstart")
    return {path.name: list(yaml.safe_load_all(path.read_text())) for path in sorted(folder.glob("*.yaml"))}


@pytest.fixture(autouse=True)
def grants_never_overlapped(control_plane: Cluster) -> Iterator[None]:
    """Every test here ends with a look at the history of all grants and releases that its time saw."""
    audit = Audit(control_plane)
    yield
    history = audit.history()
    assert not history.problems, "\n".join(history.problems)
    assert history.heads, "no controller had the ledger"


@pytest.fixture(scope="module")
def virtualization(control_plane: Cluster, kubevirt: KubeVirt) -> Iterator[Cluster]:
    """KubeVirt, vCluster's node and vmtenancy itself on the control plane of this run."""
    if reason := vcluster.can_run():
        pytest.skip(reason)
    before = Snapshot.take(control_plane)
    with VClusterRunner(control_plane):
        install_into(control_plane.kubeconfig)
        yield control_plane
    before.restore()


@pytest.fixture
def controller(virtualization: Cluster, tmp_path: Path) -> Iterator[ControllerProcess]:
    with ControllerProcess(virtualization.kubeconfig, tmp_path) as running:
        yield running


@pytest.fixture
def stage(virtualization: Cluster) -> Iterator[ClusterStage]:
    with ClusterStage(virtualization.kubeconfig, "real") as stage:
        yield stage
        # What a failed test left must not disturb the next one; the controller still runs.
        for kinds in (
            ("GpuVM", "VirtualCluster", "GpuReservation"),
            ("Tenant", "Cohort", "GpuClass", "GpuPool"),
        ):
            for ref in [ref_of(obj) for kind in kinds for obj in stage.world().of(kind)]:
                stage.delete(ref)
            stage.wait(
                f"{kinds} to be gone",
                lambda world, kinds=kinds: not any(len(world.objects[k]) for k in kinds),
            )
