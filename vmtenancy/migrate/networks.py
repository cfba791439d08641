"""A machine's network interfaces: the pod network, or a NetworkAttachmentDefinition for each network of the source."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from vmtenancy.migrate.devices import DeviceMap, NetworkAnswer
from vmtenancy.migrate.model import Lost, Machine, Nic

Object = dict[str, Any]

_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.I)
#: Models by their names in the sources; what KubeVirt has no equal of is an Intel card, which every guest knows.
_MODELS: Final = {
    **{name: name for name in ("virtio", "e1000", "e1000e", "igb", "ne2k_pci", "pcnet", "rtl8139")},
    **{"virtio-net-pci": "virtio", "virtio-net": "virtio", "virtio-transitional": "virtio"},
    **{"virtio-non-transitional": "virtio", "pv": "virtio", "vlance": "pcnet", "pcnet32": "pcnet"},
}
_INSTEAD: Final = "e1000e"
#: Names of Linux interfaces are shorter than 16 characters.
_BRIDGE: Final = re.compile(r"[^\s/:]{1,15}")


def networks_of(
    machine: Machine, answers: DeviceMap, namespace: str, order: Mapping[str, int], lost: list[Lost]
) -> tuple[list[Object], list[Object], list[Object]]:
    """The GpuVM's networks, the interfaces of its overlay, and the attachment definitions that they need."""
    networks: list[Object] = []
    interfaces: list[Object] = []
    attachments: dict[str, Object] = {}
    slugs: dict[str, str] = {}
    on_pod_network = False
    for index, nic in enumerate(machine.nics):
        name = f"nic{index}"
        answer = _answer(nic, answers)
        network: Object = {"name": name}
        binding = "sriov" if nic.sriov else "bridge"
        if answer is not None and answer.multus is not None:
            network["multus"] = answer.multus
        elif not on_pod_network and not nic.sriov and (answer.pod if answer else nic.nat):
            on_pod_network, binding = True, "masquerade"
        else:
            attachment = _slug(nic, slugs)
            network["multus"] = attachment
            if nic.sriov:
                why = f"make the NetworkAttachmentDefinition {attachment} for its SR-IOV network, or map it"
                lost.append(Lost(nic.path, nic.network, why))
            elif attachment not in attachments:
                attachments[attachment] = _attachment(attachment, nic, namespace, lost)
        networks.append(network)
        interfaces.append(_interface(name, nic, binding, order.get(nic.path), lost))
    return networks, interfaces, list(attachments.values())


def _answer(nic: Nic, answers: DeviceMap) -> NetworkAnswer | None:
    """What the map says, for the network with this VLAN or for the network."""
    exact = answers.networks.get(f"{nic.network}@{nic.vlan}") if nic.vlan else None
    return exact or answers.networks.get(nic.network)


def _slug(nic: Nic, taken: dict[str, str]) -> str:
    """The name of a network's definition, by its own name; with its kind where another kind has the same."""
    kind, _, given = nic.network.partition(":")
    network = f"{nic.network}@{nic.vlan}"
    for text in (given or kind, nic.network):
        vlan = f"-vlan{nic.vlan}" if nic.vlan else ""
        slug = f"{re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:50].strip('-') or 'network'}{vlan}"
        if taken.setdefault(slug, network) == network:
            return slug
    return f"{slug}-{len(taken)}"


def _attachment(name: str, nic: Nic, namespace: str, lost: list[Lost]) -> Object:
    """A bridge of the nodes: the one of the old hosts, else one whose name says the network."""
    kind, _, given = nic.network.partition(":")
    bridge = given if kind == "bridge" and _BRIDGE.fullmatch(given) else name[:15].strip("-")
    if bridge != given or kind != "bridge":
        why = f"{name} puts it on the bridge {bridge} of the nodes: make that bridge, or map the network"
        lost.append(Lost(nic.path, nic.network, why))
    config: Object = {"cniVersion": "0.3.1", "name": name, "type": "bridge", "bridge": bridge, "ipam": {}}
    if nic.vlan:
        config["vlan"] = nic.vlan
    return {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"config": json.dumps(config)},
    }


def _interface(name: str, nic: Nic, binding: str, boot: int | None, lost: list[Lost]) -> Object:
    interface: Object = {"name": name, binding: {}}
    if nic.mac and _MAC.fullmatch(nic.mac):
        interface["macAddress"] = nic.mac.lower()
    elif nic.mac:
        lost.append(Lost(nic.path, nic.mac, "it is no MAC address: a new one is made"))
    if nic.model and not nic.sriov:
        model = _MODELS.get(nic.model.lower(), _INSTEAD)
        interface["model"] = model
        if nic.model.lower() not in _MODELS:
            lost.append(Lost(nic.path, f"model {nic.model}", f"KubeVirt has no such model: it is {model}"))
    if boot:
        interface["bootOrder"] = boot
    for address in nic.addresses:
        lost.append(
            Lost(nic.path, address, "addresses are the guest's own, or of the network that it is put on")
        )
    return interface
