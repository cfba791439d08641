"""The `vmtenancy` command.

Exit status: 0 done, 1 refused or failed (the reason, with its code, on stderr), 2 wrong usage, 3 the cluster
could not be used, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from vmtenancy.cli import (
    adopt_cmd,
    agent_cmd,
    backup_cmd,
    controller_cmd,
    demo,
    dev_cmd,
    doctor_cmd,
    explain_cmd,
    get,
    install,
    migrate_cmd,
    picture,
    renew_cmd,
)
from vmtenancy.errors import Code, VmtError

app = typer.Typer(
    name="vmtenancy",
    help="One quota, one placement engine and one ledger for GPU virtual machines and virtual clusters.",
    epilog="Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 the cluster could not be used.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(install.install)
app.command()(install.uninstall)
app.command("controller")(controller_cmd.controller)
app.command("agent")(agent_cmd.agent)
app.command("get")(get.get)
app.command("explain")(explain_cmd.explain)
app.command("doctor")(doctor_cmd.doctor)
app.command("adopt")(adopt_cmd.adopt)
app.command("renew")(renew_cmd.renew)
app.command("fleet")(picture.fleet)
app.command("export")(backup_cmd.export)
app.command("import")(backup_cmd.import_)
app.command("demo")(demo.demo)
app.add_typer(migrate_cmd.app, name="migrate")
app.add_typer(dev_cmd.app, name="dev")


def main() -> None:
    """Entry point: errors become one line each, never a traceback."""
    try:
        app()
    except VmtError as error:
        for problem in error.problems:
            typer.echo(f"vmtenancy: {problem}", err=True)
        sys.exit(3 if error.code is Code.CLUSTER else 1)
    except KeyboardInterrupt:
        sys.exit(130)
