"""Facts from NVML's answers (`nvml`). Pure, and suspicious: an answer that can not be is never a fact.

Three cases are kept apart: an answer that is good, one that the driver does not give (the fact is left out), and
garbage (the fact is left out and the GPU is marked, so that placement does not use what is half known).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from vmtenancy.devices.sysfs import TYPE_NAME, normal_address

Facts = dict[str, Any]

GPU_LOST: Final = "GpuLost"
INVALID_FACTS: Final = "InvalidFacts"
NVML_SILENT: Final = "NvmlSilent"
RESET_REQUIRED: Final = "ResetRequired"
RETIRED_PAGES: Final = "RetiredPagesPending"
ROW_REMAP_FAILURE: Final = "RowRemapFailure"

#: NVML's numbers. https://docs.nvidia.com/deploy/nvml-api (enumerations of nvml.h)
_LOST, _RESET_REQUIRED = 15, 16
#: Errors that say that a driver or a GPU does not have what was asked: not supported, no permission, no such function,
#: no data, another version of a structure, deprecated.
_ABSENT: Final = frozenset({3, 4, 13, 21, 25, 26})
_ARCHITECTURES: Final = {
    2: "Kepler",
    3: "Maxwell",
    4: "Pascal",
    5: "Volta",
    6: "Turing",
    7: "Ampere",
    8: "Ada",
    9: "Hopper",
    10: "Blackwell",
}
_VIRTUALIZATION: Final = {0: "None", 1: "Passthrough", 2: "Vgpu", 3: "HostVgpu", 4: "HostVsga"}
_FABRIC_STATES: Final = {1: "NotStarted", 2: "InProgress", 3: "Completed"}
_ANCESTORS: Final = {0: "Internal", 10: "Single", 20: "Multiple", 30: "HostBridge", 40: "Node", 50: "System"}
_LINK_TO_GPU, _LINK_TO_SWITCH = 0, 2

#: No GPU has less, and none will have more for a while.
_MEMORY: Final = (64 << 20, 16 << 40)
_NAME: Final = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_. /]*")
_UUID: Final = re.compile(r"(GPU|MIG)-[0-9A-Za-z-]{1,60}")
_SERIAL: Final = re.compile(r"[0-9A-Za-z-]{1,64}")
_VERSION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,62}")


class Judge:
    """Reads answers about one thing and remembers which of them were garbage."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self._answers = answers
        self.garbage: list[str] = []
        self.codes: set[int] = set()

    def get(self, name: str, good: Callable[[Any], Any]) -> Any:
        """What `good` makes of an answer; None where there is none. `good` returns None for what can not be."""
        return self.judge(name, self._answers.get(name), good)

    def judge(self, name: str, answer: Any, good: Callable[[Any], Any]) -> Any:
        """The same for an answer in hand; `name` is what it is called where it is garbage."""
        if answer is None:
            return None
        if isinstance(answer, Mapping) and "error" in answer:
            code = answer["error"]
            if isinstance(code, int):
                self.codes.add(code)
            else:
                self._bad(name)
            return None
        try:
            value = good(answer)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError):
            value = None
        if value is None:
            self._bad(name)
        return value

    def _bad(self, name: str) -> None:
        if name not in self.garbage:
            self.garbage.append(name)


def number(least: int, most: int) -> Callable[[Any], int | None]:
    """Good is a whole number in these bounds."""
    return lambda value: value if type(value) is int and least <= value <= most else None


def _text(pattern: re.Pattern[str]) -> Callable[[Any], str | None]:
    return lambda value: value if isinstance(value, str) and pattern.fullmatch(value) else None


def _one_of(names: Mapping[int, str]) -> Callable[[Any], str]:
    """Good is any number; one that is new to us is left unsaid."""
    return lambda value: names.get(value, "") if type(value) is int else names[value]


