"""`vmtenancy controller`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmtenancy import resources
from vmtenancy.cli.common import Context, Kubeconfig


def controller(
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    act_as_account: Annotated[
        bool,
        typer.Option(
            help="Outside of a cluster: use an administrator's connection only to get tokens of the "
            "controller's service account, by which the admission policies know it."
        ),
    ] = False,
    lease_duration: Annotated[
        float, typer.Option(min=1.0, help="Seconds after which another controller may take over.")
    ] = 10.0,
    bind_deadline: Annotated[
        float,
        typer.Option(
            min=1.0,
            help="Seconds for the scheduler to bind a pod that was let through the gate; then its grant is taken back.",
        ),
    ] = 300.0,
    vcluster_chart: Annotated[
        Path | None,
        typer.Option(
            envvar="VMTENANCY_VCLUSTER_CHART", exists=True, help="vCluster's Helm chart: a folder or a .tgz."
        ),
    ] = None,
    vcluster_values: Annotated[
        Path | None,
        typer.Option(
            envvar="VMTENANCY_VCLUSTER_VALUES",
            exists=True,
            dir_okay=False,
            help="YAML file with chart values for all virtual clusters: images, node selector, storage.",
        ),
    ] = None,
    helm: Annotated[
        Path | None, typer.Option(envvar="VMTENANCY_HELM", help="The Helm program; else `helm` on PATH.")
    ] = None,
    templates: Annotated[
        Path | None, typer.Option(file_okay=False, exists=True, help="VM templates instead of those shipped.")
    ] = None,
    health_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of /healthz; 0: none.")] = 8080,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of /metrics; 0: none.")] = 9090,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Run the controller until SIGTERM. Several may run: one leads, the others stand by."""
    import asyncio
    import logging

    from vmtenancy.controller.operator import Controller, Options

    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise typer.BadParameter("must be DEBUG, INFO, WARNING or ERROR", param_hint="--log-level")
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = Options(
        kubeconfig=kubeconfig,
        context=context,
        act_as_account=act_as_account,
        lease_duration_s=lease_duration,
        bind_deadline_s=bind_deadline,
        templates=resources.templates(templates),
        chart=vcluster_chart,
        chart_values=resources.mapping(vcluster_values) if vcluster_values else {},
        helm=helm,
        health_port=health_port,
        metrics_port=metrics_port,
    )
    asyncio.run(Controller(options).run())
