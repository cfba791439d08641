"""OVF descriptors, of VMware, VirtualBox and others. Rules: DMTF DSP0243 and VMware's `vmw` extensions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from vmtenancy.migrate.model import Cpu, Device, Drive, Firmware, Guest, Lost, Machine, Memory, Nic
from vmtenancy.migrate.text import integer, pci_address, pci_ids, refuse, shown
from vmtenancy.migrate.xml import Node, parse

#: Kinds of items: CIM_ResourceAllocationSettingData.ResourceType.
_OTHER, _CPU, _MEMORY, _IDE, _SCSI, _NIC, _CD, _DVD, _DISK = "1", "3", "4", "5", "6", "10", "15", "16", "17"
_STORAGE, _SERIAL, _USB, _DISPLAY, _SOUND = "20", "21", "23", "24", "35"
_PASSTHROUGH: Final = "vmware.pci.passthrough"
_UNIT: Final = re.compile(r"bytes?((?:\s*\*\s*\d+(?:\s*\^\s*\d+)?)*)", re.I)
_FACTOR: Final = re.compile(r"(\d{1,12})(?:\s*\^\s*(\d{1,2}))?")
_UNIT_NAMES: Final = {
    **{"bytes": 1, "kilobytes": 1 << 10, "megabytes": 1 << 20, "gigabytes": 1 << 30, "terabytes": 1 << 40},
    **{"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40},
}
#: What tells people about an item, and how it was wired.
_TALK: Final = (
    *(
        "Caption",
        "Description",
        "ElementName",
        "AutomaticAllocation",
        "AutomaticDeallocation",
        "AddressOnParent",
    ),
    *("InstanceID", "InstanceId", "Address", "Parent", "Reservation", "Weight", "Limit", "PoolID"),
)
#: Settings of VMware's host, not of the machine.
_HOST_CONFIG: Final = (
    *(
        "sharesLevel",
        "wakeOnLanEnabled",
        "connectable.",
        "slotInfo.",
        "powerOpInfo.",
        "tools.",
        "flags.",
        "backing.",
    ),
    *(
        "cpuHot",
        "memoryHotAddEnabled",
        "fixedPassthruHotPlugEnabled",
        "virtualSMCPresent",
        "virtualICH7MPresent",
    ),
    *("sgxInfo.", "sevEnabled", "simultaneousThreads", "deviceGroupInfo.", "uptCompatibilityEnabled", "use"),
    *("videoRamSizeInKB", "graphicsMemorySizeInKB", "enable3DSupport", "numDisplays", "allowUnrestricted"),
    *("dvx.", "virtualDev", "guestReadOnly", "autoConnectDevices", "ehciEnabled", "memoryAllocation."),
    "cpuAllocation.",
)


def read(data: bytes) -> tuple[Machine, ...]:
    """The machines of an envelope, each virtual system one. Raises VmtError (SOURCE)."""
    envelope = parse(data)
    if envelope.tag != "Envelope":
        raise refuse(envelope.path, "is no OVF envelope", envelope.tag, "Envelope")
    _name_sections(envelope)
    systems = list(_systems(envelope))
    if not systems:
        raise refuse("Envelope/VirtualSystem", "is required", expected="at least one virtual system")
    disks = _disks(envelope)
    return tuple(_machine(envelope, system, disks) for system in systems)


def _name_sections(node: Node) -> None:
    """OVF before 1.0, and oVirt's exports to this day, say in `xsi:type` what a section is."""
    for inner in node.nodes:
        kind = inner.get("type").rpartition(":")[2] if inner.tag in ("Section", "Content") else ""
        if kind.endswith("_Type"):
            inner.rename(kind.removesuffix("_Type"))
        _name_sections(inner)


def _systems(node: Node) -> Iterator[Node]:
    for inner in node.nodes:
        if inner.tag == "VirtualSystem":
            yield inner
        elif inner.tag == "VirtualSystemCollection":
            yield from _systems(inner)


