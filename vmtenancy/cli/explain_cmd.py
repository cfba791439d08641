"""`vmtenancy explain`: why one workload waits, judged anew on what the cluster holds now."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmtenancy import resources
from vmtenancy.cli.common import Context, Kubeconfig, with_client
from vmtenancy.cli.get import kind_of
from vmtenancy.errors import Code, Problem, VmtError

if TYPE_CHECKING:
    from vmtenancy.reconcile.steps import Object
    from vmtenancy.reconcile.view import View


@dataclass(frozen=True, slots=True)
class Answer:
    """What there is to say about a workload: one line on where it stands, and more."""

    summary: str
    details: list[str] = field(default_factory=list)


def explain(
    target: Annotated[str, typer.Argument(help="KIND/NAME, such as gpuvm/trainer.")],
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Its namespace.")] = "default",
    templates: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, exists=True, help="The controller's VM templates, if not those shipped."
        ),
    ] = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Say why a GpuVM, VirtualCluster or Pod waits, where in the queue, and what would admit it now."""
    from vmtenancy.kube.snapshot import read_world
    from vmtenancy.reconcile.view import View

    kind, slash, name = target.partition("/")
    if not slash or not name:
        raise typer.BadParameter(f"found {target!r}; expected KIND/NAME, such as gpuvm/trainer")
    kind = kind_of(kind)
    world = with_client(read_world, kubeconfig, context)
    world.templates = resources.templates(templates)
    view = View(world, time.time())
    obj = view.world.get(kind, namespace, name)
    if obj is None:
        raise VmtError(Problem(Code.UNKNOWN_REFERENCE, "", f"there is no {kind} {namespace}/{name}"))
    answer = answer_for(view, obj)
    typer.echo(answer.summary)
    for line in [*answer.details, *_conditions(obj)]:
        typer.echo(f"  {line}")


def answer_for(view: View, obj: Object) -> Answer:
    """Where a workload stands, by the same code that the controller decides with."""
    from vmtenancy.core.explain.change import explain as explain_demand
    from vmtenancy.core.explain.shortage import amount
    from vmtenancy.reconcile.admit import explain_requests
    from vmtenancy.reconcile.demands import key_of

    key, uid = key_of(obj), obj["metadata"]["uid"]
    if grant := view.live_by_owner.get(uid):
        held = [
            f"{part.count} x {part.class_} ({', '.join(part.devices) or 'any device'})"
            for part in grant.grants
        ]
        where = f" on node {grant.node}" if grant.node else ""
        return Answer(f"{key} holds {', '.join(held)}{where} by grant {grant.name}")
    requests, fleet, tree, holds, now = explain_requests(view)
    if unclear := requests.unclear.get(uid):
        return Answer(f"{key} waits: {unclear.reason}: {unclear.message}")
    if key not in requests.asked:
        return Answer(f"{key} asks for nothing now")
    demands = [asked.demand for asked in requests.asked.values()]
    why = explain_demand(
        fleet, tree, holds, demands, key, now.ending, now.promised, now.reserved, now.promises
    )
    if why is None:
        return Answer(f"{key} can be admitted now: the controller has not got to it yet, or is not running")
    details = [f"number {why.wait.position} in the queue for its pools"] if why.wait.position else []
    if short := why.wait.shortage:
        asked, free, total = (amount(short.pool, n) for n in (short.requested, short.free, short.total))
        details.append(f"needs {asked}, free {free} of {total} ({short.binds})")
    if why.smaller:
        smaller = ", ".join(f"{count} x {name}" for name, count in why.smaller)
        details.append(f"would be admitted now with {smaller}")
    return Answer(f"{key} waits: {why.wait.reason}: {why.wait.problem}", details)


def _conditions(obj: Object) -> list[str]:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return [
        f"{c['type']}={c['status']} {c.get('reason', '')}" + (f": {c['message']}" if c.get("message") else "")
        for c in conditions
    ]
