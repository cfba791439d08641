"""libvirt's domain XML (`virsh dumpxml`). Rules: libvirt.org/formatdomain.html."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from vmtenancy.migrate.libvirt_devices import drive_of, floppy_of, hostdev_of, nic_of
from vmtenancy.migrate.model import Cpu, Drive, Firmware, Guest, Lost, Machine, Memory, Nic
from vmtenancy.migrate.qemu_args import QemuArgs, read_args
from vmtenancy.migrate.text import HIDDEN, integer, refuse, scaled, shown
from vmtenancy.migrate.xml import Node, parse

#: Units of libvirt's scaled integers; without one they are KiB.
UNITS: Final = {
    **{"b": 1, "bytes": 1},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtpe", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtpe", 1)},
    **{letter: 1024**power for power, letter in enumerate("kmgtpe", 1)},
}
#: How the old host wires and runs it: nothing of it is the machine's own.
_HOST_ONLY: Final = frozenset(
    {"emulator", "controller", "memballoon", "alias", "input", "hub", "audio", "address"}
)
_TOP_HOST_ONLY: Final = frozenset({"on_poweroff", "on_reboot", "on_crash", "pm", "seclabel", "genid"})
_HYPERV: Final = {
    **{name: name for name in ("relaxed", "vapic", "vpindex", "runtime", "synic", "reset", "frequencies")},
    **{name: name for name in ("reenlightenment", "tlbflush", "ipi", "evmcs")},
    "stimer": "synictimer",
}
#: CPU modes that KubeVirt has under the same name.
_CPU_MODES: Final = ("host-passthrough", "host-model")
_CPU_POLICIES: Final = ("force", "require", "optional", "disable", "forbid")
_TICKS: Final = {"delay": "delay", "catchup": "catchup", "merge": "merge", "discard": "discard"}


def read(data: bytes) -> tuple[Machine]:
    """The machine of a domain. Raises VmtError (SOURCE)."""
    domain = parse(data)
    if domain.tag != "domain":
        raise refuse(domain.path, "is no libvirt domain", domain.tag, "domain")
    name = domain.text_of("name")
    if not name:
        raise refuse("domain/name", "is required", expected="the machine's name")
    lost: list[Lost] = []
    firmware = _firmware(domain, lost)
    args = _qemu_args(domain)
    devices = domain.find("devices")
    nodes = devices.nodes if devices else []
    drives = [drive for node in nodes if node.tag == "disk" and (drive := drive_of(node)) is not None]
    lost += [floppy_of(node) for node in nodes if node.tag == "disk" and node.get("device") == "floppy"]
    nics: list[Nic] = []
    hosts = list(args.devices)
    for node in nodes:
        if node.tag == "interface":
            nics.append(nic_of(node))
        elif node.tag == "hostdev":
            hosts.append(hostdev_of(node))
    _order(domain, drives, nics)
    cpu, memory = _cpu(domain, lost), _memory(domain, lost)
    guest = _guest(domain, nodes, args, lost)
    notes = "\n".join(filter(None, (domain.text_of("title"), domain.text_of("description"))))
    os = next((node.get("id") for node in _walk(domain.find("metadata")) if node.tag == "os"), "")
    for node in (*nodes, *(inner for outer in nodes for inner in outer.nodes)):
        # Keyboards and mice of the host itself are the machine's own.
        if node.tag in _HOST_ONLY and node.get("type") not in ("passthrough", "evdev"):
            node.skip()
    for node in domain.nodes:
        if node.tag in _TOP_HOST_ONLY:
            node.skip()
    for name_ in ("id", "type"):  # the running instance, and kvm or qemu
        domain.get(name_)
    lost += args.lost
    lost += [
        Lost(path, shown(path.replace("@", "/"), found), "no field of a KubeVirt machine takes it")
        for path, found in domain.unread()
    ]
    machine = Machine(
        name=name,
        cpu=cpu,
        memory=memory,
        firmware=firmware,
        guest=guest,
        drives=tuple(drives),
        nics=tuple(nics),
        devices=tuple(hosts),
        os=os,
        notes=notes,
        lost=tuple(lost),
    )
    return (machine,)


def _order(domain: Node, drives: list[Drive], nics: list[Nic]) -> None:
    """The boot order by kinds of devices, where the devices have none of their own: the first of each kind."""
    if any(one.boot for one in drives) or any(nic.boot for nic in nics):
        return
    os = domain.find("os")
    kinds = [node.get("dev") for node in os.all("boot")] if os else []
    for order, kind in enumerate(dict.fromkeys(kinds), 1):
        if kind == "network" and nics:
            nics[0] = replace(nics[0], boot=order)
        wanted = {"hd": "disk", "cdrom": "cdrom"}.get(kind)
        index = next((i for i, drive in enumerate(drives) if drive.device == wanted), None)
        if index is not None:
            drives[index] = replace(drives[index], boot=order)


def _walk(node: Node | None) -> Iterator[Node]:
    for inner in node.nodes if node else ():
        yield inner
        yield from _walk(inner)


def size_of(node: Node, default_unit: str = "KiB") -> int:
    """A scaled integer: the node's text in its unit, in bytes."""
    return scaled(node.path, node.text, node.get("unit", default_unit), UNITS)


