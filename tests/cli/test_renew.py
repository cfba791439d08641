"""The command line around `vmtenancy renew`; what comes of it on a cluster is in tests/faults."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from vmtenancy.cli import renew_cmd
from vmtenancy.cli.main import app


@pytest.mark.parametrize("target", ["gpuvm", "gpuvm/", "pod/x", "deployment/x"])
def test_wrong_usage(target: str) -> None:
    assert CliRunner().invoke(app, ["renew", target]).exit_code == 2


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (
            {"lease": {"startedAt": "2026-01-01T00:00:00Z", "expiresAt": "2026-01-01T08:00:00Z"}},
            "it was to end at 2026-01-01T08:00:00Z",
        ),
        ({}, "none has begun so far"),
    ],
)
def test_it_says_what_was(monkeypatch: pytest.MonkeyPatch, status: dict[str, Any], told: str) -> None:
    written = {"kind": "GpuVM", "metadata": {"name": "a", "namespace": "vision"}, "status": status}
    monkeypatch.setattr(renew_cmd, "with_client", lambda *_: written)
    monkeypatch.setattr(renew_cmd.time, "time", lambda: 1_800_000_000.0)
    shown = CliRunner().invoke(app, ["renew", "gvm/a", "-n", "vision"]).stdout
    assert shown == f"the lease of GpuVM vision/a counts from 2027-01-15T08:00:00Z; {told}\n"
