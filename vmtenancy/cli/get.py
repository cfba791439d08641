"""`vmtenancy get`: who holds what, and what waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmtenancy.cli.common import Context, Kubeconfig, Output, OutputOption, show, with_client

if TYPE_CHECKING:
    from vmtenancy.reconcile.view import View

_KINDS = ("GpuVM", "VirtualCluster", "Pod")
_SHORT = {"gvm": "GpuVM", "vcl": "VirtualCluster", "po": "Pod"}


@dataclass(frozen=True, slots=True)
class Workload:
    """One row: what a workload asks for and what it holds. `gpus` are counts by class."""

    kind: str
    namespace: str
    name: str
    tenant: str
    phase: str
    gpus: dict[str, int]
    node: str
    devices: list[str]
    created: str
    message: str


def get(
    kind: Annotated[str | None, typer.Argument(help="GpuVM, VirtualCluster or Pod; all by default.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Only this namespace.")] = None,
    output: OutputOption = Output.TABLE,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """List workloads with GPUs: who holds what, and what waits for what."""
    from vmtenancy.kube.snapshot import read_world
    from vmtenancy.reconcile.view import View

    wanted = kind_of(kind) if kind else None
    view = View(with_client(read_world, kubeconfig, context), time.time())
    rows = [
        row for row in workloads(view) if wanted in (None, row.kind) and namespace in (None, row.namespace)
    ]
    if output is not Output.TABLE:
        show([asdict(row) for row in rows], output)
    elif rows:
        _table(rows, view.now)
    else:
        typer.echo("no workloads with GPUs")


def kind_of(name: str) -> str:
    """The kind that people mean by `gvm`, `gpuvms`, `GpuVM`, …. Raises `typer.BadParameter`."""
    lower = name.lower()
    for kind in _KINDS:
        if lower in (kind.lower(), f"{kind.lower()}s"):
            return kind
    if lower in _SHORT:
        return _SHORT[lower]
    raise typer.BadParameter(f"found {name!r}; expected one of {', '.join(_KINDS)}")


def workloads(view: View) -> Iterator[Workload]:
    """Every GpuVM and VirtualCluster, and the pods that hold or wait for GPUs of their own."""
    from vmtenancy.reconcile.gate import root_owner
    from vmtenancy.reconcile.view import by_name

    for kind in ("GpuVM", "VirtualCluster"):
        for obj in by_name(view.world.of(kind)):
            yield _row(view, obj)
    gated = {pod["metadata"]["uid"] for pod in view.gated_pods}
    for pod in by_name(view.world.of("Pod")):
        uid = pod["metadata"]["uid"]
        if uid in view.live_by_owner or (uid in gated and not root_owner(view, pod)):
            yield _row(view, pod)


def _row(view: View, obj: dict[str, Any]) -> Workload:
    meta, status = obj["metadata"], obj.get("status") or {}
    grant = view.live_by_owner.get(meta["uid"])
    if grant:
        gpus = grant.wanted
    elif obj["kind"] == "Pod":
        gpus = view.gpus(obj)
    else:
        gpus = {gpu["class"]: gpu.get("count", gpu.get("guaranteed", 0)) for gpu in obj["spec"]["gpus"]}
    return Workload(
        kind=obj["kind"],
        namespace=meta["namespace"],
        name=meta["name"],
        tenant=view.tenant_of(meta["namespace"]),
        phase=status.get("phase") or "Pending",
        gpus=gpus,
        node=grant.node if grant else "",
        devices=[device for part in grant.grants for device in part.devices] if grant else [],
        created=meta["creationTimestamp"],
        message=_message(status),
    )


def _message(status: dict[str, Any]) -> str:
    if "message" in status:
        return str(status["message"])
    waiting = (c for c in status.get("conditions") or () if c["status"] == "False" and c.get("message"))
    return str(next((c["message"] for c in waiting), ""))


def _table(rows: list[Workload], now: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("KIND", "NAMESPACE", "NAME", "TENANT", "PHASE", "GPUS", "NODE", "AGE"):
        table.add_column(column, no_wrap=True)
    table.add_column("MESSAGE", overflow="fold")
    for row in rows:
        gpus = ", ".join(f"{count} x {name}" for name, count in row.gpus.items())
        table.add_row(
            *(row.kind, row.namespace, row.name, row.tenant, row.phase, gpus, row.node),
            *(_age(row.created, now), row.message),
        )
    console = Console()
    console.print(table) if console.is_terminal else Console(width=200).print(table)


def _age(created: str, now: float) -> str:
    from vmtenancy.reconcile.status import seconds

    age = max(0, int(now - seconds(created)))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if age >= size:
            return f"{age // size}{unit}"
    return f"{age}s"
