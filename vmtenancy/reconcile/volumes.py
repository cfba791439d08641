"""Volumes of GpuVMs: they outlive a grant, for a stopped machine has its disks until it is deleted.

A tenant that is limited in storage is charged with them from the commit of the first grant until the VirtualMachine,
which owns its volumes in KubeVirt, is gone. What is new of them is asked for with a grant (`Demand.storage`), and is
not made before. What others made, and a machine only mounts, is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.quantity import memory_text, to_bytes
from vmtenancy.core.quota.resources import Resource
from vmtenancy.core.requests import Admit, volumes
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.reconcile.lineage import machine_to_adopt
from vmtenancy.reconcile.machine import machine_objects
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.supply import limits
from vmtenancy.reconcile.untyped import refuse_wrong_shapes
from vmtenancy.reconcile.view import Allocation, View
from vmtenancy.reconcile.world import owner_uids, ref_of, uid_of

#: Most bytes of one machine that are charged: sums over 500 of these stay within 64 bits.
_MOST = 1 << 54


@dataclass(frozen=True, slots=True)
class Asked:
    """Bytes of all volumes that a GpuVM asks for, and of those that are not charged yet."""

    total: int = 0
    new: int = 0


def asked(view: View, obj: Object, vm: GpuVM, tenant: str) -> Asked:
    """What a GpuVM without a grant asks for; nothing where its tenant is not limited in storage.

    Raises `VmtError` where it can not be rendered, or nobody knows how large a volume would be.
    """
    if Resource.STORAGE not in limits(view).get(tenant, ()):
        return Asked()
    total = _size(machine_objects(view, obj, vm, tenant, None)[-1])
    return Asked(total, max(0, total - _charged(view, obj, None)))


def charged(view: View, ending: frozenset[str]) -> Iterator[Admit]:
    """All volumes that tenants are charged with. `ending` are the names of grants that are being released."""
    limited = {tenant for tenant, resources in limits(view).items() if Resource.STORAGE in resources}
    for obj in view.world.of("GpuVM") if limited else ():
        grant = view.live_by_owner.get(uid_of(obj))
        if grant is not None and grant.name in ending:
            grant = None
        tenant = grant.tenant if grant else view.tenant_of(obj["metadata"]["namespace"])
        if tenant in limited and (size := _charged(view, obj, grant)):
            yield volumes(str(ref_of(obj)), tenant, size)


def beyond(
    view: View, obj: Object, machine: Object, tenant: str, grant: Allocation | None
) -> VmtError | None:
    """Why the volumes of `machine`, as a GpuVM asks for it now, can not be made yet: they are more than is charged.

    None where they can.
    """
    if Resource.STORAGE not in limits(view).get(tenant, ()):
        return None
    try:
        total, granted = _size(machine), _charged(view, obj, grant)
    except VmtError as error:
        return error
    if total <= granted:
        return None
    problem = Problem(
        Code.QUOTA_EXCEEDED,
        "spec.disks",
        f"its volumes need {memory_text(total)}, and {memory_text(granted)} were granted",
        expected="no more while it runs: stop it first (runStrategy: Halted)",
    )
    return VmtError(problem)


def fit(view: View, obj: Object, vm: GpuVM, tenant: str, grant: Allocation | None) -> bool:
    """Whether all volumes that a GpuVM asks for now are charged; of one that can not be rendered nobody knows."""
    if Resource.STORAGE not in limits(view).get(tenant, ()):
        return True
    try:
        machine = machine_objects(view, obj, vm, tenant, None)[-1]
    except VmtError:
        return True
    return beyond(view, obj, machine, tenant, grant) is None


def _charged(view: View, obj: Object, grant: Allocation | None) -> int:
    meta = obj["metadata"]
    machine = view.world.get("VirtualMachine", meta["namespace"], meta["name"])
    if machine is not None and uid_of(obj) not in owner_uids(machine):
        machine = machine_to_adopt(view, obj)
    there = view.remembered(machine, _size_there, "/volumes") if machine else 0
    return max(there, grant.storage if grant else 0)


def _size_there(machine: Object) -> int:
    return min(_MOST, sum(size or 0 for size in _sizes(machine)))


def _size(machine: Object) -> int:
    """Bytes of the volumes of a rendered machine. Raises `VmtError` where one has no size."""
    with refuse_wrong_shapes("spec.vm.dataVolumeTemplates"):
        sizes = list(_sizes(machine))
    problems = [
        Problem(
            Code.INVALID_FIELD,
            f"spec.vm.dataVolumeTemplates[{i}].spec",
            "has no size, and the tenant is limited in storage",
            expected="storage.resources.requests.storage",
        )
        for i, size in enumerate(sizes)
        if size is None
    ]
    if problems:
        raise VmtError.of(problems)
    return sum(size or 0 for size in sizes)


def _sizes(machine: Object) -> Iterator[int | None]:
    """Bytes of each volume that a VirtualMachine has made for it; None where it does not say."""
    for template in machine["spec"].get("dataVolumeTemplates") or ():
        spec = template["spec"]
        claim = spec.get("storage") or spec.get("pvc") or {}
        size = ((claim.get("resources") or {}).get("requests") or {}).get("storage")
        yield None if size is None else to_bytes(size)
