"""libvirt's node devices (`virsh nodedev-dumpxml`): what is at a PCI address, and what type an mdev has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from vmtenancy.migrate.devices import HostFacts
from vmtenancy.migrate.text import integer, pci_ids, refuse
from vmtenancy.migrate.xml import Node, parse

_DECLARATION: Final = re.compile(rb"<\?xml[^>]*\?>")


def read(data: bytes, facts: HostFacts) -> None:
    """Add what a file says to the facts: one device, or several one after another. Raises VmtError (SOURCE)."""
    if b"<!DOCTYPE" in data:
        parse(data)  # says what is wrong, with the line
    root = parse(b"<nodedevs>" + _DECLARATION.sub(b"", data) + b"</nodedevs>")
    devices = list(_devices(root))
    if not devices:
        raise refuse("device", "is missing", expected="at least one node device of libvirt")
    for device in devices:
        for capability in device.all("capability"):
            if capability.get("type") == "pci":
                _pci(capability, facts)
            elif capability.get("type") == "mdev":
                uuid = capability.text_of("uuid") or device.text_of("name").removeprefix("mdev_").replace(
                    "_", "-"
                )
                facts.mdevs[uuid[:36].lower()] = capability.value("type", "id")


def _devices(node: Node) -> Iterator[Node]:
    for inner in node.nodes:
        if inner.tag == "device":
            yield inner
        else:
            yield from _devices(inner)


def _pci(node: Node, facts: HostFacts) -> None:
    parts = [
        integer(f"{node.path}/{tag}", node.text_of(tag, "0"), most=most, base=0)
        for tag, most in (("domain", 0xFFFFFFFF), ("bus", 0xFF), ("slot", 0x1F), ("function", 7))
    ]
    address = f"{parts[0]:04x}:{parts[1]:02x}:{parts[2]:02x}.{parts[3]:x}"
    ids = [node.value(tag, "id") for tag in ("vendor", "product")]
    if all(ids):
        numbers = (integer(node.path, part, most=0xFFFF, base=0) for part in ids)
        facts.ids[address] = pci_ids(*numbers)
    class_ = node.text_of("class")
    if class_:
        facts.classes[address] = f"{integer(f'{node.path}/class', class_, most=0xFFFFFF, base=0):06x}"
    for capability in node.all("capability"):
        for type_ in capability.all("type") if capability.get("type") == "mdev_types" else ():
            if type_.text_of("name"):
                facts.type_names[type_.get("id")] = type_.text_of("name")
