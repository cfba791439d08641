"""OpenStack servers, as Nova's API shows them (`GET /servers/detail`, microversion 2.47 or newer).

The same JSON may have the lists `flavors`, `images`, `volumes` and `ports` beside `server` or `servers`, as the APIs of
Nova, Glance, Cinder and Neutron give them: they say what a server only names.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from vmtenancy.migrate.keys import Keys
from vmtenancy.migrate.model import (
    CloudInit,
    Cpu,
    Device,
    DeviceBus,
    Drive,
    Firmware,
    Guest,
    Lost,
    Machine,
    Memory,
    Nic,
)
from vmtenancy.migrate.text import integer, refuse, shown

_Json = Mapping[str, Any]
#: What stands beside the servers, by kind and id.
_Known = Mapping[str, Mapping[str, _Json]]

_GIB, _MIB = 1 << 30, 1 << 20
#: Lists beside the servers, and what names an entry of each.
_BESIDE: Final = {"flavors": "id", "images": "id", "volumes": "id", "ports": "mac_address"}
#: What Nova remembers of a server, and what only its own cloud knows.
_CLOUD_ONLY: Final = (
    *("id", "links", "created", "updated", "hostid", "progress", "status", "tenant_id", "user_id", "locked"),
    *("os-ext-sts:", "os-srv-usg:", "os-dcf:", "os-ext-srv-attr:", "host_status", "locked_reason", "fault"),
    *(
        "accessipv",
        "config_drive",
        "launched_at",
        "terminated_at",
        "server_groups",
        "trusted_image_certificates",
    ),
    *("pinned_availability_zone", "scheduler_hints", "description"),
)
_RESOURCE: Final = re.compile(r"resources(?:_?[A-Za-z0-9_-]*):(VGPU|PGPU|CUSTOM_\w*(?:GPU|ACCEL)\w*)")
_TRAIT: Final = re.compile(r"trait(?:_?[A-Za-z0-9_-]*):(\S+)")
_PAGES: Final = {"large": 2 << 20, "small": 0, "any": 0, "2mb": 2 << 20, "2048": 2 << 20, "1gb": 1 << 30}
_PAGES_KIB: Final = {"1048576": 1 << 30}


def read(data: bytes) -> tuple[Machine, ...]:
    """The servers of a document. Raises VmtError (SOURCE)."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise refuse("", "is no JSON", str(error), "a server of Nova's API") from None
    if not isinstance(document, dict):
        raise refuse("", "is no object", type(document).__name__, "an object with server or servers")
    if isinstance(document.get("servers"), list):
        servers = [(f"servers[{index}]", server) for index, server in enumerate(document["servers"])]
    elif "server" not in document and "flavor" in document:
        servers = [("server", _from_client(document))]
    else:
        servers = [("server", document.get("server"))]
    if not servers:
        raise refuse("servers", "is empty", expected="at least one server")
    known = {
        kind: {str(one.get(key)).lower(): one for one in _list(kind, document.get(kind))}
        for kind, key in _BESIDE.items()
    }
    return tuple(_machine(path, _object(path, server), known) for path, server in servers)


def _from_client(shown_: _Json) -> _Json:
    """What `openstack server show -f json` prints, as the API has it: texts instead of some objects."""
    image, addresses = shown_.get("image"), shown_.get("addresses")
    found = {**shown_, "os-extended-volumes:volumes_attached": shown_.get("volumes_attached")}
    found.pop("volumes_attached", None)
    if isinstance(image, str):
        named = re.search(r"\(([0-9a-f-]{36})\)$", image)
        found["image"] = {"id": named[1]} if named else ""
    if isinstance(addresses, dict):
        found["addresses"] = {
            network: [{"addr": one} if isinstance(one, str) else one for one in given]
            for network, given in addresses.items()
            if isinstance(given, list)
        }
    if isinstance(found.get("properties"), dict):
        found["metadata"] = found.pop("properties")
    return found


def _object(path: str, value: Any) -> _Json:
    if not isinstance(value, dict):
        raise refuse(path, "is required", json.dumps(value)[:80] if value is not None else "", "an object")
    return value


def _list(path: str, value: Any) -> Sequence[_Json]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise refuse(path, "invalid value", json.dumps(value)[:80], "a list of objects")
    return value


def _number(path: str, value: Any, least: int = 0) -> int:
    if value in (None, ""):
        return 0
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise refuse(path, "invalid value", json.dumps(value)[:80], "a whole number")
    return integer(path, str(value), least=least, most=1 << 40)


def _named(known: _Known, kind: str, id_: Any) -> _Json:
    """What a list of the document has of this id; nothing where there is none."""
    return known[kind].get(str(id_).lower(), {})


