"""oVirt machines, as its API shows them in XML.

Best with `GET /vms/ID?follow=disk_attachments.disk,nics.vnic_profile,host_devices,cdroms,mediated_devices,numa_nodes`:
without what is followed, disks, interfaces and devices are only links.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

from vmtenancy.migrate.model import (
    CloudInit,
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
from vmtenancy.migrate.text import integer, pci_ids, refuse, shown
from vmtenancy.migrate.xml import Node, parse

_PCI_NAME: Final = re.compile(r"pci_([0-9a-f]{4,8})_([0-9a-f]{2})_([0-9a-f]{2})_([0-7])", re.I)
#: How the engine runs it, and what it remembers of it.
_ENGINE_ONLY: Final = frozenset(
    {
        "link",
        "actions",
        "cluster",
        "template",
        "original_template",
        "quota",
        "storage_domain",
        "instance_type",
    }
    | {"status", "status_detail", "start_time", "stop_time", "stop_reason", "creation_time", "origin", "type"}
    | {"migration", "migration_downtime", "placement_policy", "cpu_shares", "cpu_profile", "delete_protected"}
    | {"sso", "start_paused", "stateless", "storage_error_resume_behaviour", "next_run_configuration_exists"}
    | {"numa_tune_mode", "multi_queues_enabled", "virtio_scsi_multi_queues", "virtio_scsi", "io", "run_once"}
    | {
        "host",
        "fqdn",
        "guest_operating_system",
        "guest_time_zone",
        "has_illegal_images",
        "auto_pinning_policy",
    }
    | {"large_icon", "small_icon", "permissions", "statistics", "snapshots", "reported_devices", "sessions"}
    | {
        "graphics_consoles",
        "katello_errata",
        "affinity_labels",
        "applications",
        "backups",
        "use_latest_template_version",
    }
)
_FOLLOWED: Final = {
    "diskattachments": "disk_attachments",
    "nics": "nics",
    "hostdevices": "host_devices",
    "mediateddevices": "mediated_devices",
}
_BUSES: Final = {"virtio_scsi": "scsi"}
#: What cloud-init calls what the engine tells it.
_CLOUD_CONFIG: Final = {
    "host_name": "hostname",
    "user_name": "user",
    "root_password": "password",
    "timezone": "timezone",
}


def read(data: bytes) -> tuple[Machine, ...]:
    """The machines of a document. Raises VmtError (SOURCE)."""
    root = parse(data)
    machines = root.all("vm") if root.tag == "vms" else [root]
    if root.tag not in ("vm", "vms") or not machines:
        raise refuse(root.path, "is no oVirt machine", root.tag, "vm, or vms with at least one vm")
    return tuple(_machine(vm) for vm in machines)


def _machine(vm: Node) -> Machine:
    name = vm.text_of("name")
    if not name:
        raise refuse(f"{vm.path}/name", "is required", expected="the machine's name")
    lost = list(_not_followed(vm))
    custom = {
        node.text_of("name"): node.text_of("value")
        for outer in vm.all("custom_properties")
        for node in outer.nodes
    }
    memory = vm.find("memory")
    if memory is None:
        raise refuse(f"{vm.path}/memory", "is required", expected="bytes")
    amount, arch = integer(memory.path, memory.text, least=1), vm.text_of("cpu/architecture") or "x86_64"
    policy = vm.find("memory_policy")
    limit = policy.find("max") if policy else None
    most = integer(limit.path, limit.text) if limit and limit.text else 0
    if policy:
        for tag in ("guaranteed", "ballooning", "over_commit"):
            for node in policy.all(tag):
                node.skip()
    bios = vm.text_of("bios/type", "cluster_default")
    if bios == "cluster_default":
        lost.append(Lost(f"{vm.path}/bios/type", bios, "its cluster decides: taken for a BIOS"))
    efi, tpm = bios in ("q35_ovmf", "q35_secure_boot"), vm.text_of("tpm_enabled") == "true"
    if tpm:
        lost.append(
            Lost(
                f"{vm.path}/tpm_enabled",
                "its state",
                "a TPM begins anew: what it sealed needs its recovery key",
            )
        )
    devices = [*_devices(vm), *_mdevs(vm, custom)]
    zone = vm.text_of("time_zone/name")
    if zone and not re.fullmatch(r"[A-Za-z_]+(/[A-Za-z0-9_+-]+)*", zone):
        lost.append(Lost(f"{vm.path}/time_zone/name", zone, "no name of a time zone as Linux has them"))
        zone = ""
    machine_type = vm.text_of("custom_emulated_machine") or ("q35" if bios.startswith("q35") else "pc")
    serials = vm.find("console")
    cdroms = [_cdrom(node) for outer in vm.all("cdroms") for node in outer.all("cdrom")]
    disks = [_disk(node) for outer in vm.all("disk_attachments") for node in outer.all("disk_attachment")]
    nics = [_nic(node) for outer in vm.all("nics") for node in outer.all("nic")]
    hugepages = custom.pop("hugepages", "")
    cpu, first_boot = _cpu(vm), _first_boot(vm)
    notes = "\n".join(filter(None, (vm.text_of("description"), vm.text_of("comment"))))
    display = vm.find("display")
    ha = vm.text_of("high_availability/enabled") == "true"
    tags = [node.text_of("name") for outer in vm.all("tags") for node in outer.all("tag")]
    found = {
        "uuid": vm.get("id"),
        "serial": vm.text_of("serial_number/value"),
        "os": vm.text_of("os/type"),
    }
    for tag in ("custom_properties", "bios", "memory_policy", "os", "high_availability", "tags", "console"):
        for node in vm.all(tag):
            if tag not in ("bios", "memory_policy"):
                node.skip()
    for node in vm.nodes:
        if node.tag in (*_ENGINE_ONLY, "display", "cdroms", "serial_number", "usb"):
            node.skip()
    for node in vm.all("bios"):
        for inner in node.all("boot_menu"):
            inner.skip()
    for key in ("href", "id"):
        vm.get(key)
    lost += [
        Lost(
            f"{vm.path}/custom_properties {key}", shown(key, value), "no field of a KubeVirt machine takes it"
        )
        for key, value in custom.items()
        if value and key != "mdev_type"
    ]
    lost += [
        Lost(path, shown(path.replace("@", "/"), value), "no field of a KubeVirt machine takes it")
        for path, value in vm.unread()
        if not path.endswith(("@href", "@id"))
    ]
    return Machine(
        name=name,
        cpu=cpu,
        memory=Memory(
            amount,
            most,
            integer("custom_properties hugepages", hugepages) << 10 if hugepages else 0,
        ),
        firmware=Firmware(efi, bios == "q35_secure_boot", tpm, found["uuid"], found["serial"]),
        guest=Guest(
            arch=arch,
            machine=machine_type,
            timezone="" if zone in ("Etc/GMT", "UTC", "Etc/UTC") else zone,
            serial_console=serials.text_of("enabled") == "true" if serials else None,
            display=display is not None or None,
        ),
        drives=(*disks, *cdroms),
        nics=tuple(nics),
        devices=tuple(devices),
        cloud_init=first_boot,
        autostart=ha,
        os=found["os"],
        tags=tuple(tags),
        notes=notes,
        lost=tuple(lost),
    )


def _not_followed(vm: Node) -> Iterator[Lost]:
    """What is a link where it should be content: then nobody knows what the machine has of it."""
    for node in vm.all("link"):
        rel = node.get("rel")
        if rel in _FOLLOWED and vm.find(_FOLLOWED[rel]) is None:
            why = f"only linked: read the machine with ?follow={_FOLLOWED[rel]}"
            yield Lost(f"{vm.path}/link rel={rel}", _FOLLOWED[rel], why)


def _cpu(vm: Node) -> Cpu:
    topology = vm.find("cpu/topology")
    parts = []
    for part in ("sockets", "cores", "threads"):
        node = topology.find(part) if topology else None
        parts.append(integer(node.path, node.text, least=1) if node and node.text else 1)
    vcpus = parts[0] * parts[1] * parts[2]
    tune = vm.find("cpu/cpu_tune")
    pins = tune.find("vcpu_pins") if tune else None
    pinned = bool(pins and pins.nodes) or vm.text_of("cpu_pinning_policy", "none") not in ("none", "")
    if tune:
        tune.skip()
    model = vm.text_of("custom_cpu_model")
    if vm.text_of("cpu/mode") == "host_passthrough":
        model = "host-passthrough"
    cells = [node for outer in vm.all("numa_nodes") for node in outer.nodes]
    for node in vm.all("numa_nodes"):
        node.skip()
    sockets, cores, threads = parts
    return Cpu(vcpus, vcpus, sockets, cores, threads, model=model, pinned=pinned, numa_cells=len(cells))


def _disk(node: Node) -> Drive:
    disk = node.find("disk")
    kind = disk.text_of("storage_type", "image") if disk else ""
    size = disk.find("provisioned_size") if disk else None
    id_ = (disk.get("id") if disk else "") or node.get("id")
    alias = (disk.text_of("alias") or disk.text_of("name")) if disk else ""
    source: DriveSource = "volume"
    location = f"disk {id_}" + (f" ({alias})" if alias else "")
    unit = disk.find("lun_storage/logical_units/logical_unit") if disk else None
    if kind == "lun" and unit is not None:
        where = f"{unit.text_of('address')}:{unit.text_of('port')}".strip(":")
        source, location = ("iscsi" if where else "block"), f"LUN {unit.get('id')} {where}".strip()
        size = size or unit.find("size")
    found = Drive(
        path=node.path,
        name=alias,
        device="disk",
        source=source,
        location=location,
        format={"cow": "qcow2"}.get(disk.text_of("format"), disk.text_of("format")) if disk else "",
        bus=_BUSES.get(node.text_of("interface"), node.text_of("interface")),
        size=integer(size.path, size.text) if size and size.text else 0,
        boot=1 if node.text_of("bootable") == "true" else 0,
        readonly=node.text_of("read_only") == "true",
        shareable=bool(disk) and disk.text_of("shareable") == "true" if disk else False,
    )
    node.skip()
    return found


def _cdrom(node: Node) -> Drive:
    file = node.value("file", "id") or node.text_of("file")
    return Drive(node.path, "cdrom", "cdrom", "volume" if file else "empty", file, bus="sata")


def _nic(node: Node) -> Nic:
    model, profile = node.text_of("interface"), node.find("vnic_profile")
    network = ""
    if profile is not None:
        network = profile.text_of("name") or profile.value("network", "id") or profile.get("id")
    network = node.text_of("network/name") or network or node.value("network", "id")
    boot = node.text_of("boot_protocol")
    found = Nic(
        path=node.path,
        network=f"network:{network}" if network else "network:none",
        mac=node.text_of("mac/address").lower(),
        model="" if model == "pci_passthrough" else model.removesuffix("_virtio") or "",
        sriov=model == "pci_passthrough",
        addresses=(boot,) if boot else (),
    )
    node.skip()
    return found


def _devices(vm: Node) -> Iterator[Device]:
    for outer in vm.all("host_devices"):
        for node in outer.all("host_device"):
            name, capability = node.text_of("name"), node.text_of("capability")
            vendor, product = (node.value(tag, "id") for tag in ("vendor", "product"))
            ids = ""
            if vendor and product:
                ids = pci_ids(*(integer(node.path, part, most=0xFFFF, base=16) for part in (vendor, product)))
            match = _PCI_NAME.fullmatch(name)
            address = f"{match[1]}:{match[2]}:{match[3]}.{match[4]}".lower() if match else ""
            node.skip()
            if capability == "pci" or match:
                yield Device(node.path, "pci", address=address, ids=ids, name="" if address else name)
            elif capability.startswith("usb"):
                yield Device(node.path, "usb", ids=ids, name=name)
            elif capability.startswith(("scsi", "storage")):
                yield Device(node.path, "scsi", name=name, hint=name)
            else:
                yield Device(node.path, "other", name=name, hint=f"{capability} {name}")


def _mdevs(vm: Node, custom: dict[str, str]) -> Iterator[Device]:
    """Mediated devices of their own kind, and those of the custom property that was there before."""
    types = []
    for outer in vm.all("mediated_devices"):
        for node in outer.all("mediated_device"):
            given = {
                p.text_of("name"): p.text_of("value")
                for p in (node.find("spec_params") or node).all("property")
            }
            types.append((node.path, given.get("mdevType", "")))
            node.skip()
    if not types:
        path = f"{vm.path}/custom_properties mdev_type"
        parts = [part.strip() for part in custom.get("mdev_type", "").split(",")]
        types = [(path, part) for part in parts if part and part != "nodisplay"]
    for path, type_ in types:
        yield Device(path, "mdev", name=type_)


def _first_boot(vm: Node) -> CloudInit | None:
    """What cloud-init is told: user, password, keys, script and static addresses."""
    given = vm.find("initialization")
    if given is None:
        return None
    config: dict[str, Any] = {}
    for tag, key in (
        ("host_name", "hostname"),
        ("user_name", "user"),
        ("root_password", "password"),
        ("timezone", "timezone"),
    ):
        if value := given.text_of(tag):
            config[key] = value
    if "password" in config:
        config["chpasswd"] = {"expire": False}
    if public := [line.strip() for line in given.text_of("authorized_ssh_keys").splitlines() if line.strip()]:
        config["ssh_authorized_keys"] = public
    script = given.text_of("custom_script")
    networks = [_address(node) for outer in given.all("nic_configurations") for node in outer.nodes]
    if not config and not script and not networks:
        return None
    text = yaml.safe_dump(config, sort_keys=False) if config else ""
    network = {"version": 1, "config": networks}
    return CloudInit(
        user_data="\n".join(filter(None, ("#cloud-config", text.rstrip(), script.strip()))) + "\n",
        network_data=yaml.safe_dump(network, sort_keys=False) if networks else "",
    )


def _address(node: Node) -> dict[str, Any]:
    protocol = node.text_of("boot_protocol", "dhcp")
    subnet: dict[str, Any] = {"type": "dhcp"}
    if protocol == "static":
        subnet = {
            "type": "static",
            "address": node.text_of("ip/address"),
            "netmask": node.text_of("ip/netmask"),
        }
        if gateway := node.text_of("ip/gateway"):
            subnet["gateway"] = gateway
    return {"type": "physical", "name": node.text_of("name"), "subnets": [subnet]}
