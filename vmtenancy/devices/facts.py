"""One status of a node's GPUs from all that is known: the PCI tree, NVML, and what was published before. Pure.

A GPU is node + PCI address. The tree says which exist; NVML says more about those that its driver holds, and what
it said is kept, with its age, while it says nothing. What was observed last is input here, so an agent that starts
anew goes on from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from vmtenancy.devices import nvml_facts
from vmtenancy.devices.nvml_facts import GPU_LOST, INVALID_FACTS, NVML_SILENT
from vmtenancy.devices.nvml_process import LIBRARY_NOT_FOUND, Reading

Facts = dict[str, Any]

NO_DRIVER: Final = "NoUsableDriver"
XID_ERROR: Final = "XidError"
#: Who has one of these reasons is not with its driver; once it is again, it was reset.
_AWAY: Final = frozenset({NO_DRIVER, GPU_LOST})
#: The condition that says how NVML does, and its reasons beside those of `nvml_process`.
CONDITION: Final = "NvmlAnswers"
ANSWERS: Final = "Answers"
DEVICES_MISSING: Final = "DevicesMissing"

MOST_GPUS: Final = 64
_MOST_TYPES: Final = 256
_NVIDIA_DRIVER: Final = "nvidia"
#: What NVML alone knows, kept while it can not say it.
_KEPT: Final = (
    *("uuid", "serial", "product", "memory", "architecture", "computeCapability", "moduleId", "numaNode"),
    *("virtualization", "fabric", "mig", "vgpuTypes"),
)
#: XIDs that an application causes, or that only tell of a repair that worked: the GPU goes on. All others need a
#: reset or worse. https://docs.nvidia.com/deploy/xid-errors
_HARMLESS_XIDS: Final = frozenset({13, 31, 43, 45, 63, 68, 92, 94, 109})


def status_of(
    tree: Mapping[str, Facts],
    reading: Reading,
    before: Mapping[str, Any],
    xids: Mapping[str, int],
    *,
    now: str,
    boot_id: str = "",
) -> Facts:
    """`GpuNode.status`, in its own words.

    Args:
        tree: What `sysfs.gpus_of` found.
        reading: What NVML answered this time.
        before: The status that was published last; `{}` for none.
        xids: The XID that each GPU reported since then, by PCI address.
        now: The time (RFC 3339, UTC). It enters the status only where something changes with it.
        boot_id: Of the running kernel.
    """
    told, nowhere = nvml_facts.gpus_of(reading.devices)
    same_boot = not boot_id or not before.get("bootId") or before["bootId"] == boot_id
    earlier = {gpu["pciAddress"]: gpu for gpu in before.get("gpus", ())}
    lost = _lost(tree, told, earlier, reading, nowhere)
    gpus = []
    for address in sorted({*tree, *told, *lost})[:MOST_GPUS]:
        gpu = _gpu(address, tree.get(address), told.get(address), earlier.get(address, {}), reading, now)
        _mark_xid(gpu, earlier.get(address, {}), xids.get(address), same_boot)
        gpus.append(_finished(gpu))
    _complete_peers(gpus)
    status: Facts = {"gpus": gpus, "mode": mode_of(gpus)}
    status |= nvml_facts.system_facts(reading.system)
    if reading.trouble is not None:  # versions are as old as the rest of what NVML said
        versions = ("driverVersion", "cudaVersion", "nvmlVersion")
        status = {name: before[name] for name in versions if name in before} | status
    if boot_id:
        status["bootId"] = boot_id
    status["conditions"] = [_condition(reading, told, nowhere, before, now)]
    return status


def _lost(
    tree: Mapping[str, Facts],
    told: Mapping[str, Facts],
    earlier: Mapping[str, Facts],
    reading: Reading,
    nowhere: int,
) -> set[str]:
    """GPUs known from before that neither source shows, though nothing says that they were taken out.

    Without a PCI tree (none is mounted) only NVML knew them, and it does not tell of all that it counts.
    """
    if tree or not (reading.trouble or nowhere):
        return set()
    return {address for address in earlier if address not in told}


def _gpu(
    address: str, in_tree: Facts | None, told: Facts | None, before: Facts, reading: Reading, now: str
) -> Facts:
    """One GPU from its sources; `reasons` is a mapping still."""
    driver = (in_tree or {}).get("driver")
    if driver is None and (told is not None or (in_tree is None and before.get("driver") == _NVIDIA_DRIVER)):
        driver = _NVIDIA_DRIVER  # NVML sees what its driver holds, and nothing else
    gpu: Facts = {"pciAddress": address, **(in_tree or {})}
    if driver is not None:
        gpu["driver"] = driver
    if told is not None:
        gpu |= {name: value for name, value in told.items() if name not in ("peers", "numaNode", "vgpuTypes")}
        gpu |= {"numaNode": gpu.get("numaNode", told.get("numaNode"))}
        gpu["vgpuTypes"] = _more(gpu.get("vgpuTypes"), told.get("vgpuTypes"))
        gpu["peers"] = _joined(gpu.get("peers", []), told["peers"])
        if not told["reasons"].keys().isdisjoint({GPU_LOST, NVML_SILENT}):
            _keep(gpu, before, now, [name for name in _KEPT if name not in told])
    else:
        gpu["peers"] = _joined(gpu.get("peers", []), before.get("peers", []))
        _keep(gpu, before, now, [name for name in _KEPT if _outlives(name, driver)])
        gpu["reasons"] = {}
    gpu.setdefault("product", "NVIDIA-GPU")
    _judge_driver(gpu, told, reading)
    return gpu


def _keep(gpu: Facts, before: Facts, now: str, names: Iterable[str]) -> None:
    """Fill in what NVML said before, with its age."""
    gpu |= {name: before[name] for name in names if name in before}
    if "uuid" in before:
        gpu["nvmlSeenAt"] = before.get("nvmlSeenAt", now)


def _outlives(name: str, driver: str | None) -> bool:
    """Whether a fact still holds under another driver: a GPU that left NVIDIA's is split into nothing any more."""
    return driver == _NVIDIA_DRIVER or name not in ("virtualization", "fabric", "mig", "vgpuTypes")


