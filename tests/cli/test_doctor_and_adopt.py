"""The command line around doctor and adopt; what they do on a cluster is in tests/e2e and tests/controller."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from vmtenancy.cli import doctor_cmd
from vmtenancy.cli.adopt_cmd import _propose, _tell
from vmtenancy.cli.common import Output
from vmtenancy.cli.main import app
from vmtenancy.reconcile.doctor import Finding, Severity
from vmtenancy.reconcile.world import World

FOUND = [
    Finding("VMT-X101", "Pod llm/a", "runs without a grant", "`vmtenancy adopt pod/a -n llm`"),
    Finding("VMT-X102", "Pod monitoring/b", "runs without a grant", "none", Severity.NOTICE),
]


@pytest.mark.parametrize(
    "arguments",
    [
        ["adopt", "deployment/x"],
        ["adopt", "virtualcluster/x"],
        ["adopt", "pod"],
        ["adopt", "pod/"],
        ["adopt", "pod/x", "--class", "whole"],
        ["adopt", "vcluster/x", "--class", "whole"],
        ["doctor", "--yes"],
        ["doctor", "--dry-run"],
        ["doctor", "--pause", "-1"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_findings_as_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    doctor_cmd._print(FOUND, Output.TABLE)
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["CODE", "SEVERITY", "ABOUT", "FOUND", "REMEDY"]
    assert "`vmtenancy adopt pod/a -n llm`" in table[1]
    doctor_cmd._print(FOUND, Output.JSON)
    assert [(row["code"], row["severity"]) for row in json.loads(capsys.readouterr().out)] == [
        ("VMT-X101", "problem"),
        ("VMT-X102", "notice"),
    ]
    doctor_cmd._print([], Output.TABLE)
    assert capsys.readouterr().out == "nothing is wrong\n"


def test_what_is_adopted_is_shown(story: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A pod on a node of its tenant's pool that nothing has let through."""
    objects = {kind: dict(held) for kind, held in story.objects.items()}
    free = next(name for (_, name), node in objects["Node"].items() if node["metadata"]["name"] == "gpu-2")
    gpus = {"limits": {"nvidia.com/gpu": "8"}}
    meta = {"name": "p", "namespace": "llm", "uid": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}
    spec = {"nodeName": free, "containers": [{"name": "c", "resources": gpus}]}
    objects["Pod"]["llm", "p"] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta | {"resourceVersion": "1"},
        "spec": spec,
    }
    [proposal] = _propose(World(objects=objects), "Pod", "llm", "p", None)
    _tell(proposal, dry_run=True)
    shown = capsys.readouterr().out
    assert shown.startswith("Pod llm/p would get a grant of 8 x h100-80gb (0000:10:00.0, ")
    assert "on node gpu-2, charged to tenant llm" in shown
    assert "note: tenant llm then holds 10 GPUs of pool h100, more than it may" in shown
