"""What the commands print, on the quickstart's world in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from vmtenancy.cli import explain_cmd, get
from vmtenancy.cli.explain_cmd import answer_for
from vmtenancy.cli.get import workloads
from vmtenancy.cli.main import app
from vmtenancy.errors import Code, VmtError
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import World

Run = Callable[..., Result]


@pytest.fixture
def run(story: World, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command that reads the world of the story instead of a cluster's."""

    def read(*_: Any) -> World:
        return story

    monkeypatch.setattr(get, "with_client", read)
    monkeypatch.setattr(explain_cmd, "with_client", read)
    return lambda *args: CliRunner().invoke(app, args)


def test_everyone_who_holds_or_waits_is_a_row(view: View) -> None:
    rows = {f"{row.kind} {row.namespace}/{row.name}": row for row in workloads(view)}
    assert [key for key in rows if not key.startswith("Pod ")] == [
        "GpuVM vision/sweep",
        "GpuVM vision/trainer",
        "GpuVM vision/workstation",
        "VirtualCluster llm/lab",
    ]
    trainer = rows["GpuVM vision/trainer"]
    assert (trainer.tenant, trainer.phase, trainer.gpus) == ("vision", "Running", {"h100-80gb": 2})
    assert trainer.node in ("gpu-3", "gpu-4")
    assert len(trainer.devices) == 2
    sweep = rows["GpuVM vision/sweep"]
    assert (sweep.phase, sweep.node, sweep.devices) == ("Pending", "", [])
    assert "pool h100: needs 4 GPUs" in sweep.message
    [pod] = [row for key, row in rows.items() if key.startswith("Pod ")]
    assert pod.tenant == "llm", "the pod in the virtual cluster; launchers belong to their GpuVM"


def test_get_as_table_json_and_yaml(run: Run) -> None:
    table = run("get")
    assert table.exit_code == 0
    assert "trainer" in table.stdout
    assert "2 x h100-80gb" in table.stdout
    rows = json.loads(run("get", "-o", "json").stdout)
    assert yaml.safe_load(run("get", "-o", "yaml").stdout) == rows
    assert {row["name"] for row in rows} > {"trainer", "lab"}


@pytest.mark.parametrize("word", ["GpuVM", "gpuvm", "gpuvms", "gvm"])
def test_get_one_kind(run: Run, word: str) -> None:
    rows = json.loads(run("get", word, "-o", "json").stdout)
    assert {row["kind"] for row in rows} == {"GpuVM"}


def test_get_one_namespace(run: Run) -> None:
    rows = json.loads(run("get", "-n", "llm", "-o", "json").stdout)
    assert {row["namespace"] for row in rows} == {"llm"}


def test_nothing_there_is_said(run: Run) -> None:
    assert run("get", "-n", "nobody").stdout == "no workloads with GPUs\n"


def test_a_kind_that_has_no_gpus_is_wrong_usage(run: Run) -> None:
    result = run("get", "deployments")
    assert result.exit_code == 2
    assert "GpuVM" in result.stderr


def test_explain_what_waits(run: Run) -> None:
    result = run("explain", "gpuvm/sweep", "-n", "vision")
    assert result.exit_code == 0
    first, *details = result.stdout.splitlines()
    assert first.startswith("GpuVM vision/sweep waits: QuotaExceeded: VMT-Q001: pool h100: needs 4 GPUs")
    assert "GpuVM vision/trainer 2" in first, "the holders are named"
    assert "  number 1 in the queue for pool h100" in details
    assert "  would be admitted now with 2 x h100-80gb" in details
    assert any(line.startswith("  Admitted=False QuotaExceeded") for line in details)


def test_explain_for_programs(run: Run) -> None:
    told = json.loads(run("explain", "gpuvm/sweep", "-n", "vision", "-o", "json").stdout)
    assert (told["kind"], told["namespace"], told["name"]) == ("GpuVM", "vision", "sweep")
    assert (told["state"], told["reason"], told["code"]) == ("Waits", "QuotaExceeded", "VMT-Q001")
    assert told["queue"] == [{"pool": "h100", "position": 1}]
    short = told["shortage"]
    assert (short["requested"], short["free"], short["total"], short["boundBy"]) == (
        "4",
        "2.75",
        "5",
        "tenant vision",
    )
    assert {"holder": "GpuVM vision/trainer", "holds": "2"} in short["holders"]
    assert told["start"] is None, "nothing has a lease"
    assert told["changes"] == {
        "fewer": [{"class": "h100-80gb", "count": 2}],
        "otherClass": [{"class": "h100-vgpu-20c", "count": 4}],
        "leaseUntil": None,
        "priority": None,
    }
    assert told["conditions"][0]["type"] == "Admitted"
    assert yaml.safe_load(run("explain", "gpuvm/sweep", "-n", "vision", "-o", "yaml").stdout) == told
    held = json.loads(run("explain", "gpuvm/trainer", "-n", "vision", "-o", "json").stdout)
    assert held["state"] == "Holds"
    assert "start" not in held


def test_explain_who_holds(run: Run) -> None:
    result = run("explain", "gvm/trainer", "-n", "vision")
    assert result.stdout.startswith("GpuVM vision/trainer holds 2 x h100-80gb (0000:")
    lab = run("explain", "vcl/lab", "-n", "llm")
    assert "VirtualCluster llm/lab holds" in lab.stdout


def test_explain_what_could_start_but_has_not(story: World) -> None:
    """With the trainer's grant out of the way the sweep fits: only the controller is missing."""
    objects = {kind: dict(held) for kind, held in story.objects.items()}
    for key, obj in story.objects["GpuAllocation"].items():
        if obj["spec"]["owner"]["name"] == "trainer":
            del objects["GpuAllocation"][key]
    for kind in ("VirtualMachine", "VirtualMachineInstance", "GpuVM"):
        objects[kind].pop(("vision", "trainer"))
    objects["Pod"] = {}
    view = View(World(objects=objects, templates=story.templates), 1_800_000_000.0)
    sweep = objects["GpuVM"]["vision", "sweep"]
    assert "can be admitted now" in answer_for(view, sweep).summary


def test_explain_nothing(run: Run) -> None:
    result = run("explain", "gpuvm/nobody", "-n", "vision")
    assert isinstance(result.exception, VmtError)
    assert result.exception.code is Code.UNKNOWN_REFERENCE
    assert run("explain", "sweep").exit_code == 2
    assert run("explain", "gpuvm/").exit_code == 2