def _machine(envelope: Node, system: Node, disks: Mapping[str, tuple[str, int, str]]) -> Machine:
    hardware = system.all("VirtualHardwareSection")
    if not hardware:
        raise refuse(f"{system.path}/VirtualHardwareSection", "is required", expected="what the machine has")
    lost: list[Lost] = []
    for other in hardware[1:]:
        other.skip()
        lost.append(Lost(other.path, "(present)", "the machine is the first of its hardware sections"))
    items, other_items = _items(envelope, hardware[0])
    if other_items:
        lost.append(Lost(hardware[0].path, f"{other_items} items", "they belong to other deployment options"))
    kinds = {item.text_of("InstanceID") or item.text_of("InstanceId"): item for item in items}
    config = {node.get("key"): node.get("value") for node in hardware[0].all("Config", "ExtraConfig")}
    cpu, memory = Cpu(), None
    drives: list[Drive] = []
    nics: list[Nic] = []
    devices: list[Device] = []
    tpm = display = serial = False
    for item in items:
        type_, subtype = item.text_of("ResourceType"), item.text_of("ResourceSubType").lower()
        for node in item.all(*_TALK):
            node.skip()
        for node in item.all("Config"):
            if node.get("key").startswith(_HOST_CONFIG):
                node.skip()
        if type_ == _CPU:
            cpu = _cpu(item)
        elif type_ == _MEMORY:
            units = item.text_of("AllocationUnits") or "MegaBytes"
            memory = Memory(_quantity(item) * _unit(item, units))
        elif type_ in (_CD, _DVD, _DISK):
            drives.append(_drive(item, "disk" if type_ == _DISK else "cdrom", kinds, disks))
        elif type_ == _NIC:
            nics.append(_nic(item, subtype))
        elif subtype.startswith(_PASSTHROUGH):
            devices.append(_device(item, subtype))
        elif subtype == "vmware.scsi.passthrough":
            devices.append(Device(item.path, "scsi", hint=item.text_of("HostResource")))
        elif subtype == "vmware.vtpm":
            tpm = True
            lost.append(
                Lost(item.path, "its state", "a TPM begins anew: what it sealed needs its recovery key")
            )
        elif type_ == _DISPLAY:
            display = True
        elif type_ == _SERIAL or subtype.startswith("vmware.serialport"):
            serial = True
            item.skip()
        elif type_ not in (_IDE, _SCSI, _STORAGE, _USB) and subtype != "vmware.vmci":
            item.skip()
            name = item.text_of("ElementName") or item.text_of("Caption")
            lost.append(
                Lost(item.path, f"{name} {subtype or type_}".strip(), "KubeVirt's machines here have none")
            )
    if memory is None:
        raise refuse(f"{hardware[0].path}/Item", "is required", expected="an item of memory (ResourceType 4)")
    efi, secure = _firmware(system, config)
    if nvram := config.get("nvram"):
        lost.append(Lost("ExtraConfig nvram", nvram, "EFI variables begin anew"))
    annotation = system.text_of("AnnotationSection/Annotation")
    os = system.find("OperatingSystemSection")
    return Machine(
        name=system.text_of("Name") or system.get("id"),
        cpu=cpu,
        memory=memory,
        firmware=Firmware(efi, secure, tpm),
        guest=Guest(display=display or None, serial_console=serial or None),
        drives=tuple(drives),
        nics=tuple(nics),
        devices=tuple(devices),
        os=(os.get("osType") or os.text_of("Description")) if os else "",
        notes=annotation,
        lost=(*lost, *_unread(system, hardware[0])),
    )


def _unread(system: Node, hardware: Node) -> Iterator[Lost]:
    """What was not asked for, without what only tells people."""
    for tag in (
        "Name",
        "Info",
        "OperatingSystemSection",
        "AnnotationSection",
        "EulaSection",
        "InstallSection",
    ):
        for node in system.all(tag):
            if tag == "EulaSection":
                node.nodes.clear()
            node.skip()
    for node in (*hardware.all("System", "Info"), *hardware.all("Item", "StorageItem", "EthernetPortItem")):
        for extra in ("required", "id", "configuration", "bound"):
            node.get(extra)
        if node.tag in ("System", "Info"):
            node.skip()
        for inner in node.all(
            "ResourceType",
            "ResourceSubType",
            "AllocationUnits",
            "VirtualQuantity",
            "Connection",
            "CoresPerSocket",
        ):
            inner.skip()
    for node in hardware.all("Config", "ExtraConfig"):
        node.get("required")
        if node.get("key").startswith(_HOST_CONFIG) or node.get("value") in ("", "false"):
            node.skip()
        elif node.get("key") not in ("firmware", "bootOptions.efiSecureBootEnabled", "nvram"):
            path, value = f"{node.path} {node.get('key')}", node.get("value")
            yield Lost(path, shown(node.get("key"), value), "no field of a KubeVirt machine takes it")
    for node in system.all("Machine"):
        node.skip()
        yield Lost(node.path, "VirtualBox's own settings", "of these only the firmware is read")
    for section in system.all("ProductSection"):
        for node in section.all("Property"):
            key, value = node.get("key"), node.get("value")
            secret = node.get("password") == "true"
            node.skip()
            why = "what the appliance is told at its first start: give it to the guest by cloud-init"
            if value:
                yield Lost(f"{node.path} {key}", shown("password" if secret else key, value), why)
        section.skip()
    system.get("id")
    for path, value in system.unread():
        yield Lost(path, shown(path.replace("@", "/"), value), "no field of a KubeVirt machine takes it")


