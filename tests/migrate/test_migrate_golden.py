"""Our own input of each source becomes what its golden file has; the objects are valid, and KubeVirt's spec renders."""

from __future__ import annotations

import difflib
from typing import Any

import pytest
from migrate_samples import EXAMPLE, GOLDEN, ROOT, SAMPLES, converted, readable
from typer.testing import CliRunner

from vmtenancy.api.gpuallocation import Grant
from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.parsing import parse
from vmtenancy.cli.main import app
from vmtenancy.render.catalog import parse_catalog
from vmtenancy.runtimes.kubevirt import VmInputs, objects

CATALOG = parse_catalog({path.name: path.read_text() for path in (ROOT / "vm-templates").glob("*.yaml")})


@pytest.mark.parametrize("name", SAMPLES)
def test_golden(name: str) -> None:
    found, path = readable(converted(name)), GOLDEN / f"{name}.yaml"
    lines = difflib.unified_diff(
        path.read_text().splitlines(), found.splitlines(), str(path), "found", lineterm=""
    )
    assert "\n".join(lines) == ""


def machine_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The VirtualMachine that a GpuVM becomes with a grant."""
    vm = parse(
        {**manifest, "metadata": {**manifest["metadata"], "uid": "3f1c1d0e-6f0a-4c57-9d5a-0a8b3c9d7e11"}}
    )
    assert isinstance(vm, GpuVM)
    grants = [
        Grant.model_validate(
            {
                **{"class": gpu.class_, "pool": "p", "mode": "vm-passthrough", "parts": 10080},
                **{"resource": "nvidia.com/X", "count": gpu.count},
            }
        )
        for gpu in vm.spec.gpus
    ]
    return objects(vm, grants, VmInputs("design", CATALOG))[-1]


@pytest.mark.parametrize("name", SAMPLES)
def test_the_machine_renders_with_what_the_source_had(name: str) -> None:
    for conversion in converted(name):
        found = machine_of(conversion.objects[0])["spec"]
        spec, machine = found["template"]["spec"], conversion.machine
        cpu, devices = spec["domain"]["cpu"], spec["domain"]["devices"]
        assert cpu["sockets"] * cpu["cores"] * cpu["threads"] == machine.cpu.vcpus
        assert [i.get("macAddress", "") for i in devices.get("interfaces", [])] == [
            nic.mac for nic in machine.nics
        ]
        assert found["runStrategy"] == "Halted"
        # Each disk has its volume, and boots in an order that no two share.
        assert {disk["name"] for disk in devices["disks"]} == {volume["name"] for volume in spec["volumes"]}
        orders = [
            x["bootOrder"] for x in (*devices["disks"], *devices.get("interfaces", [])) if "bootOrder" in x
        ]
        assert len(orders) == len(set(orders)) >= 1
        assert sum("dataVolume" in v for v in spec["volumes"]) >= len(machine.disks)


def test_the_example_of_the_documentation_has_nothing_left_to_answer() -> None:
    command = [
        "migrate",
        "convert",
        "--from",
        "libvirt",
        str(EXAMPLE / "cad.xml"),
        "-n",
        "design",
        "-o",
        "yaml",
    ]
    answers = ["--nodedev", str(EXAMPLE / "nodedev.xml"), "--device-map", str(EXAMPLE / "device-map.yaml")]
    done = CliRunner().invoke(app, [*command, *answers])
    assert done.exit_code == 0, done.output
    assert "unresolved" not in done.stderr
    assert "class: rtx-a6000\n      count: 2" in done.stdout
