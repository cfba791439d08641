"""The pytest fixture ``kubevirt``, for ``vmtenancy.testing.plugin``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vmtenancy.testing.controlplane import ControlPlane
    from vmtenancy.testing.kubevirt import KubeVirt


@pytest.fixture(scope="session")
def kubevirt(control_plane: "ControlPlane") -> "Iterator[KubeVirt]":
    """Real KubeVirt on the control plane of this test run, started by the first test that asks for it."""
    from vmtenancy.errors import VmtError
    from vmtenancy.testing.kubevirt import KubeVirt

    try:
        running = KubeVirt(control_plane).start()
    except VmtError as error:
        pytest.fail(f"no KubeVirt: {error}", pytrace=False)
    yield running
    running.stop()
