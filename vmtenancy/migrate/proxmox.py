"""Proxmox VE's machine configurations (`/etc/pve/qemu-server/VMID.conf`). Rules: its manual page qm.conf(5)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Final
from urllib.parse import unquote

from vmtenancy.migrate.cloudinit import cloud_init
from vmtenancy.migrate.keys import Keys
from vmtenancy.migrate.model import (
    DISPLAY,
    Cpu,
    Device,
    Drive,
    DriveSource,
    Firmware,
    Guest,
    Lost,
    Machine,
    Memory,
    Nic,
)
from vmtenancy.migrate.qemu_args import read_args
from vmtenancy.migrate.text import integer, pci_address, refuse, shown

_KEY: Final = re.compile(r"[A-Za-z][\w-]*")
_SECTION: Final = re.compile(r"\[([^\]]+)\]")
_DRIVE: Final = re.compile(r"(ide|sata|scsi|virtio)(\d{1,4})")
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)([KMGT]?)i?B?", re.I)
_MEMORY_MIB: Final = 512  # what Proxmox takes where nothing is said
_USB_IDS: Final = re.compile(r"(?:0x)?([0-9a-f]{4}):(?:0x)?([0-9a-f]{4})", re.I)
#: How Proxmox runs it, and what it remembers of it: nothing of the machine's own.
_HOST_ONLY: Final = (
    *(
        "agent",
        "cpulimit",
        "cpuunits",
        "hotplug",
        "keyboard",
        "kvm",
        "lock",
        "meta",
        "migrate_",
        "parent",
        "protection",
    ),
    *(
        "reboot",
        "scsihw",
        "shares",
        "snaptime",
        "startup",
        "template",
        "vmgenid",
        "vmstate",
        "acpi",
        "freeze",
    ),
    *(
        "runningcpu",
        "runningmachine",
        "running-nets-host-mtu",
        "allow-ksm",
        "efidisk",
        "tpmstate",
        "smp",
        "bootdisk",
    ),
)
_WINDOWS: Final = ("win8", "win10", "win11")
#: The enlightenments that Proxmox gives to Windows from 8 on.
_HYPERV: Final = ("relaxed", "vapic", "vpindex", "runtime", "synic", "synictimer", "reset", "tlbflush", "ipi")
_CPU_MODELS: Final = {"host": "host-passthrough", "max": "host-passthrough"}


def read(data: bytes) -> tuple[Machine]:
    """The machine of a configuration as it is now; snapshots are not read. Raises VmtError (SOURCE)."""
    lost: list[Lost] = []
    values, notes = _entries(data, lost)
    keys = Keys(values)
    keys.skip(_HOST_ONLY)
    args = read_args([("args", part) for part in _split(keys.get("args"))])
    cpu, hidden, vendor = _cpu(keys, lost)
    devices = [*_hostpci(keys, lost), *_usb(keys, lost), *args.devices]
    devices += [
        Device(key, "other", hint=f"parallel port {keys.get(key)}") for key in _named(keys, "parallel")
    ]
    devices += [
        Device(key, "other", hint=f"serial port {keys.get(key)}")
        for key in _named(keys, "serial")
        if keys.get(key).startswith("/dev/")
    ]
    drives, has_cloud_drive = _drives(keys, _boot(keys), lost)
    windows = keys.get("ostype") in _WINDOWS
    efi = keys.get("bios", "seabios") == "ovmf"
    smbios = _properties(keys.get("smbios1"), "uuid")
    tpm = any(key.startswith("tpmstate") for key in keys)
    if tpm:
        lost.append(
            Lost("tpmstate0", "its state", "a TPM begins anew: what it sealed needs its recovery key")
        )
    efidisk = _properties(keys.get("efidisk0"), "file")
    if efidisk:
        lost.append(Lost("efidisk0", efidisk.get("file", ""), "EFI variables begin anew"))
    vga = _properties(keys.get("vga", "std"), "type").get("type", "std")
    machine = _properties(keys.get("machine"), "type")
    for key, value in machine.items():
        if key != "type":
            lost.append(Lost(f"machine/{key}", value, "no field of a KubeVirt machine takes it"))
    serials = _named(keys, "serial")
    nics = _nics(keys, _boot(keys), lost)
    found = Machine(
        name=keys.get("name"),
        cpu=cpu,
        memory=_memory(keys, lost),
        firmware=Firmware(
            efi,
            efi and efidisk.get("pre-enrolled-keys") == "1",
            tpm,
            smbios.get("uuid", ""),
            "" if smbios.get("base64") == "1" else smbios.get("serial", ""),
        ),
        guest=Guest(
            arch=keys.get("arch", "x86_64"),
            machine=machine.get("type", "pc"),
            hyperv=_HYPERV if windows else (),
            spinlocks=8191 if windows else 0,
            vendor_id=vendor or args.vendor_id,
            kvm_hidden=hidden or args.kvm_hidden,
            serial_console=bool(serials),
            display=vga != "none",
            tablet=keys.flag("tablet", default=True) and vga != "none",
            rng=bool(keys.get("rng0")),
        ),
        drives=tuple(drives),
        nics=tuple(nics),
        devices=tuple(devices),
        cloud_init=cloud_init(keys, [nic.mac for nic in nics], lost) if has_cloud_drive else None,
        autostart=keys.flag("onboot"),
        os=keys.get("ostype"),
        tags=tuple(filter(None, re.split(r"[;, ]+", keys.get("tags")))),
        notes=notes,
    )
    if keys.flag("localtime", default=keys.get("ostype").startswith("w")):
        lost.append(Lost("localtime", "1", "the machine's clock is UTC: Windows has to be told"))
    return (replace(found, lost=(*lost, *args.lost, *keys.unread())),)


def _entries(data: bytes, lost: list[Lost]) -> tuple[dict[str, str], str]:
    """The entries before the first section, and the notes in their comments."""
    values: dict[str, str] = {}
    notes: list[str] = []
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        if section := _SECTION.fullmatch(line.strip()):
            if section[1].upper() == "PENDING":
                lost.append(Lost("[PENDING]", "(present)", "changes that were never applied are not read"))
            break
        if line.startswith("#"):
            notes.append(unquote(line[1:]))
            continue
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or not _KEY.fullmatch(key):
            raise refuse(f"line {number}", "is no entry", key[:40], "key: value")
        values[key] = value
    if not values:
        raise refuse("", "has no entries", expected="lines of key: value")
    if described := values.pop("description", ""):
        notes.append(unquote(described))
    return values, "\n".join(notes)


def _split(args: str) -> list[str]:
    try:
        return shlex.split(args)
    except ValueError as error:
        raise refuse("args", "can not be split", str(error), "arguments with closed quotes") from None


def _properties(text: str, first: str) -> dict[str, str]:
    """A property string: `a,b=1` with the key of what has none."""
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        found[key.strip() if equals else first] = value.strip() if equals else key
    return found


def _named(keys: Keys, prefix: str) -> list[str]:
    """The keys of a prefix and a number, by number."""
    found = [key for key in keys if re.fullmatch(rf"{prefix}\d{{1,4}}", key)]
    return sorted(found, key=lambda key: int(key.removeprefix(prefix)))


def _cpu(keys: Keys, lost: list[Lost]) -> tuple[Cpu, bool, str]:
    sockets, cores = keys.number("sockets", 1, least=1), keys.number("cores", 1, least=1)
    most = sockets * cores
    now = keys.number("vcpus", most, least=1)
    if now > most:
        raise refuse("vcpus", "is more than there are", str(now), f"at most {most}")
    given = _properties(keys.get("cpu"), "cputype")
    type_ = given.pop("cputype", "")
    model = _CPU_MODELS.get(type_, type_)
    if type_.startswith(("x86-64-v", "custom-")):
        lost.append(
            Lost("cpu/cputype", type_, "KubeVirt has no such model: the cluster's default comes next")
        )
        model = ""
    features = []
    for flag in filter(None, given.pop("flags", "").split(";")):
        if flag[0] not in "+-" or len(flag) < 2:
            raise refuse("cpu/flags", "invalid value", flag, "+FLAG or -FLAG, more after semicolons")
        features.append((flag[1:], "require" if flag[0] == "+" else "disable"))
    hidden, vendor = given.pop("hidden", "0") == "1", given.pop("hv-vendor-id", "")
    lost += [Lost(f"cpu/{k}", v, "no field of a KubeVirt machine takes it") for k, v in given.items()]
    cells = _named(keys, "numa")
    for key in cells:
        keys.get(key)
    keys.get("numa")
    cpu = Cpu(
        vcpus=now,
        maximum=most,
        sockets=sockets,
        cores=cores,
        threads=1,
        model=model,
        features=tuple(features),
        pinned=bool(keys.get("affinity")),
        numa_cells=len(cells) or (sockets if keys.flag("numa") else 0),
    )
    return cpu, hidden, vendor


def _memory(keys: Keys, lost: list[Lost]) -> Memory:
    text = _properties(keys.get("memory", str(_MEMORY_MIB)), "current").get("current", "")
    amount = integer("memory", text, least=1) << 20
    balloon = keys.get("balloon")
    if balloon not in ("", "0") and integer("balloon", balloon) << 20 < amount:
        lost.append(Lost("balloon", balloon, "the machine has all of its memory from the start"))
    page = {"": 0, "any": 2 << 20, "2": 2 << 20, "1024": 1 << 30}.get(keys.get("hugepages"))
    if page is None:
        raise refuse("hugepages", "invalid value", keys.get("hugepages"), "any, 2 or 1024")
    keys.get("keephugepages")
    return Memory(amount, page=page)


def _boot(keys: Keys) -> dict[str, int]:
    """The boot order by device: of `order=…`, else of the letters that were there before, with `bootdisk`."""
    given = _properties(keys.get("boot"), "legacy")
    if "order" in given:
        devices = filter(None, given["order"].split(";"))
        return {device.strip(): index for index, device in enumerate(devices, 1)}
    disk = keys.get("bootdisk")
    return {disk: 1} if disk else {}


def _drives(keys: Keys, order: dict[str, int], lost: list[Lost]) -> tuple[list[Drive], bool]:
    found, cloud = [], False
    adapter = keys.get("scsihw") or "lsi"
    matches = [match for key in keys if (match := _DRIVE.fullmatch(key))]
    for match in sorted(matches, key=lambda match: (match[1], int(match[2]))):
        key = match[0]
        given = _properties(keys.get(key), "file")
        file = given.get("file") or given.get("volume", "")
        if re.search(r"[:/-]cloudinit(\.\w+)?$", file) or file == "cloudinit":
            cloud = True
            continue
        cdrom = given.get("media") == "cdrom" or file == "cdrom"
        source = _source(file)
        cache = given.get("cache", "")
        for tuning in ("iops", "mbps", "bps"):
            for name in [name for name in given if name.startswith(tuning)]:
                lost.append(Lost(f"{key}/{name}", given[name], "KubeVirt does not limit disks"))
        found.append(
            Drive(
                path=key,
                name=key,
                device="cdrom" if cdrom else "disk",
                source=source,
                location="" if source == "empty" else file,
                format=given.get("format", "") or file.rpartition(".")[2] * ("." in file),
                bus=match[1] if match[1] != "scsi" or adapter.startswith("virtio") else adapter,
                size=_size(f"{key}/size", given.get("size", "")),
                boot=order.get(key, 0),
                serial=unquote(given.get("serial", "")),
                readonly=given.get("ro") == "1",
                cache=cache if cache in ("none", "writethrough", "writeback") else "",
            )
        )
    for key in _named(keys, "unused"):
        lost.append(Lost(key, keys.get(key), "the machine had no use of it"))
    return found, cloud


def _source(file: str) -> DriveSource:
    if file in ("none", "cdrom", ""):
        return "empty"
    if file.startswith("/dev/"):
        return "block"
    return "file" if file.startswith("/") else "volume"


def _size(path: str, text: str) -> int:
    if not text:
        return 0
    match = _SIZE.fullmatch(text)
    if match is None:
        raise refuse(path, "invalid value", text, "a size, for example 32G")
    return int(float(match[1]) * 1024 ** " KMGT".index((match[2] or " ").upper()))


def _nics(keys: Keys, order: dict[str, int], lost: list[Lost]) -> list[Nic]:
    found = []
    for key in _named(keys, "net"):
        given = _properties(keys.get(key), "model")
        model, mac = given.pop("model", ""), given.pop("macaddr", "")
        for name in list(given):
            if re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", given[name], re.I):
                model, mac = name, given.pop(name)
        bridge, tag = given.pop("bridge", ""), given.pop("tag", "")
        for name in ("firewall", "queues"):
            given.pop(name, None)
        lost += [Lost(f"{key}/{n}", v, "no field of a KubeVirt machine takes it") for n, v in given.items()]
        found.append(
            Nic(
                path=key,
                network=f"bridge:{bridge}" if bridge else "user",
                mac=mac.lower(),
                model=model,
                vlan=integer(f"{key}/tag", tag, least=1, most=4094) if tag else 0,
                nat=not bridge,
                boot=order.get(key, 0),
            )
        )
    return found


def _hostpci(keys: Keys, lost: list[Lost]) -> Iterator[Device]:
    for key in _named(keys, "hostpci"):
        given = _properties(keys.get(key), "host")
        hosts, mapping, mdev = given.pop("host", ""), given.pop("mapping", ""), given.pop("mdev", "")
        hint = DISPLAY if given.get("x-vga") == "1" or given.get("legacy-igd") == "1" else ""
        for name in ("pcie", "rombar", "x-vga", "legacy-igd", "ramfb", "driver"):
            given.pop(name, None)
        # Ids here are what the guest was told, not what the device is.
        lost += [Lost(f"{key}/{n}", v, "no field of a KubeVirt machine takes it") for n, v in given.items()]
        addresses = [pci_address(one) for one in filter(None, hosts.split(";"))]
        if None in addresses or not (addresses or mapping):
            raise refuse(
                key, "invalid value", keys.get(key), "a PCI address, 01:00 or 0000:01:00.0, or mapping="
            )
        for address in addresses or [""]:
            if mdev:
                yield Device(key, "mdev", address=address or "", name=mdev, hint=mapping)
            else:
                yield Device(key, "pci", address=address or "", name=mapping, hint=hint)


def _usb(keys: Keys, lost: list[Lost]) -> Iterator[Device]:
    for key in _named(keys, "usb"):
        given = _properties(keys.get(key), "host")
        host, mapping = given.get("host", ""), given.get("mapping", "")
        if host == "spice":
            lost.append(Lost(key, "spice", "a USB port of the remote display"))
        elif ids := _USB_IDS.fullmatch(host):
            yield Device(key, "usb", ids=f"{ids[1]}:{ids[2]}".lower())
        else:
            yield Device(key, "usb", name=host or mapping, hint=shown(key, keys.get(key)))