def address_of(pci: Any) -> str | None:
    """The PCI address in an answer of NVML's; None where it has none that can be."""
    if not isinstance(pci, Mapping) or "error" in pci:
        return None
    text, numbers = pci.get("busId"), pci.get("numbers")
    if isinstance(text, str) and (address := normal_address(text)):
        return address
    if isinstance(numbers, list) and [type(n) for n in numbers] == [int] * 3:
        domain, bus, device = numbers
        if 0 <= domain < 1 << 32 and 0 <= bus < 256 and 0 <= device < 32 and (bus or device):
            return f"{domain:04x}:{bus:02x}:{device:02x}.0"
    return None


def product_name(text: Any) -> str | None:
    """NVML's name as GPU feature discovery labels nodes with it: `NVIDIA-H100-80GB-HBM3`."""
    if not isinstance(text, str):
        return None
    name = re.sub(r"[^-A-Za-z0-9_./]", "-", " ".join(text.split()))
    return name[:63] if text.isascii() and text.isprintable() and _NAME.fullmatch(name) else None


# -- the node ------------------------------------------------------------------------------------------------


def system_facts(system: Mapping[str, Any]) -> Facts:
    """Versions."""
    judge = Judge(system)
    cuda = judge.get("cudaVersion", number(1000, 999999))
    facts = {
        "driverVersion": judge.get("driverVersion", _text(_VERSION)),
        "nvmlVersion": judge.get("nvmlVersion", _text(_VERSION)),
        "cudaVersion": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
    }
    return {name: value for name, value in facts.items() if value is not None}


# -- GPUs ----------------------------------------------------------------------------------------------------


def gpus_of(devices: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Facts], int]:
    """What NVML says of each GPU, by address, in the words of `GpuNode.status.gpus` with `reasons` as a mapping,
    and the number of answers that belong to no address.
    """
    gpus: dict[str, Facts] = {}
    switched: dict[str, int] = {}
    direct: dict[str, Counter[str]] = {}
    nowhere = 0
    for device in devices:
        address = address_of(device.get("pci"))
        if address is None:
            nowhere += 1
            continue
        facts, links = _gpu(device)
        if address in gpus:
            gpus[address]["reasons"][INVALID_FACTS] = "NVML names this PCI address twice"
            continue
        gpus[address] = facts
        direct[address] = Counter(other for other in links if other)
        switched[address] = links.count("")
    _mark_twins(gpus)
    for address, facts in gpus.items():
        facts["peers"] = _peers(address, facts.pop("ancestors"), direct, switched)
    return gpus, nowhere


def _mark_twins(gpus: Mapping[str, Facts]) -> None:
    """No two GPUs have one uuid: neither is believed."""
    counts = Counter(facts.get("uuid") for facts in gpus.values())
    for facts in gpus.values():
        uuid = facts.get("uuid")
        if uuid is not None and counts[uuid] > 1:
            facts["reasons"].setdefault(INVALID_FACTS, f"NVML names the uuid {uuid} {counts[uuid]} times")
            del facts["uuid"]


