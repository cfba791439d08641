"""What NVIDIA publishes of servers, answered through the loader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from nvml_library import StandIn

from vmtenancy.devices.facts import status_of
from vmtenancy.devices.nvml_process import NvmlProcess


def profile(path: Path) -> dict[str, Any]:
    """A server's profile, as the stand-in takes it."""
    config = yaml.safe_load(path.read_text())
    system, base = config["system"], config["device_defaults"]
    answers: dict[str, Any] = {
        "driver": system["driver_version"],
        "nvml": system["nvml_version"],
        "cuda": 1000 * system["cuda_version_major"] + 10 * system["cuda_version_minor"],
        "count": len(config["devices"]),
        "*.name": base["name"],
        "*.memory": base["memory"]["total_bytes"],
        "*.architecture": {"turing": 6, "ampere": 7, "hopper": 9}[base["architecture"]],
        "*.capability": "{major}.{minor}".format(**base["compute_capability"]),
        "*.deviceId": base["pci"]["device_id"],
        "*.virtualization": 0,
        "*.mig": 0 if base["mig"]["max_gpu_instances"] else None,
        "*.remapFailed": int(base["remapped_rows"]["failure_occurred"]),
    }
    for device in config["devices"]:
        index = device["index"]
        answers |= {
            f"{index}.uuid": device["uuid"],
            f"{index}.serial": device["serial"],
            f"{index}.pci": device["pci"]["bus_id"],
        }
    return answers


@pytest.mark.parametrize(
    ("name", "gpus", "product", "memory", "architecture", "capability"),
    [
        ("a100", 8, "NVIDIA-A100-SXM4-40GB", "40Gi", "Ampere", "8.0"),
        ("h100", 8, "NVIDIA-H100-80GB-HBM3", "80Gi", "Hopper", "9.0"),
        ("t4", 4, "NVIDIA-T4", "16Gi", "Turing", "7.5"),
    ],
)
@pytest.mark.skipif("VMTENANCY_DATA" not in os.environ, reason="real data is not here (VMTENANCY_DATA)")
def test_published_profiles(
    process: NvmlProcess,
    nvml: StandIn,
    name: str,
    gpus: int,
    product: str,
    memory: str,
    architecture: str,
    capability: str,
) -> None:
    path = Path(os.environ["VMTENANCY_DATA"]) / "nvml-profiles" / f"mock-nvml-config-{name}.yaml"
    answers = profile(path)
    nvml.answer(answers)
    status = status_of({}, process.facts(), {}, {}, now="2026-01-02T03:04:05Z")
    assert (status["driverVersion"], status["cudaVersion"]) == ("550.163.01", "12.4")
    assert len(status["gpus"]) == gpus
    for gpu in status["gpus"]:
        assert (gpu["product"], gpu["memory"]) == (product, memory)
        assert (gpu["architecture"], gpu["computeCapability"], gpu["healthy"]) == (
            architecture,
            capability,
            True,
        )
    assert {gpu["uuid"] for gpu in status["gpus"]} == {answers[f"{index}.uuid"] for index in range(gpus)}
