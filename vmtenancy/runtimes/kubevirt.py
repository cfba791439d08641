"""KubeVirt: a GpuVM and its grant become a VirtualMachine; VirtualMachine, VMI and pods become an observation.

The spec is laid together in this order, the later over the earlier: template, the GpuVM's shorthands (cpu, memory,
disks, networks), its `vm:` overlay, defaults where none of these said anything (virtio disks, masquerade), cloud-init,
and what vmtenancy owns (GPUs, run strategy, labels).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vmtenancy.api import names
from vmtenancy.api.gpuallocation import Grant
from vmtenancy.api.gpuvm import Disk, GpuVM
from vmtenancy.api.quantity import Quantity
from vmtenancy.errors import Code, VmtError
from vmtenancy.render.catalog import Catalog, find
from vmtenancy.render.merge import merge
from vmtenancy.render.policy import check_vm_spec
from vmtenancy.render.template import VmFacts
from vmtenancy.runtimes.base import Object
from vmtenancy.runtimes.cloudinit import public_keys, with_keys
from vmtenancy.runtimes.vm_status import VmObservation, observe

__all__ = ["VmInputs", "VmObservation", "key_secret_names", "objects", "observe", "public_keys"]

_DISK_TARGETS: Final = ("disk", "cdrom", "lun")
_BINDINGS: Final = ("masquerade", "bridge", "sriov", "slirp", "macvtap", "passt", "passtBinding", "binding")


@dataclass(frozen=True, slots=True)
class VmInputs:
    """What `objects` needs from outside: `ssh_keys` are the public keys of the Secrets that the GpuVM names."""

    tenant: str
    catalog: Catalog
    ssh_keys: Sequence[str] = ()


def objects(vm: GpuVM, grants: Sequence[Grant], inputs: VmInputs) -> list[Object]:
    """Return the cloud-init Secret, where there are ssh keys, and the VirtualMachine; without grants it is Halted.

    Raises `VmtError`: TEMPLATE, OUTPUT_REFUSED or UNKNOWN_REFERENCE for the template, OWNED_PATH for the overlay,
    INVALID_FIELD where the parts do not fit together.
    """
    overlay = vm.spec.vm
    problems = check_vm_spec(overlay, "spec.vm", Code.OWNED_PATH)
    if problems:
        raise VmtError.of(problems)
    spec = merge(merge(_from_template(vm, grants, inputs.catalog), _shorthands(vm)), overlay)
    vmi = spec["template"]["spec"]
    own = [key.public_key for key in vm.spec.ssh_keys if key.public_key is not None]
    keys = list(dict.fromkeys([*own, *inputs.ssh_keys]))
    secrets = []
    if keys:
        name = f"{vm.metadata.name}-cloudinit"
        vmi, user_data = with_keys(vmi, name, keys, vmi.get("hostname", vm.metadata.name))
        secret = _child(vm, inputs.tenant, "v1", "Secret", name)
        data = {"userdata": base64.b64encode(user_data.encode()).decode()}
        secrets.append({**secret, "type": "Opaque", "data": data})
    machine = _child(vm, inputs.tenant, "kubevirt.io/v1", "VirtualMachine", vm.metadata.name)
    template = {
        "metadata": merge(spec["template"].get("metadata"), {"labels": machine["metadata"]["labels"]}),
        "spec": _with_defaults(vmi, _gpus(grants)),
    }
    # Without a grant it must not run: its pod would wait at the gate.
    run_strategy = vm.spec.run_strategy if grants else "Halted"
    return [*secrets, {**machine, "spec": {**spec, "template": template, "runStrategy": run_strategy}}]


def key_secret_names(vm: GpuVM) -> list[str]:
    """Return the names of the Secrets, in the VM's namespace, whose public keys `VmInputs.ssh_keys` needs."""
    refs = [key.secret_ref.name for key in vm.spec.ssh_keys if key.secret_ref is not None]
    return list(dict.fromkeys(refs))


def _from_template(vm: GpuVM, grants: Sequence[Grant], catalog: Catalog) -> dict[str, Any]:
    spec = vm.spec
    facts = VmFacts(
        name=vm.metadata.name,
        namespace=vm.metadata.namespace,
        cores=spec.cpu.cores,
        memory=str(spec.memory),
        gpus=sum(given.count for given in grants or spec.gpus),
        disks=tuple(disk.name for disk in spec.disks),
        networks=tuple(network.name for network in spec.networks),
    )
    fragment = find(catalog, spec.template.name).render(spec.template.parameters, facts)
    problems = check_vm_spec(fragment, f"template {spec.template.name}: spec", Code.OUTPUT_REFUSED)
    if problems:
        raise VmtError.of(problems)
    return fragment


