"""The CRDs and the manifests of `deploy/` on the real control plane."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from callers import Caller

if TYPE_CHECKING:
    from vmtenancy.testing.controlplane import ControlPlane

ROOT = Path(__file__).parents[2]


@pytest.fixture
def crds(cluster: ControlPlane) -> ControlPlane:
    """A cluster with our CRDs established."""
    cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    names = [
        f"crd/{yaml.safe_load(path.read_text())['metadata']['name']}"
        for path in (ROOT / "crds").glob("*.yaml")
    ]
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
    return cluster


@pytest.fixture
def admin(crds: ControlPlane) -> Caller:
    """A cluster administrator."""
    return Caller(crds, "admin", "system:masters")
