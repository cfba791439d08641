"""Drives, network interfaces and host devices of a libvirt domain."""

from __future__ import annotations

from typing import Final

from vmtenancy.migrate.model import Device, Drive, DriveSource, Lost, Nic
from vmtenancy.migrate.text import integer, pci_ids, refuse
from vmtenancy.migrate.xml import Node

_FIELDS: Final = ("domain", "bus", "slot", "function")
_LIMITS: Final = (0xFFFFFFFF, 0xFF, 0x1F, 0x7)
_NETWORK: Final[dict[str, DriveSource]] = {
    "rbd": "rbd",
    "iscsi": "iscsi",
    "nfs": "nfs",
    "http": "http",
    "https": "http",
}
#: How the old host's QEMU reads and writes a disk.
_TUNING: Final = ("name", "discard", "io", "iothread", "queues", "copy_on_read", "detect_zeroes", "ioeventfd")
#: What names the network of an interface of a type: attributes of its source, the first that is there.
_NETWORKS: Final = {
    "network": ("network",),
    "bridge": ("bridge",),
    "direct": ("dev",),
    "vds": ("portgroupid", "switchid"),
    "vdpa": ("dev",),
    "vhostuser": ("path",),
}


def drive_of(node: Node) -> Drive | None:
    """A `disk` element; None for a floppy. Raises VmtError (SOURCE)."""
    device = node.get("device", "disk")
    if device == "floppy":
        return None
    if device not in ("disk", "cdrom", "lun"):
        raise refuse(node.at("device"), "invalid value", device, "one of disk, cdrom, lun, floppy")
    source, location, url = _drive_source(node)
    target, driver = node.find("target"), node.find("driver")
    boot = node.value("boot", "order")
    name = target.get("dev") if target else ""
    if target:
        for extra in ("tray", "removable", "rotation_rate"):
            target.get(extra)
    cache = driver.get("cache") if driver else ""
    if driver:
        for tuning in _TUNING:
            driver.get(tuning)
    for inner in node.all("backingStore", "mirror"):
        inner.skip()  # a copy of the disk has the whole of it
    for extra in ("snapshot", "sgio"):
        node.get(extra)
    return Drive(
        path=node.path,
        name=name,
        device=device,  # type: ignore[arg-type] # checked above
        source=source,
        location=location,
        format=driver.get("type") if driver else "",
        bus=(target.get("bus") if target else "") or _bus(name),
        boot=integer(f"{node.path}/boot@order", boot, least=1) if boot else 0,
        serial=node.text_of("serial"),
        readonly=_is_there(node, "readonly"),
        shareable=_is_there(node, "shareable"),
        cache=cache if cache in ("none", "writethrough", "writeback") else "",
        url=url,
    )


def floppy_of(node: Node) -> Lost:
    """A floppy drive, which no KubeVirt machine has."""
    node.skip()
    return Lost(node.path, "floppy", "KubeVirt has no floppy drives")


def _is_there(node: Node, tag: str) -> bool:
    inner = node.find(tag)
    if inner is not None:
        _ = inner.text
    return inner is not None


def _bus(name: str) -> str:
    """The bus that libvirt takes for a target without one, by its name."""
    prefixes = {"hd": "ide", "sd": "scsi", "vd": "virtio", "xvd": "xen", "ubd": "uml", "fd": "fdc"}
    return next((bus for prefix, bus in prefixes.items() if name.startswith(prefix)), "")


def _drive_source(node: Node) -> tuple[DriveSource, str, str]:
    kind, source = node.get("type", "file"), node.find("source")
    if source is None:
        return "empty", "", ""
    for extra in ("startupPolicy", "index", "tlsFromConfig"):
        source.get(extra)
    for tag in ("seclabel", "reservations", "slices"):
        for inner in source.all(tag):
            inner.skip()
    match kind:
        case "file":
            return ("file", source.get("file"), "") if source.get("file") else ("empty", "", "")
        case "block":
            return ("block", source.get("dev"), "") if source.get("dev") else ("empty", "", "")
        case "dir":
            return "file", source.get("dir"), ""
        case "volume":
            source.get("mode")
            return "volume", f"{source.get('pool')}/{source.get('volume')}", ""
        case "nvme":
            address = source.find("address")
            where = _address(address) if address else ""
            return "nvme", f"{where} namespace {source.get('namespace', '1')}", ""
        case "network":
            return _network_drive(source)
        case "vhostuser" | "vhostvdpa":
            return "volume", source.get("path") or source.get("dev"), ""
    expected = "one of file, block, dir, network, volume, nvme, vhostuser, vhostvdpa"
    raise refuse(node.at("type"), "invalid value", kind, expected)


