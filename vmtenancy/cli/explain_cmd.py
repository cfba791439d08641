"""`vmtenancy explain`: why one workload waits, judged anew on what the cluster holds now."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmtenancy import resources
from vmtenancy.cli.common import Context, Kubeconfig, Output, OutputOption, show, with_client
from vmtenancy.cli.get import kind_of
from vmtenancy.errors import Code, Problem, VmtError

if TYPE_CHECKING:
    from vmtenancy.core.explain.change import Explanation
    from vmtenancy.core.options import Units
    from vmtenancy.reconcile.steps import Object
    from vmtenancy.reconcile.view import View


class State(StrEnum):
    """Where a workload stands."""

    HOLDS = "Holds"
    WAITS = "Waits"
    ADMISSIBLE = "Admissible"
    IDLE = "Idle"


@dataclass(frozen=True, slots=True)
class Answer:
    """What there is to say about a workload: one line on where it stands, more lines, and the same for programs."""

    summary: str
    state: State
    details: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


def explain(
    target: Annotated[str, typer.Argument(help="KIND/NAME, such as gpuvm/trainer.")],
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Its namespace.")] = "default",
    output: OutputOption = Output.TABLE,
    templates: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, exists=True, help="The controller's VM templates, if not those shipped."
        ),
    ] = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Say why a GpuVM, VirtualCluster or Pod waits, where in the queue, until when, and what would admit it now."""
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
    if output is not Output.TABLE:
        named = {"kind": kind, "namespace": namespace, "name": name, "state": str(answer.state)}
        show({**named, "summary": answer.summary, **answer.data, "conditions": _found(obj)}, output)
        return
    typer.echo(answer.summary)
    for line in [*answer.details, *_conditions(obj)]:
        typer.echo(f"  {line}")


def answer_for(view: View, obj: Object) -> Answer:
    """Where a workload stands, by the same code that the controller decides with."""
    from vmtenancy.reconcile.demands import key_of
    from vmtenancy.reconcile.explanation import NothingAsked, why_waiting
    from vmtenancy.reconcile.requests import Unclear

    key = key_of(obj)
    if grant := view.live_by_owner.get(obj["metadata"]["uid"]):
        held = [
            f"{part.count} x {part.class_} ({', '.join(part.devices) or 'any device'})"
            for part in grant.grants
        ]
        where = f" on node {grant.node}" if grant.node else ""
        return Answer(f"{key} holds {', '.join(held)}{where} by grant {grant.name}", State.HOLDS)
    try:
        why = why_waiting(view, obj)
    except NothingAsked:
        return Answer(f"{key} asks for nothing now", State.IDLE)
    if why is None:
        return Answer(
            f"{key} can be admitted now: the controller has not got to it yet, or is not running",
            State.ADMISSIBLE,
        )
    if isinstance(why, Unclear):
        data = {"reason": why.reason, "message": why.message}
        return Answer(f"{key} waits: {why.reason}: {why.message}", State.WAITS, data=data)
    summary = f"{key} waits: {why.wait.reason}: {why.wait.problem}"
    return Answer(summary, State.WAITS, _details(why), _data(why))


def _details(why: Explanation) -> list[str]:
    from vmtenancy.core.explain.shortage import amount, named

    details = [f"number {place} in the queue for {named(column)}" for column, place in why.positions.items()]
    if short := why.wait.shortage:
        asked, free, total = (amount(short.pool, n) for n in (short.requested, short.free, short.total))
        details.append(f"needs {asked}, free {free} of {total} ({short.binds})")
    return [*details, *([str(why.start)] if why.start else []), *why.changes]


def _data(why: Explanation) -> dict[str, Any]:
    """docs/explain.md says what the fields mean."""
    from vmtenancy.core.explain.shortage import amount, utc
    from vmtenancy.core.quota.resources import Resource

    def units(requests: Units | None) -> list[dict[str, Any]] | None:
        return None if requests is None else [{"class": name, "count": count} for name, count in requests]

    def when(moment: float | None) -> str | None:
        return None if moment is None else utc(moment)

    def of(column: str) -> dict[str, str]:
        return {"resource": column.label} if isinstance(column, Resource) else {"pool": column}

    wait, short, start, raised = why.wait, why.wait.shortage, why.start, why.priority
    return {
        "reason": str(wait.reason),
        "message": wait.message,
        "code": str(wait.problem.code),
        "queue": [{**of(column), "position": place} for column, place in why.positions.items()],
        "shortage": short
        and {
            **of(short.pool),
            "requested": amount(short.pool, short.requested),
            "free": amount(short.pool, short.free),
            "total": amount(short.pool, short.total),
            "boundBy": short.binds,
            "holders": [{"holder": key, "holds": amount(short.pool, held)} for key, held in short.holders],
        },
        "stops": list(wait.victims),
        "stopsFrom": when(wait.stops_from),
        "start": start and {"earliest": when(start.earliest), "latest": when(start.latest)},
        "changes": {
            "fewer": units(why.smaller),
            "otherClass": units(why.other_class),
            "leaseUntil": when(why.ends),
            "priority": raised
            and {"value": raised.priority, "nominated": raised.nominated, "stops": list(raised.victims)},
        },
    }


def _conditions(obj: Object) -> list[str]:
    return [
        f"{c['type']}={c['status']} {c.get('reason', '')}" + (f": {c['message']}" if c.get("message") else "")
        for c in _found(obj)
    ]


def _found(obj: Object) -> list[dict[str, Any]]:
    return list((obj.get("status") or {}).get("conditions") or ())
