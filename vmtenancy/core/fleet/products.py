"""Products of NVIDIA by PCI device id: of GPUs that NVML can not see (bound to vfio-pci, another driver, or none), and
of those that machines of other platforms had.

Ids as in the PCI ID database (https://pci-ids.ucw.cz); names as GPU feature discovery writes them: NVML's name, `-`
for a space. Ids that stand for boards of several names or sizes are left out: a guess would put a GPU into the
wrong pool.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Product(NamedTuple):
    """What a PCI device id stands for.

    `memory_mib` is what drivers report with ECC as the board ships, so that a GPU has the same memory in all modes.
    """

    name: str
    architecture: str
    memory_mib: int


PRODUCTS: Final = {
    0x15F8: Product("Tesla-P100-PCIE-16GB", "Pascal", 16384),
    0x15F9: Product("Tesla-P100-SXM2-16GB", "Pascal", 16384),
    0x1B38: Product("Tesla-P40", "Pascal", 23040),
    0x1BB3: Product("Tesla-P4", "Pascal", 7680),
    0x1DB1: Product("Tesla-V100-SXM2-16GB", "Volta", 16384),
    0x1DB4: Product("Tesla-V100-PCIE-16GB", "Volta", 16384),
    0x1DB5: Product("Tesla-V100-SXM2-32GB", "Volta", 32768),
    0x1DB6: Product("Tesla-V100-PCIE-32GB", "Volta", 32768),
    0x1DF6: Product("Tesla-V100S-PCIE-32GB", "Volta", 32768),
    0x1EB8: Product("Tesla-T4", "Turing", 15360),
    0x20B0: Product("NVIDIA-A100-SXM4-40GB", "Ampere", 40960),
    0x20B2: Product("NVIDIA-A100-SXM4-80GB", "Ampere", 81920),
    0x20B5: Product("NVIDIA-A100-80GB-PCIe", "Ampere", 81920),
    0x20B7: Product("NVIDIA-A30", "Ampere", 24576),
    0x20F1: Product("NVIDIA-A100-PCIE-40GB", "Ampere", 40960),
    0x2230: Product("NVIDIA-RTX-A6000", "Ampere", 49140),
    0x2231: Product("NVIDIA-RTX-A5000", "Ampere", 24564),
    0x2235: Product("NVIDIA-A40", "Ampere", 46068),
    0x2236: Product("NVIDIA-A10", "Ampere", 23028),
    0x2237: Product("NVIDIA-A10G", "Ampere", 23028),
    0x2321: Product("NVIDIA-H100-NVL", "Hopper", 95830),
    0x2330: Product("NVIDIA-H100-80GB-HBM3", "Hopper", 81559),
    0x2331: Product("NVIDIA-H100-PCIe", "Hopper", 81559),
    0x2335: Product("NVIDIA-H200", "Hopper", 143771),
    0x233B: Product("NVIDIA-H200-NVL", "Hopper", 143771),
    0x26B1: Product("NVIDIA-RTX-6000-Ada-Generation", "Ada", 49140),
    0x26B5: Product("NVIDIA-L40", "Ada", 46068),
    0x26B9: Product("NVIDIA-L40S", "Ada", 46068),
    0x27B8: Product("NVIDIA-L4", "Ada", 23034),
    0x2901: Product("NVIDIA-B200", "Blackwell", 183359),
}