def _more(one: list[Facts] | None, other: list[Facts] | None) -> list[Facts]:
    """vGPU types of both sources; NVML's word counts, it knows which are active."""
    types = {item["name"]: item for item in (*(one or ()), *(other or ()))}
    return [types[name] for name in sorted(types)][:_MOST_TYPES]


def _joined(tree: Iterable[Facts], told: Iterable[Facts]) -> list[Facts]:
    """Peers of both sources: NVML's level counts where it knows one."""
    peers = {peer["pciAddress"]: peer for peer in tree}
    for peer in told:
        known = peers.get(peer["pciAddress"], {})
        level = peer.get("ancestor") or known.get("ancestor", "")
        peers[peer["pciAddress"]] = {**peer, "ancestor": level}
    return [peers[address] for address in sorted(peers)]


def _judge_driver(gpu: Facts, told: Facts | None, reading: Reading) -> None:
    """Reasons that come from who holds the GPU, and whether NVML says so."""
    reasons, driver = gpu["reasons"], gpu.get("driver")
    if driver is None:
        reasons[NO_DRIVER] = "no driver is bound to it"
    elif driver != _NVIDIA_DRIVER and "vfio" not in driver:
        reasons[NO_DRIVER] = f"the driver {driver} is bound to it: neither containers nor VMs can have it"
    elif driver == _NVIDIA_DRIVER and told is None:
        if reading.trouble is None:
            reasons[GPU_LOST] = "the driver holds it, and NVML does not see it"
        elif reading.trouble[0] != LIBRARY_NOT_FOUND:
            reasons[NVML_SILENT] = f"NVML: {reading.trouble[1]}"


