"""Which GPUs a machine gets for the devices that it had: by the user's device map, the host's facts and pci.ids.

Every device of the source comes out in exactly one place: in a GPU, as a host device, left behind because the map says
so, or unresolved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from vmtenancy.api.common import ApiModel, ObjectName, ResourceName, Rule, Text
from vmtenancy.api.gpuvm import AttachmentName, exactly_one
from vmtenancy.api.names import GPU_RESOURCE_PREFIXES
from vmtenancy.api.quantity import Quantity
from vmtenancy.migrate.model import DISPLAY, Device
from vmtenancy.migrate.products import GPUS, is_gpu_mdev, pci_kind, suggested_class, vgpu_profile
from vmtenancy.migrate.text import pci_address

_Ids = Annotated[
    str, Text(r"^[0-9a-fA-F]{4}:[0-9a-fA-F]{4}$", 9, "vendor:device in hex, for example 10de:2330")
]


#: The ids are those of one function: a card has none.
_Address = Annotated[
    str,
    Text(
        r"^([0-9a-fA-F]{1,8}:)?[0-9a-fA-F]{1,2}:[0-9a-fA-F]{1,2}\.[0-7]$",
        16,
        "a PCI address with its function, for example 0000:81:00.0",
    ),
]


class DeviceAnswer(ApiModel):
    """What becomes of a device."""

    gpu_class: ObjectName | None = Field(default=None, description="It is one unit of this GpuClass.")
    host_device: ResourceName | None = Field(
        default=None, description="It is no GPU: the resource of KubeVirt's permittedHostDevices for it."
    )
    leave: Literal[True] | None = Field(default=None, description="The machine goes on without it.")
    rules: ClassVar = (
        exactly_one("gpuClass", "hostDevice", "leave"),
        Rule(
            cel="true",
            holds=lambda self: not (self.host_device or "").startswith(GPU_RESOURCE_PREFIXES),
            expected="no GPU: those have a gpuClass",
            field="hostDevice",
        ),
    )


class NetworkAnswer(ApiModel):
    """What a network of the source is in the cluster."""

    multus: AttachmentName | None = Field(
        default=None, description="A NetworkAttachmentDefinition that exists: name or namespace/name."
    )
    pod: Literal[True] | None = Field(default=None, description="The pod network.")
    rules: ClassVar = (exactly_one("multus", "pod"),)


class DeviceMap(ApiModel):
    """The answers that the user gives and keeps, for machine after machine."""

    devices: dict[str, DeviceAnswer] = Field(
        default_factory=dict,
        description="By the address, uuid, name, profile or ids of a device: what becomes of it.",
    )
    addresses: dict[_Address, _Ids] = Field(
        default_factory=dict, description="By PCI address of the old host: the ids of what is there."
    )
    networks: dict[str, NetworkAnswer] = Field(
        default_factory=dict, description="By network of the source: what it is in the cluster."
    )
    disks: dict[str, Quantity] = Field(
        default_factory=dict,
        description="By location or name of a disk: its size, where the source has none.",
    )


@dataclass(slots=True)
class HostFacts:
    """What is known of the old host: PCI ids and class by address, mdev types by uuid, names of mdev types."""

    ids: dict[str, str] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    mdevs: dict[str, str] = field(default_factory=dict)
    type_names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Card:
    """A device with the functions of its card that came with it; `kind`, `product` and `suggestion` where known.

    `keys`: what the map may name it by, the most exact first.
    """

    devices: tuple[Device, ...]
    kind: str
    product: str = ""
    suggestion: str = ""
    keys: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the annotation."""
        first = self.devices[0]
        found = {
            "path": first.path,
            "kind": self.kind or "unknown",
            "product": self.product,
            "keys": list(self.keys),
            "functions": [device.path for device in self.devices[1:]],
            "suggestedClass": self.suggestion,
            "hint": first.hint,
        }
        return {key: value for key, value in found.items() if value}


@dataclass(slots=True)
class Resolution:
    """Where each device of the source went."""

    gpus: list[tuple[str, Card]] = field(default_factory=list)
    hosts: list[tuple[str, Card]] = field(default_factory=list)
    left: list[Card] = field(default_factory=list)
    unresolved: list[Card] = field(default_factory=list)

    @property
    def devices(self) -> int:
        """How many devices of the source are somewhere here."""
        cards = [card for _, card in (*self.gpus, *self.hosts)] + self.left + self.unresolved
        return sum(len(card.devices) for card in cards)


