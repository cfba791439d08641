"""VMware's .vmx. Rules: VMware's documentation of the keys, and what its hosts write."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Final

from vmtenancy.migrate.keys import Keys
from vmtenancy.migrate.model import CloudInit, Cpu, Device, Drive, Firmware, Guest, Lost, Machine, Memory, Nic
from vmtenancy.migrate.text import integer, pci_address, pci_ids, refuse

_ESCAPE: Final = re.compile(r"\|([0-9A-Fa-f]{2})")
_DRIVE: Final = re.compile(r"(scsi|sata|ide|nvme)(\d+):(\d+)\.present")
_NIC: Final = re.compile(r"ethernet(\d+)\.present")
_PCI: Final = re.compile(r"pcipassthru(\d+)\.present")
_USB: Final = re.compile(r"usb\.autoconnect\.device(\d+)")
_DECIMAL_ADDRESS: Final = re.compile(r"\d{5}:\d{3}:\d{2}\.\d")
_MEMORY_MIB: Final = 32  # what VMware takes where nothing is said
#: How VMware's hosts run it, what they remember of it, and how it is wired: nothing of the machine's own.
_HOST_ONLY: Final = (
    *(
        ".encoding",
        "config.version",
        "virtualhw.",
        "pcibridge",
        "vmci",
        "extendedconfigfile",
        "sched.",
        "numa.",
    ),
    *(
        "migrate.",
        "vmotion.",
        "monitor.",
        "replay.",
        "checkpoint.",
        "cleanshutdown",
        "softpoweroff",
        "hpet0.",
    ),
    *(
        "powertype.",
        "tools.",
        "toolscripts.",
        "toolsinstallmanager.",
        "uuid.location",
        "uuid.action",
        "vc.uuid",
    ),
    *("vm.genid", "vm.createdate", "guestcpuid.", "hostcpuid.", "usercpuid.", "evccompatibilitymode", "log."),
    *(
        "mks.",
        "isolation.",
        "time.synchronize.",
        "remotedisplay.maxconnections",
        "svga.",
        "memallowautoscaledown",
    ),
    *(
        "deploymentplatform",
        "virtualhw.productcompatibility",
        "disk.enableuuid",
        "ftcpt.",
        "vmxstats.",
        "viv.",
    ),
    *(
        "nvp.",
        "vio.",
        "guestinfo.detailed.",
        "guestos.detailed.",
        "config.readonly",
        "invmteam",
        "workingdir",
    ),
    *(
        "guestosaltname",
        "chipset.onlinestandby",
        "bios.bootretry",
        "bios.bootdelay",
        "ctkenabled",
        "tpm.",
        "vtpm.",
    ),
)
#: The order in which disks are found where nothing else is said.
_BOOTS: Final = ("scsi", "sata", "ide", "nvme")
_DRIVE_HOST_ONLY: Final = (
    *("redo", "mode", "ctkenabled", "writethrough", "autodetect", "startconnected", "clientdevice", "shared"),
    *("exclusive", "virtualssd", "allowguestconnectioncontrol"),
)
_NIC_HOST_ONLY: Final = (
    *(
        "addresstype",
        "generatedaddressoffset",
        "pcislotnumber",
        "wakeonpcktrcv",
        "startconnected",
        "features",
    ),
    *(
        "uptcompatibility",
        "pvnid",
        "shares",
        "externalid",
        "dvs.",
        "checkmacaddress",
        "linkstatepropagation.",
    ),
    *("allowguestconnectioncontrol", "opaquenetwork.type"),
)
_PCI_HOST_ONLY: Final = ("pcislotnumber", "systemid", "pfid", "dvs.", "migratesupported")


def read(data: bytes) -> tuple[Machine]:
    """The machine of a .vmx. Raises VmtError (SOURCE)."""
    keys = Keys(_entries(data))
    if any(key.startswith("encryption.") for key in keys):
        raise refuse("encryption.data", "is encrypted", expected="a machine that was decrypted first")
    lost: list[Lost] = []
    keys.skip(_HOST_ONLY)
    devices, sriov = _devices(keys)
    drives, scsi = _drives(keys)
    tpm = keys.flag("vtpm.present")
    if tpm:
        lost.append(
            Lost("vtpm.present", "its state", "a TPM begins anew: what it sealed needs its recovery key")
        )
    efi = keys.get("firmware", "bios").lower() == "efi"
    if efi and keys.get("nvram"):
        lost.append(Lost("nvram", keys.get("nvram"), "EFI variables begin anew"))
    keys.get("nvram")
    hidden = keys.get("hypervisor.cpuid.v0").upper() == "FALSE"
    for key in ("pciPassthru.use64bitMMIO", "pciPassthru.64bitMMIOSizeGB"):
        if keys.get(key):
            why = "KubeVirt's machines have room for the memory of large devices by themselves"
            lost.append(Lost(keys.spelt(key), keys.get(key), why))
    consoles = _consoles(keys, lost)
    machine = Machine(
        name=keys.get("displayName"),
        cpu=_cpu(keys),
        memory=_memory(keys),
        firmware=Firmware(efi, efi and keys.flag("uefi.secureBoot.enabled"), tpm, _uuid(keys)),
        guest=Guest(kvm_hidden=hidden, serial_console=consoles),
        drives=tuple(drives),
        nics=(*_nics(keys), *sriov),
        devices=(*devices, *scsi),
        cloud_init=_cloud_init(keys, lost),
        autostart=False,
        os=keys.get("guestOS"),
        notes=keys.get("annotation"),
        lost=(*lost, *keys.unread()),
    )
    return (machine,)


def _entries(data: bytes) -> dict[str, str]:
    head = re.search(rb'^[ \t]*\.encoding[ \t]*=[ \t]*"([^"]*)"', data, re.I | re.M)
    encoding = head[1].decode("ascii", "replace") if head else "utf-8"
    try:
        text = data.decode(encoding)
    except (LookupError, ValueError):  # no such encoding, or not in it
        text = data.decode("latin-1" if encoding.lower() in ("utf-8", "utf8") else "utf-8", "replace")
    entries: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip().lstrip("\ufeff")
        if not stripped or stripped.startswith("#"):
            continue
        key, equals, value = (part.strip() for part in stripped.partition("="))
        quoted = len(value) > 1 and value[0] == value[-1] == '"'
        if not key or not equals or (not quoted and '"' in value):
            raise refuse(f"line {number}", "is no entry", key[:40], 'key = "value"')
        value = value[1:-1] if quoted else value
        entries[key] = _ESCAPE.sub(lambda code: chr(int(code[1], 16)), value)
    if not entries:
        raise refuse("", "has no entries", expected='lines of key = "value"')
    if not any(key.lower() in ("config.version", "virtualhw.version", "displayname") for key in entries):
        raise refuse("config.version", "is required", expected="a .vmx of VMware")
    return entries


def _cpu(keys: Keys) -> Cpu:
    vcpus = keys.number("numvcpus", 1, least=1)
    per_socket = keys.number("cpuid.coresPerSocket", 1, least=1)
    whole = vcpus % per_socket == 0
    affinity = keys.get("sched.cpu.affinity", "all").strip().lower()
    return Cpu(
        vcpus=vcpus,
        maximum=vcpus,
        sockets=vcpus // per_socket if whole else 1,
        cores=per_socket if whole else vcpus,
        threads=1,
        pinned=affinity not in ("", "all"),
    )


def _memory(keys: Keys) -> Memory:
    mebibytes = keys.number("memsize", _MEMORY_MIB, least=1)
    page = 1 << 30 if keys.flag("sched.mem.lpage.enable1GPage") else 0
    return Memory(mebibytes << 20, page=page)


def _uuid(keys: Keys) -> str:
    digits = re.sub(r"[^0-9a-f]", "", keys.get("uuid.bios").lower())
    if len(digits) != 32:
        return keys.get("uuid.bios")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _numbered(keys: Keys, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """The keys of a pattern, by their numbers."""
    matches = [match for key in keys if (match := pattern.fullmatch(key))]
    return sorted(matches, key=lambda match: [group.rjust(6) for group in match.groups()])


def _drives(keys: Keys) -> tuple[list[Drive], list[Device]]:
    drives, scsi = [], []
    first = keys.get("bios.hddOrder").partition(",")[0]
    for match in sorted(_numbered(keys, _DRIVE), key=lambda match: _BOOTS.index(match[1])):
        bus, name = match[1], f"{match[1]}{match[2]}:{match[3]}"
        keys.skip(f"{name}.{extra}" for extra in _DRIVE_HOST_ONLY)
        kind, file = keys.get(f"{name}.deviceType").lower(), keys.get(f"{name}.fileName")
        if not keys.flag(f"{name}.present"):
            keys.skip([f"{name}."])
            continue
        if kind == "scsi-passthru":
            scsi.append(Device(name, "scsi", hint=file))
            continue
        cdrom = kind in ("cdrom-image", "cdrom-raw", "atapi-cdrom") or (
            not kind and file.lower().endswith(".iso")
        )
        client = keys.flag(f"{name}.clientDevice")
        raw = kind in ("cdrom-raw", "atapi-cdrom")
        location = "" if client or file.lower() in ("auto detect", "emptybackingstring") else file
        drives.append(
            Drive(
                path=name,
                name=name.replace(":", "d"),
                device="cdrom" if cdrom else "disk",
                source="empty" if not location or (cdrom and raw) else "file",
                location=location,
                format="" if cdrom else "vmdk",
                bus=keys.get(f"scsi{match[2]}.virtualDev", "lsilogic") if bus == "scsi" else bus,
                boot=int(name == first),
                shareable=keys.get(f"{bus}{match[2]}.sharedBus", "none").lower() not in ("none", ""),
            )
        )
    for key in list(keys):
        if re.fullmatch(r"(scsi|sata|ide|nvme)\d+\.\w+", key):
            keys.get(key)  # the controllers
    return drives, scsi


def _nics(keys: Keys) -> list[Nic]:
    nics = []
    for match in _numbered(keys, _NIC):
        name = f"ethernet{match[1]}"
        if not keys.flag(f"{name}.present"):
            keys.skip([f"{name}."])
            continue
        kind = keys.get(f"{name}.connectionType", "bridged").lower()
        given = next(
            filter(
                None,
                (
                    keys.get(f"{name}.networkName"),
                    keys.get(f"{name}.dvs.portgroupId"),
                    keys.get(f"{name}.opaqueNetwork.id"),
                    keys.get(f"{name}.vnet"),
                ),
            ),
            "",
        )
        keys.skip(f"{name}.{extra}" for extra in _NIC_HOST_ONLY)
        mac = keys.get(f"{name}.address") or keys.get(f"{name}.generatedAddress")
        keys.get(f"{name}.generatedAddress")
        model = keys.get(f"{name}.virtualDev")
        nics.append(
            Nic(
                path=name,
                network=f"portgroup:{given}" if given else kind,
                mac=mac.lower(),
                model=model,
                sriov=model.lower() == "sriov",
                nat=kind == "nat",
            )
        )
    return nics


def _devices(keys: Keys) -> tuple[list[Device], list[Nic]]:
    devices, nics = [], []
    for match in _numbered(keys, _PCI):
        name = f"pciPassthru{match[1]}"
        if not keys.flag(f"{name}.present"):
            keys.skip([f"{name}."])
            continue
        portgroup, owner = keys.get(f"{name}.dvs.portgroupId"), keys.get(f"{name}.systemId")
        network = keys.get(f"{name}.networkName") or portgroup
        keys.skip(f"{name}.{extra}" for extra in _PCI_HOST_ONLY)
        where = keys.get(f"{name}.id")
        address = pci_address(where, decimal=bool(_DECIMAL_ADDRESS.fullmatch(where))) or ""
        ids = _ids(keys, f"{name}.vendorId", f"{name}.deviceId")
        profile, kind = keys.get(f"{name}.vgpu"), keys.get(f"{name}.virtualDev").lower()
        allowed = tuple(_allowed(keys, f"{name}.allowedDevices"))
        label = keys.get(f"{name}.customLabel")
        if owner.upper() == "BYPASS" or network or keys.get(f"{name}.MACAddress"):
            mac = keys.get(f"{name}.MACAddress") or keys.get(f"{name}.generatedMACAddress")
            keys.skip([f"{name}.mac", f"{name}.generatedmac"])
            shown_network = f"portgroup:{network}" if network else "sriov"
            nics.append(Nic(path=name, network=shown_network, mac=mac.lower(), sriov=True))
        elif profile:
            devices.append(Device(name, "vgpu", name=profile, hint=kind))
        elif allowed or label:
            devices.append(Device(name, "dynamic", address=address, name=label, allowed=allowed))
        else:
            devices.append(Device(name, "pci", address=address, ids=ids, hint=kind))
    for match in _numbered(keys, _USB):
        key = f"usb.autoConnect.device{match[1]}"
        value = keys.get(key)
        ids_in = re.search(r"(?:vid:)?(?:0x)?([0-9a-f]{4})[: ](?:pid:)?(?:0x)?([0-9a-f]{4})\b", value, re.I)
        place = re.search(r"path:([\d/]+)", value)
        known = f"{ids_in[1]}:{ids_in[2]}".lower() if ids_in and not place else ""
        devices.append(Device(key, "usb", ids=known, name=place[1] if place else "", hint=value))
    return devices, nics


def _ids(keys: Keys, vendor: str, device: str) -> str:
    """Ids of a device, hex after `0x`, else decimal; zeros where any of a kind was meant."""
    parts = [keys.get(vendor).strip(), keys.get(device).strip()]
    if not all(parts):
        return ""
    numbers = [
        integer(keys.spelt(key), part, least=-0x8000, most=0xFFFF, base=0 if "x" in part.lower() else 10)
        for key, part in zip((vendor, device), parts, strict=True)
    ]
    return pci_ids(*numbers) if any(numbers) else ""


def _allowed(keys: Keys, key: str) -> Iterator[str]:
    for one in filter(None, re.split(r"[,;\s]+", keys.get(key))):
        parts = one.split(":")
        if len(parts) < 2:
            raise refuse(keys.spelt(key), "invalid value", one, "0xVENDOR:0xDEVICE, more after commas")
        numbers = [
            integer(keys.spelt(key), part, most=0xFFFF, base=0 if "x" in part.lower() else 10)
            for part in parts[:2]
        ]
        yield pci_ids(*numbers)


def _consoles(keys: Keys, lost: list[Lost]) -> bool:
    """Whether it has a serial port; parallel ports, floppies, sound and the like are lost."""
    found = False
    starts = sorted(
        {match[1] for key in keys if (match := re.match(r"((?:serial|parallel|floppy)\d+)\.", key))}
    )
    for name in (*starts, "sound", "usb", "usb_xhci", "ehci"):
        present = keys.flag(f"{name}.present", default=name.startswith("floppy"))
        file = keys.get(f"{name}.fileName")
        used = f"{name}.present" in keys or bool(file)
        keys.skip([f"{name}."] if not name.startswith("usb") else [f"{name}.present", f"{name}.pcislot"])
        if present and name.startswith("serial"):
            found = True
            if file:
                lost.append(Lost(name, file, "KubeVirt's serial port is a console"))
        elif present and used and not name.startswith(("usb", "ehci")):
            lost.append(Lost(name, file or "(present)", "KubeVirt's machines here have none"))
    keys.skip(["usb_xhci:", "usb:", "usb.generic."])
    return found


def _cloud_init(keys: Keys, lost: list[Lost]) -> CloudInit | None:
    """`guestinfo.userdata`, as cloud-init's VMware data source reads it."""
    value, encoding = keys.get("guestinfo.userdata"), keys.get("guestinfo.userdata.encoding").lower()
    if not value:
        return None
    if encoding in ("base64", "b64"):
        try:
            value = base64.b64decode(value, validate=True).decode()
        except ValueError:
            raise refuse("guestinfo.userdata", "can not be decoded", expected="base64 of UTF-8") from None
    elif encoding:
        lost.append(
            Lost("guestinfo.userdata", f"encoding {encoding}", "only plain and base64 user data is read")
        )
        return None
    return CloudInit(user_data=value)
