"""Trees as `/sys` has them, for nodes that there are not: passthrough, SR-IOV vGPU, mediated devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

GPU, AUDIO, BRIDGE, NIC = 0x030200, 0x040300, 0x060400, 0x020000


class PciTree:
    """Writes entries below `root`, in the kernel's form: links from `bus/pci/devices` into `devices`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bus/pci/devices").mkdir(parents=True)

    def add(
        self,
        address: str,
        *,
        device: int = 0x2330,
        vendor: int = 0x10DE,
        kind: int = GPU,
        below: Sequence[str] = ("pci0000:00", "0000:00:01.0"),
        driver: str = "",
        group: int | None = None,
        physical: str = "",
        mdev: Mapping[str, int] | None = None,
        creatable: Sequence[str] = (),
        **files: object,
    ) -> Path:
        """One function. `files` by name; `group` is its IOMMU group, `physical` the function it is a virtual one of."""
        home = self.root.joinpath("devices", *below, address)
        home.mkdir(parents=True)
        (self.root / "bus/pci/devices" / address).symlink_to(home)
        texts = {"vendor": f"{vendor:#06x}", "device": f"{device:#06x}", "class": f"{kind:#08x}", **files}
        for name, text in texts.items():
            (home / name).write_text(f"{text}\n")
        links = {
            "driver": f"../../bus/pci/drivers/{driver}" if driver else "",
            "iommu_group": f"../../kernel/iommu_groups/{group}" if group is not None else "",
            "physfn": f"../{physical}" if physical else "",
        }
        for name, target in links.items():
            if target:
                (home / name).symlink_to(target)
        for number, (name, count) in enumerate((mdev or {}).items()):
            folder = home / "mdev_supported_types" / f"nvidia-{number}"
            folder.mkdir(parents=True)
            (folder / "name").write_text(f"{name}\n")
            (folder / "available_instances").write_text(f"{count}\n")
        if creatable:
            (home / "nvidia").mkdir()
            lines = ["ID    : vGPU Name", *(f"{557 + n}   : {name}" for n, name in enumerate(creatable))]
            (home / "nvidia/creatable_vgpu_types").write_text("\n".join(lines) + "\n")
        return home


def passthrough(root: Path) -> PciTree:
    """Two H100s for VMs behind one switch, one with audio in its group, one on the other socket, and a network card."""
    tree = PciTree(root)
    switch = ("pci0000:00", "0000:00:01.0", "0000:15:00.0")
    link = {"current_link_width": 16, "max_link_width": 16, "max_link_speed": "32.0 GT/s PCIe"}
    tree.add("0000:00:01.0", vendor=0x8086, kind=BRIDGE, below=("pci0000:00",), group=40)
    tree.add(
        "0000:17:00.0", below=(*switch, "0000:16:00.0"), driver="vfio-pci", group=40, numa_node=0, **link
    )
    tree.add("0000:17:00.1", kind=AUDIO, below=(*switch, "0000:16:00.0"), driver="vfio-pci", group=40)
    tree.add(
        "0000:19:00.0", below=(*switch, "0000:16:01.0"), driver="vfio-pci", group=41, numa_node=0, **link
    )
    tree.add("0000:1b:00.0", vendor=0x15B3, kind=NIC, below=(*switch, "0000:16:02.0"), group=41)
    tree.add("0000:ca:00.0", below=("pci0000:c9", "0000:c9:02.0"), driver="vfio-pci", group=60, numa_node=1)
    return tree


def sriov_vgpu(root: Path) -> PciTree:
    """An L40S whose vGPUs are virtual functions, without mediated devices: one function is in use."""
    tree = PciTree(root)
    tree.add("0000:3b:00.0", device=0x26B9, driver="nvidia", sriov_totalvfs=32, sriov_numvfs=2, numa_node=0)
    types = ("NVIDIA L40S-1B", "NVIDIA L40S-24Q")
    tree.add("0000:3b:00.4", device=0x26B9, driver="nvidia", physical="0000:3b:00.0", creatable=types)
    tree.add("0000:3b:00.5", device=0x26B9, driver="nvidia", physical="0000:3b:00.0")
    return tree


def mdev_vgpu(root: Path) -> PciTree:
    """A T4 whose vGPUs are mediated devices."""
    tree = PciTree(root)
    tree.add(
        "0000:3b:00.0", device=0x1EB8, driver="nvidia", mdev={"GRID T4-16Q": 0, "GRID T4-1B": 3}, numa_node=-1
    )
    return tree
