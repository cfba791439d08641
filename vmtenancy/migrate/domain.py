"""A machine's processor, memory, firmware and guest features as the `domain` of a KubeVirt machine."""

from __future__ import annotations

import re
from typing import Any, Final

from vmtenancy.migrate.model import Lost, Machine
from vmtenancy.migrate.text import refuse

Object = dict[str, Any]

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
#: Architectures of KubeVirt, and their machine type. 32-bit guests run on machines of 64 bits.
_MACHINES: Final = {"x86_64": "q35", "i686": "q35", "aarch64": "virt", "s390x": "s390-ccw-virtio"}
#: Models on which KubeVirt runs nothing by default (its `obsoleteCPUModels`).
_OBSOLETE: Final = frozenset(
    {
        "486",
        "pentium",
        "pentium2",
        "pentium3",
        "pentiumpro",
        "coreduo",
        "n270",
        "core2duo",
        "Conroe",
        "athlon",
    }
    | {"phenom", "qemu64", "qemu32", "kvm64", "kvm32", "Opteron_G1", "Opteron_G2"}
)
#: What an enlightenment needs beside it.
_HYPERV_NEEDS: Final = {
    "synic": ("vpindex",),
    "synictimer": ("synic", "vpindex"),
    "tlbflush": ("vpindex",),
    "ipi": ("vpindex",),
    "evmcs": ("vapic",),
}
#: Bytes that memory which can grow is counted in, and the least that can (KubeVirt's rules of hotplug).
_BLOCK: Final = 2 << 20
_GROWS_FROM: Final = 1 << 30


def domain_of(machine: Machine, lost: list[Lost]) -> Object:
    """The `domain`, without disks, interfaces and host devices. Raises VmtError (SOURCE) for a foreign architecture."""
    arch, guest, firmware = machine.guest.arch, machine.guest, machine.firmware
    if arch not in _MACHINES:
        raise refuse("architecture", "KubeVirt has no machines of it", arch, f"one of {', '.join(_MACHINES)}")
    wanted = _MACHINES[arch]
    if guest.machine and guest.machine != wanted:
        lost.append(Lost("machine type", guest.machine, f"KubeVirt's machines here are {wanted}"))
    domain: Object = {
        "cpu": _cpu(machine, lost),
        "machine": {"type": wanted},
        "firmware": _firmware(machine, lost),
        "devices": _devices(machine),
    }
    if memory := _memory(machine, lost):
        domain["memory"] = memory
    features: Object = {}
    if firmware.secure_boot:
        features["smm"] = {"enabled": True}
    if guest.kvm_hidden:
        features["kvm"] = {"hidden": True}
    if hyperv := _hyperv(machine, lost):
        features["hyperv"] = hyperv
    if features:
        domain["features"] = features
    clock: Object = {"timezone": guest.timezone} if guest.timezone else {"utc": {}}
    if guest.timers:
        clock["timer"] = {name: dict(given) for name, given in guest.timers}
    if guest.timezone or guest.timers:
        domain["clock"] = clock
    return domain


def _cpu(machine: Machine, lost: list[Lost]) -> Object:
    cpu = machine.cpu
    sockets, cores, threads = cpu.topology
    found: Object = {"sockets": sockets, "cores": cores, "threads": threads}
    if cpu.maximum > cpu.vcpus:
        if cpu.maximum % (cores * threads) == 0:
            found["maxSockets"] = cpu.maximum // (cores * threads)
        else:
            lost.append(
                Lost("cpu", f"{cpu.maximum} vCPUs at most", "they are no whole number of its sockets")
            )
    if cpu.model in _OBSOLETE:
        lost.append(
            Lost("cpu model", cpu.model, "KubeVirt runs nothing on this model: its own default comes next")
        )
    elif cpu.model:
        found["model"] = cpu.model
        if cpu.features:
            found["features"] = [{"name": name, "policy": policy} for name, policy in cpu.features]
    if cpu.features and "features" not in found:
        flags = ", ".join(f"{name} {policy}" for name, policy in cpu.features)
        lost.append(Lost("cpu features", flags, "they go with the model"))
    if cpu.pinned and threads <= 2:
        found["dedicatedCpuPlacement"] = True
    elif cpu.pinned:
        lost.append(Lost("cpu pinning", f"{threads} threads per core", "KubeVirt pins at most two"))
    if cpu.numa_cells > 1:
        if found.get("dedicatedCpuPlacement") and _page(machine):
            found["numa"] = {"guestMappingPassthrough": {}}
        else:
            why = "KubeVirt shows NUMA nodes to machines with pinned vCPUs and huge pages"
            lost.append(Lost("cpu numa", f"{cpu.numa_cells} cells", why))
    return found


