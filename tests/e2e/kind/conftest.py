"""`pytest -m kind`: the end-to-end tests, each module as it is, with another control plane and KubeVirt on that one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmtenancy.errors import VmtError
from vmtenancy.testing import kind
from vmtenancy.testing.kind import KindControlPlane
from vmtenancy.testing.kubevirt_fixtures import kubevirt

__all__ = ["control_plane", "kubevirt"]


@pytest.fixture(scope="session")
def control_plane() -> Iterator[KindControlPlane]:
    if reason := kind.missing():
        pytest.skip(reason)
    try:
        running = KindControlPlane().start()
    except VmtError as error:
        pytest.fail(f"no kind cluster: {error}", pytrace=False)
    yield running
    running.stop()
