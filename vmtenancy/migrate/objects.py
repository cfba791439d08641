"""A machine of the neutral model becomes Kubernetes objects: a GpuVM, DataVolumes, networks and a Secret.

What a GpuVM has a field for goes there, the rest into its `vm` overlay. It is always written Halted: its disks are
empty until they are filled.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from vmtenancy.api import names
from vmtenancy.api.common import DnsLabel, DnsSubdomain
from vmtenancy.api.parsing import check_text, parse
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.migrate.devices import Card, DeviceMap, Resolution
from vmtenancy.migrate.domain import domain_of
from vmtenancy.migrate.model import Drive, Lost, Machine
from vmtenancy.migrate.networks import networks_of
from vmtenancy.migrate.text import shown, without_credentials
from vmtenancy.render.merge import without_nulls
from vmtenancy.runtimes.kubevirt import data_volume_name

Object = dict[str, Any]

#: As many things that are not kept, and as long notes, as an annotation takes; all are in `Conversion.lost`.
_MOST_LOST: Final = 300
_MOST_NOTES: Final = 8192
_BUSES: Final = ("virtio", "sata", "scsi", "usb")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user wants of the objects. `stem`: the name of a machine that has none, as its file has it.

    `default_class`: for a machine whose devices say no class. Raises VmtError (INVALID_FIELD) for a namespace or
    storage class that can not be; of `name` and `default_class` the GpuVM says so.
    """

    namespace: str = "default"
    name: str = ""
    stem: str = ""
    default_class: str = ""
    storage_class: str = ""
    answers: DeviceMap = field(default_factory=DeviceMap)

    def __post_init__(self) -> None:
        check_text(DnsLabel, "namespace", self.namespace)
        if self.storage_class:
            check_text(DnsSubdomain, "storageClass", self.storage_class)


@dataclass(frozen=True, slots=True)
class Conversion:
    """One machine, its objects, where its devices went, and everything that the objects do not have."""

    machine: Machine
    objects: tuple[Object, ...]
    devices: Resolution
    lost: tuple[Lost, ...]


def objects_of(machine: Machine, devices: Resolution, source: str, wishes: Wishes) -> Conversion:
    """Write the objects. `source` is the platform.

    Raises `VmtError`: NO_GPU where no class is known for it, or as `parse` does for what no GpuVM can be.
    """
    lost = list(machine.lost)
    name = wishes.name or dns_label(machine.name or wishes.stem)
    gpus = _gpus(machine, devices, wishes.default_class)
    for card in devices.left:
        lost += [
            Lost(d.path, d.hint or d.address or d.ids, "left behind: the device map says so")
            for d in card.devices
        ]
    drives, order = _drives(machine, wishes.answers, lost), _boot_order(machine)
    networks, interfaces, attachments = networks_of(machine, wishes.answers, wishes.namespace, order, lost)
    disks, volumes, data_volumes, filled_from = [], [], [], {}
    for disk_name, drive, size in drives:
        volume = data_volume_name(name, disk_name)
        disks.append(_disk(disk_name, drive, order.get(drive.path), lost))
        volumes.append({"name": disk_name, "dataVolume": {"name": volume}})
        told_as = shown("location", drive.location) or drive.source
        filled_from[volume] = f"{told_as} ({drive.format})" if drive.format else told_as
        if size:
            data_volumes.append(_data_volume(volume, name, drive, size, wishes))
        else:
            why = f"its size is not in the source: make the DataVolume {volume}, or give the size in the map's disks"
            lost.append(Lost(drive.path, drive.location or drive.name, why))
    secrets = _cloud_init(machine, name, wishes.namespace, disks, volumes)
    domain = domain_of(machine, lost)
    domain["devices"] |= {"disks": disks, "interfaces": interfaces}
    if devices.hosts:
        domain["devices"]["hostDevices"] = [
            {"name": f"host{index}", "deviceName": resource}
            for index, (resource, _) in enumerate(devices.hosts)
        ]
    spec = {
        "domain": domain,
        "architecture": {"x86_64": "amd64", "i686": "amd64", "aarch64": "arm64"}.get(
            machine.guest.arch, machine.guest.arch
        ),
        "volumes": volumes,
    }
    told = {
        "source": source,
        "name": machine.name,
        "os": machine.os,
        "autostart": machine.autostart,
        "tags": list(machine.tags),
        "notes": without_credentials(machine.notes[:_MOST_NOTES]),
        "dataVolumes": filled_from,
    }
    if len(machine.notes) > _MOST_NOTES:
        lost.append(
            Lost("notes", f"{len(machine.notes)} characters", f"an annotation has the first {_MOST_NOTES}")
        )
    annotations = {
        names.MIGRATED_ANNOTATION: _json(told),
        names.NOT_KEPT_ANNOTATION: _json(_listed(lost)) if lost else None,
        names.UNRESOLVED_ANNOTATION: _json([card.to_dict() for card in devices.unresolved])
        if devices.unresolved
        else None,
    }
    gpuvm = {
        "apiVersion": names.API_VERSION,
        "kind": "GpuVM",
        "metadata": {"name": name, "namespace": wishes.namespace, "annotations": without_nulls(annotations)},
        "spec": {
            "template": {"name": "bare"},
            "gpus": gpus,
            "cpu": {"cores": machine.cpu.vcpus},
            "memory": binary(machine.memory.bytes),
            "networks": networks,
            "runStrategy": "Halted",
            "vm": {"template": {"spec": _without_empty(spec)}},
        },
    }
    parse(gpuvm)
    return Conversion(machine, (gpuvm, *data_volumes, *attachments, *secrets), devices, tuple(lost))