def _mark_xid(gpu: Facts, before: Facts, xid: int | None, same_boot: bool) -> None:
    """An XID stays a reason until the node boots, or the GPU comes back from being away from its driver."""
    marks = {one["reason"]: one.get("message", "") for one in before.get("reasons", ())}
    is_away, was_away = (not names.isdisjoint(_AWAY) for names in (gpu["reasons"].keys(), marks.keys()))
    returned = not is_away and (was_away or before.get("driver") != gpu.get("driver"))
    if xid is not None and xid not in _HARMLESS_XIDS:
        gpu["reasons"][XID_ERROR] = f"XID {xid}"
    elif XID_ERROR in marks and same_boot and not returned:
        gpu["reasons"][XID_ERROR] = marks[XID_ERROR]


def _finished(gpu: Facts) -> Facts:
    """In the form of the API: reasons as a list, nothing that is empty."""
    reasons = [{"reason": reason, "message": text[:1024]} for reason, text in sorted(gpu["reasons"].items())]
    gpu |= {"reasons": reasons, "healthy": not reasons}
    return {name: value for name, value in gpu.items() if value is not None and value != []}


def _complete_peers(gpus: list[Facts]) -> None:
    """Only GPUs that are listed are peers, and where one side does not know how they meet, the other says."""
    levels = {
        (gpu["pciAddress"], peer["pciAddress"]): peer.get("ancestor", "")
        for gpu in gpus
        for peer in gpu.get("peers", ())
    }
    known = {gpu["pciAddress"] for gpu in gpus}
    for gpu in gpus:
        peers = [peer for peer in gpu.get("peers", ()) if peer["pciAddress"] in known]
        gpu.pop("peers", None)
        if peers:
            gpu["peers"] = [
                {
                    **peer,
                    "ancestor": peer.get("ancestor")
                    or levels.get((peer["pciAddress"], gpu["pciAddress"]), ""),
                }
                for peer in peers
            ]


def mode_of(gpus: Iterable[Mapping[str, Any]]) -> str:
    """What GPUs are set up for: one of the node modes, or `""` where that is not known, or not one.

    GPUs without a usable driver have no say.
    """
    modes = set()
    for gpu in gpus:
        driver = gpu.get("driver", "")
        if "vfio" in driver:
            modes.add("vm-passthrough")
        elif driver == _NVIDIA_DRIVER:
            vgpu = gpu.get("virtualization") == "HostVgpu" or gpu.get("vgpuTypes")
            modes.add("vm-vgpu" if vgpu else "container")
    return modes.pop() if len(modes) == 1 else ""


def _condition(
    reading: Reading, told: Mapping[str, Facts], nowhere: int, before: Mapping[str, Any], now: str
) -> Facts:
    """`NvmlAnswers`; its time changes only with its status."""
    counted = reading.system.get("count")
    if reading.trouble is not None:
        reason, message = reading.trouble
    elif nowhere or (isinstance(counted, int) and counted > MOST_GPUS):
        reason = DEVICES_MISSING
        message = f"NVML counts {counted} GPUs and answers for {len(told)}"
    elif not isinstance(counted, int):
        reason, message = DEVICES_MISSING, "NVML can not count its GPUs"
    elif any(INVALID_FACTS in gpu["reasons"] for gpu in told.values()):
        marked = [address for address in sorted(told) if INVALID_FACTS in told[address]["reasons"]]
        reason, message = INVALID_FACTS, f"what NVML says of {', '.join(marked)} can not be"
    else:
        reason, message = ANSWERS, ""
    status = "True" if reason == ANSWERS else "False"
    last = next((one for one in before.get("conditions", ()) if one["type"] == CONDITION), None)
    since = last["lastTransitionTime"] if last and last["status"] == status else now
    message = re.sub(r"[^\x20-\x7e]", "?", message)[:1024]
    return {
        "type": CONDITION,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": since,
    }