def _memory(domain: Node, lost: list[Lost]) -> Memory:
    cells = domain.find("cpu/numa")
    in_cells = sum(
        scaled(cell.at("memory"), cell.get("memory"), cell.get("unit", "KiB"), UNITS)
        for cell in (cells.all("cell") if cells else ())
        if cell.get("memory")
    )
    node, current, most = (domain.find(tag) for tag in ("memory", "currentMemory", "maxMemory"))
    amount = size_of(node) if node and node.text else 0
    if current and current.text:
        target = size_of(current)
        amount = amount or target
        if target < amount:
            lost.append(Lost(current.path, f"{target} bytes", "the machine starts with all of its memory"))
    amount = amount or in_cells
    if amount <= 0:
        raise refuse("domain/memory", "is required", node.text if node else "", "the machine's memory")
    if most:
        most.get("slots")
    return Memory(amount, size_of(most) if most and most.text else 0, _page(domain))


def _page(domain: Node) -> int:
    """The size of its huge pages; 2 MiB where only that it has them is said, as x86 hosts have it."""
    backing = domain.find("memoryBacking")
    if backing is None:
        return 0
    for tag in ("source", "access", "allocation", "nosharepages", "locked", "discard"):
        node = backing.find(tag)
        if node is not None:
            node.skip()  # how the host gets the memory
    pages = backing.find("hugepages")
    if pages is None:
        return 0
    sizes = [
        scaled(page.at("size"), page.get("size"), page.get("unit", "KiB"), UNITS)
        for page in pages.all("page")
        if page.get("size")
    ]
    _ = [page.get("nodeset") for page in pages.all("page")]
    _ = pages.text
    # KubeVirt has one size for a machine, and 2 MiB fit whatever was in pages of 1 GiB.
    return min(sizes, default=2 << 20)


def _cpu(domain: Node, lost: list[Lost]) -> Cpu:
    vcpu, cpu = domain.find("vcpu"), domain.find("cpu")
    most = integer(vcpu.path, vcpu.text, least=1) if vcpu and vcpu.text else 1
    now = integer(vcpu.at("current"), vcpu.get("current"), least=1) if vcpu and vcpu.get("current") else most
    if now > most:
        raise refuse("domain/vcpu@current", "is more than there are", str(now), f"at most {most}")
    if vcpu:
        vcpu.get("placement")
    vcpus = domain.find("vcpus")
    if vcpus:
        vcpus.skip()
    parts = {}
    topology = cpu.find("topology") if cpu else None
    for part in ("sockets", "cores", "threads", "dies", "clusters"):
        given = topology.get(part) if topology else ""
        parts[part] = integer(topology.at(part), given, least=1) if topology and given else 0
    pinned = bool(vcpu and vcpu.get("cpuset"))
    tune = domain.find("cputune")
    for node in tune.all("vcpupin", "emulatorpin", "iothreadpin") if tune else ():
        pinned = pinned or node.tag == "vcpupin"
        node.skip()  # which cores of the old host: the intent is kept
    model, features = _model(cpu, lost) if cpu else ("", ())
    cells = cpu.find("numa") if cpu else None
    count = len(cells.all("cell")) if cells else 0
    if cells and count:
        cells.skip()
    numa = domain.find("numatune")
    if numa:
        numa.skip()
        lost.append(
            Lost(numa.path, "(present)", "the placement engine chooses the node; KubeVirt its NUMA nodes")
        )
    return Cpu(
        vcpus=now,
        maximum=most,
        sockets=parts["sockets"],
        cores=(parts["cores"] or 1) * (parts["dies"] or 1) * (parts["clusters"] or 1) if topology else 0,
        threads=parts["threads"],
        model=model,
        features=features,
        pinned=pinned,
        numa_cells=count,
    )


def _model(cpu: Node, lost: list[Lost]) -> tuple[str, tuple[tuple[str, str], ...]]:
    for name in ("match", "check", "migratable"):
        cpu.get(name)
    mode, model = cpu.get("mode"), cpu.text_of("model")
    node = cpu.find("model")
    if node:
        node.get("fallback")
    if mode == "maximum":
        lost.append(Lost(cpu.at("mode"), mode, "host-passthrough comes next"))
        mode = "host-passthrough"
    features = []
    for feature in cpu.all("feature"):
        name, policy = feature.get("name"), feature.get("policy", "require")
        if not name or policy not in _CPU_POLICIES:
            expected = f"a name, and a policy of {', '.join(_CPU_POLICIES)}"
            raise refuse(feature.path, "invalid value", f"{name} {policy}", expected)
        features.append((name, policy))
    return mode if mode in _CPU_MODES else model, tuple(features)


