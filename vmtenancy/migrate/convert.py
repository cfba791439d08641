"""Files of other platforms to objects: which reader reads what, and the whole way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.migrate import libvirt, openstack, ovf, ovirt, proxmox, vmx
from vmtenancy.migrate.devices import HostFacts, resolve
from vmtenancy.migrate.model import Machine
from vmtenancy.migrate.objects import Conversion, Wishes, objects_of

__all__ = ["MOST_BYTES", "READERS", "Conversion", "Wishes", "convert", "read"]

#: Readers by the name of their source: bytes of a file to the machines in it.
READERS: Final[dict[str, Callable[[bytes], Sequence[Machine]]]] = {
    "libvirt": libvirt.read,
    "vmx": vmx.read,
    "ovf": ovf.read,
    "proxmox": proxmox.read,
    "openstack": openstack.read,
    "ovirt": ovirt.read,
}
#: As large as a description may be.
MOST_BYTES: Final = 16 << 20


def read(source: str, data: bytes) -> Sequence[Machine]:
    """The machines that a file of a source describes.

    Raises `VmtError` (SOURCE): what is wrong, where in the file, what was found and what would be right.
    """
    if len(data) > MOST_BYTES:
        problem = Problem(Code.SOURCE, "", "is too large", f"{len(data)} bytes", f"at most {MOST_BYTES}")
        raise VmtError(problem)
    if source not in READERS:
        raise VmtError(Problem(Code.SOURCE, "source", "is unknown", source, f"one of {', '.join(READERS)}"))
    return READERS[source](data)


def convert(
    source: str, data: bytes, wishes: Wishes | None = None, facts: HostFacts | None = None
) -> list[Conversion]:
    """The objects for each machine in a file; `facts` say what is on the host that it ran on.

    Raises `VmtError`: SOURCE as `read` does, NO_GPU where no GPU class is known, INVALID_FIELD where it is more than a
    GpuVM can be.
    """
    wishes = wishes or Wishes()
    machines = read(source, data)
    if wishes.name and len(machines) > 1:
        message = "one name for several machines"
        raise VmtError(Problem(Code.SOURCE, "", message, f"{len(machines)} machines", "no name"))
    found = []
    problems: list[Problem] = []
    taken: set[str] = set()
    for machine in machines:
        devices = resolve(machine.devices, wishes.answers, facts or HostFacts())
        try:
            conversion = objects_of(machine, devices, source, wishes)
        except VmtError as error:
            problems += error.problems
            continue
        name = conversion.objects[0]["metadata"]["name"]
        if name in taken:
            numbered = (f"{name[:45].rstrip('-')}-{i}" for i in itertools.count(2))
            again = replace(wishes, name=next(each for each in numbered if each not in taken))
            conversion = objects_of(machine, devices, source, again)
        taken.add(conversion.objects[0]["metadata"]["name"])
        found.append(conversion)
    if problems:
        raise VmtError.of(problems)
    return found
