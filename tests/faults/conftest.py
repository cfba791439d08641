"""Arenas have a control plane of their own: what played its part there would meet the run's real KubeVirt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from arena import arena_plane

from vmtenancy.testing.controlplane import ControlPlane


@pytest.fixture(scope="package")
def control_plane() -> Iterator[ControlPlane]:
    """One for all tests of this folder."""
    with arena_plane() as running:
        yield running
