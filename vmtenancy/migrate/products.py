"""What PCI devices are: GPUs by their ids, the other functions of their cards, and profiles of vGPUs.

Ids are facts of the public list pci.ids and of NVIDIA's and AMD's driver documentation.
"""

from __future__ import annotations

import re
from typing import Final

from vmtenancy.core.fleet.products import PRODUCTS

#: GPUs: vendor:device to the product; beside those that the agent knows, such as it has no memory or exact name for.
GPUS: Final[dict[str, str]] = {
    **{f"10de:{number:04x}": product.name for number, product in PRODUCTS.items()},
    **{"10de:13bd": "Tesla M10", "10de:13f2": "Tesla M60", "10de:17fd": "Tesla M40"},
    **{"10de:15f7": "Tesla P100 PCIe 12GB", "10de:1bb4": "Tesla P6", "10de:1db8": "Tesla V100 SXM3 32GB"},
    **{"10de:1e30": "Quadro RTX 6000", "10de:1e78": "Quadro RTX 6000", "10de:1eb0": "Quadro RTX 5000"},
    **{"10de:1eb1": "Quadro RTX 4000", "10de:20b1": "A100 PCIe 40GB", "10de:20b3": "A100 SXM 64GB"},
    **{"10de:20f3": "A800 SXM4 80GB", "10de:20f5": "A800 PCIe 80GB", "10de:25b6": "A2"},
    **{
        "10de:2232": "RTX A4500",
        "10de:2233": "RTX A5500",
        "10de:24b0": "RTX A4000",
        "10de:2531": "RTX A2000",
    },
    **{"10de:2571": "RTX A2000 12GB", "10de:2322": "H800 PCIe 80GB", "10de:2324": "H800 SXM5 80GB"},
    **{"10de:2342": "GH200 480GB", "10de:1c82": "GeForce GTX 1050 Ti", "10de:1b80": "GeForce GTX 1080"},
    **{"10de:1b06": "GeForce GTX 1080 Ti", "10de:1e07": "GeForce RTX 2080 Ti"},
    **{"10de:2204": "GeForce RTX 3090", "10de:2206": "GeForce RTX 3080", "10de:2203": "GeForce RTX 3090 Ti"},
    **{"10de:2208": "GeForce RTX 3080 Ti", "10de:2484": "GeForce RTX 3070"},
    **{"10de:2486": "GeForce RTX 3060 Ti", "10de:2503": "GeForce RTX 3060", "10de:2684": "GeForce RTX 4090"},
    **{"10de:2704": "GeForce RTX 4080", "10de:2786": "GeForce RTX 4070", "1002:66a1": "Instinct MI50"},
    **{"1002:738c": "Instinct MI100", "1002:738e": "Instinct MI100", "1002:7408": "Instinct MI250X"},
    **{"1002:740c": "Instinct MI250", "1002:740f": "Instinct MI210", "1002:74a0": "Instinct MI300A"},
    **{"1002:74a1": "Instinct MI300X", "1002:74a5": "Instinct MI325X", "1002:73a1": "Radeon Pro V620"},
    **{"1002:73ae": "Radeon Pro V620", "1002:7362": "Radeon Pro V520", "1002:6860": "Instinct MI25"},
    **{"1002:6864": "Radeon Pro V340", "8086:56c0": "Data Center GPU Flex 170"},
    **{"8086:56c1": "Data Center GPU Flex 140", "8086:0bd5": "Data Center GPU Max 1550"},
    **{"8086:0bda": "Data Center GPU Max 1100"},
}
#: Audio, USB and Type-C functions that sit on a GPU's card.
_FUNCTIONS: Final = {
    "10de": (
        *("0e0a", "0e0b", "0e0f", "0e1a", "0e1b", "0fb0", "0fb8", "0fb9", "0fba", "0fbb", "0fbc", "10ef"),
        *("10f0", "10f1", "10f7", "10f8", "10f9", "1ad6", "1ad7", "1ad8", "1ad9", "1ada", "1adb", "1aeb"),
        *("1aec", "1aed", "1aef", "228b", "228e", "22ba", "22bb", "22bc", "22bd", "22be"),
    ),
    "1002": ("aae0", "aae8", "aaf0", "aaf8", "ab00", "ab28", "ab30", "ab38"),
}
CARD_FUNCTIONS: Final = frozenset(f"{vendor}:{id_}" for vendor, ids in _FUNCTIONS.items() for id_ in ids)
#: Devices of makers of GPUs that are none.
_OTHERS: Final = {
    "10de:1af1": "NVSwitch",
    "10de:22a3": "NVSwitch",
    "15b3": "network adapter",
    "14e4": "network adapter",
    "144d": "NVMe drive",
}
#: PCI classes, by the first digits of their number.
_CLASSES: Final = {
    "03": "gpu",
    "0403": "audio",
    "0c03": "usb controller",
    "02": "network adapter",
    "0108": "NVMe drive",
    "01": "storage controller",
    "1200": "accelerator",
}
_PROFILE: Final = re.compile(
    r"(?:(?:grid|nvidia)[ _-]*)?"
    r"((?:rtx(?:[ _-]?pro)?[ _-]?)?[a-z]{0,3}\d{1,4}[a-z0-9]*(?:-\d+)??)-"
    r"(\d+(?:-\d+)?[abcq]\d?(?:me)?(?:nogfx|gfx)?)",
    re.I,
)
_GPU_MDEVS: Final = ("nvidia-", "i915-gvtg", "mxgpu")


def pci_kind(ids: str, class_: str = "") -> str:
    """`gpu`, or what else a PCI device is: by its ids, else by its class (hex digits); `""` where neither says it."""
    if ids in GPUS:
        return "gpu"
    if ids in CARD_FUNCTIONS:
        return "function of a GPU's card"
    known = _OTHERS.get(ids) or _OTHERS.get(ids.partition(":")[0])
    if known:
        return known
    for length in (4, 2):
        if class_[:length] in _CLASSES:
            return _CLASSES[class_[:length]]
    return ""


def vgpu_profile(name: str) -> str:
    """The profile that the name of an mdev type or vGPU says: `A100-8C` of `grid_a100-8c`; `""`: it says none."""
    match = _PROFILE.fullmatch(name.strip())
    return f"{match[1]}-{match[2]}".upper() if match else ""


def is_gpu_mdev(name: str) -> bool:
    """Whether the name of an mdev type is one that a GPU's driver gives."""
    return bool(vgpu_profile(name)) or name.lower().startswith(_GPU_MDEVS)


def suggested_class(product: str) -> str:
    """A name that a GpuClass for this product may well have: `h100-80gb-hbm3` of `NVIDIA-H100-80GB-HBM3`."""
    return (
        re.sub(r"[^a-z0-9.]+", "-", product.lower())
        .strip("-.")
        .removeprefix("nvidia-")
        .removeprefix("tesla-")
    )