def dns_label(text: str) -> str:
    """A DNS label as near to `text` as can be; what had to be changed a lot gets a digest, so that two differ."""
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    if not label:
        return f"vm-{digest}"
    # KubeVirt makes names of pods and volumes from it.
    return label if len(label) <= 50 else f"{label[:41].rstrip('-')}-{digest}"


def binary(amount: int) -> str:
    """Bytes as Kubernetes writes them: `16Gi`."""
    for power, unit in ((40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")):
        if amount % (1 << power) == 0 and amount:
            return f"{amount >> power}{unit}"
    return str(amount)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _listed(lost: Sequence[Lost]) -> list[Object]:
    listed = [
        {"path": one.path, "found": shown(one.path, one.found), "why": one.why} for one in lost[:_MOST_LOST]
    ]
    if len(lost) > _MOST_LOST:
        listed.append(
            {"path": "", "found": f"{len(lost) - _MOST_LOST} more", "why": "told at the conversion"}
        )
    return listed


def _gpus(machine: Machine, devices: Resolution, default_class: str) -> list[Object]:
    counts: dict[str, int] = {}
    suggested = [card.suggestion for card in devices.unresolved if card.suggestion]
    for name in (*(class_ for class_, _ in devices.gpus), *suggested):
        counts[name] = counts.get(name, 0) + 1
    if not counts and default_class:
        counts[default_class] = 1
    if not counts:
        raise VmtError(_no_gpu(machine, devices.unresolved))
    return [{"class": name, "count": count} for name, count in counts.items()]


def _no_gpu(machine: Machine, unresolved: Sequence[Card]) -> Problem:
    found = "; ".join(
        f"{card.devices[0].path} ({', '.join(card.keys) or card.devices[0].hint or card.devices[0].bus})"
        for card in unresolved
    )
    expected = "--default-class, a GpuClass for it"
    if any(card.keys for card in unresolved):
        key = next(card.keys[0] for card in unresolved if card.keys)
        answer = json.dumps({"devices": {key: {"gpuClass": "CLASS"}}})
        expected = f"a device map (--device-map) that says what they are, for example {answer}; or {expected}"
    message = f"machine {shown('name', machine.name)} has no device that is known to be a GPU"
    return Problem(Code.NO_GPU, "", message, found or "no devices", expected)


def _boot_order(machine: Machine) -> dict[str, int]:
    """The boot order by path, from 1 without gaps or doubles; the first disk where the source says nothing."""
    given = [(one.boot, one.path) for one in machine.drives if one.boot]
    given += [(one.boot, one.path) for one in machine.nics if one.boot]
    given = sorted(given) or [(1, disk.path) for disk in machine.disks[:1]]
    return {path: index for index, (_, path) in enumerate(given, 1)}


def _drives(machine: Machine, answers: DeviceMap, lost: list[Lost]) -> list[tuple[str, Drive, int]]:
    """The drives that the machine gets: names that are unique, and sizes in bytes, 0 where nobody says them."""
    taken: set[str] = set()
    found = []
    for index, drive in enumerate(machine.drives):
        given = answers.disks.get(drive.location) or answers.disks.get(drive.name)
        size = drive.size or (given.bytes if given else 0)
        if drive.source == "empty":
            if drive.device == "cdrom":
                lost.append(Lost(drive.path, "an empty drive", "KubeVirt's drives always have a medium"))
                continue
            if not size:
                lost.append(Lost(drive.path, "a disk without a source", "there is nothing to bring over"))
                continue
        elif drive.device == "cdrom" and not size:
            why = "the size of the medium is not in the source: give it in the map's disks to keep it"
            lost.append(Lost(drive.path, drive.location, why))
            continue
        label = dns_label(drive.name)[:20].strip("-") if drive.name else f"disk{index}"
        name = label if label not in taken else f"{label}-{index}"
        taken.add(name)
        found.append((name, drive, size))
    return found


def _disk(name: str, drive: Drive, boot: int | None, lost: list[Lost]) -> Object:
    cdrom = drive.device == "cdrom"
    bus = drive.bus if drive.bus in _BUSES and not (cdrom and drive.bus == "virtio") else "sata"
    if drive.bus and bus != drive.bus:
        lost.append(Lost(drive.path, f"bus {drive.bus}", f"KubeVirt has no such bus: it is on {bus}"))
    if drive.device == "lun":
        lost.append(
            Lost(drive.path, "lun", "what is copied is a disk: SCSI commands do not reach the old LUN")
        )
    target: Object = {"bus": bus}
    if drive.readonly and not cdrom and bus in ("virtio", "scsi"):
        target["readonly"] = True
    disk: Object = {"name": name, "cdrom" if cdrom else "disk": target}
    if boot:
        disk["bootOrder"] = boot
    if drive.serial:
        disk["serial"] = drive.serial
    if drive.shareable:
        disk["shareable"] = True
    elif drive.cache:
        disk["cache"] = drive.cache
    return disk


def _data_volume(name: str, vm: str, drive: Drive, size: int, wishes: Wishes) -> Object:
    if drive.source == "empty":
        source: Object = {"blank": {}}
    elif drive.url and "?" not in drive.url and without_credentials(drive.url) == drive.url:
        source = {"http": {"url": drive.url}}
    else:
        source = {"upload": {}}
    storage: Object = {"resources": {"requests": {"storage": binary(size)}}}
    if wishes.storage_class:
        storage["storageClassName"] = wishes.storage_class
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": _metadata(name, vm, wishes.namespace),
        "spec": {"source": source, "storage": storage},
    }


def _metadata(name: str, vm: str, namespace: str) -> Object:
    return {"name": name, "namespace": namespace, "labels": {names.GPUVM_LABEL: vm}}


def _cloud_init(
    machine: Machine, vm: str, namespace: str, disks: list[Object], volumes: list[Object]
) -> list[Object]:
    first_boot = machine.cloud_init
    if first_boot is None:
        return []
    name = f"{vm}-first-boot"
    volume: Object = {"secretRef": {"name": name}}
    data = {"userdata": first_boot.user_data or "#cloud-config\n{}\n"}
    if first_boot.network_data:
        data["networkdata"] = first_boot.network_data
        volume["networkDataSecretRef"] = {"name": name}
    disks.append({"name": "cloudinit", "disk": {"bus": "virtio"}})
    volumes.append({"name": "cloudinit", "cloudInitNoCloud": volume})
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": _metadata(name, vm, namespace)}
    return [{**secret, "type": "Opaque", "data": encoded}]


def _without_empty(spec: Object) -> Object:
    """Without empty lists and mappings of nothing, which KubeVirt drops."""
    return {
        key: _without_empty(value) if isinstance(value, dict) and key in ("domain", "devices") else value
        for key, value in spec.items()
        if value not in ([], None)
    }
