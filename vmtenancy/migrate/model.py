"""The neutral model: a machine as any source describes it. Readers make it, `objects` writes it.

Sizes are bytes. Every `path` is a place in the source, as its reader names it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

#: What a drive is stored on. `volume`: a pool or service of the source names it; `empty`: no medium.
DriveSource = Literal["file", "block", "rbd", "iscsi", "nfs", "http", "nvme", "volume", "empty"]
#: `vgpu` is known by a profile and no address, `dynamic` by the ids that are allowed.
DeviceBus = Literal["pci", "mdev", "vgpu", "dynamic", "usb", "scsi", "other"]

#: The hint of a device that the source itself calls the machine's display: a GPU, whatever its ids.
DISPLAY: Final = "the machine's display"


@dataclass(frozen=True, slots=True)
class Lost:
    """One thing of the source that the objects do not have, and why."""

    path: str
    found: str
    why: str


@dataclass(frozen=True, slots=True)
class Cpu:
    """`vcpus` at boot and `maximum`. A topology of zeros was not given; `pinned`: each vCPU had cores of its own."""

    vcpus: int = 1
    maximum: int = 1
    sockets: int = 0
    cores: int = 0
    threads: int = 0
    model: str = ""
    features: tuple[tuple[str, str], ...] = ()
    pinned: bool = False
    numa_cells: int = 0

    @property
    def topology(self) -> tuple[int, int, int]:
        """Sockets, cores and threads whose product is `vcpus`; all vCPUs are cores where the source's is not."""
        given = (self.sockets or 1, self.cores or 1, self.threads or 1)
        return given if given[0] * given[1] * given[2] == self.vcpus else (1, self.vcpus, 1)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at boot, and the most it could grow to. `page` is the size of huge pages in bytes, 0: none."""

    bytes: int
    maximum: int = 0
    page: int = 0


@dataclass(frozen=True, slots=True)
class Firmware:
    """How it boots. `tpm`: whether it has a TPM."""

    efi: bool = False
    secure_boot: bool = False
    tpm: bool = False
    uuid: str = ""
    serial: str = ""


@dataclass(frozen=True, slots=True)
class Guest:
    """What the guest sees beside its devices.

    `timers` by name: what is set, as KubeVirt names it. `hyperv`: enlightenments as KubeVirt names them.
    """

    arch: str = "x86_64"
    machine: str = ""
    timezone: str = ""
    timers: tuple[tuple[str, tuple[tuple[str, str | bool], ...]], ...] = ()
    hyperv: tuple[str, ...] = ()
    spinlocks: int = 0
    vendor_id: str = ""
    kvm_hidden: bool = False
    serial_console: bool | None = None
    display: bool | None = None
    tablet: bool = False
    rng: bool = False


@dataclass(frozen=True, slots=True)
class Drive:
    """A disk or cdrom. `name` is where it is plugged in, `location` where its data is, `size` 0 where not said."""

    path: str
    name: str
    device: Literal["disk", "cdrom", "lun"]
    source: DriveSource
    location: str = ""
    format: str = ""
    bus: str = ""
    size: int = 0
    boot: int = 0
    serial: str = ""
    readonly: bool = False
    cache: str = ""
    shareable: bool = False
    url: str = ""


@dataclass(frozen=True, slots=True)
class Nic:
    """A network interface. `network` is `kind:name` as the source has it; `nat`: it was behind the host's address."""

    path: str
    network: str
    mac: str = ""
    model: str = ""
    vlan: int = 0
    sriov: bool = False
    nat: bool = False
    boot: int = 0
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the host that the machine was given.

    `address` is domain:bus:slot.function, without `.function` for all of a card; `ids` are vendor:device in hex;
    `name` is what the source calls it: an mdev type, a vGPU profile, a mapping, an alias; `hint` says what it may be.
    `allowed` are ids any of which would do.
    """

    path: str
    bus: DeviceBus
    address: str = ""
    ids: str = ""
    name: str = ""
    uuid: str = ""
    allowed: tuple[str, ...] = ()
    hint: str = ""

    @property
    def slot(self) -> str:
        """The card: the address without its function."""
        return self.address.partition(".")[0]


@dataclass(frozen=True, slots=True)
class CloudInit:
    """What the source gives the guest at first boot; it goes into a Secret and nowhere else."""

    user_data: str = field(default="", repr=False)
    network_data: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of any source. `lost`: what its reader found and no field here holds."""

    name: str
    cpu: Cpu
    memory: Memory
    firmware: Firmware = Firmware()
    guest: Guest = Guest()
    drives: tuple[Drive, ...] = ()
    nics: tuple[Nic, ...] = ()
    devices: tuple[Device, ...] = ()
    cloud_init: CloudInit | None = None
    autostart: bool = False
    os: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""
    lost: tuple[Lost, ...] = ()

    @property
    def disks(self) -> tuple[Drive, ...]:
        """Drives that hold data."""
        return tuple(drive for drive in self.drives if drive.device != "cdrom")

    @property
    def cdroms(self) -> tuple[Drive, ...]:
        """Drives for media."""
        return tuple(drive for drive in self.drives if drive.device == "cdrom")
