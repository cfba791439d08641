"""QEMU's command line where people wrote some of it themselves: devices in it, and tricks that are not needed here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from vmtenancy.migrate.model import Device, Lost
from vmtenancy.migrate.text import HIDDEN, pci_address, shown

_MMIO: Final = re.compile(r"X-PciMmio64Mb|pcihost\.pci-hole64-size|host-phys-bits")
_HIDDEN: Final = re.compile(r"(^|,)(kvm=off|-hypervisor|hypervisor=off)(,|$)")
_VENDOR: Final = re.compile(r"(?:^|,)hv[_-]vendor[_-]id=([^,]+)")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.I)


@dataclass(slots=True)
class QemuArgs:
    """What was found: devices, the guest's hidden hypervisor, and all else as lost."""

    devices: list[Device] = field(default_factory=list)
    kvm_hidden: bool = False
    vendor_id: str = ""
    lost: list[Lost] = field(default_factory=list)


def read_args(args: Sequence[tuple[str, str]]) -> QemuArgs:
    """Read arguments, each with its path."""
    found = QemuArgs()
    for path, option, value in _options(args):
        if option == "device" and (device := _vfio(path, value)) is not None:
            found.devices.append(device)
            continue
        if option == "cpu":
            found.kvm_hidden = found.kvm_hidden or bool(_HIDDEN.search(value))
            vendor = _VENDOR.search(value)
            found.vendor_id = vendor[1] if vendor else found.vendor_id
        why = "an argument of QEMU has no equivalent"
        if _MMIO.search(value):
            why = "KubeVirt's machines have room for the memory of large devices by themselves"
        elif option == "cpu":
            why = "of CPU arguments only hidden KVM and the vendor id are kept"
        secret = option == "object" and "secret" in value
        what = f"-{option} {HIDDEN}" if secret else shown(option, f"-{option} {value}".strip())
        found.lost.append(Lost(path, what, why))
    return found


def _options(args: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Options with their values: an argument that starts with a dash, and what follows it up to the next."""
    option, at = "", ""
    values: list[str] = []
    for path, arg in args:
        if re.match(r"--?[A-Za-z]", arg):
            if option or values:
                yield at, option, " ".join(values)
            option, at, values = arg.lstrip("-"), path, []
        else:
            at = at or path
            values.append(arg)
    if option or values:
        yield at, option, " ".join(values)


def _vfio(path: str, value: str) -> Device | None:
    if value.lstrip().startswith("{"):
        try:
            loaded = json.loads(value)
        except (ValueError, RecursionError):
            return None
        given = {str(key): str(item) for key, item in loaded.items()} if isinstance(loaded, dict) else {}
        driver = given.get("driver", "")
    else:
        driver, *rest = value.split(",")
        given = {part.partition("=")[0]: part.partition("=")[2] for part in rest}
        driver = driver.removeprefix("driver=")
    if not driver.startswith("vfio-"):
        return None
    last = given.get("sysfsdev", "").rstrip("/").rpartition("/")[2]
    if _UUID.fullmatch(last):
        return Device(path, "mdev", uuid=last.lower())
    address = pci_address(given.get("host") or last)
    return Device(path, "pci", address=address or "", hint=shown("device", value))
