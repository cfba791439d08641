"""GPUs as the kernel's PCI tree shows them (`/sys/bus/pci/devices`), whatever driver is bound to them.

`read` does the input and keeps texts as they are; `gpus_of` makes facts of them and is pure. What a file says that
can not be so counts as not said. Files: https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-bus-pci; vGPU
types are found by the kernel's mediated devices and, with drivers that no longer have those, in the `nvidia` folder
of a virtual function.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vmtenancy.core.fleet.products import PRODUCTS

Facts = dict[str, Any]

#: Below `/sys`.
DEVICES: Final = "bus/pci/devices"
_NVIDIA: Final = 0x10DE
#: Display controllers: VGA compatible, and 3D without a display.
_GPU_CLASSES: Final = (0x0300, 0x0302)
_BRIDGE: Final = 0x06
_TEXT_MOST: Final = 16384
_FILES: Final = (
    "class",
    "vendor",
    "device",
    "numa_node",
    "sriov_totalvfs",
    "sriov_numvfs",
    "current_link_width",
    "max_link_width",
    "max_link_speed",
)
_ADDRESS: Final = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])")
_VGPU_LINE: Final = re.compile(r"\s*(\d+)\s*:\s*(\S.*?)\s*")
TYPE_NAME: Final = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.+ /]{0,62}")


@dataclass(frozen=True, slots=True)
class PciFunction:
    """One entry of the tree, as read.

    `path` is where its link leads (`pci0000:00/0000:00:01.0/0000:17:00.0`), by which common ancestors are found.
    `links` are the last parts of its links: `driver`, `iommu_group`, `physfn`. `vgpus` has (type name, how many can
    be made).
    """

    address: str
    path: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    vgpus: tuple[tuple[str, int], ...] = ()

    def number(self, name: str, least: int = 0, most: int = 1 << 24) -> int | None:
        """A file as a number (`0x` means hexadecimal), or None where it says nothing of that size."""
        try:
            value = int(self.texts.get(name, ""), 0)
        except ValueError:
            return None
        return value if least <= value <= most else None

    @property
    def is_gpu(self) -> bool:
        """A physical GPU of NVIDIA, as opposed to one of its virtual functions."""
        return (
            self.number("vendor") == _NVIDIA
            and (self.number("class") or 0) >> 8 in _GPU_CLASSES
            and "physfn" not in self.links
        )


def normal_address(text: str) -> str | None:
    """A PCI address as Linux writes it (`0000:3b:00.0`), from any width of domain and case; None for what is none."""
    match = _ADDRESS.fullmatch(text.strip().lower())
    if match is None:
        return None
    domain, bus, device, function = match.groups(default="0")
    return f"{int(domain, 16):04x}:{bus}:{device}.{function}"


# -- input ---------------------------------------------------------------------------------------------------


def read(root: Path) -> list[PciFunction]:
    """Every PCI function below `root` (`/sys`, or a recorded tree). Empty where there is no such tree.

    Only GPUs and what is beside them is read in full: a server has hundreds of functions.
    """
    home = root / DEVICES
    try:
        names = sorted(e.name for e in home.iterdir() if normal_address(e.name) == e.name.lower())
    except OSError:
        return []
    return [_function(home / name, name.lower()) for name in names]


def _function(path: Path, address: str) -> PciFunction:
    if _text(path / "vendor").lower() != f"{_NVIDIA:#06x}":
        # Of others only their group and what kind they are matters.
        return PciFunction(address, texts=_texts(path, ("class",)), links=_links(path, ("iommu_group",)))
    texts = _texts(path, _FILES)
    links = _links(path, ("driver", "iommu_group", "physfn"))
    parts = path.resolve().parts
    start = next((i for i, part in enumerate(parts) if part.startswith("pci") and ":" in part), len(parts))
    return PciFunction(address, tuple(parts[start:]), texts, links, tuple(_vgpus(path)))


def _texts(path: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: text for name in names if (text := _text(path / name))}


def _links(path: Path, names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        with suppress(OSError):
            found[name] = (path / name).readlink().name
    return found


def _text(path: Path) -> str:
    """What a file says; `""` where it is missing or its driver fails to answer."""
    try:
        with path.open("rb") as file:
            return file.read(_TEXT_MOST).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _vgpus(path: Path) -> Iterable[tuple[str, int]]:
    types = path / "mdev_supported_types"
    with suppress(OSError):
        for one in sorted(types.iterdir()):
            count = _text(one / "available_instances")
            yield _text(one / "name") or one.name, int(count) if count.isdecimal() else 0
    for line in _text(path / "nvidia/creatable_vgpu_types").splitlines():
        if match := _VGPU_LINE.fullmatch(line):
            yield match[2], 1


# -- facts ---------------------------------------------------------------------------------------------------


def gpus_of(functions: Iterable[PciFunction]) -> dict[str, Facts]:
    """What the tree says of each GPU, by address, in the words of `GpuNode.status.gpus`; virtual functions go to
    theirs."""
    functions = list(functions)
    gpus = {one.address: one for one in functions if one.is_gpu}
    virtual: dict[str, list[PciFunction]] = {}
    groups: dict[str, list[PciFunction]] = {}
    for one in functions:
        if parent := one.links.get("physfn"):
            virtual.setdefault(parent.lower(), []).append(one)
        if group := one.links.get("iommu_group"):
            groups.setdefault(group, []).append(one)
    facts = {}
    for address, gpu in gpus.items():
        slot = address.rpartition(".")[0]
        companions = [o.address for o in functions if o.address.startswith(f"{slot}.") and o is not gpu]
        facts[address] = {
            **_identity(gpu),
            **_group(gpu, groups),
            **_virtual(gpu, virtual.get(address, [])),
            "companions": [
                c for c in companions if not any(v.address == c for v in virtual.get(address, []))
            ],
            "peers": [
                {"pciAddress": other, "ancestor": ancestor(gpu, gpus[other])}
                for other in gpus
                if other != address
            ],
        }
    return facts


def _identity(gpu: PciFunction) -> Facts:
    device = gpu.number("device", most=0xFFFF)
    facts: Facts = {"product": "NVIDIA-GPU"}
    if device is not None:
        facts |= {"pciId": f"{_NVIDIA:04x}:{device:04x}", "product": f"NVIDIA-{device:04X}"}
    if product := PRODUCTS.get(device or 0):
        facts |= {"product": product.name, "architecture": product.architecture}
        facts["memory"] = f"{product.memory_mib}Mi"
    driver = gpu.links.get("driver", "")
    if re.fullmatch(r"[A-Za-z0-9][-A-Za-z0-9_]{0,62}", driver):
        facts["driver"] = driver
    if (numa := gpu.number("numa_node", most=1023)) is not None:
        facts["numaNode"] = numa
    # 255 and 63 lanes are what kernels say of a link that is down.
    widths = {
        "width": gpu.number("current_link_width", 1, 32),
        "maxWidth": gpu.number("max_link_width", 1, 32),
    }
    link: Facts = {name: value for name, value in widths.items() if value is not None}
    speed = gpu.texts.get("max_link_speed", "")
    if re.fullmatch(r"[0-9.]{1,8} GT/s( PCIe)?", speed):
        link["maxSpeed"] = speed
    return facts | ({"pcie": link} if link else {})


def _group(gpu: PciFunction, groups: Mapping[str, list[PciFunction]]) -> Facts:
    group = gpu.links.get("iommu_group", "")
    if not group.isdecimal() or int(group) >= 1 << 31:
        return {}
    members = [
        one.address for one in groups[group] if one is not gpu and (one.number("class") or 0) >> 16 != _BRIDGE
    ]
    return {"iommuGroup": int(group), "iommuGroupMembers": members[:64]}


def _virtual(gpu: PciFunction, functions: list[PciFunction]) -> Facts:
    facts: Facts = {}
    total = gpu.number("sriov_totalvfs", 1, 65535)
    if total is not None:
        facts["virtualFunctions"] = {"total": total, "enabled": gpu.number("sriov_numvfs", 0, 65535) or 0}
    creatable: dict[str, bool] = {}
    for one in (gpu, *functions):
        for name, count in one.vgpus:
            if TYPE_NAME.fullmatch(name):
                creatable[name] = creatable.get(name, False) or count > 0
    if creatable:
        facts["vgpuTypes"] = [{"name": name, "creatable": creatable[name]} for name in sorted(creatable)]
    return facts


def ancestor(one: PciFunction, other: PciFunction) -> str:
    """The closest that two GPUs hang on, as NVML's topology levels name it; `""` where paths are not known."""
    if not one.path or not other.path:
        return ""
    common = next(
        (i for i, (a, b) in enumerate(zip(one.path, other.path, strict=False)) if a != b), len(other.path)
    )
    if common <= 1:
        numa = one.number("numa_node")
        if common == 1:
            return "HostBridge"
        return "System" if numa is None or numa != other.number("numa_node") else "Node"
    # Below one switch each has its own downstream port under the same upstream port.
    return "Single" if max(len(one.path), len(other.path)) - common <= 2 else "Multiple"
