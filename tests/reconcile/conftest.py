from __future__ import annotations

import pytest
from lab import Lab, fork, small_lab

_AT_REST = small_lab()


@pytest.fixture
def lab() -> Lab:
    """Four nodes, one pool, two classes, two tenants, at rest."""
    return fork(_AT_REST)
