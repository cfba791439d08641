"""`GpuVM`: a virtual machine with GPUs. Fields for what everyone sets, the `vm` overlay for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from vmtenancy.api.common import (
    AGE,
    ApiModel,
    DeviceId,
    DnsLabel,
    DnsSubdomain,
    FreeText,
    Items,
    Kind,
    ObjectName,
    PrinterColumn,
    Rule,
    Status,
    Text,
    by_alias,
)
from vmtenancy.api.gpurequest import ALTERNATIVES_RULES, GpuRequest, GrantedGpus
from vmtenancy.api.lease import Lease, LeaseStatus
from vmtenancy.api.overlay import Overlay, OwnedPath
from vmtenancy.api.quantity import Quantity

HIGHEST_PRIORITY: Final = 1000
Priority = Annotated[int, Field(ge=-1000, le=HIGHEST_PRIORITY)]
_Url = Annotated[str, Text(r"^https?://[^\s/]+(/\S*)?$", 2048, "an http or https URL")]
_Image = Annotated[
    str, Text(r"^[A-Za-z0-9][-A-Za-z0-9._/:@]*$", 512, "an image, for example registry.example/os:24.04")
]
_ParameterValue = Annotated[str, Field(max_length=4096)]
_PublicKey = Annotated[
    str,
    Text(
        r"^(ssh-|ecdsa-|sk-)[-a-z0-9@.]+ [A-Za-z0-9+/=]+( [^\r\n]*)?$",
        8192,
        "one public key as in authorized_keys",
    ),
]


def exactly_one(*fields: str) -> Rule:
    """The rule that exactly one of an object's `fields`, as the API names them, is set."""
    given = [f"has(self.{name})" for name in fields]
    return Rule(
        cel=f"[{', '.join(given)}].filter(x, x).size() == 1",
        holds=lambda self: sum(by_alias(self, name) is not None for name in fields) == 1,
        expected=f"exactly one of {', '.join(fields)}",
        found=f"({' || '.join(given)} ? 'several' : 'none')",
    )


class TemplateRef(ApiModel):
    """The VM template that the virtual machine is made from."""

    name: ObjectName = Field(default="default", description="Name of the template.")
    parameters: dict[str, _ParameterValue] = Field(
        default_factory=dict, max_length=64, description="Values of the template's parameters."
    )


class Cpu(ApiModel):
    """Processor of the virtual machine."""

    cores: Annotated[int, Field(ge=1, le=512)] = Field(description="Cores.")


class UrlSource(ApiModel):
    """An image at a URL, imported once."""

    url: _Url = Field(description="Where it is.")


class RegistrySource(ApiModel):
    """A container disk that is imported once into a volume, where changes to it last."""

    image: _Image = Field(description="The image.")


class PvcSource(ApiModel):
    """A volume that is cloned."""

    namespace: DnsLabel | None = Field(
        default=None,
        description="Its namespace, in which the author may create datavolumes/source; unset: the GpuVM's.",
    )
    name: DnsSubdomain = Field(description="The PersistentVolumeClaim.")


class BlankSource(ApiModel):
    """An empty disk: `blank: {}`."""


class DiskImage(ApiModel):
    """What a disk holds at first."""

    container_disk: _Image | None = Field(
        default=None, description="An image that is the disk; what is written to it is lost at a stop."
    )
    http: UrlSource | None = Field(default=None, description="An image at a URL.")
    registry: RegistrySource | None = Field(default=None, description="A container disk, imported.")
    pvc: PvcSource | None = Field(default=None, description="A volume, cloned.")
    blank: BlankSource | None = Field(default=None, description="Nothing.")
    rules: ClassVar = (exactly_one("containerDisk", "http", "registry", "pvc", "blank"),)


class Disk(ApiModel):
    """A disk of the virtual machine."""

    name: DnsLabel = Field(description="Its name, unique in the virtual machine.")
    image: DiskImage = Field(description="What it holds at first.")
    size: Quantity | None = Field(default=None, description="Its size; a containerDisk brings its own.")
    storage_class: DnsSubdomain | None = Field(
        default=None, description="The StorageClass; unset: the default one."
    )
    rules: ClassVar = (
        Rule(
            cel="has(self.image.containerDisk) || has(self.size)",
            holds=lambda self: self.image.container_disk is not None or self.size is not None,
            expected="size: only a containerDisk has one of its own",
            found="'no size'",
        ),
    )


AttachmentName = Annotated[
    str,
    Text(
        r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        253,
        "a NetworkAttachmentDefinition: name or namespace/name",
    ),
]


