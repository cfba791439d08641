"""Proxmox's cloud-init settings as the user data and network configuration that its drive would have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import yaml

from vmtenancy.migrate.keys import Keys
from vmtenancy.migrate.model import CloudInit, Lost


def cloud_init(keys: Keys, macs: Sequence[str], lost: list[Lost]) -> CloudInit:
    """User, password, keys and static addresses; `macs` are those of the interfaces, in order."""
    user = keys.get("ciuser")
    password, public = keys.get("cipassword"), unquote(keys.get("sshkeys")).split("\n")
    config: dict[str, Any] = {"manage_etc_hosts": True}
    if name := keys.get("name"):
        config["hostname"] = name
    if user:
        config["user"] = user
    if password:
        config["password"] = password
        config["chpasswd"] = {"expire": False}
    if authorized := [line.strip() for line in public if line.strip()]:
        config["ssh_authorized_keys"] = authorized
    if keys.flag("ciupgrade"):
        config["package_upgrade"] = True
    if custom := keys.get("cicustom"):
        lost.append(Lost("cicustom", custom, "files of the old host: bring them over by hand"))
    keys.get("citype")
    networks = _networks(keys, macs)
    return CloudInit(
        user_data=f"#cloud-config\n{yaml.safe_dump(config, sort_keys=False)}",
        network_data=yaml.safe_dump(networks, sort_keys=False) if networks else "",
    )


def _networks(keys: Keys, macs: Sequence[str]) -> dict[str, Any]:
    """Network configuration, version 1 of cloud-init: what addresses the interfaces had, by MAC."""
    config: list[dict[str, Any]] = []
    for index, mac in enumerate(macs):
        given = dict(
            part.partition("=")[::2] for part in keys.get(f"ipconfig{index}").split(",") if "=" in part
        )
        if not given:
            continue
        subnets: list[dict[str, Any]] = []
        for address, gateway, kind in (("ip", "gw", "dhcp4"), ("ip6", "gw6", "dhcp6")):
            value = given.get(address)
            if value == "dhcp":
                subnets.append({"type": kind})
            elif value == "auto":
                subnets.append({"type": "ipv6_slaac"})
            elif value:
                subnet = {"type": "static" if address == "ip" else "static6", "address": value}
                subnets.append(subnet | ({"gateway": given[gateway]} if gateway in given else {}))
        interface = {"type": "physical", "name": f"eth{index}", "subnets": subnets}
        config.append(interface | ({"mac_address": mac} if mac else {}))
    servers, domains = keys.get("nameserver").split(), keys.get("searchdomain").split()
    if config and (servers or domains):
        config.append({"type": "nameserver", "address": servers, "search": domains})
    return {"version": 1, "config": config} if config else {}