def _page(machine: Machine) -> str:
    """The size of huge pages as KubeVirt writes it; `""` where its memory is not made of whole pages."""
    page = machine.memory.page
    if not page:
        return ""
    whole = [size for size in (1 << 30, 2 << 20) if size <= page and machine.memory.bytes % size == 0]
    return {1 << 30: "1Gi", 2 << 20: "2Mi"}[whole[0]] if whole else ""


def _memory(machine: Machine, lost: list[Lost]) -> Object:
    memory = machine.memory
    found: Object = {}
    page = _page(machine)
    if page:
        found["hugepages"] = {"pageSize": page}
    elif memory.page:
        lost.append(
            Lost("huge pages", f"{memory.page} bytes", "the memory is no whole number of pages of 2Mi")
        )
    if memory.maximum > memory.bytes:
        grows = (
            memory.bytes >= _GROWS_FROM
            and not memory.bytes % (1 << 30 if page == "1Gi" else _BLOCK)
            and not memory.maximum % (1 << 30 if page == "1Gi" else _BLOCK)
            and machine.guest.arch == "x86_64"
            and not (machine.cpu.numa_cells > 1 and page)
        )
        if grows:
            found["maxGuest"] = str(memory.maximum)
        else:
            why = "KubeVirt lets memory grow in whole blocks, from 1Gi on, on x86, without NUMA nodes"
            lost.append(Lost("maximum memory", f"{memory.maximum} bytes", why))
    return found


def _firmware(machine: Machine, lost: list[Lost]) -> Object:
    firmware = machine.firmware
    efi = {"efi": {"secureBoot": firmware.secure_boot, "persistent": True}}
    found: Object = {"bootloader": efi if firmware.efi else {"bios": {}}}
    if machine.guest.arch in ("aarch64", "s390x"):
        # These have one firmware, and no Secure Boot with it.
        found = {"bootloader": {"efi": {"secureBoot": False}}} if machine.guest.arch == "aarch64" else {}
    if _UUID.fullmatch(firmware.uuid):
        found["uuid"] = firmware.uuid.lower()
    elif firmware.uuid:
        lost.append(Lost("uuid", firmware.uuid, "it is no UUID"))
    if firmware.serial:
        found["serial"] = firmware.serial
    return found


def _devices(machine: Machine) -> Object:
    guest = machine.guest
    found: Object = {}
    if machine.firmware.tpm:
        found["tpm"] = {"persistent": True}
    if guest.serial_console is not None:
        found["autoattachSerialConsole"] = guest.serial_console
    if guest.display is not None:
        found["autoattachGraphicsDevice"] = guest.display
    if guest.tablet:
        found["inputs"] = [{"name": "tablet", "type": "tablet", "bus": "usb"}]
    if guest.rng:
        found["rng"] = {}
    return found


def _hyperv(machine: Machine, lost: list[Lost]) -> Object:
    guest = machine.guest
    wanted = {needed for name in guest.hyperv for needed in (name, *_HYPERV_NEEDS.get(name, ()))}
    found: Object = {name: {} for name in sorted(wanted)}
    if guest.spinlocks:
        found["spinlocks"] = {"spinlocks": guest.spinlocks}
    if guest.vendor_id:
        if len(guest.vendor_id) <= 12:
            found["vendorid"] = {"vendorid": guest.vendor_id}
        else:
            lost.append(Lost("hyperv vendor id", guest.vendor_id, "it has at most 12 characters"))
    return found