def _items(envelope: Node, hardware: Node) -> tuple[list[Node], int]:
    """The items of the default deployment option, and how many belong to others."""
    options = [
        node for section in envelope.all("DeploymentOptionSection") for node in section.all("Configuration")
    ]
    default = next((node.get("id") for node in options if node.get("default") == "true"), "")
    default = default or (options[0].get("id") if options else "")
    chosen: dict[str, Node] = {}
    others = 0
    for index, item in enumerate(hardware.all("Item", "StorageItem", "EthernetPortItem")):
        configurations = item.get("configuration").split()
        if (configurations and default not in configurations) or item.get("bound") in ("min", "max"):
            item.skip()
            others += bool(configurations)
            continue
        key = item.text_of("InstanceID") or item.text_of("InstanceId") or f"#{index}"
        # What is said for an option stands over what is said for all.
        if key in chosen and not configurations and chosen[key].get("configuration"):
            continue
        if key in chosen and not configurations:
            key = f"{key}#{index}"  # two items of one id: both are there
        chosen[key] = item
    return list(chosen.values()), others


def _quantity(item: Node) -> int:
    node = item.find("VirtualQuantity")
    if node is None:
        raise refuse(f"{item.path}/VirtualQuantity", "is required", expected="how much of it")
    return integer(node.path, node.text, least=1)


def _unit(item: Node, text: str) -> int:
    """Bytes of a unit: `byte * 2^20`, or its old name."""
    if text.strip().lower() in _UNIT_NAMES:
        return _UNIT_NAMES[text.strip().lower()]
    match = _UNIT.fullmatch(text.strip())
    size = 1
    for base, power in _FACTOR.findall(match[1]) if match else ():
        size *= int(base) ** int(power or 1)
    if match is None or not 0 < size <= 1 << 60:
        raise refuse(f"{item.path}/AllocationUnits", "unknown unit", text, "byte * 2^20")
    return size


