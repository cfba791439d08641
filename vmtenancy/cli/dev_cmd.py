"""`vmtenancy dev`: a real control plane on this machine, without machines behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vmtenancy.testing.dev import Status

app = typer.Typer(help="A real Kubernetes control plane on this machine.", no_args_is_help=True)


@app.command()
def up(
    kubevirt: Annotated[bool, typer.Option(help="With KubeVirt's virt-api and virt-controller.")] = True,
    vcluster: Annotated[
        bool | None,
        typer.Option(help="With a node that runs vCluster's control planes; default: where that can work."),
    ] = None,
) -> None:
    """Start it and print its kubeconfig; what is missing is built first (up to half an hour)."""
    from vmtenancy.testing import dev, sandbox

    possible = sandbox.missing() is None
    _print(dev.up(kubevirt=kubevirt, vcluster=possible if vcluster is None else vcluster))


@app.command()
def status() -> None:
    """Show whether it runs, and its programs. Exit status 1 where it does not run."""
    from vmtenancy.testing import dev

    state = dev.status()
    if state is None:
        typer.echo("not running; start it with `vmtenancy dev up`")
        raise typer.Exit(1)
    _print(state)


@app.command()
def down() -> None:
    """Stop it and remove its data."""
    from vmtenancy.testing import dev

    typer.echo("stopped" if dev.down() else "it was not running")


def _print(state: Status) -> None:
    for program in state.programs:
        running = f"pid {program.pid}" if program.pid else "down"
        again = f", restarted {program.restarts} times" if program.restarts else ""
        typer.echo(f"{program.name}: {running}{again}, log {program.log}")
    if state.error:
        typer.echo(state.error, err=True)
    typer.echo(f"{state.phase.lower()} at {state.url}" if state.url else state.phase.lower())
    if state.kubeconfig:
        typer.echo(f"export KUBECONFIG={state.kubeconfig}")
