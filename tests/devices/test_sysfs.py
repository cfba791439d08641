"""GPUs in the kernel's PCI tree, whatever driver they have."""

from __future__ import annotations

from pathlib import Path

import pci_tree
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pci_tree import PciTree

from vmtenancy.api.gpunode import GpuNodeStatus
from vmtenancy.devices import sysfs
from vmtenancy.devices.facts import status_of
from vmtenancy.devices.nvml_process import Reading
from vmtenancy.devices.sysfs import PciFunction, normal_address

ROOT, PORT, UP = "pci0000:00", "0000:00:01.0", "0000:01:00.0"


@pytest.mark.parametrize(
    ("one", "other", "level"),
    [
        ((ROOT, PORT, UP, "0000:02:00.0", "a"), (ROOT, PORT, UP, "0000:02:01.0", "b"), "Single"),
        ((ROOT, PORT, UP, "0000:02:00.0", "x", "a"), (ROOT, PORT, UP, "0000:02:01.0", "b"), "Multiple"),
        ((ROOT, PORT, "a"), (ROOT, "0000:00:02.0", "b"), "HostBridge"),
        (("pci0000:00", "a"), ("pci0000:80", "b"), "System"),
        ((), (ROOT, "b"), ""),
    ],
)
def test_how_two_gpus_meet(one: tuple[str, ...], other: tuple[str, ...], level: str) -> None:
    """Where the NUMA nodes are not known; two that are not known are not the same."""
    assert sysfs.ancestor(PciFunction("a", one), PciFunction("b", other)) == level


def test_a_vgpu_type_can_be_made_where_one_function_makes_it() -> None:
    texts, address = {"vendor": "0x10de", "class": "0x030200"}, "0000:3b:00.0"
    virtual = [
        PciFunction(f"0000:3b:00.{n}", links={"physfn": address}, vgpus=(("A40-8Q", count),))
        for n, count in ((4, 1), (5, 0))
    ]
    found = sysfs.gpus_of([PciFunction(address, texts=texts), *virtual])
    assert found[address]["vgpuTypes"] == [{"name": "A40-8Q", "creatable": True}]


@pytest.mark.parametrize(("group", "known"), [("7", 7), ("2147483648", None), ("-1", None)])
def test_iommu_groups_are_numbers_that_the_api_takes(group: str, known: int | None) -> None:
    gpu = PciFunction(
        "0000:3b:00.0", texts={"vendor": "0x10de", "class": "0x030200"}, links={"iommu_group": group}
    )
    assert sysfs.gpus_of([gpu])["0000:3b:00.0"].get("iommuGroup") == known


def gpus(tree: PciTree) -> dict[str, sysfs.Facts]:
    return sysfs.gpus_of(sysfs.read(tree.root))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("00000000:3B:00.0", "0000:3b:00.0"),
        ("0000:3b:00.0", "0000:3b:00.0"),
        ("3b:00.0", "0000:3b:00.0"),
        ("10000:01:00.0", "10000:01:00.0"),
        ("0001:01:1f.7", "0001:01:1f.7"),
        ("0000:3b:20.0", None),
        ("0000:3b:00", None),
        ("", None),
        ("0000:3b:00.0;", None),
    ],
)
def test_addresses_are_written_as_linux_does(text: str, address: str | None) -> None:
    assert normal_address(text) == address


def test_passthrough(tmp_path: Path) -> None:
    found = gpus(pci_tree.passthrough(tmp_path))
    assert list(found) == ["0000:17:00.0", "0000:19:00.0", "0000:ca:00.0"]
    assert found["0000:17:00.0"] == {
        "product": "NVIDIA-H100-80GB-HBM3",
        "pciId": "10de:2330",
        "memory": "81559Mi",
        "architecture": "Hopper",
        "driver": "vfio-pci",
        "numaNode": 0,
        "pcie": {"width": 16, "maxWidth": 16, "maxSpeed": "32.0 GT/s PCIe"},
        "iommuGroup": 40,
        "iommuGroupMembers": ["0000:17:00.1"],
        "companions": ["0000:17:00.1"],
        "peers": [
            {"pciAddress": "0000:19:00.0", "ancestor": "Single"},
            {"pciAddress": "0000:ca:00.0", "ancestor": "System"},
        ],
    }
    assert found["0000:19:00.0"]["iommuGroupMembers"] == ["0000:1b:00.0"]


