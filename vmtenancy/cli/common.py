"""What every command shares: options, the connection, output."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
import yaml

if TYPE_CHECKING:
    from vmtenancy.kube.client import Client

T = TypeVar("T")

Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        help="kubeconfig file; else $KUBECONFIG, the pod's account, or ~/.kube/config.", dir_okay=False
    ),
]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig.")]


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Format.")]


def with_client(
    work: Callable[[Client], Awaitable[T]], kubeconfig: Path | None = None, context: str | None = None
) -> T:
    """Run `work` with a connection that is closed afterwards."""
    from vmtenancy.kube.client import Client

    async def run() -> T:
        async with await Client.connect(kubeconfig, context) as client:
            return await work(client)

    return asyncio.run(run())


def show(data: Any, output: Output) -> None:
    """Print data for programs to read."""
    if output is Output.JSON:
        typer.echo(json.dumps(data, indent=2))
    else:
        typer.echo(yaml.safe_dump(data, sort_keys=False), nl=False)
