"""The page on the agent says what is."""

from __future__ import annotations

import re
from pathlib import Path

from vmtenancy.agent import metrics
from vmtenancy.devices import facts, nvml_facts, nvml_process

PAGE = (Path(__file__).parents[2] / "docs" / "agent.md").read_text()
REASONS = {
    *(nvml_facts.GPU_LOST, nvml_facts.INVALID_FACTS, nvml_facts.RESET_REQUIRED, nvml_facts.RETIRED_PAGES),
    *(nvml_facts.ROW_REMAP_FAILURE, facts.NO_DRIVER, nvml_facts.NVML_SILENT, facts.XID_ERROR),
}


def test_every_reason_of_a_gpu_is_explained() -> None:
    table = PAGE[PAGE.index("## When a GPU is not healthy") : PAGE.index("The condition `NvmlAnswers`")]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == REASONS


def test_every_reason_of_the_condition_is_named() -> None:
    said = PAGE[PAGE.index("The condition `NvmlAnswers`") : PAGE.index("## How it is built")]
    known = {
        *(nvml_process.LIBRARY_NOT_FOUND, nvml_process.DRIVER_NOT_LOADED, nvml_process.INITIALISATION_FAILED),
        *(nvml_process.HANGS, nvml_process.DIED, facts.DEVICES_MISSING, nvml_facts.INVALID_FACTS),
    }
    assert set(re.findall(r"`([A-Z]\w+)`", said)) - {facts.CONDITION, "True"} == known


def test_harmless_xids_are_those_of_the_code() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| `XidError`"))
    said = {int(number) for group in re.findall(r"\(([\d, ]+)\)", row) for number in group.split(",")}
    assert said == facts._HARMLESS_XIDS


def test_telemetry_is_named_as_the_page_says() -> None:
    assert all(name.startswith("vmtenancy_gpu_") for name, *_ in metrics._GAUGES)
