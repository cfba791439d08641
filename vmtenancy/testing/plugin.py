"""pytest plugin (entry point ``vmtenancy``): a real control plane for a test run, and GPU fleets on it.

Importing it costs nothing: everything heavy is imported by the first test that asks for a fixture.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from vmtenancy.testing.kubevirt_fixtures import kubevirt

if TYPE_CHECKING:
    from vmtenancy.testing.controlplane import ControlPlane

__all__ = ["cluster", "control_plane", "gpu_fleet", "kubevirt"]

# Components that a test needs, by the fixture it uses or the marker it has.
_NEEDS = {
    "control_plane": ("etcd", "kubernetes", "kwok"),
    "kubevirt": ("kubevirt",),
    "vcluster": ("vcluster", "helm"),
    "kind": ("kind",),
}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what the collected tests miss before the first of them runs.

    In a fixture, a build of half an hour would be hidden by the capturing of output and count against a
    test's timeout.
    """
    wanted: set[str] = set()
    for item in session.items:
        names = {*getattr(item, "fixturenames", ()), *(marker.name for marker in item.iter_markers())}
        if "control_plane" in names:
            wanted.update(c for name in names & _NEEDS.keys() for c in _NEEDS[name])
    if not wanted or session.config.option.collectonly:
        return
    from vmtenancy.testing import build

    capture = session.config.pluginmanager.getplugin("capturemanager")
    # A build that fails is reported by the fixtures that need it.
    with capture.global_and_fixture_disabled(), contextlib.suppress(build.BuildError):
        for component in sorted(wanted):
            build.resolve_all(component)


@pytest.fixture(scope="session")
def control_plane() -> "Iterator[ControlPlane]":
    """The control plane of this test run; what is missing is built first (with progress on stderr)."""
    from vmtenancy.errors import VmtError
    from vmtenancy.testing.controlplane import ControlPlane

    try:
        running = ControlPlane().start()
    except VmtError as error:
        pytest.fail(f"no control plane: {error}", pytrace=False)
    yield running
    running.stop()


@pytest.fixture
def cluster(control_plane: "ControlPlane") -> "Iterator[ControlPlane]":
    """The control plane, and afterwards everything that the test created is gone (see ``Snapshot``)."""
    from vmtenancy.testing.cleanup import Snapshot

    before = Snapshot.take(control_plane)
    yield control_plane
    before.restore()


@pytest.fixture
def gpu_fleet(cluster: "ControlPlane") -> Callable[[Iterable[dict[str, Any]]], list[dict[str, Any]]]:
    """Creates nodes (``vmtenancy.testing.fleet.gpu_node``) and returns them once they are schedulable."""
    from vmtenancy.testing import fleet

    return lambda nodes: fleet.create(cluster, nodes)
