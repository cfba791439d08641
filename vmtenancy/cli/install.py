"""`vmtenancy install` and `uninstall`."""

from __future__ import annotations

from typing import Annotated

import typer

from vmtenancy import resources
from vmtenancy.cli.common import Context, Kubeconfig, with_client


def install(
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    dry_run: Annotated[bool, typer.Option(help="Have the API server check it; write nothing.")] = False,
) -> None:
    """Install or upgrade the kinds, admission policies and roles, and wait until they work."""
    from vmtenancy.kube.install import install as run

    crds = list(resources.objects(resources.folder("crds")))
    manifests = list(resources.objects(resources.folder("manifests")))
    with_client(
        lambda client: run(client, crds, manifests, tell=typer.echo, dry_run=dry_run), kubeconfig, context
    )


def uninstall(kubeconfig: Kubeconfig = None, context: Context = None) -> None:
    """Remove what `install` made. Refused while workloads, grants or tenants exist."""
    from vmtenancy.kube.install import uninstall as run

    crds = list(resources.objects(resources.folder("crds")))
    manifests = list(resources.objects(resources.folder("manifests")))
    with_client(lambda client: run(client, crds, manifests, tell=typer.echo), kubeconfig, context)