def _gpu(device: Mapping[str, Any]) -> tuple[Facts, list[str]]:
    judge = Judge(device)
    memory = judge.get("memory", number(*_MEMORY))
    capability = judge.get("computeCapability", _capability)
    rows = judge.get("remappedRows", lambda answer: [number(0, 1 << 32)(n) for n in answer][:4])
    pages = judge.get("retiredPagesPending", number(0, 1))
    device_id = judge.get("pci", lambda pci: number(0, 0xFFFFFFFF)(pci["deviceId"]))
    facts: Facts = {
        "uuid": judge.get("uuid", _text(_UUID)),
        "serial": judge.get("serial", _text(_SERIAL)),
        "product": judge.get("name", product_name),
        "pciId": f"10de:{device_id >> 16:04x}"
        if device_id is not None and device_id & 0xFFFF == 0x10DE
        else None,
        "memory": None if memory is None else memory_text(memory),
        "architecture": judge.get("architecture", _one_of(_ARCHITECTURES)) or None,
        "computeCapability": capability,
        "moduleId": judge.get("moduleId", number(0, 1024)),
        "numaNode": _numa(judge),
        "virtualization": judge.get("virtualizationMode", _one_of(_VIRTUALIZATION)) or None,
        "fabric": judge.get("fabric", _fabric) or None,
        "mig": _mig(judge, device) or None,
        "vgpuTypes": judge.get("vgpu", _vgpu_types) or None,
        "ancestors": judge.get("ancestors", _ancestors) or {},
    }
    links = judge.get("nvLinks", _links) or []
    reasons: dict[str, str] = {}
    if rows is not None and len(rows) == 4 and rows[3]:
        reasons[ROW_REMAP_FAILURE] = "a row of its memory could not be remapped: the GPU has to be replaced"
    if pages == 1:
        reasons[RETIRED_PAGES] = "pages of its memory wait to be retired: reset the GPU"
    if _LOST in judge.codes:
        reasons[GPU_LOST] = "it has fallen off the bus"
    if _RESET_REQUIRED in judge.codes:
        reasons[RESET_REQUIRED] = "NVML says that it must be reset"
    failed = {name: _code(device.get(name)) for name in ("name", "uuid", "memory")}
    if not reasons and (
        told := [f"{name} (error {code})" for name, code in failed.items() if code is not None]
    ):
        reasons[NVML_SILENT] = f"NVML fails to tell its {', '.join(told)}"
    if judge.garbage:
        reasons[INVALID_FACTS] = f"NVML's answers can not be: {', '.join(judge.garbage)}"
    facts = {name: value for name, value in facts.items() if value is not None}
    return facts | {"reasons": reasons}, links


def _code(answer: Any) -> int | None:
    """The error that stands in place of an answer which every GPU has; None where all is well."""
    code = answer.get("error") if isinstance(answer, Mapping) else None
    return code if isinstance(code, int) and code not in _ABSENT else None


def memory_text(count: int) -> str:
    """Bytes as a quantity; in MiB, as labels and tools give the memory of GPUs, where it is whole ones."""
    for unit, size in (("Gi", 1 << 30), ("Mi", 1 << 20)):
        if count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def _capability(answer: Any) -> str | None:
    major, minor = (number(0, 99)(part) for part in answer)
    return f"{major}.{minor}" if major and minor is not None and minor < 10 else None


def _numa(judge: Judge) -> int | None:
    """The one NUMA node whose memory is closest, of up to 128; left out where several are as close."""
    words = judge.get("memoryAffinity", lambda answer: [number(0, (1 << 64) - 1)(word) for word in answer])
    if not words or None in words:
        return None
    mask = sum(word << (64 * index) for index, word in enumerate(words))
    return mask.bit_length() - 1 if mask.bit_count() == 1 else None


def _fabric(answer: Any) -> Facts | None:
    """None for what can not be, `{}` where there is no fabric."""
    state = number(0, 255)(answer["state"])
    clique = number(0, (1 << 32) - 1)(answer["clique"])
    cluster = answer["cluster"]
    if state is None or clique is None or not re.fullmatch(r"[0-9a-f]{32}", cluster):
        return None
    if state not in _FABRIC_STATES:
        return {}
    facts: Facts = {"state": _FABRIC_STATES[state]}
    if state == 3:
        facts["clique"] = clique
        if cluster.strip("0"):
            parts = (cluster[:8], cluster[8:12], cluster[12:16], cluster[16:20], cluster[20:])
            facts["cluster"] = "-".join(parts)
    return facts


def _ancestors(answer: Any) -> dict[str, str]:
    found = {}
    for other, level in answer:
        if type(level) is int and isinstance(other, str) and normal_address(other) == other:
            found[other] = _ANCESTORS.get(level, "")
    return found


def _links(answer: Any) -> list[str]:
    """For each link the GPU that it leads to; `""` for a switch. Other ends (a CPU) are left out."""
    found = []
    for link in answer:
        if link["type"] == _LINK_TO_SWITCH:
            found.append("")
        elif address := address_of(link["remote"]):
            found.append(address)
        elif link["type"] == _LINK_TO_GPU:
            return found
    return found


