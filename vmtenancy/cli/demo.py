"""`vmtenancy demo`: the main job, told step by step, in memory or on the real programs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from vmtenancy import resources
from vmtenancy.cli.common import with_client
from vmtenancy.cli.picture import picture
from vmtenancy.errors import Code, Problem, VmtError

if TYPE_CHECKING:
    from rich.console import Console

    from vmtenancy.testing.story import Scene, Stage


class Cluster(StrEnum):
    """Where the demo plays."""

    AUTO = "auto"
    MEMORY = "memory"
    REAL = "real"


def demo(
    cluster: Annotated[
        Cluster,
        typer.Option(
            help="memory: simulated, needs nothing. real: on the real programs, which are built where missing. "
            "auto: the cluster of $KUBECONFIG, else real where they are built already, else memory."
        ),
    ] = Cluster.AUTO,
) -> None:
    """Show two tenants share one fleet: virtual machines and a virtual cluster, one quota over both."""
    from rich.console import Console

    from vmtenancy.testing.story import StoryError, tell

    console = Console(highlight=False)
    manifests = {
        path.name: list(resources.objects(path))
        for path in sorted(resources.folder("quickstart").glob("*.yaml"))
    }
    started = time.monotonic()
    with _stage(cluster, console) as stage:
        console.print(f"[bold]{stage.describe()}[/bold]", soft_wrap=True)
        try:
            for number, scene in enumerate(tell(stage, manifests), start=1):
                _show(console, number, scene)
        except StoryError as error:
            raise VmtError(Problem(Code.CLUSTER, "", f"the demo stopped: {error}")) from error
    console.print(f"\n[bold]Done in {time.monotonic() - started:.0f} s.[/bold]")
    console.print(
        "The manifests are in examples/quickstart, the code of this story is vmtenancy.testing.story."
    )


def _show(console: Console, number: int, scene: Scene) -> None:
    from vmtenancy.reconcile import check

    console.print(f"\n[bold]{number}. {scene.title}[/bold]")
    for word, lines in (("asked", scene.asked), ("decided", scene.decided), ("observed", scene.observed)):
        for line in lines:
            console.print(f"   [dim]{word:<9}[/dim] {line}", soft_wrap=True)
    violations = check(scene.world)
    for violation in violations:
        console.print(f"   [red]violation {violation}[/red]", soft_wrap=True)
    if not violations:
        console.print("   [dim]checked   [/dim]invariants I1 to I5, I9 and I12 hold")
    console.print(picture(scene.world, time.time()))


@contextmanager
def _stage(cluster: Cluster, console: Console) -> Iterator[Stage]:
    named = os.environ.get("KUBECONFIG", "")
    with ExitStack() as stack:
        if cluster is Cluster.AUTO and named:
            yield _named_stage(stack, Path(named))
        elif cluster is Cluster.REAL or (cluster is Cluster.AUTO and _is_built()):
            yield _real_stage(stack, console)
        else:
            from vmtenancy.testing.stage_memory import MemoryStage

            yield MemoryStage(resources.templates())


def _is_built() -> bool:
    """Whether every real program is there, and what running them needs of this machine."""
    from vmtenancy.testing import build, sandbox

    if sandbox.missing() or find_spec("cryptography") is None:
        return False
    programs = (binary for component in build.components().values() for binary in component.binaries)
    return all(build.find(program) for program in programs)


def _real_stage(stack: ExitStack, console: Console) -> Stage:
    from vmtenancy.testing import vcluster
    from vmtenancy.testing.controlplane import ControlPlane
    from vmtenancy.testing.kubevirt import KubeVirt

    if reason := vcluster.can_run():
        raise VmtError(Problem(Code.COMPONENT, "", f"the real demo can not run here: {reason}"))

    def start(what: str) -> None:
        console.print(f"[dim]starting {what}[/dim]")

    folder = Path(stack.enter_context(TemporaryDirectory(prefix="vmtenancy-demo-")))
    start("etcd, kube-apiserver, kube-controller-manager, kube-scheduler and KWOK")
    control_plane = stack.enter_context(ControlPlane(folder))
    start("KubeVirt's virt-api and virt-controller")
    stack.enter_context(KubeVirt(control_plane))
    start("a node that runs vCluster's control planes")
    stack.enter_context(vcluster.VClusterRunner(control_plane))
    start("vmtenancy: kinds, admission policies, controller")
    description = (
        "REAL programs: kube-apiserver, scheduler, KubeVirt's virt-api and virt-controller, vCluster; played are "
        "the machines: GPUs, kubelets (KWOK) and virt-handler"
    )
    return _controlled(stack, control_plane.kubeconfig, description)


def _named_stage(stack: ExitStack, kubeconfig: Path) -> Stage:
    """The cluster of $KUBECONFIG. The story adds nodes that KWOK plays, so it is not for one with machines."""
    from vmtenancy.kube.snapshot import read_nodes
    from vmtenancy.testing.vcluster import NODE

    nodes = with_client(read_nodes, kubeconfig)
    machines = [name for name, played in nodes.items() if not played and name != NODE]
    if machines:
        message = "the demo adds nodes that are not real, so it refuses a cluster with machines"
        expected = "a cluster of `vmtenancy dev up`, or `--cluster memory`"
        raise VmtError(
            Problem(Code.CLUSTER, "", message, f"{kubeconfig}: {', '.join(machines[:3])}", expected)
        )
    return _controlled(
        stack, kubeconfig, f"REAL programs: the cluster of {kubeconfig}; the machines are played"
    )


def _controlled(stack: ExitStack, kubeconfig: Path, description: str) -> Stage:
    """Install vmtenancy, run its controller, and see the cluster as a stage."""
    from vmtenancy.testing.controller import ControllerProcess, install_into
    from vmtenancy.testing.stage_cluster import ClusterStage

    folder = Path(stack.enter_context(TemporaryDirectory(prefix="vmtenancy-demo-")))
    install_into(kubeconfig)
    stack.enter_context(ControllerProcess(kubeconfig, folder))
    return stack.enter_context(ClusterStage(kubeconfig, description))