def _texts(value: Any) -> dict[str, str]:
    return {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else {}


def _machine(path: str, server: _Json, known: _Known) -> Machine:
    lost: list[Lost] = []
    flavor = _flavor(path, server, known)
    image_ref = server.get("image")
    image = _named(known, "images", image_ref.get("id")) if isinstance(image_ref, dict) else {}
    volumes = [
        (volume, _named(known, "volumes", volume.get("id")))
        for volume in _list(
            f"{path}.os-extended-volumes:volumes_attached", server.get("os-extended-volumes:volumes_attached")
        )
    ]
    properties = {k: str(v) for k, v in image.items() if isinstance(v, str | int | bool)}
    for _, volume in volumes:
        properties |= _texts(volume.get("volume_image_metadata"))
    specs = Keys(_texts(flavor.get("extra_specs")))
    meta = Keys({k: v for k, v in properties.items() if k.startswith(("hw_", "os_", "img_", "hide_"))})
    at = f"{path}.flavor"
    vcpus = _number(f"{at}.vcpus", flavor.get("vcpus"), least=1)
    memory = _number(f"{at}.ram", flavor.get("ram"), least=1) * _MIB
    if not vcpus or not memory:
        expected = "vcpus and ram, embedded from microversion 2.47 on, or the list flavors beside the server"
        raise refuse(at, "is not complete", shown("flavor", json.dumps(server.get("flavor"))), expected)
    efi = meta.get("hw_firmware_type").lower() == "uefi"
    secure = (specs.get("os:secure_boot") or meta.get("os_secure_boot")).lower() == "required"
    tpm = bool(specs.get("hw:tpm_version") or meta.get("hw_tpm_version"))
    if tpm:
        lost.append(Lost(path, "a TPM's state", "a TPM begins anew: what it sealed needs its recovery key"))
    hidden = any(
        keys.flag(name) for keys, name in ((specs, "hide_hypervisor_id"), (meta, "img_hide_hypervisor_id"))
    )
    devices = list(_devices(f"{at}.extra_specs", specs))
    seen = Keys({k: v if isinstance(v, str) else json.dumps(v) for k, v in server.items()})
    nics = _nics(path, server, known, meta.get("hw_vif_model"), lost)
    cloud = _user_data(server)
    for key in (
        "name",
        "flavor",
        "image",
        "addresses",
        "metadata",
        "tags",
        "os-extended-volumes:volumes_attached",
    ):
        seen.get(key)
    seen.skip(_CLOUD_ONLY)
    meta.skip(["hw_qemu_guest_agent"])  # every machine of KubeVirt has its channel
    for key in list(seen):
        if server.get(seen.spelt(key)) in (None, "", [], {}):
            seen.get(key)
    name = str(server.get("name") or server.get("id") or "")
    named = server.get("tags")
    tags = [str(tag) for tag in named] if isinstance(named, list) else []
    tags += [f"{key}={shown(key, value)}" for key, value in _texts(server.get("metadata")).items()]
    machine = Machine(
        name=name,
        cpu=_cpu(at, vcpus, specs, meta),
        memory=Memory(memory, page=_page(specs)),
        firmware=Firmware(efi or secure, secure, tpm, str(server.get("id") or "")),
        guest=Guest(
            arch=properties.get("hw_architecture", "x86_64"),
            machine=meta.get("hw_machine_type"),
            kvm_hidden=hidden,
            rng=specs.flag("hw_rng:allowed") and bool(meta.get("hw_rng_model") or "virtio"),
        ),
        drives=tuple(_drives(path, server, flavor, volumes, meta.get("hw_disk_bus") or "virtio")),
        nics=tuple(nics),
        devices=tuple(devices),
        cloud_init=cloud,
        autostart=server.get("status") == "ACTIVE",
        os=meta.get("os_type") or meta.get("os_distro"),
        tags=tuple(tags),
        notes=str(server.get("description") or ""),
        lost=(),
    )
    rest = [
        *(Lost(f"{path}.{one.path}", one.found, one.why) for one in seen.unread()),
        *(Lost(f"{at}.extra_specs.{one.path}", one.found, one.why) for one in specs.unread()),
        *(Lost(f"image {one.path}", one.found, one.why) for one in meta.unread()),
    ]
    return replace(machine, lost=(*lost, *rest))


def _flavor(path: str, server: _Json, known: _Known) -> _Json:
    flavor = server.get("flavor")
    if not isinstance(flavor, dict):
        raise refuse(f"{path}.flavor", "is required", expected="a server as GET /servers/{id} shows it")
    if "vcpus" in flavor:
        return flavor
    return _named(known, "flavors", flavor.get("id")) or flavor


def _cpu(at: str, vcpus: int, specs: Keys, meta: Keys) -> Cpu:
    parts = []
    for part in ("sockets", "cores", "threads"):
        value = specs.get(f"hw:cpu_{part}") or meta.get(f"hw_cpu_{part}")
        parts.append(integer(f"{at}.extra_specs.hw:cpu_{part}", value, least=1) if value else 0)
    policy = specs.get("hw:cpu_policy") or meta.get("hw_cpu_policy")
    thread_policy = specs.get("hw:cpu_thread_policy")
    nodes = specs.get("hw:numa_nodes") or meta.get("hw_numa_nodes")
    cells = integer(f"{at}.extra_specs.hw:numa_nodes", nodes, least=1) if nodes else 0
    sockets, cores, threads = parts
    pinned = policy == "dedicated" or bool(thread_policy)
    return Cpu(vcpus, vcpus, sockets, cores, threads, pinned=pinned, numa_cells=cells)


def _page(specs: Keys) -> int:
    text = specs.get("hw:mem_page_size").lower()
    if text in _PAGES or not text:
        return _PAGES.get(text, 0)
    if text in _PAGES_KIB:
        return _PAGES_KIB[text]
    raise refuse(
        "flavor.extra_specs.hw:mem_page_size", "invalid value", text, "large, small, any, 2MB or 1GB"
    )


def _devices(at: str, specs: Keys) -> Iterator[Device]:
    """Devices that the flavor asks for: PCI aliases, vGPUs with what their traits say, and accelerators."""
    path = f"{at}.pci_passthrough:alias"
    for part in filter(None, re.split(r"\s*,\s*", specs.get("pci_passthrough:alias"))):
        alias, _, count = part.partition(":")
        for _ in range(integer(path, count or "1", least=1, most=64)):
            yield Device(path, "pci", name=alias.strip(), hint="a PCI alias")
    traits = [
        (key, match[1])
        for key in list(specs)
        if (match := _TRAIT.fullmatch(specs.spelt(key))) and specs.get(key) == "required"
    ]
    for key in list(specs):
        match = _RESOURCE.fullmatch(specs.spelt(key))
        if match is not None:
            group = specs.spelt(key).partition(":")[0].removeprefix("resources")
            own = [
                trait
                for k, trait in traits
                if specs.spelt(k).partition(":")[0].removeprefix("trait") == group
            ]
            path = f"{at}.{specs.spelt(key)}"
            for _ in range(integer(path, specs.get(key), most=64)):
                hint = f"{match[1]} {' '.join(own)}".strip()
                bus: DeviceBus = "vgpu" if match[1] == "VGPU" else "pci"
                yield Device(path, bus, name=own[0] if own else match[1], hint=hint)
    if profile := specs.get("accel:device_profile"):
        yield Device(f"{at}.accel:device_profile", "pci", name=profile, hint="a device profile of Cyborg")


def _drives(
    path: str, server: _Json, flavor: _Json, volumes: Sequence[tuple[_Json, _Json]], bus: str
) -> Iterator[Drive]:
    image = server.get("image")
    index = 0
    if isinstance(image, dict) and image.get("id"):
        size = _number(f"{path}.flavor.disk", flavor.get("disk")) * _GIB
        location = f"image {image['id']}"
        yield Drive(f"{path}.image", "root", "disk", "volume", location, "", bus, size, boot=1)
        index = 1
    for volume, details in volumes:
        id_, at = str(volume.get("id")), f"{path}.os-extended-volumes:volumes_attached"
        size = _number(f"volumes {id_}", details.get("size")) * _GIB
        boot = int(not index)
        yield Drive(
            f"{at}[{id_}]", f"volume{index}", "disk", "volume", f"volume {id_}", "", bus, size, boot=boot
        )
        index += 1
    for part, unit in (("ephemeral", _GIB), ("swap", _MIB)):
        amount = (
            flavor.get("OS-FLV-EXT-DATA:ephemeral", flavor.get(part))
            if part == "ephemeral"
            else flavor.get(part)
        )
        size = _number(f"{path}.flavor.{part}", amount) * unit
        if size:
            yield Drive(f"{path}.flavor.{part}", part, "disk", "empty", "", "", bus, size)


def _nics(path: str, server: _Json, known: _Known, model: str, lost: list[Lost]) -> list[Nic]:
    """One interface for each MAC of a network; older answers have no MAC: one for each network then."""
    found: dict[tuple[str, str], list[str]] = {}
    addresses = server.get("addresses")
    for network, given in addresses.items() if isinstance(addresses, dict) else ():
        for address in _list(f"{path}.addresses.{network}", given):
            text = str(address.get("addr"))
            if address.get("OS-EXT-IPS:type") == "floating":
                lost.append(Lost(f"{path}.addresses.{network}", text, "a floating address: publish it anew"))
                continue
            mac = str(address.get("OS-EXT-IPS-MAC:mac_addr") or "").lower()
            found.setdefault((str(network), mac), []).append(text)
    return [
        Nic(
            path=f"{path}.addresses.{network}",
            network=f"network:{network}",
            mac=mac,
            model=model,
            sriov=str(_named(known, "ports", mac).get("binding:vnic_type", "normal")).startswith(
                ("direct", "macvtap")
            ),
            addresses=tuple(given),
        )
        for (network, mac), given in found.items()
    ]


def _user_data(server: _Json) -> CloudInit | None:
    text = server.get("OS-EXT-SRV-ATTR:user_data")
    if not isinstance(text, str) or not text:
        return None
    try:
        return CloudInit(user_data=base64.b64decode(text, validate=True).decode())
    except ValueError:
        raise refuse("OS-EXT-SRV-ATTR:user_data", "can not be decoded", expected="base64 of UTF-8") from None
