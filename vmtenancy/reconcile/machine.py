"""The objects of a GpuVM, rendered once for each of its specs: by far the dearest part of a plan."""

from __future__ import annotations

from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.untyped import refuse_wrong_shapes
from vmtenancy.reconcile.view import Allocation, View
from vmtenancy.runtimes import kubevirt
from vmtenancy.runtimes.kubevirt import VmInputs


def machine_objects(
    view: View, obj: Object, vm: GpuVM, tenant: str, grant: Allocation | None
) -> list[Object]:
    """What should exist for a GpuVM with this grant. Raises `VmtError` where it can not be rendered."""
    secrets = [
        secret
        for name in kubevirt.key_secret_names(vm)
        if (secret := view.world.get("Secret", vm.metadata.namespace, name))
    ]
    keys = kubevirt.public_keys(secrets)

    def attempt(_: Object) -> list[Object] | VmtError:
        try:
            inputs = VmInputs(tenant, view.catalog, keys)
            with refuse_wrong_shapes("spec.vm"):
                return kubevirt.objects(vm, grant.grants if grant else (), inputs)
        except VmtError as error:
            return error

    what = f"/objects/{tenant}/{grant.name if grant else ''}/{keys}"
    found = view.remembered(obj, attempt, what, by="generation")
    if isinstance(found, VmtError):
        raise found
    return found
