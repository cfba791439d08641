"""Requests as they wait: put as demands, or why they can not be."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from vmtenancy.api.names import UNRESOLVED_ANNOTATION
from vmtenancy.api.tenant import Tenant
from vmtenancy.core.requests import Demand
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import annotations_of


@dataclass(frozen=True, slots=True)
class Asked:
    """One waiting request: `owner` is the GpuVM, VirtualCluster or Pod; `hold` the allocation of a pod's parent.

    `storage` are the bytes of all its volumes, where its tenant is limited in that.
    """

    owner: Object
    demand: Demand
    hold: str = ""
    storage: int = 0


@dataclass(frozen=True, slots=True)
class Unclear:
    """A request that can not even be put as a demand; `reason` and `message` go into its condition."""

    owner: Object
    reason: str
    message: str


@dataclass(slots=True)
class Requests:
    """All waiting requests by the key of their demand, and those that are not clear by the uid of their owner."""

    asked: dict[str, Asked] = field(default_factory=dict)
    unclear: dict[str, Unclear] = field(default_factory=dict)


def _no_tenant(owner: Object, tenant: str) -> Unclear:
    namespace = owner["metadata"]["namespace"]
    if tenant:
        return Unclear(owner, "TenantNotFound", f"tenant {tenant} of namespace {namespace} does not exist")
    message = f"namespace {namespace} belongs to no tenant: add it to a Tenant's spec.namespaces"
    return Unclear(owner, "NoTenant", message)


def unresolved(owner: Object) -> Unclear | None:
    """Why a machine that came from another platform is not admitted: it had devices that nobody has mapped yet."""
    listed = annotations_of(owner).get(UNRESOLVED_ANNOTATION)
    if listed is None:
        return None
    try:
        devices = json.loads(listed)
    except (ValueError, RecursionError):
        devices = None
    if devices == []:
        return None
    count = f"{len(devices)} devices" if isinstance(devices, list) else "a list that can not be read"
    message = (
        f"the annotation {UNRESOLVED_ANNOTATION} has {count} of the machine that it was: convert it again with a "
        "device map that answers them, or set spec.gpus and take the annotation away"
    )
    return Unclear(owner, "UnresolvedDevices", message)


def tenant_for(view: View, owner: Object) -> tuple[str, Unclear | None]:
    """The tenant that is charged for an owner, and what is wrong with it, if anything."""
    tenant = view.tenant_of(owner["metadata"]["namespace"])
    obj = view.world.get("Tenant", "", tenant)
    if obj is None:
        return tenant, _no_tenant(owner, tenant)
    if isinstance(view.parsed(obj, Tenant), VmtError):
        return tenant, Unclear(owner, "TenantInvalid", f"tenant {tenant} is not valid: see its conditions")
    return tenant, None
