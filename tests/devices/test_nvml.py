"""NVML through the loader: what a library answers becomes facts, and no answer stops the agent."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nvml_library
import pytest
from nvml_library import StandIn, address, board, using

from vmtenancy.devices import nvml_process
from vmtenancy.devices.facts import status_of
from vmtenancy.devices.nvml_facts import gpus_of, system_facts
from vmtenancy.devices.nvml_process import NvmlProcess

Facts = dict[str, Any]
GPUS = {address(index) for index in range(8)}
A_WHILE_S = 30.0


@pytest.fixture(scope="module")
def hasty(nvml: StandIn) -> Iterator[NvmlProcess]:
    """For calls that hang."""
    process = NvmlProcess(2.0)
    yield process
    process.close()


def facts(process: NvmlProcess) -> dict[str, Facts]:
    reading = process.facts()
    assert reading.trouble is None
    return gpus_of(reading.devices)[0]


def reasons(process: NvmlProcess) -> dict[str, list[str]]:
    """Reasons of the GPUs that have some."""
    status = status_of({}, process.facts(), {}, {}, now="2026-01-02T03:04:05Z")
    return {
        gpu["pciAddress"]: [one["reason"] for one in gpu["reasons"]]
        for gpu in status["gpus"]
        if not gpu["healthy"]
    }


def test_eight_h100s(process: NvmlProcess) -> None:
    reading = process.facts()
    assert system_facts(reading.system) == {
        "driverVersion": "570.86.15",
        "cudaVersion": "12.8",
        "nvmlVersion": "12.570.86.15",
    }
    found, nowhere = gpus_of(reading.devices)
    assert (set(found), nowhere) == (GPUS, 0)
    gpu = found[address(5)]
    peers = gpu.pop("peers")
    assert gpu == {
        "uuid": "GPU-5e2c9a10-0f6b-4f6e-9c47-0d9a7a7c0b05",
        "serial": "1652823000005",
        "product": "NVIDIA-H100-80GB-HBM3",
        "pciId": "10de:2330",
        "memory": "81559Mi",
        "architecture": "Hopper",
        "computeCapability": "9.0",
        "moduleId": 6,
        "numaNode": 1,
        "virtualization": "None",
        "fabric": {"state": "Completed", "clique": 0},
        "reasons": {},
    }
    assert [peer["nvLinks"] for peer in peers] == [18] * 7
    assert [peer["ancestor"] for peer in peers] == ["System"] * 4 + ["Node"] * 3


def test_an_older_driver(nvml: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions under older names, structures that end earlier, and no fabric at all."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library.build(tmp_path, "-DOLD_DRIVER")))
    process = NvmlProcess(A_WHILE_S)
    try:
        found = facts(process)
    finally:
        process.close()
    assert set(found) == GPUS
    assert "fabric" not in found[address(0)]
    assert found[address(0)]["product"] == "NVIDIA-H100-80GB-HBM3"


def test_nvlink_bridges_between_pairs(process: NvmlProcess, nvml: StandIn) -> None:
    pair = {"*.links": None, "0.links": 4, "1.links": 4, "*.link.type": 0, "*.fabric": None}
    ends = {"0.link.pci": "0000:43:00.0", "1.link.pci": "0000:1B:00.0"}
    nvml.answer(board(4) | pair | ends)
    found = facts(process)
    links = [[peer["nvLinks"] for peer in found[gpu]["peers"]] for gpu in sorted(found)]
    assert links == [[4, 0, 0], [4, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_mig(process: NvmlProcess, nvml: StandIn) -> None:
    mig = {
        "0.mig": 1,
        "0.profile.0": "19 7 1 0,1,2,3,4,5,6 MIG 1g.10gb",
        "0.profile.2": "9 2 4 0,4 MIG 3g.40gb",
        "0.instances.19": "7:4,8:5",
        "0.instances.9": "2:0",
        "0.migDevices": "2,7",
    }
    nvml.answer(board(1) | mig)
    assert facts(process)[address(0)]["mig"] == {
        "enabled": True,
        "pending": True,
        "profiles": [
            {"id": 9, "name": "3g.40gb", "most": 2, "size": 4, "starts": [0, 4]},
            {"id": 19, "name": "1g.10gb", "most": 7, "size": 1, "starts": [0, 1, 2, 3, 4, 5, 6]},
        ],
        "instances": [
            {
                "id": 2,
                "profile": "3g.40gb",
                "start": 0,
                "size": 4,
                "uuids": ["MIG-00001002-0000-0000-0000-000000000000"],
            },
            {
                "id": 7,
                "profile": "1g.10gb",
                "start": 4,
                "size": 1,
                "uuids": ["MIG-00001007-0000-0000-0000-000000000000"],
            },
            {"id": 8, "profile": "1g.10gb", "start": 5, "size": 1, "uuids": []},
        ],
    }


def test_vgpus(process: NvmlProcess, nvml: StandIn) -> None:
    vgpu = {
        "*.virtualization": 3,
        "0.vgpu.supported": "11,12",
        "0.vgpu.creatable": "12",
        "0.vgpu.active": "12,12",
        "vgpu.11": "NVIDIA H100-80C",
        "vgpu.12": "NVIDIA H100-20C",
    }
    nvml.answer(board(1) | vgpu)
    status = status_of({}, process.facts(), {}, {}, now="2026-01-02T03:04:05Z")
    assert status["mode"] == "vm-vgpu"
    assert status["gpus"][0]["virtualization"] == "HostVgpu"
    assert status["gpus"][0]["vgpuTypes"] == [
        {"name": "NVIDIA H100-20C", "creatable": True, "active": 2},
        {"name": "NVIDIA H100-80C", "creatable": False, "active": 0},
    ]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"3.remapFailed": 1}, "RowRemapFailure"),
        ({"3.retiredPages": 1}, "RetiredPagesPending"),
        ({"3.memory": "!15"}, "GpuLost"),
        ({"3.name": "!16"}, "ResetRequired"),
        ({"3.memory": -5}, "InvalidFacts"),
        ({"3.memory": 0}, "InvalidFacts"),
        ({"3.name": "hex:4e5649ff41"}, "InvalidFacts"),
        ({"3.name": "GPU\x1b[2J"}, "InvalidFacts"),
        ({"3.uuid": "not a uuid"}, "InvalidFacts"),
        ({"3.capability": "-9.0"}, "InvalidFacts"),
        ({"3.moduleId": 4294967295}, "InvalidFacts"),
        ({"3.mig": 7}, "InvalidFacts"),
    ],
)
def test_what_is_wrong_with_a_gpu(process: NvmlProcess, nvml: StandIn, answers: Facts, reason: str) -> None:
    nvml.answer(board() | answers)
    assert reasons(process) == {address(3): [reason]}


@pytest.mark.parametrize(
    "name", ["memory", "uuid", "serial", "moduleId", "architecture", "fabric", "links", "mig"]
)
def test_what_a_driver_does_not_give_is_left_out(process: NvmlProcess, nvml: StandIn, name: str) -> None:
    nvml.answer(board() | {f"*.{name}": None, **{f"{index}.{name}": None for index in range(8)}})
    assert reasons(process) == {}


def test_one_uuid_twice_is_nobodys(process: NvmlProcess, nvml: StandIn) -> None:
    nvml.answer(board() | {"4.uuid": board()["2.uuid"]})
    assert reasons(process) == {address(2): ["InvalidFacts"], address(4): ["InvalidFacts"]}
    found = facts(process)
    assert "uuid" not in found[address(2)]
    assert "uuid" in found[address(3)]


def test_one_address_twice(process: NvmlProcess, nvml: StandIn) -> None:
    nvml.answer(board() | {"4.pci": board()["2.pci"]})
    assert reasons(process) == {address(2): ["InvalidFacts"]}
    assert set(facts(process)) == GPUS - {address(4)}


def test_an_address_in_no_encoding_is_read_from_its_numbers(process: NvmlProcess, nvml: StandIn) -> None:
    nvml.answer(board() | {"4.pci": "hex:ff9d"})
    reading = process.facts()
    found, nowhere = gpus_of(reading.devices)
    assert (set(found), nowhere) == (GPUS - {address(4)}, 1)


def test_an_index_that_vanishes(process: NvmlProcess, nvml: StandIn) -> None:
    before = status_of({}, process.facts(), {}, {}, now="2026-01-02T03:04:05Z")
    nvml.answer(board() | {"7.handle": "!6"})
    status = status_of({}, process.facts(), before, {}, now="2026-01-02T03:05:05Z")
    assert [gpu["pciAddress"] for gpu in status["gpus"]] == sorted(GPUS)
    lost = status["gpus"][7]
    assert [one["reason"] for one in lost["reasons"]] == ["GpuLost"]
    assert (lost["uuid"], lost["nvmlSeenAt"]) == (board()["7.uuid"], "2026-01-02T03:05:05Z")
    (condition,) = status["conditions"]
    assert (condition["status"], condition["reason"]) == ("False", "DevicesMissing")
    assert condition["message"] == "NVML counts 8 GPUs and answers for 7"


def test_a_gpu_that_hangs_holds_up_no_other(hasty: NvmlProcess, nvml: StandIn) -> None:
    hasty.facts()
    starts = hasty.starts
    nvml.answer(board() | {"2.name": "~"})
    reading = hasty.facts()
    assert reading.trouble == ("CallHangs", "NVML did not answer within 2 s")
    found, _ = gpus_of(reading.devices)
    assert set(found) == GPUS - {address(2)}
    assert hasty.starts == starts + 1, "killed, and the others asked by a new one"
    samples = hasty.samples()
    assert samples.trouble is None
    assert {one["address"] for one in samples.samples} == GPUS - {address(2)}
    nvml.answer(board())
    assert set(facts(hasty)) == GPUS


@pytest.mark.parametrize("fault", ["~", "@"])
def test_a_handle_that_is_not_to_be_had(hasty: NvmlProcess, nvml: StandIn, fault: str) -> None:
    nvml.answer(board() | {"5.handle": fault})
    reading = hasty.facts()
    assert reading.trouble is not None
    assert set(gpus_of(reading.devices)[0]) == GPUS - {address(5)}
    nvml.answer(board())
    assert set(facts(hasty)) == GPUS


def test_a_library_that_hangs_as_it_starts(nvml: StandIn) -> None:
    process = NvmlProcess(0.2)
    try:
        nvml.answer(board() | {"init": "~"})
        assert process.facts().trouble == ("CallHangs", "NVML did not answer within 0.6 s")
        nvml.answer(board())
        process._deadline_s = A_WHILE_S
        assert set(facts(process)) == GPUS
    finally:
        process.close()


def test_a_call_that_kills_the_process(process: NvmlProcess, nvml: StandIn) -> None:
    nvml.answer(board() | {"2.name": "@"})
    reading = process.facts()
    assert reading.trouble == (nvml_process.DIED, "the process that asks NVML died")
    assert set(gpus_of(reading.devices)[0]) == GPUS - {address(2)}
    nvml.answer(board())
    assert set(facts(process)) == GPUS


def test_a_driver_that_is_reloaded(process: NvmlProcess, nvml: StandIn) -> None:
    assert set(facts(process)) == GPUS
    nvml.answer({"count": "!1"})
    assert process.facts().devices == []
    nvml.answer({"init": "!9"})
    assert process.facts().trouble == ("DriverNotLoaded", "Driver Not Loaded")
    nvml.answer(board(4))
    assert len(facts(process)) == 4


def test_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    process = NvmlProcess(A_WHILE_S)
    try:
        reason, message = process.facts().trouble or ("", "")
    finally:
        process.close()
    assert reason == "LibraryNotFound"
    assert message == f"{tmp_path}/libnvidia-ml.so.1: file too short"


def test_without_pynvml(nvml: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = NvmlProcess(A_WHILE_S)
    try:
        reason, message = process.facts().trouble or ("", "")
    finally:
        process.close()
    assert reason == "LibraryNotFound"
    assert message == "the package pynvml is not installed: pip install 'vmtenancy[agent]'"


def test_xids_come_by_themselves(library: Path, tmp_path: Path) -> None:
    """Also of a GPU that is lost: then it does not answer where it is."""
    events: queue.SimpleQueue[Facts] = queue.SimpleQueue()
    process = NvmlProcess(A_WHILE_S, events.put)
    try:
        with using(library, tmp_path) as nvml:
            process.facts()
            nvml.answer(board() | {"6.pci": "!15"})
            nvml.report(6, 79)
            assert events.get(timeout=A_WHILE_S) == {"address": address(6), "xid": 79}
    finally:
        process.close()


def test_the_child_ends_with_its_parent_while_a_call_hangs(hasty: NvmlProcess, nvml: StandIn) -> None:
    hasty.facts()
    child = hasty._child
    hasty._child = None
    assert child is not None
    assert child.stdin is not None
    nvml.answer(board() | {"count": "~"})
    child.stdin.write('{"number": 99, "ask": "facts", "last": [], "skip": []}\n')
    child.stdin.close()
    assert child.wait(A_WHILE_S) == 0


def test_lines_of_an_earlier_request_are_not_taken_for_this_one(process: NvmlProcess) -> None:
    process.facts()
    process._lines.put({"number": process._number, "device": {"index": 0, "handle": {"error": 6}}})
    process._lines.put({"number": process._number, "done": True})
    assert len(process.facts().devices) == 8
