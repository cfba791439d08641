"""`vmtenancy doctor`: every disagreement between the ledger, Kubernetes and the agents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vmtenancy import resources
from vmtenancy.cli.common import Context, Kubeconfig, Output, OutputOption, show, with_client

if TYPE_CHECKING:
    from vmtenancy.kube.client import Client
    from vmtenancy.reconcile.doctor import Finding
    from vmtenancy.reconcile.steps import Chain, Object, RenderChart


def doctor(
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what only an administrator can; asks first.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --fix: do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --fix: show the plan and stop.")] = False,
    pause: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds between two looks; only what both show is told. 0: one look."),
    ] = 2.0,
    output: OutputOption = Output.TABLE,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """List what is wrong, with stable codes and remedies. Exit status 1 where there are problems; notices are none."""
    if (yes or dry_run) and not fix:
        raise typer.BadParameter("--yes and --dry-run belong to --fix")

    async def run(client: Client) -> bool:
        found, plan = await _examine(client, pause)
        _print(found, output)
        if not fix:
            return not any(finding.severity == "problem" for finding in found)
        if not plan:
            typer.echo("nothing for --fix to do", err=True)
            return True
        for number, chain in enumerate(plan, 1):
            typer.echo(f"{number}. {chain.why}", err=True)
        if dry_run:
            return True
        if not yes:
            typer.confirm(f"Do these {len(plan)} things?", abort=True, err=True)
        return await _execute(client, plan)

    if not with_client(run, kubeconfig, context):
        raise typer.Exit(1)


async def _examine(client: Client, pause: float) -> tuple[list[Finding], list[Chain]]:
    """What two looks show, and what would mend it by the second one."""
    import asyncio
    import time

    from vmtenancy.kube.inspection import inspect, read_all
    from vmtenancy.reconcile.doctor import diagnose, lasting, mend

    shipped = [obj for name in ("crds", "manifests") for obj in resources.objects(resources.folder(name))]
    looks: list[list[Finding]] = []
    for wait in (pause, 0.0) if pause else (0.0,):
        world = await read_all(client)
        world.templates = resources.templates()
        installation = await inspect(client, world, shipped)
        looks.append(diagnose(world, time.time(), installation))
        await asyncio.sleep(wait)
    return lasting(looks[0], looks[-1]), mend(world, time.time(), installation)


async def _execute(client: Client, plan: list[Chain]) -> bool:
    """Run the steps, in their order; whether all succeeded."""
    from vmtenancy.kube.cache import Cache
    from vmtenancy.kube.executor import Executor
    from vmtenancy.reconcile.steps import Plan

    async def nothing(_: RenderChart) -> Iterable[Object]:
        return ()  # no chart is among the steps of `mend`

    executor = Executor(client, Cache(), render=nothing, may_write=lambda: True, instance="doctor")
    good = True
    for chain in plan:
        (outcome,) = await executor.execute(Plan((chain,)))
        good &= outcome.error is None
        typer.echo(f"{chain.why}: {outcome.error or 'done'}", err=True)
    return good


def _print(found: list[Finding], output: Output) -> None:
    if output is not Output.TABLE:
        show([asdict(finding) for finding in found], output)
    elif not found:
        typer.echo("nothing is wrong")
    else:
        _table(found)


def _table(found: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("CODE", "SEVERITY"):
        table.add_column(column, no_wrap=True)
    for column in ("ABOUT", "FOUND", "REMEDY"):
        table.add_column(column, overflow="fold")
    for finding in found:
        table.add_row(finding.code, finding.severity, finding.about, finding.message, finding.remedy)
    console = Console()
    console.print(table) if console.is_terminal else Console(width=240).print(table)
