"""Our own inputs, one for each source, and what they become."""

from __future__ import annotations

import base64
import copy
import json
import os
from pathlib import Path
from typing import Any

import yaml

from vmtenancy.api.parsing import validate
from vmtenancy.migrate.convert import Conversion, Wishes, convert
from vmtenancy.migrate.devices import DeviceMap, HostFacts
from vmtenancy.migrate.nodedev import read as read_nodedev

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "migration" / "libvirt"
INPUTS = Path(__file__).parent / "inputs"
GOLDEN = Path(__file__).parent / "golden"
#: Real descriptions of other projects, where their folder is given.
DATA = Path(os.environ.get("VMTENANCY_DATA", "/nonexistent")) / "vm-samples"
#: By name: source, file, and answers.
SAMPLES: dict[str, tuple[str, Path, dict[str, Any]]] = {
    "libvirt": ("libvirt", EXAMPLE / "cad.xml", yaml.safe_load((EXAMPLE / "device-map.yaml").read_text())),
    "vmx": ("vmx", INPUTS / "render.vmx", {"devices": {"10de:2330": {"gpuClass": "h100"}}}),
    "proxmox": (
        "proxmox",
        INPUTS / "120.conf",
        {
            "devices": {
                "0000:41:00": {"gpuClass": "a100-40gb"},
                "61:00.0": {"gpuClass": "a100-40gb"},
                "nvidia-471": {"gpuClass": "a40-8q"},
                "h100-pool": {"gpuClass": "h100"},
            },
            "networks": {"bridge:vmbr0@30": {"pod": True}},
        },
    ),
    "ovf": ("ovf", INPUTS / "analytics.ovf", {"disks": {"tools.iso": "1Gi"}}),
    "openstack": ("openstack", INPUTS / "servers.json", {"devices": {"a100": {"gpuClass": "a100-80gb"}}}),
    "ovirt": ("ovirt", INPUTS / "designer.xml", {"devices": {"nvidia-471": {"gpuClass": "a40-8q"}}}),
}


def facts() -> HostFacts:
    """What the example's node devices say."""
    found = HostFacts()
    read_nodedev((EXAMPLE / "nodedev.xml").read_bytes(), found)
    return found


def converted(name: str, answers: dict[str, Any] | None = None) -> list[Conversion]:
    """A sample converted with its answers, or with others."""
    source, path, own = SAMPLES[name]
    given = validate(DeviceMap, own if answers is None else answers)
    wishes = Wishes(namespace="design", stem=path.stem, default_class="some-gpu", answers=given)
    return convert(source, path.read_bytes(), wishes, facts() if name == "libvirt" else None)


def readable(conversions: list[Conversion]) -> str:
    """The objects as YAML, annotations and Secrets as what is in them."""
    objects = copy.deepcopy([obj for conversion in conversions for obj in conversion.objects])
    for obj in objects:
        annotations = obj["metadata"].get("annotations", {})
        for key, value in annotations.items():
            annotations[key] = json.loads(value)
        if obj["kind"] == "Secret":
            obj["data"] = {key: base64.b64decode(value).decode() for key, value in obj["data"].items()}
        if obj["kind"] == "NetworkAttachmentDefinition":
            obj["spec"]["config"] = json.loads(obj["spec"]["config"])
    return yaml.safe_dump_all(objects, sort_keys=False, width=120)


if __name__ == "__main__":  # writes the golden files; read what changed
    for sample in SAMPLES:
        (GOLDEN / f"{sample}.yaml").write_text(readable(converted(sample)))