def _cpu(item: Node) -> Cpu:
    vcpus = _quantity(item)
    node = item.find("CoresPerSocket")
    per_socket = integer(node.path, node.text, least=1) if node and node.text else 1
    if vcpus % per_socket:
        return Cpu(vcpus, vcpus)
    return Cpu(vcpus, vcpus, vcpus // per_socket, per_socket, 1)


def _disks(envelope: Node) -> dict[str, tuple[str, int, str]]:
    """File, bytes and format of the disks by id; an ISO that a drive names is its file, by the file's id."""
    files = {
        node.get("id"): node.get("href")
        for section in envelope.all("References")
        for node in section.all("File")
    }
    found = {f"file/{id_}": (href, 0, "") for id_, href in files.items()}
    for section in envelope.all("DiskSection"):
        for node in section.all("Disk"):
            capacity, unit = node.get("capacity"), node.get("capacityAllocationUnits") or "byte"
            size = 0
            if capacity and not capacity.startswith("${"):
                size = integer(node.at("capacity"), capacity) * _unit(node, unit)
            format_ = node.get("format").rpartition("/")[2].lower()
            kind = next((name for name in ("vmdk", "qcow2", "vdi", "vhd") if name in format_), format_)
            found[f"disk/{node.get('diskId')}"] = (files.get(node.get("fileRef"), ""), size, kind)
    return found


def _drive(
    item: Node,
    device: Literal["disk", "cdrom"],
    kinds: Mapping[str, Node],
    disks: Mapping[str, tuple[str, int, str]],
) -> Drive:
    resource = item.text_of("HostResource")
    key = "/".join(resource.removeprefix("ovf:").strip("/").split("/")[-2:])
    location, size, format_ = "", 0, ""
    if resource and key in disks:
        location, size, format_ = disks[key]
    elif resource and key.startswith(("disk/", "file/")):
        raise refuse(f"{item.path}/HostResource", "names nothing", resource, "a disk or file of the envelope")
    elif device == "disk" and not resource and item.find("VirtualQuantity"):
        size = _quantity(item) * _unit(item, item.text_of("AllocationUnits") or "byte")
    place, parent = item.text_of("AddressOnParent"), item.text_of("Parent")
    controller = kinds.get(parent)
    kind = controller.text_of("ResourceType") if controller else ""
    subtype = controller.text_of("ResourceSubType").lower() if controller else ""
    bus = {_IDE: "ide", _SCSI: "scsi"}.get(kind, "nvme" if "nvme" in subtype else "sata" if kind else "")
    number = controller.text_of("Address") or "0" if controller else "0"
    return Drive(
        path=item.path,
        name=f"{bus}{number}d{place}" if bus and place else "",
        device=device,
        source="file" if location else "empty",
        location=location,
        format=format_,
        bus=(subtype.split()[0] if subtype else "lsilogic") if bus == "scsi" else bus,
        size=size,
    )


def _nic(item: Node, subtype: str) -> Nic:
    sriov = subtype == "sriovethernetcard"
    connection, address = item.text_of("Connection"), item.text_of("Address")
    return Nic(
        path=item.path,
        network=f"portgroup:{connection}" if connection else "portgroup:none",
        mac=address.lower() if ":" in address else "",
        model="" if sriov else subtype,
        sriov=sriov,
        nat=connection.lower() == "nat",
    )


def _device(item: Node, subtype: str) -> Device:
    config = {node.get("key"): node.get("value") for node in item.all("Config")}
    if vgpu := config.get("backing.vgpu"):
        return Device(item.path, "vgpu", name=vgpu)
    allowed = tuple(_allowed(item, config))
    label = config.get("backing.customLabel", "")
    if allowed or label or subtype.endswith("-ah"):
        return Device(item.path, "dynamic", name=label, allowed=allowed)
    vendor, device = config.get("backing.vendorId", ""), config.get("backing.deviceId", "")
    address = pci_address(config.get("backing.id", "")) or ""
    name = config.get("backing.deviceClass", "")
    ids = _ids(item, vendor, device) if vendor and device else ""
    return Device(
        item.path, "pci", address=address, ids=ids, name=name, hint=config.get("backing.deviceName", "")
    )


def _ids(item: Node, vendor: str, device: str) -> str:
    """VMware writes the vendor in decimal, below zero too, and the device in hex."""
    base = 16 if re.search(r"[a-fx]", vendor, re.I) else 10
    return pci_ids(
        integer(f"{item.path}/Config backing.vendorId", vendor, least=-0x8000, most=0xFFFF, base=base),
        integer(f"{item.path}/Config backing.deviceId", device, least=-0x8000, most=0xFFFF, base=16),
    )


def _allowed(item: Node, config: Mapping[str, str]) -> Iterator[str]:
    """Ids any of which would do: numbered pairs of keys, in decimal, or hex after `0x`."""
    vendors: dict[str, int] = {}
    products: dict[str, int] = {}
    for key, value in config.items():
        match = re.fullmatch(r"backing\.allowedDevices?(.*?)\.?(vendorId|deviceId)", key, re.I)
        if match is not None and value:
            numbers = vendors if match[2].lower() == "vendorid" else products
            base = 0 if "x" in value.lower() else 10
            numbers[match[1]] = integer(
                f"{item.path}/Config {key}", value, least=-0x8000, most=0xFFFF, base=base
            )
    for index, vendor in vendors.items():
        if index in products:
            yield pci_ids(vendor, products[index])


def _firmware(system: Node, config: Mapping[str, str]) -> tuple[bool, bool]:
    virtualbox = next((node.get("type") for node in _walk(system) if node.tag == "Firmware"), "")
    efi = config.get("firmware", "bios").lower() == "efi" or virtualbox.upper().startswith("EFI")
    return efi, efi and config.get("bootOptions.efiSecureBootEnabled", "false").lower() == "true"


def _walk(node: Node) -> Iterator[Node]:
    for inner in node.nodes:
        yield inner
        yield from _walk(inner)