def _peers(
    address: str,
    ancestors: Mapping[str, str],
    direct: Mapping[str, Counter[str]],
    switched: Mapping[str, int],
) -> list[Facts]:
    peers = []
    for other in sorted({*ancestors, *direct} - {address}):
        links = direct[address][other]
        if other in switched:
            # Switches of one node connect all: the one with fewer links to them is the bound.
            links += min(switched[address], switched[other])
        peers.append({"pciAddress": other, "ancestor": ancestors.get(other, ""), "nvLinks": links})
    return peers


def _mig(judge: Judge, device: Mapping[str, Any]) -> Facts | None:
    modes = judge.get(
        "migMode", lambda answer: [(0, 1).index(mode) for mode in answer] if len(answer) == 2 else None
    )
    mig = device.get("mig")
    if modes is None or not isinstance(mig, Mapping) or "error" in mig:
        return None
    profiles = (
        judge.judge("mig.profiles", mig.get("profiles"), lambda found: [_profile(one) for one in found]) or []
    )
    if not profiles and not modes[0]:
        return None
    uuids = judge.judge("mig.devices", mig.get("devices"), _mig_uuids) or {}
    names = {profile["id"]: profile["name"] for profile in profiles}
    instances = judge.judge(
        "mig.instances", mig.get("instances"), lambda found: [_instance(one, uuids, names) for one in found]
    )
    return {
        "enabled": bool(modes[0]),
        "pending": bool(modes[1]),
        "profiles": _distinct(judge, "mig.profiles", profiles),
        "instances": _distinct(judge, "mig.instances", instances or [])[:16],
    }


def _distinct(judge: Judge, what: str, items: list[Facts]) -> list[Facts]:
    """Items by their ids, each once. Garbage where an id comes twice."""
    found = {item["id"]: item for item in items}
    if len(found) < len(items):
        judge.judge(what, items, lambda _: None)
    return [found[key] for key in sorted(found)]


def _good(facts: Facts) -> Facts:
    """Facts without holes. Raises ValueError where there is one."""
    if None in facts.values():
        raise ValueError(facts)
    return facts


def _profile(answer: Any) -> Facts:
    identity = number(0, 65535)(answer["id"])
    name = answer["name"].removeprefix("MIG ").strip() or f"profile-{identity}"
    places = answer["placements"]
    places = [] if isinstance(places, Mapping) else [[number(0, 64)(n) for n in place] for place in places]
    facts = {
        "id": identity,
        "name": _text(TYPE_NAME)(name),
        "most": number(0, 64)(answer["most"]),
        "size": places[0][1] if places else 0,
        "starts": sorted({place[0] for place in places})[:16],
    }
    return _good(facts)


def _mig_uuids(answer: Any) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for one in answer:
        if _text(_UUID)(one["uuid"]) and type(one["instance"]) is int:
            found.setdefault(one["instance"], []).append(one["uuid"])
    return found


def _instance(answer: Any, uuids: Mapping[int, list[str]], names: Mapping[int, str]) -> Facts:
    identity = number(0, 65535)(answer["id"])
    facts = {
        "id": identity,
        "profile": names[answer["profileId"]],
        "start": number(0, 64)(answer["start"]),
        "size": number(0, 64)(answer["size"]),
        "uuids": sorted(uuids.get(answer["id"], []))[:8],
    }
    return _good(facts)


def _vgpu_types(answer: Any) -> list[Facts]:
    """`[]` where it supports none."""
    if not answer:
        return []
    names = {one["id"]: one["name"] for one in answer["types"] if _text(TYPE_NAME)(one["name"])}
    creatable = set() if isinstance(answer["creatable"], Mapping) else set(answer["creatable"])
    active = Counter(() if isinstance(answer["active"], Mapping) else map(str, answer["active"]))
    return [
        {"name": name, "creatable": identity in creatable, "active": active[str(identity)]}
        for identity, name in sorted(names.items(), key=lambda item: item[1])
    ]
