"""Real descriptions of other projects, where VMTENANCY_DATA gives their folder: how far readers agree with its index.

What the index says of a file (null: nothing) has to be found. Run with `-s` for the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from migrate_samples import DATA

from vmtenancy.errors import VmtError
from vmtenancy.migrate.convert import READERS, Wishes, convert, read
from vmtenancy.migrate.model import Machine

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="VMTENANCY_DATA has no vm-samples")

#: What is compared, by its name in the index.
FOUND: dict[str, Callable[[Machine], Any]] = {
    "name": lambda m: m.name or None,
    "vcpus": lambda m: m.cpu.vcpus,
    "vcpus_max": lambda m: m.cpu.maximum,
    "memory_mib": lambda m: m.memory.bytes / (1 << 20),
    "disks": lambda m: len(m.disks),
    "cdroms": lambda m: len(m.cdroms),
    # A passthrough NIC of .vmx is counted with the passthrough devices there.
    "nics": lambda m: sum(not nic.path.startswith("pciPassthru") for nic in m.nics),
    "sriov_pci": lambda m: sum(nic.path.startswith("pciPassthru") for nic in m.nics),
    "firmware": lambda m: "uefi" if m.firmware.efi else "bios",
    "secure_boot": lambda m: m.firmware.secure_boot,
    "tpm": lambda m: int(m.firmware.tpm),
    "pci_hostdevs": lambda m: sum(device.bus == "pci" for device in m.devices),
    "dynamic_pci": lambda m: sum(device.bus == "dynamic" for device in m.devices),
    "mdevs": lambda m: sum(device.bus in ("mdev", "vgpu") for device in m.devices),
    "scsi_hostdevs": lambda m: sum(device.bus == "scsi" for device in m.devices),
    "hugepages": lambda m: bool(m.memory.page),
    "volumes_attached": lambda m: sum(drive.location.startswith("volume ") for drive in m.drives),
}
LIBVIRT_ONLY: dict[str, Callable[[Machine], Any]] = {
    "usb_hostdevs": lambda m: sum(device.bus == "usb" for device in m.devices),
    "sriov_nics": lambda m: sum(nic.sriov for nic in m.nics),
    "numa_cells": lambda m: m.cpu.numa_cells,
}


def differences(source: str, entry: dict[str, Any]) -> list[str]:
    """What of the index is not found in the file."""
    compared = FOUND | (LIBVIRT_ONLY if source == "libvirt" else {})
    known = [name for name in compared if entry.get(name) is not None]
    try:
        machine = read(source, (DATA / source / entry["file"]).read_bytes())[0]
    except VmtError as error:
        # Where nothing is known of a machine, there is none to be read.
        return (
            [str(error)]
            if any(entry[name] for name in known if name not in ("pci_hostdevs", "mdevs"))
            else []
        )
    found = {name: compared[name](machine) for name in known}
    return [
        f"{name}: found {found[name]}, expected {entry[name]}"
        for name in known
        if (abs(found[name] - entry[name]) > 0.01 if name == "memory_mib" else found[name] != entry[name])
    ]


@pytest.mark.parametrize("source", READERS)
def test_readers_agree_with_the_index(source: str) -> None:
    entries = json.loads((DATA / source / "index.json").read_text())
    checked = [entry for entry in entries if entry["expect"] == "ok"]
    wrong = {entry["file"]: found for entry in checked if (found := differences(source, entry))}
    agree = len(checked) - len(wrong)
    print(f"\n{source:10} {agree} of {len(checked)} files agree ({100 * agree / len(checked):.1f} %)")
    assert agree >= 0.98 * len(checked), wrong


@pytest.mark.parametrize("source", READERS)
def test_every_file_is_converted_or_refused_with_one_clear_error(source: str) -> None:
    for entry in json.loads((DATA / source / "index.json").read_text()):
        data = (DATA / source / entry["file"]).read_bytes()
        problems = []
        found = []
        try:
            found = convert(source, data, Wishes(default_class="some-gpu", stem="x"))
        except VmtError as error:
            problems = list(error.problems)
        assert len(problems) == (0 if found else 1)
        for conversion in found:
            assert conversion.devices.devices == len(conversion.machine.devices)
