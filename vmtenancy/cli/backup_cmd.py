"""`vmtenancy export` and `import`: all of vmtenancy's state as one file, and back."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmtenancy.cli.common import Context, Kubeconfig, with_client
from vmtenancy.errors import Code, Problem, VmtError

if TYPE_CHECKING:
    from vmtenancy.kube.backup import Backup
    from vmtenancy.kube.restore import Change

_STREAM = Path("-")


def export(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write; - for standard output.", dir_okay=False)
    ] = _STREAM,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Write all state of vmtenancy, but for Secrets, as one file: a JSON document per line."""
    import vmtenancy
    from vmtenancy.kube.backup import export as run

    counts: Mapping[str, int] = {}

    def save(write: Callable[[bytes], object]) -> None:
        nonlocal counts
        counts = with_client(
            lambda client: run(client, write, program=vmtenancy.__version__), kubeconfig, context
        )

    try:
        if output == _STREAM:
            save(sys.stdout.buffer.write)
            sys.stdout.flush()
        else:
            _whole(output, save)
    except OSError as error:
        raise VmtError(Problem(Code.BACKUP, "", f"{output} can not be written: {error}")) from error
    what = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "nothing"
    typer.echo(f"exported {what}", err=True)


def _whole(path: Path, save: Callable[[Callable[[bytes], object]], None]) -> None:
    """Never half a file under this name, and for its owner only: it may hold what belongs into a Secret."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            save(file.write)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def import_(
    file: Annotated[Path, typer.Argument(help="A file of `vmtenancy export`; - for standard input.")],
    overwrite: Annotated[
        bool, typer.Option(help="Also change objects that differ back to what the file says.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write without asking.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Show and check what would be written; write nothing.")
    ] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Bring back what a file of `export` has and the cluster has not. All controllers must be stopped for it."""
    from vmtenancy.kube.restore import check, pending, restore, survey

    backup = _read(file)
    header = backup.header
    typer.echo(
        f"{file}: written {header['time']} by vmtenancy {header['vmtenancy']} on {header['kubernetes']}"
    )
    found = with_client(lambda client: survey(client, backup), kubeconfig, context)
    _show(found, overwrite)
    todo = pending(found, overwrite=overwrite)
    if dry_run or not yes:  # before it is written it is checked anyway
        with_client(lambda client: check(client, todo), kubeconfig, context)
    if dry_run:
        return
    if not yes:
        typer.confirm("Write this?", abort=True, err=True)
    with_client(
        lambda client: restore(client, backup, overwrite=overwrite, tell=typer.echo), kubeconfig, context
    )
    typer.echo("done: start the controller, it finds out what runs")


def _read(file: Path) -> Backup:
    from vmtenancy.kube.backup import read

    if file == _STREAM:
        return read(sys.stdin.buffer, "stdin")
    try:
        with file.open("rb") as lines:
            return read(lines, str(file))
    except OSError as error:
        raise VmtError(Problem(Code.BACKUP, "", f"{file} can not be read: {error}")) from error


def _show(found: Sequence[Change], overwrite: bool) -> None:
    from vmtenancy.reconcile.world import ref_of

    for change in found:
        if change.action == "create":
            typer.echo(f"  {ref_of(change.wanted)} will be created")
        elif change.action == "differs":
            what = "will be changed" if overwrite else "differs and stays (--overwrite changes it)"
            typer.echo(f"  {ref_of(change.wanted)} {what}: {', '.join(change.paths)}")
    counts = Counter(change.action for change in found)
    typer.echo(f"{counts['create']} missing, {counts['differs']} different, {counts['unchanged']} unchanged")