class Network(ApiModel):
    """A network interface."""

    name: DnsLabel = Field(description="Its name, unique in the virtual machine.")
    multus: AttachmentName | None = Field(
        default=None, description="A NetworkAttachmentDefinition; unset: the pod network."
    )


class SecretRef(ApiModel):
    """A Secret in the same namespace."""

    name: DnsSubdomain = Field(description="Its name.")


class SshKey(ApiModel):
    """A key that may log in."""

    secret_ref: SecretRef | None = Field(
        default=None, description="A Secret, each value of which is a public key."
    )
    public_key: _PublicKey | None = Field(default=None, description="The key itself.")
    rules: ClassVar = (exactly_one("secretRef", "publicKey"),)


_PLACEMENT: Final = "the placement engine chooses the node"
_RUN: Final = "use spec.runStrategy"
OWNED_VM_PATHS: Final = (
    OwnedPath("running", "boolean", _RUN),
    OwnedPath("runStrategy", "string", _RUN),
    OwnedPath("template.spec.domain.devices.gpus", "array", "use spec.gpus"),
    OwnedPath("template.spec.nodeSelector", "object", _PLACEMENT),
    OwnedPath("template.spec.affinity", "object", _PLACEMENT),
    OwnedPath("template.spec.schedulerName", "string", _PLACEMENT),
    OwnedPath("template.spec.priorityClassName", "string", "use spec.priority"),
    OwnedPath("template.spec.resourceClaims", "array", "use spec.gpus"),
)