def _firmware(domain: Node, lost: list[Lost]) -> Firmware:
    os = domain.find("os")
    efi = secure = False
    if os:
        loader = os.find("loader")
        kind = loader.get("type") if loader else ""
        path = loader.text if loader else ""
        auto = os.get("firmware") or next(
            (node.get("value") for node in os.all("firmware") if node.get("value")), ""
        )
        known = ("ovmf", "edk2", "efi", "_code")
        efi = auto == "efi" or (
            auto != "bios" and (kind == "pflash" or any(k in path.lower() for k in known))
        )
        enabled = {
            node.get("name"): node.get("enabled") == "yes"
            for outer in os.all("firmware")
            for node in outer.all("feature")
        }
        secure = efi and (bool(loader and loader.get("secure") == "yes") or enabled.get("secure-boot", False))
        if loader:
            loader.skip()  # a file of the old host
        nvram = os.find("nvram")
        if nvram:
            nvram.skip()
            lost.append(Lost(nvram.path, shown("nvram", nvram.text), "EFI variables begin anew"))
        for node in os.all("boot", "bootmenu", "type"):
            node.skip()
    tpms = (domain.find("devices") or domain).all("tpm")
    for node in tpms:
        node.skip()
        lost.append(Lost(node.path, "its state", "a TPM begins anew: what it sealed needs its recovery key"))
    sysinfo = domain.find("sysinfo/system")
    serial = next((e.text for e in sysinfo.all("entry") if e.get("name") == "serial"), "") if sysinfo else ""
    return Firmware(efi, secure, bool(tpms), domain.text_of("uuid"), serial)


def _guest(domain: Node, nodes: list[Node], args: QemuArgs, lost: list[Lost]) -> Guest:
    type_ = domain.find("os/type")
    features, clock = domain.find("features"), domain.find("clock")
    hyperv, spinlocks, vendor, hidden = [], 0, args.vendor_id, args.kvm_hidden
    for node in features.nodes if features else ():
        if node.tag in ("acpi", "apic", "pae", "smm", "vmport", "gic", "ioapic"):
            node.skip()  # KubeVirt sets what the firmware and the machine need
    for node in (features.find("hyperv") or features).nodes if features and features.find("hyperv") else ():
        on = node.get("state", "on") == "on"
        if node.tag == "spinlocks" and on:
            spinlocks = integer(node.at("retries"), node.get("retries", "8191"), least=4095)
        elif node.tag == "vendor_id" and on:
            vendor = node.get("value") or vendor
        elif node.tag in _HYPERV and on:
            hyperv.append(_HYPERV[node.tag])
            for inner in node.all("direct"):
                inner.skip()
    if features and features.find("hyperv"):
        features.find("hyperv").get("mode")  # type: ignore[union-attr] # found above
    hidden = hidden or (features.value("kvm/hidden", "state") == "on" if features else False)
    serials = [node for node in nodes if node.tag in ("serial", "console")]
    shows = [node for node in nodes if node.tag in ("graphics", "video")]
    for node in (*serials, *shows):
        if node.get("passwd"):
            lost.append(Lost(node.at("passwd"), HIDDEN, "who may see the machine is decided by the cluster"))
        node.skip()
    for node in nodes:
        if node.tag == "rng":
            node.skip()
    channels = [node for node in nodes if node.tag == "channel"]
    for node in channels:
        if node.value("target", "name") in ("org.qemu.guest_agent.0", "com.redhat.spice.0"):
            node.skip()
    if clock and clock.get("offset") not in ("", "utc", "timezone"):
        lost.append(
            Lost(
                clock.at("offset"),
                clock.get("offset"),
                "the machine's clock is UTC: the guest has to be told",
            )
        )
        clock.get("basis")
        clock.get("adjustment")
    return Guest(
        arch=(type_.get("arch") if type_ else "") or "x86_64",
        machine=type_.get("machine") if type_ else "",
        timezone=clock.get("timezone") if clock and clock.get("offset") == "timezone" else "",
        timers=tuple(filter(None, map(_timer, clock.all("timer")))) if clock else (),
        hyperv=tuple(hyperv),
        spinlocks=spinlocks,
        vendor_id=vendor,
        kvm_hidden=hidden,
        serial_console=bool(serials),
        display=bool(shows),
        tablet=any(node.tag == "input" and node.get("type") == "tablet" for node in nodes),
        rng=any(node.tag == "rng" for node in nodes),
    )


def _timer(node: Node) -> tuple[str, tuple[tuple[str, str | bool], ...]] | None:
    """A timer as KubeVirt names it; None where it has none of this name."""
    name = {"hypervclock": "hyperv", "kvmclock": "kvm"}.get(node.get("name"), node.get("name"))
    if name not in ("hpet", "pit", "rtc", "kvm", "hyperv"):
        return None
    given: list[tuple[str, str | bool]] = []
    if node.get("present"):
        given.append(("present", node.get("present") == "yes"))
    if node.get("tickpolicy") in _TICKS and name in ("hpet", "pit", "rtc"):
        given.append(("tickPolicy", _TICKS[node.get("tickpolicy")]))
    return name, tuple(given)


def _qemu_args(domain: Node) -> QemuArgs:
    args: list[tuple[str, str]] = []
    for node in domain.all("commandline"):
        for index, arg in enumerate(node.all("arg"), 1):
            args.append((f"domain/qemu:commandline/qemu:arg[{index}]", arg.get("value")))
    return read_args(args)
