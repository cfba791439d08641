"""Groups: whose requests are decided together, and what a `GpuGroup` says of itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vmtenancy.api.gpugroup import GpuGroup
from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.names import GROUP_ANNOTATION
from vmtenancy.core.requests import Wait
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.holders import owner_of
from vmtenancy.reconcile.requests import Asked, Requests, Unclear
from vmtenancy.reconcile.status import Condition, status_steps
from vmtenancy.reconcile.steps import Chain, Object
from vmtenancy.reconcile.view import View, by_name
from vmtenancy.reconcile.world import annotations_of, is_deleting, ref_of, uid_of

INCOMPLETE = "GroupIncomplete"


@dataclass(slots=True)
class _Members:
    """Uids of a group's members: those that wait, and those that have their GPUs."""

    waiting: list[str] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)


def group_of(view: View, owner: Object) -> str:
    """The group of a GpuVM or a pod as `namespace/name`, `""` where it is in none."""
    namespace = owner["metadata"]["namespace"]
    if owner["kind"] == "GpuVM":
        vm = view.parsed(owner, GpuVM)
        name = "" if isinstance(vm, VmtError) else vm.spec.group or ""
    elif owner["kind"] == "Pod":
        name = annotations_of(owner).get(GROUP_ANNOTATION, "")
        if cluster := view.cluster_of(namespace):
            namespace = cluster["metadata"]["namespace"]
    else:
        return ""
    return f"{namespace}/{name}" if name else ""


def gather(view: View, requests: Requests, ending: frozenset[str]) -> None:
    """Have the requests of each group decided together; those of a group that is not complete are not clear yet."""
    waiting: dict[str, list[Asked]] = defaultdict(list)
    for asked in requests.asked.values():
        if group := group_of(view, asked.owner):
            waiting[group].append(asked)
    if not waiting:
        return
    admitted = _admitted(view, ending)
    for group, members in waiting.items():
        trouble = _trouble(view, group, len(members) + admitted[group])
        for asked in members:
            if trouble is None:
                demand = replace(asked.demand, group=group)
                requests.asked[demand.key] = replace(asked, demand=demand)
            else:
                del requests.asked[asked.demand.key]
                requests.unclear[uid_of(asked.owner)] = Unclear(asked.owner, *trouble)


def _admitted(view: View, ending: frozenset[str]) -> Counter[str]:
    """Members that have their GPUs, by group; not those of grants that are `ending`."""
    owners = (owner_of(view, grant) for grant in view.live if grant.name not in ending)
    return Counter(group_of(view, owner) for owner in owners if owner is not None)


def _trouble(view: View, group: str, members: int) -> tuple[str, str] | None:
    """Why a group is not decided: (reason, message)."""
    namespace, _, name = group.partition("/")  # a pod may name its group anything
    obj = view.world.get("GpuGroup", namespace, name)
    found = view.parsed(obj, GpuGroup) if obj is not None and not is_deleting(obj) else None
    if found is None:
        return "UnknownGroup", f"group {group} does not exist"
    if isinstance(found, VmtError):
        return "InvalidGroup", str(found)
    if members < found.spec.members:
        return INCOMPLETE, f"group {group} has {members} of {found.spec.members} members"
    return None


def group_chains(view: View, waits: Mapping[str, Wait], unclear: Mapping[str, Unclear]) -> list[Chain]:
    """Report every group's members, and what the first of them waits for; not in a plan that commits."""
    groups: dict[str, _Members] = defaultdict(_Members)
    for grant in view.live:
        owner = owner_of(view, grant)
        if owner is not None and (group := group_of(view, owner)):
            groups[group].admitted.append(uid_of(owner))
    owners = {uid: _owner_of_demand(view, wait) for uid, wait in waits.items()}
    owners |= {uid: each.owner for uid, each in unclear.items()}
    for uid, owner in owners.items():
        if owner is not None and (group := group_of(view, owner)):
            groups[group].waiting.append(uid)
    chains: list[Chain] = []
    for obj in by_name(view.world.of("GpuGroup")):
        found = view.parsed(obj, GpuGroup)
        if is_deleting(obj) or isinstance(found, VmtError):
            continue
        meta = obj["metadata"]
        members = groups[f"{meta['namespace']}/{meta['name']}"]
        there, wanted = len(members.waiting) + len(members.admitted), found.spec.members
        reason, message = "Admitted", ""
        if there < wanted:
            reason, message = INCOMPLETE, f"{there} of {wanted} members are there"
        elif members.waiting:
            first = min(members.waiting, key=lambda uid: (uid not in waits, uid))
            reason = str(waits[first].reason) if first in waits else unclear[first].reason
            message = waits[first].message if first in waits else unclear[first].message
        admitted = Condition(
            "Admitted", reason == "Admitted", reason, message, event=True, warning=bool(message)
        )
        fields = {
            "members": there,
            "admitted": len(members.admitted),
            "message": message[:1024],
        }
        steps = status_steps(obj, fields, [admitted], generation=meta["generation"], now=view.now)
        if steps:
            chains.append(Chain(f"report {ref_of(obj)}: {reason}", steps))
    return chains


def _owner_of_demand(view: View, wait: Wait) -> Object | None:
    kind, _, path = wait.demand.key.partition(" ")
    return view.world.get(kind, *path.split("/"))