def resolve(devices: Sequence[Device], answers: DeviceMap, facts: HostFacts) -> Resolution:
    """Put every device in its place."""
    by_key = {_normal(key): answer for key, answer in answers.devices.items()}
    known = HostFacts(
        {_normal(at): ids for at, ids in facts.ids.items()}
        | {_normal(at): ids.lower() for at, ids in answers.addresses.items()},
        facts.classes,
        facts.mdevs,
        facts.type_names,
    )
    found = Resolution()
    for card in _cards([_judge(device, known) for device in devices], by_key):
        answer = _answer(card, by_key)
        if answer is None:
            found.unresolved.append(card)
        elif answer.gpu_class is not None:
            found.gpus.append((answer.gpu_class, card))
        elif answer.host_device is not None:
            found.hosts.append((answer.host_device, card))
        else:
            found.left.append(card)
    return found


def _answer(card: Card, by_key: Mapping[str, DeviceAnswer]) -> DeviceAnswer | None:
    return next((by_key[key] for key in map(_normal, card.keys) if key in by_key), None)


def _normal(key: str) -> str:
    return pci_address(key) or key.strip().lower()


def _judge(device: Device, facts: HostFacts) -> Card:
    """What one device is, by itself."""
    keys = [device.address, device.slot if device.address else "", device.uuid]
    product = ""
    if device.bus == "usb":
        keys += [f"usb:{device.ids}" if device.ids else "", f"usb:{device.name}" if device.name else ""]
        kind = "usb device"
    elif device.bus in ("mdev", "vgpu"):
        type_ = device.name or facts.mdevs.get(device.uuid, "")
        name = facts.type_names.get(type_, type_)
        product = vgpu_profile(name)
        keys += [type_, name, product]
        no_gpu = device.hint in ("vfio-ccw", "vfio-ap")
        kind = device.hint if no_gpu else "gpu" if device.bus == "vgpu" or is_gpu_mdev(name) else ""
    elif device.bus in ("scsi", "other"):
        kind = f"{device.bus} device"
    else:
        # All functions of a card are its first, when it comes to what it is.
        at = device.address if "." in device.address else f"{device.address}.0"
        ids = device.ids or facts.ids.get(at, "")
        candidates = [ids, *device.allowed]
        keys += [device.name, *candidates]
        kinds = [pci_kind(one, facts.classes.get(at, "")) for one in candidates]
        kind = "gpu" if "gpu" in kinds else next(filter(None, kinds), "")
        product = next((GPUS[one] for one in candidates if one in GPUS), vgpu_profile(device.name))
        kind = "gpu" if product or device.hint == DISPLAY else kind
    suggestion = suggested_class(product) if product else ""
    # By its path any device can be named, in a map for this machine.
    return Card(
        (device,), kind, product, suggestion, tuple(dict.fromkeys(filter(None, [*keys, device.path])))
    )


def _cards(judged: Sequence[Card], by_key: Mapping[str, DeviceAnswer]) -> Iterator[Card]:
    """Fold the functions of one card into its GPU; one address that is named twice is one device."""
    answers = [_answer(card, by_key) for card in judged]
    mains = [
        (answer.gpu_class is not None) if answer is not None else card.kind == "gpu"
        for card, answer in zip(judged, answers, strict=True)
    ]
    folded: dict[int, int] = {}
    first_at: dict[str, int] = {}
    gpu_at: dict[str, int] = {}
    placed = [index for index, card in enumerate(judged) if card.devices[0].bus == "pci"]
    placed = sorted(
        (index for index in placed if judged[index].devices[0].address),
        key=lambda index: judged[index].devices[0].address,
    )
    # An answer for a whole card is that of one of its functions; for the others it says nothing.
    by_card = {index for index in placed if answers[index] and not _is_exact(judged[index], by_key)}
    for index in placed:
        device = judged[index].devices[0]
        first = first_at.setdefault(device.address, index)
        if first != index:
            folded[index] = first
        elif mains[index] and not (index in by_card and device.slot in gpu_at):
            gpu_at.setdefault(device.slot, index)
    for index in placed:
        gpu = gpu_at.get(judged[index].devices[0].slot, index)
        other = index in by_card or (answers[index] is None and not mains[index])
        if index not in folded and gpu != index and other:
            folded[index] = gpu
    # Where the source has no addresses, a function goes with the GPU before it, of the same maker.
    last: dict[str, int] = {}
    for index, card in enumerate(judged):
        device = card.devices[0]
        vendor = device.ids.partition(":")[0]
        if mains[index] and index not in folded:
            last[vendor] = index
        elif (
            not device.address and card.kind.startswith("function") and vendor in last and not answers[index]
        ):
            folded[index] = last[vendor]
    more: dict[int, list[Device]] = {}
    for index, onto in folded.items():
        more.setdefault(onto, []).append(judged[index].devices[0])
    for index, card in enumerate(judged):
        if index not in folded:
            yield replace(card, devices=(*card.devices, *more.get(index, ())))


def _is_exact(card: Card, by_key: Mapping[str, DeviceAnswer]) -> bool:
    """Whether the map names this very device, and not only the card that it is on."""
    slot = card.devices[0].slot
    return any(
        _normal(key) in by_key for key in card.keys if key != slot or "." not in card.devices[0].address
    )