def _network_drive(source: Node) -> tuple[DriveSource, str, str]:
    protocol, name = source.get("protocol"), source.get("name")
    hosts = []
    for host in source.all("host"):
        address, port = host.get("name") or host.get("socket"), host.get("port")
        host.get("transport")
        address = f"[{address}]" if ":" in address else address
        hosts.append(f"{address}:{port}" if port else address)
    snapshot = source.value("snapshot", "name")
    if config := source.find("config"):
        config.get("file")
    name = f"{name}@{snapshot}" if snapshot else name
    location = f"{protocol}:{name}" + (f" at {', '.join(hosts)}" if hosts else "")
    url = ""
    if protocol in ("http", "https") and len(hosts) == 1 and hosts[0]:
        query = source.get("query")
        url = f"{protocol}://{hosts[0]}/{name.lstrip('/')}" + (f"?{query}" if query else "")
    return _NETWORK.get(protocol, "volume"), location, url


def nic_of(node: Node) -> Nic:
    """An `interface` element."""
    kind, source = node.get("type"), node.find("source")
    network = kind
    if source is not None:
        for attribute in _NETWORKS.get(kind, ()):
            if source.get(attribute):
                network = f"{kind}:{source.get(attribute)}"
                break
        if source.get("portgroup"):
            network += f"/{source.get('portgroup')}"
        source.get("mode")
    sriov = kind == "hostdev"
    if sriov and source is not None:
        address = source.find("address")
        network = f"sriov:{_address(address)}" if address is not None else "sriov"
    for name in ("managed", "trustGuestRxFilters"):
        node.get(name)
    for inner in node.all("target", "driver", "alias", "guest"):
        inner.skip()
    vlan, boot = node.find("vlan"), node.value("boot", "order")
    tags = vlan.all("tag") if vlan else []
    trunk = vlan is not None and (vlan.get("trunk") == "yes" or len(tags) > 1)
    number = integer(tags[0].at("id"), tags[0].get("id"), most=4095) if tags and not trunk else 0
    return Nic(
        path=node.path,
        network=network,
        mac=node.value("mac", "address").lower(),
        model=node.value("model", "type"),
        vlan=number,
        sriov=sriov,
        nat=kind == "user" or network == "network:default",
        boot=integer(f"{node.path}/boot@order", boot, least=1) if boot else 0,
        addresses=tuple(ip.get("address") + _prefix(ip) for ip in node.all("ip") if ip.get("address")),
    )


def _prefix(ip: Node) -> str:
    ip.get("family")
    return f"/{ip.get('prefix')}" if ip.get("prefix") else ""


def hostdev_of(node: Node) -> Device:
    """A `hostdev` element: every one is a device, whatever it is."""
    mode, kind, source = node.get("mode", "subsystem"), node.get("type"), node.find("source")
    for name in ("managed", "sgio", "rawio", "display", "ramfb"):
        node.get(name)
    for tag in ("driver", "rom", "boot", "address", "alias", "readonly", "shareable"):
        for inner in node.all(tag):
            inner.skip()
    address = source.find("address") if source else None
    if source:
        for name in ("startupPolicy", "writeFiltering", "guestReset", "missing"):
            source.get(name)
    model = node.get("model")
    if mode != "subsystem":
        if source:
            source.skip()
        return Device(node.path, "other", hint=f"{mode} {kind}")
    if kind == "pci":
        return Device(node.path, "pci", address=_address(address) if address else "")
    if kind == "mdev":
        uuid = address.get("uuid").lower() if address else ""
        return Device(node.path, "mdev", uuid=uuid, hint=model)
    if kind == "usb" and source:
        vendor, product = (source.find(tag) for tag in ("vendor", "product"))
        ids = [
            integer(part.at("id"), part.get("id"), most=0xFFFF, base=0) for part in (vendor, product) if part
        ]
        place = f"{address.get('bus')}-{address.get('device') or address.get('port')}" if address else ""
        return Device(node.path, "usb", ids=pci_ids(*ids) if len(ids) == 2 else "", name=place)
    if source:
        source.skip()
    return Device(node.path, "scsi" if kind.startswith("scsi") else "other", hint=f"{kind} {model}".strip())


def _address(node: Node) -> str:
    """`0000:01:00.0` of a PCI address element."""
    node.get("type")
    parts = [
        integer(node.at(name), node.get(name, "0") or "0", most=most, base=0)
        for name, most in zip(_FIELDS, _LIMITS, strict=True)
    ]
    return f"{parts[0]:04x}:{parts[1]:02x}:{parts[2]:02x}.{parts[3]:x}"