class GpuVMSpec(ApiModel):
    """The virtual machine that is wanted."""

    template: TemplateRef = Field(default=TemplateRef(), description="The VM template it is made from.")
    gpus: Annotated[tuple[GpuRequest, ...], Items(most=8, least=1, keys=("class",))] = Field(
        description="Its GPUs, per class. No class is named twice, alternatives included."
    )
    cpu: Cpu = Field(description="Its processor.")
    memory: Quantity = Field(description="Its memory.")
    disks: Annotated[tuple[Disk, ...], Items(most=16, keys=("name",))] = Field(
        default=(), description="Its disks; it boots from the first."
    )
    networks: Annotated[tuple[Network, ...], Items(most=16, keys=("name",))] = Field(
        default=(Network(name="default"),),
        description="Its network interfaces; the pod network when not given.",
    )
    ssh_keys: Annotated[tuple[SshKey, ...], Items(most=32)] = Field(
        default=(), description="Keys that may log in."
    )
    run_strategy: Literal["Always", "RerunOnFailure", "Halted"] = Field(
        default="Always",
        description="Always: runs. RerunOnFailure: runs until it shuts itself down. Halted: stopped.",
    )
    when_stopped: Literal["Release", "Hold"] = Field(
        default="Release", description="Release: a stopped machine gives its GPUs back. Hold: it keeps them."
    )
    group: DnsLabel | None = Field(
        default=None, description="The GpuGroup, in its namespace, with whose members it is admitted."
    )
    priority: Priority = Field(
        default=0, description="Higher goes first, among the waiting requests of all tenants."
    )
    preemptible: bool = Field(
        default=True,
        description="False: it is never stopped to make room for others, and has to fit into what is its tenant's own. "
        "As it was when its GPUs were granted.",
    )
    lease: Lease | None = Field(
        default=None, description="For how long it has its GPUs; then it is stopped, until it is renewed."
    )
    reservation: DnsLabel | None = Field(
        default=None,
        description="The GpuReservation, in its namespace, that it draws on; it is stopped when that ends.",
    )
    vm: Annotated[dict[str, Any], Overlay(OWNED_VM_PATHS)] = Field(
        default_factory=dict,
        description="Overlay over the spec of the KubeVirt VirtualMachine, except for what vmtenancy sets.",
    )
    rules: ClassVar = (
        *ALTERNATIVES_RULES,
        Rule(
            cel="!has(self.preemptible) || self.preemptible || !has(self.group)",
            holds=lambda self: self.preemptible or self.group is None,
            expected="true in a group: a group is stopped as a whole",
            field="preemptible",
            found="'false'",
        ),
        Rule(
            cel="!has(self.networks) || self.networks.filter(n, !has(n.multus)).size() <= 1",
            holds=lambda self: sum(network.multus is None for network in self.networks) <= 1,
            expected="at most one network without multus: a machine is on the pod network once",
            field="networks",
            found="'several'",
        ),
        Rule(
            cel=(
                "(self.cpu == oldSelf.cpu && self.memory == oldSelf.memory) || "
                "self.runStrategy == 'Halted' || oldSelf.runStrategy == 'Halted'"
            ),
            holds=None,
            expected="cpu and memory as they are while it runs: stop it first (runStrategy: Halted)",
            found="'a change'",
        ),
        Rule(
            cel="self.gpus == oldSelf.gpus || self.runStrategy == 'Halted' || oldSelf.runStrategy == 'Halted'",
            holds=None,
            expected="no change while it runs: stop it first (runStrategy: Halted)",
            field="gpus",
            found="'a change'",
        ),
        Rule(
            cel=(
                "(has(self.reservation) ? self.reservation : '') == "
                "(has(oldSelf.reservation) ? oldSelf.reservation : '') || "
                "self.runStrategy == 'Halted' || oldSelf.runStrategy == 'Halted'"
            ),
            holds=None,
            expected="no change while it runs: stop it first (runStrategy: Halted)",
            field="reservation",
            found="'a change'",
        ),
    )

    @property
    def first_choice(self) -> tuple[tuple[str, int], ...]:
        """Units by class that it asks for before any alternative and any fewer."""
        return tuple((gpu.class_, gpu.count) for gpu in self.gpus)

    @property
    def alternatives(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Other classes that would do, by the class that is asked for first."""
        return tuple((gpu.class_, gpu.alternatives) for gpu in self.gpus if gpu.alternatives)

    @property
    def minimum(self) -> tuple[tuple[str, int], ...]:
        """The fewest units that will do, by class, where they are fewer than asked for."""
        return tuple((gpu.class_, gpu.fewest) for gpu in self.gpus if gpu.fewest < gpu.count)

    def accepts(self, granted: Mapping[str, int]) -> bool:
        """Whether units by class are what it asks for: of each entry one class that would do, and enough of it."""
        left = dict(granted)
        for gpu in self.gpus:
            given = [left.pop(name) for name in gpu.classes if name in left]
            if len(given) != 1 or not gpu.fewest <= given[0] <= gpu.count:
                return False
        return not left


#: As many nodes as are remembered: the newest.
MOST_AVOIDED: Final = 8


class AllocationStatus(ApiModel):
    """What it was granted."""

    name: DnsSubdomain = Field(description="The GpuAllocation.")
    node: Annotated[str, Field(max_length=253)] = Field(description="The node.")
    devices: Annotated[tuple[DeviceId, ...], Items(most=128)] = Field(default=(), description="The devices.")
    gpus: Annotated[tuple[GrantedGpus, ...], Items(most=8, keys=("class",))] = Field(
        default=(), description="The units granted, per class."
    )


class GpuVMStatus(Status):
    """Where it stands. Conditions `Admitted`, `Ready`, `Degraded`, and with a lease `LeaseEnding`."""

    phase: (
        Literal["Pending", "Admitted", "Starting", "Running", "Stopping", "Stopped", "Failed", "Deleting"]
        | None
    ) = Field(default=None, description="The stage of its life.")
    allocation: AllocationStatus | None = Field(default=None, description="What it was granted.")
    queue_position: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Its place among what waits for the same pool; 1 is next."
    )
    lease: LeaseStatus | None = Field(default=None, description="Its lease.")
    avoided_nodes: Annotated[tuple[DnsSubdomain, ...], Items(most=MOST_AVOIDED, unique=True)] = Field(
        default=(),
        description="Nodes on which it did not start: others come first, until it has started on one.",
    )
    message: FreeText | None = Field(default=None, description="What it waits for, or what is wrong.")


class GpuVM(Kind):
    """A virtual machine with GPUs."""

    plural: ClassVar = "gpuvms"
    short_name: ClassVar = "gvm"
    namespaced: ClassVar = True
    name_is_label: ClassVar = True
    columns: ClassVar = (
        PrinterColumn(name="Class", json_path=".spec.gpus[0].class"),
        PrinterColumn(name="Count", json_path=".spec.gpus[0].count", type="integer"),
        PrinterColumn(name="Phase", json_path=".status.phase"),
        PrinterColumn(name="Node", json_path=".status.allocation.node"),
        PrinterColumn(name="Granted", json_path=".status.allocation.gpus[0].class"),
        PrinterColumn(name="Units", json_path=".status.allocation.gpus[0].count", type="integer"),
        AGE,
        PrinterColumn(name="Expires", json_path=".status.lease.expiresAt", priority=1),
        PrinterColumn(name="Message", json_path=".status.message", priority=1),
    )

    kind: Literal["GpuVM"] = "GpuVM"
    spec: GpuVMSpec
    status: GpuVMStatus = GpuVMStatus()
