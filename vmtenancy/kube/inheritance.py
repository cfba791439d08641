"""Children of an owner that was made anew: they get its uid, so that what runs goes on under it.

A VirtualMachine or the host namespace of a virtual cluster may outlive the object that it was made for. Brought back
from a backup, that object has another uid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vmtenancy.api.names import MANAGED_BY, MANAGED_LABEL, OWNER_UID_LABEL
from vmtenancy.kube.backup import SAVED, Backup
from vmtenancy.kube.client import Client
from vmtenancy.kube.errors import ConflictError, NotFoundError
from vmtenancy.kube.snapshot import read_world
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.world import is_deleting, labels_of, ref_of, uid_of

_OWNERS: Final = ("GpuVM", "VirtualCluster")
#: What may have been made for one of them.
_CHILDREN: Final = ("Namespace", *(kind for kind in KINDS if kind not in SAVED and kind != "Node"))
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Orphans:
    """Children whose owner was made anew: `heirs` are the new owners by the uid of the old one.

    `homes` has the owner that the label of each namespace names.
    """

    children: Sequence[Object] = ()
    heirs: Mapping[str, Object] = field(default_factory=dict)
    homes: Mapping[str, str] = field(default_factory=dict)


async def find_orphans(client: Client, backup: Backup) -> Orphans:
    """Look for children of what was in the backup, now that it has been made anew. Raises `KubeError`."""
    owners = await read_world(client, _OWNERS)
    heirs = {}
    for saved in backup.objects:
        heir = owners.find(ref_of(saved)) if saved["kind"] in _OWNERS else None
        if heir and not is_deleting(heir) and uid_of(heir) != uid_of(saved):
            heirs[uid_of(saved)] = heir
    if not heirs:
        return Orphans()
    world = await read_world(client, _CHILDREN)
    homes = {
        home["metadata"]["name"]: labels_of(home).get(OWNER_UID_LABEL, "") for home in world.of("Namespace")
    }
    everything = (child for kind in _CHILDREN for child in world.of(kind))
    return Orphans([c for c in everything if inherited(c, heirs, homes) is not None], heirs, homes)


def holds(backup: Backup, heirs: Mapping[str, Object]) -> Iterator[Object]:
    """Virtual clusters that say again that they were admitted: with that, one that still runs gets its hold back."""
    for saved in backup.objects:
        heir, admitted = heirs.get(uid_of(saved)), (saved.get("status") or {}).get("gpus")
        if saved["kind"] == "VirtualCluster" and heir and admitted and not heir.get("status"):
            yield {**heir, "status": {"gpus": admitted}}


async def hand_over(by: Client, child: Object, orphans: Orphans) -> None:
    """Give one child to its heir, trying again where somebody else writes to it, too. Raises `KubeError`."""
    ref, found = ref_of(child), child
    for attempt in range(_ATTEMPTS):
        wanted = inherited(found, orphans.heirs, orphans.homes)
        if wanted is None:
            return
        try:
            await by.replace(wanted)
            return
        except NotFoundError:
            return
        except ConflictError:
            if attempt == _ATTEMPTS - 1:
                raise
            found = await by.get(await by.kind(child["apiVersion"], ref.kind), ref.namespace, ref.name)


def inherited(child: Object, heirs: Mapping[str, Object], homes: Mapping[str, str]) -> Object | None:
    """The child with its new owner, None where it has none or is going.

    `heirs` and `homes` as in `Orphans`. Tenants can put our labels on what they make, so elsewhere than beside the
    owner the namespace has to say it too.
    """
    if is_deleting(child):
        return None
    metadata = child["metadata"]
    namespace = metadata.get("namespace", "")
    references = [
        {**reference, "uid": uid_of(heir)}
        if (heir := heirs.get(reference["uid"])) and heir["metadata"]["namespace"] == namespace
        else reference
        for reference in metadata.get("ownerReferences") or ()
    ]
    labels = dict(labels_of(child))
    heir = heirs.get(labels.get(OWNER_UID_LABEL, "")) if labels.get(MANAGED_LABEL) == MANAGED_BY else None
    if heir is not None:
        beside = namespace == heir["metadata"]["namespace"]
        if not namespace or beside or homes.get(namespace) in (labels[OWNER_UID_LABEL], uid_of(heir)):
            labels[OWNER_UID_LABEL] = uid_of(heir)
            if beside and not references:  # its owner was deleted without it
                references = [_reference(heir)]
    changed = {**metadata, "labels": labels, "ownerReferences": references}
    if labels == labels_of(child) and references == (metadata.get("ownerReferences") or []):
        return None
    return {**child, "metadata": changed}


def _reference(owner: Object) -> Object:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": uid_of(owner),
        "controller": True,
        "blockOwnerDeletion": True,
    }
