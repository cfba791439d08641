"""`vmtenancy migrate`: machines of other platforms become GpuVMs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmtenancy.cli.common import Output, show
from vmtenancy.errors import Code, Problem, VmtError

if TYPE_CHECKING:
    from vmtenancy.migrate.convert import Conversion
    from vmtenancy.migrate.devices import DeviceMap

app = typer.Typer(help="Bring machines of other platforms over.", no_args_is_help=True)


class Source(StrEnum):
    """The platforms whose descriptions are read."""

    LIBVIRT = "libvirt"
    VMX = "vmx"
    OVF = "ovf"
    PROXMOX = "proxmox"
    OPENSTACK = "openstack"
    OVIRT = "ovirt"


class Format(StrEnum):
    """How the objects are printed."""

    JSON = "json"
    YAML = "yaml"


_File = Annotated[
    Path, typer.Argument(help="The machine's description: domain XML, .vmx, .ovf, .ova, .conf, …")
]


@app.callback()
def migrate() -> None:
    """Bring machines of other platforms over."""


@app.command()
def convert(
    file: _File,
    source: Annotated[Source, typer.Option("--from", help="The platform that described it.")],
    output: Annotated[Format, typer.Option("--output", "-o", help="Format.")] = Format.YAML,
    device_map: Annotated[
        Path | None,
        typer.Option(help="YAML: what devices, networks and disks become; kept for the next machine."),
    ] = None,
    nodedev: Annotated[
        list[Path] | None,
        typer.Option(
            help="libvirt's XML of the old host's devices (virsh nodedev-dumpxml); may be repeated."
        ),
    ] = None,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Namespace of the objects.")
    ] = "default",
    name: Annotated[str, typer.Option(help="Name of the GpuVM; else made from the machine's.")] = "",
    default_class: Annotated[
        str, typer.Option(help="GpuClass of a machine none of whose devices is known to be a GPU.")
    ] = "",
    storage_class: Annotated[str, typer.Option(help="StorageClass of the disks; else the default one.")] = "",
) -> None:
    """Print the GpuVM that a machine of another platform becomes, with its disks, networks and Secrets.

    Nothing is lost silently: what the objects do not have goes to stderr, one line each, and into the annotation
    vmtenancy.io/not-kept. Devices that nobody has mapped stand in vmtenancy.io/unresolved-devices, and the machine does
    not start until they are. Disks are printed empty, for an upload; the machine is Halted until it is started.
    """
    from vmtenancy.migrate.convert import Wishes
    from vmtenancy.migrate.convert import convert as run
    from vmtenancy.migrate.devices import DeviceMap, HostFacts
    from vmtenancy.migrate.nodedev import read as read_nodedev

    facts = HostFacts()
    for path in nodedev or ():
        with _told_of(path):
            read_nodedev(_bytes(path), facts)
    wishes = Wishes(
        namespace=namespace,
        name=name,
        stem=file.stem,
        default_class=default_class,
        storage_class=storage_class,
        answers=_device_map(device_map) if device_map else DeviceMap(),
    )
    with _told_of(file):
        found = run(source.value, _description(file, source), wishes, facts)
    for conversion in found:
        _tell(conversion)
    items = [obj for conversion in found for obj in conversion.objects]
    show({"apiVersion": "v1", "kind": "List", "items": items}, Output(output.value))


class _told_of:  # noqa: N801 (a context manager)
    """Errors inside say which file they are about."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, VmtError):
            raise VmtError.of(
                Problem(p.code, f"{self.path}: {p.path}".rstrip(": "), p.message, p.found, p.expected)
                for p in error.problems
            ) from None


def _description(path: Path, source: Source) -> bytes:
    """The content of a description; of an OVA the descriptor in it. Raises VmtError (SOURCE)."""
    from vmtenancy.migrate import ova
    from vmtenancy.migrate.convert import MOST_BYTES

    data = _bytes(path)
    if source is Source.OVF and ova.is_archive(data):
        with path.open("rb") as file:
            return ova.descriptor(file, MOST_BYTES)
    return data


def _bytes(path: Path) -> bytes:
    """A file's content, as far as descriptions may be long. Raises VmtError (SOURCE)."""
    from vmtenancy.migrate.convert import MOST_BYTES

    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except OSError as error:
        raise VmtError(Problem(Code.SOURCE, "", "can not be read", error.strerror or str(error))) from None


def _device_map(path: Path) -> DeviceMap:
    from vmtenancy.api.parsing import validate
    from vmtenancy.migrate.devices import DeviceMap
    from vmtenancy.render.document import load_document

    with _told_of(path):
        try:
            loaded = load_document(_bytes(path).decode())
        except ValueError as error:
            raise VmtError(Problem(Code.SOURCE, "", "is no YAML", str(error), "a device map")) from None
        return validate(DeviceMap, {} if loaded is None else loaded)


def _tell(conversion: Conversion) -> None:
    from vmtenancy.migrate.text import shown

    name = conversion.objects[0]["metadata"]["name"]
    for card in conversion.devices.unresolved:
        what = card.product or card.kind or "unknown device"
        keys = ", ".join(card.keys) or card.devices[0].hint or card.devices[0].bus
        typer.echo(f"{name}: unresolved: {card.devices[0].path}: {what} ({keys})", err=True)
    for lost in conversion.lost:
        typer.echo(f"{name}: not kept: {lost.path}: {shown(lost.path, lost.found)}: {lost.why}", err=True)
