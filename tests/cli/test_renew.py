"""The command line around `vmtenancy renew`; what it says and does on a cluster is in tests/faults."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from vmtenancy.cli.main import app


@pytest.mark.parametrize("target", ["gpuvm", "gpuvm/", "pod/x", "deployment/x"])
def test_wrong_usage(target: str) -> None:
    assert CliRunner().invoke(app, ["renew", target]).exit_code == 2