def _shorthands(vm: GpuVM) -> dict[str, Any]:
    spec = vm.spec
    disks: list[dict[str, Any]] = [{"name": disk.name} for disk in spec.disks]
    if disks:
        disks[0]["bootOrder"] = 1
    networks: list[dict[str, Any]] = [
        {"name": network.name, "pod": {}}
        if network.multus is None
        else {"name": network.name, "multus": {"networkName": network.multus}}
        for network in spec.networks
    ]
    devices = {
        "disks": disks,
        "interfaces": [{"name": network.name} for network in spec.networks],
        "autoattachPodInterface": None if networks else False,
    }
    vmi = {
        "domain": {
            "cpu": {"cores": spec.cpu.cores},
            "memory": {"guest": canonical(spec.memory)},
            "devices": _filled(devices),
        },
        "networks": networks,
        "volumes": [_volume(vm, disk) for disk in spec.disks],
    }
    volumes = [_data_volume(vm, disk) for disk in spec.disks if disk.image.container_disk is None]
    return _filled({"template": {"spec": _filled(vmi)}, "dataVolumeTemplates": volumes})


def _filled(mapping: dict[str, Any]) -> dict[str, Any]:
    """Without empty lists and None: KubeVirt drops them, so that they would be written again and again."""
    return {key: value for key, value in mapping.items() if value is not None and value != []}


def _volume(vm: GpuVM, disk: Disk) -> dict[str, Any]:
    if disk.image.container_disk is not None:
        return {"name": disk.name, "containerDisk": {"image": disk.image.container_disk}}
    return {"name": disk.name, "dataVolume": {"name": data_volume_name(vm.metadata.name, disk.name)}}


def _data_volume(vm: GpuVM, disk: Disk) -> dict[str, Any]:
    image = disk.image
    source: dict[str, Any]
    if image.http is not None:
        source = {"http": {"url": image.http.url}}
    elif image.registry is not None:
        source = {"registry": {"url": f"docker://{image.registry.image}"}}
    elif image.pvc is not None:
        source = {"pvc": {"namespace": image.pvc.namespace or vm.metadata.namespace, "name": image.pvc.name}}
    else:
        source = {"blank": {}}
    size = None if disk.size is None else {"requests": {"storage": canonical(disk.size)}}
    storage = _filled({"resources": size, "storageClassName": disk.storage_class})
    name = data_volume_name(vm.metadata.name, disk.name)
    return {"metadata": {"name": name}, "spec": {"source": source, "storage": storage}}


def data_volume_name(vm: str, disk: str) -> str:
    """Return `<vm>-<disk>`, with a digest behind a disk's name that has a dash.

    KubeVirt takes any DataVolume of the right name, so disks of two machines must never have the same: without the
    digest, disk `b-c` of `a` and disk `c` of `a-b` would.
    """
    if "-" not in disk:
        return f"{vm}-{disk}"
    return f"{vm}-{disk}-{hashlib.sha256(f'{vm}/{disk}'.encode()).hexdigest()[:8]}"


def canonical(quantity: Quantity) -> str:
    """Return the quantity as Kubernetes itself writes it, so that applying it again changes nothing.

    Bytes are whole. Rules: k8s.io/apimachinery/pkg/api/resource, `Quantity.CanonicalizeBytes`.
    """
    units, base = ("kMGTPE", 1000) if quantity[-1:] != "i" else ("KMGTPE", 1024)
    amount, suffix = quantity.bytes, ""
    for unit in units:
        if amount % base:
            break
        amount, suffix = amount // base, unit if base == 1000 else f"{unit}i"
    return f"{amount}{suffix}"


def _with_defaults(vmi: Mapping[str, Any], gpus: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Add the GPUs, and what neither template nor GpuVM said: virtio disks, NAT on the pod network, else a bridge."""
    pod_networks = {network.get("name") for network in vmi.get("networks", ()) if "pod" in network}
    devices = vmi["domain"]["devices"]
    disks = [
        disk if any(target in disk for target in _DISK_TARGETS) else {**disk, "disk": {"bus": "virtio"}}
        for disk in devices.get("disks", ())
    ]
    interfaces = [
        interface
        if any(binding in interface for binding in _BINDINGS)
        else {**interface, ("masquerade" if interface.get("name") in pod_networks else "bridge"): {}}
        for interface in devices.get("interfaces", ())
    ]
    filled = _filled({"disks": disks, "interfaces": interfaces, "gpus": list(gpus)})
    return {**vmi, "domain": {**vmi["domain"], "devices": {**devices, **filled}}}


def _gpus(grants: Sequence[Grant]) -> list[dict[str, str]]:
    resources = [grant.resource for grant in grants for _ in range(grant.count)]
    return [{"name": f"gpu{index}", "deviceName": resource} for index, resource in enumerate(resources)]


def _child(vm: GpuVM, tenant: str, api_version: str, kind: str, name: str) -> Object:
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": "GpuVM",
        "name": vm.metadata.name,
        "uid": vm.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    labels = {
        names.MANAGED_LABEL: names.MANAGED_BY,
        names.TENANT_LABEL: tenant,
        names.GPUVM_LABEL: vm.metadata.name,
        names.OWNER_UID_LABEL: vm.metadata.uid,
    }
    metadata = {
        "name": name,
        "namespace": vm.metadata.namespace,
        "labels": labels,
        "ownerReferences": [owner],
    }
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}
