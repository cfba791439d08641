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
    agent_image: Annotated[
        str | None,
        typer.Option(help="Image with vmtenancy and its extra `agent`: runs the agent on GPU nodes."),
    ] = None,
    agent_selector: Annotated[
        list[str] | None,
        typer.Option(
            help="LABEL=VALUE of nodes with GPUs, in place of those that discovery sets; repeatable."
        ),
    ] = None,
) -> None:
    """Install or upgrade the kinds, admission policies and roles, and wait until they work."""
    from vmtenancy.kube.install import install as run

    crds = list(resources.objects(resources.folder("crds")))
    manifests = list(resources.objects(resources.folder("manifests")))
    if agent_image is not None:
        from vmtenancy.agent.daemonset import GPU_NODES, daemonset

        manifests.append(daemonset(agent_image, _labels(agent_selector) or GPU_NODES))
    elif agent_selector:
        raise typer.BadParameter("needs --agent-image", param_hint="--agent-selector")
    with_client(
        lambda client: run(client, crds, manifests, tell=typer.echo, dry_run=dry_run), kubeconfig, context
    )


def _labels(selectors: list[str] | None) -> list[tuple[str, str]]:
    labels = []
    for selector in selectors or ():
        key, separator, value = selector.partition("=")
        if not key or not separator:
            raise typer.BadParameter("must be LABEL=VALUE", param_hint="--agent-selector")
        labels.append((key, value))
    return labels


def uninstall(kubeconfig: Kubeconfig = None, context: Context = None) -> None:
    """Remove what `install` made. Refused while workloads, grants or tenants exist."""
    from vmtenancy.kube.install import uninstall as run

    crds = list(resources.objects(resources.folder("crds")))
    manifests = list(resources.objects(resources.folder("manifests")))
    with_client(lambda client: run(client, crds, manifests, tell=typer.echo), kubeconfig, context)