def test_virtual_functions_belong_to_their_gpu(tmp_path: Path) -> None:
    found = gpus(pci_tree.sriov_vgpu(tmp_path))
    assert list(found) == ["0000:3b:00.0"]
    gpu = found["0000:3b:00.0"]
    assert gpu["virtualFunctions"] == {"total": 32, "enabled": 2}
    assert gpu["companions"] == []
    assert gpu["vgpuTypes"] == [
        {"name": "NVIDIA L40S-1B", "creatable": True},
        {"name": "NVIDIA L40S-24Q", "creatable": True},
    ]


def test_mediated_devices(tmp_path: Path) -> None:
    gpu = gpus(pci_tree.mdev_vgpu(tmp_path))["0000:3b:00.0"]
    assert gpu["vgpuTypes"] == [
        {"name": "GRID T4-16Q", "creatable": False},
        {"name": "GRID T4-1B", "creatable": True},
    ]
    assert "numaNode" not in gpu, "-1 is the kernel's way to say that it does not know"


def test_a_gpu_that_no_table_knows_is_named_by_its_id(tmp_path: Path) -> None:
    tree = PciTree(tmp_path)
    tree.add("0000:01:00.0", device=0x3ABC, kind=0x030000, driver="nouveau")
    gpu = gpus(tree)["0000:01:00.0"]
    assert gpu["product"] == "NVIDIA-3ABC"
    assert "memory" not in gpu
    assert gpu["driver"] == "nouveau"


def test_others_are_no_gpus(tmp_path: Path) -> None:
    tree = PciTree(tmp_path)
    tree.add("0000:01:00.0", vendor=0x1002, device=0x2330)  # a display controller of another vendor
    tree.add("0000:02:00.0", kind=0x068000)  # an NVSwitch
    (tmp_path / "bus/pci/devices/notes.txt").write_text("no device")
    assert gpus(tree) == {}


def test_no_tree_has_no_gpus(tmp_path: Path) -> None:
    assert sysfs.read(tmp_path) == []


@pytest.mark.parametrize(
    ("one", "other", "level"),
    [
        (("pci0000:00", "0000:00:01.0", "a"), ("pci0000:00", "0000:00:03.0", "b"), "HostBridge"),
        (("pci0000:00", "p", "u", "d0", "a"), ("pci0000:00", "p", "u", "d1", "b"), "Single"),
        (("pci0000:00", "p", "u", "d0", "a"), ("pci0000:00", "p", "u", "d1", "u2", "d2", "b"), "Multiple"),
        (("pci0000:00", "a"), ("pci0000:80", "b"), "Node"),
        (("pci0000:00", "a"), (), ""),
    ],
)
def test_common_ancestors(one: tuple[str, ...], other: tuple[str, ...], level: str) -> None:
    functions = [PciFunction("x", path, {"numa_node": "1"}) for path in (one, other)]
    assert sysfs.ancestor(*functions) == level
    assert sysfs.ancestor(*reversed(functions)) == level


TEXT = st.text(max_size=8) | st.sampled_from(["0x10de", "0x030200", "-1", "0x", "9" * 30, "32.0 GT/s PCIe"])
FUNCTIONS = st.builds(
    PciFunction,
    address=st.sampled_from([f"0000:0{n}:00.{m}" for n in range(3) for m in range(2)]),
    path=st.lists(st.sampled_from(["pci0000:00", "a", "b"]), max_size=3).map(tuple),
    texts=st.dictionaries(st.sampled_from(sysfs._FILES), TEXT)
    | st.just({"vendor": "0x10de", "class": "0x030200", "device": "0x2330"}),
    links=st.dictionaries(st.sampled_from(["driver", "iommu_group", "physfn"]), TEXT),
    vgpus=st.lists(st.tuples(st.text(max_size=4), st.integers()), max_size=2).map(tuple),
)


@settings(max_examples=50)
@given(st.lists(FUNCTIONS, max_size=6, unique_by=lambda one: one.address))
def test_no_tree_is_a_crash(functions: list[PciFunction]) -> None:
    found = sysfs.gpus_of(functions)
    silence = Reading(trouble=("LibraryNotFound", "no library"))
    status = status_of(found, silence, {}, {}, now="2026-01-02T03:04:05Z")
    assert {gpu.pci_address for gpu in GpuNodeStatus.model_validate(status).gpus} == set(found)
