"""`vmtenancy adopt`: take in what runs already, without a restart."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from vmtenancy import resources
from vmtenancy.cli.common import Context, Kubeconfig
from vmtenancy.errors import Code, Problem, VmtError

if TYPE_CHECKING:
    from vmtenancy.kube.client import Client
    from vmtenancy.reconcile.adopt_request import Proposal
    from vmtenancy.reconcile.steps import Object
    from vmtenancy.reconcile.world import World

_KINDS = {
    **dict.fromkeys(("pod", "pods", "po"), "Pod"),
    **dict.fromkeys(("vm", "vms", "virtualmachine", "virtualmachines"), "VirtualMachine"),
    "vcluster": "vCluster",
}


def adopt(
    target: Annotated[str, typer.Argument(help="pod/NAME, vm/NAME or vcluster/NAME.")],
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Its namespace.")] = "default",
    class_: Annotated[
        str | None,
        typer.Option(
            "--class", help="For a machine: the GpuClass of its GPUs; else the first that delivers them."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would come of it; write nothing.")] = False,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds to wait for the controller.")] = 60.0,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Give a pod or a KubeVirt machine that runs on GPUs a grant of what it has, without a restart.

    A pod keeps its devices and gets a grant; of a vCluster in a tenant's namespace, each of its pods with GPUs does. A
    VirtualMachine becomes the GpuVM of its name. Quota does not stop it: what runs is recorded, and over-use is told.
    The controller decides; this command asks it and waits.
    """
    kind, slash, name = target.partition("/")
    if not slash or not name or kind.lower() not in _KINDS:
        raise typer.BadParameter(f"found {target!r}; expected pod/NAME, vm/NAME or vcluster/NAME")
    kind = _KINDS[kind.lower()]
    if class_ is not None and kind != "VirtualMachine":
        raise typer.BadParameter("--class is for machines; a pod names its class in vmtenancy.io/class")
    from vmtenancy.kube.live import LiveWorld
    from vmtenancy.reconcile.world import ref_of, uid_of

    with LiveWorld(kubeconfig, context) as live:
        proposals = _propose(live.world(), kind, namespace, name, class_)
        for proposal in proposals:
            _tell(proposal, dry_run=dry_run)
        if dry_run:
            return
        end = time.monotonic() + timeout
        written = [live.call(partial(_store, proposal.write)) for proposal in proposals]
        for obj, proposal in zip(written, proposals, strict=True):
            taken_in = partial(_is_taken_in, uid=uid_of(obj), runs=proposal.grant is not None)
            if live.wait(taken_in, max(0.0, end - time.monotonic())) is None:
                found = _says(live.world(), obj) or "nothing"
                message = f"the controller has not taken {ref_of(obj)} in within {timeout:g} s: does one run?"
                raise VmtError(Problem(Code.CLUSTER, "", message, found))
            typer.echo(f"{ref_of(obj)} is taken in")


def _propose(world: World, kind: str, namespace: str, name: str, class_: str | None) -> list[Proposal]:
    from vmtenancy.reconcile.adopt_request import propose_pod, propose_virtual_cluster, propose_vm
    from vmtenancy.reconcile.view import View

    world.templates = resources.templates()
    view = View(world, time.time())
    if kind == "vCluster":
        return propose_virtual_cluster(view, namespace, name)
    return [
        propose_pod(view, namespace, name) if kind == "Pod" else propose_vm(view, namespace, name, class_)
    ]


def _tell(proposal: Proposal, *, dry_run: bool) -> None:
    import yaml

    from vmtenancy.reconcile.world import ref_of

    name, will = ref_of(proposal.write), "would get" if dry_run else "gets"
    if proposal.grant is None or proposal.grant.placement is None:
        typer.echo(f"{name} {will} no grant now: it holds nothing, and asks for GPUs once it starts")
    else:
        seat = proposal.grant.placement
        parts = [f"{part.count} x {part.offering} ({', '.join(part.devices)})" for part in seat.grants]
        what = f"{', '.join(parts)} on node {seat.node}"
        typer.echo(f"{name} {will} a grant of {what}, charged to tenant {proposal.tenant}")
    for line in proposal.over_use:
        typer.echo(f"note: {line}")
    if dry_run and proposal.write["kind"] == "GpuVM":
        typer.echo("---\n" + yaml.safe_dump(proposal.write, sort_keys=False), nl=False)


async def _store(write: Object, client: Client) -> Object:
    """The Pod as it was seen, with the annotation; a GpuVM is new."""
    return await (client.replace(write) if write["kind"] == "Pod" else client.create(write))


def _is_taken_in(world: World, *, uid: str, runs: bool) -> bool:
    from vmtenancy.reconcile.lineage import machine_to_adopt
    from vmtenancy.reconcile.view import View
    from vmtenancy.reconcile.world import uid_of

    view = View(world, 0.0)
    if any(machine_to_adopt(view, obj) for obj in world.of("GpuVM") if uid_of(obj) == uid):
        return False
    grant = view.live_by_owner.get(uid)
    return not runs or (grant is not None and bool(grant.pod_uids))


def _says(world: World, written: Object) -> str:
    """What is told in its conditions."""
    from vmtenancy.reconcile.world import ref_of

    conditions = ((world.find(ref_of(written)) or {}).get("status") or {}).get("conditions") or ()
    told = (c for c in conditions if c["status"] == "False" and c.get("message"))
    return "; ".join(f"{c.get('reason')}: {c['message']}" for c in told)
