"""`vmtenancy agent`."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from vmtenancy.agent import METRICS_PORT
from vmtenancy.cli.common import Context, Kubeconfig, Output, OutputOption, show

_SYSFS: Final = Path("/sys")


def agent(
    node_name: Annotated[
        str | None,
        typer.Option(envvar="NODE_NAME", help="Name of this node; with --once, its host name by default."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Look once and print the GpuNode; nothing is asked of a cluster.")
    ] = False,
    output: OutputOption = Output.TABLE,
    sysfs_root: Annotated[
        Path,
        typer.Option(
            exists=True, file_okay=False, help="In place of /sys: a mount of it, or a recorded tree."
        ),
    ] = _SYSFS,
    interval: Annotated[
        float,
        typer.Option(
            min=0.1, max=86400, help="Seconds between looks; errors that NVML reports are looked at at once."
        ),
    ] = 60.0,
    nvml_deadline: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=86400,
            help="Seconds that NVML may take for one GPU; then it is killed and asked anew.",
        ),
    ] = 10.0,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of /metrics; 0: none.")
    ] = METRICS_PORT,
    heartbeat: Annotated[
        Path | None, typer.Option(help="File that is touched after each look: for a liveness probe.")
    ] = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Look at the GPUs of this node and keep its GpuNode up to date, until SIGTERM."""
    from vmtenancy.agent.agent import Agent
    from vmtenancy.agent.publisher import gpu_node
    from vmtenancy.api.gpunode import GpuNode
    from vmtenancy.api.parsing import check_text
    from vmtenancy.devices import sysfs
    from vmtenancy.errors import Code, Problem, VmtError

    if sysfs_root != _SYSFS and not (sysfs_root / sysfs.DEVICES).is_dir():
        message, expected = "holds no PCI tree", f"a folder with {sysfs.DEVICES}, as /sys has"
        raise VmtError(Problem(Code.INVALID_FIELD, "--sysfs-root", message, str(sysfs_root), expected))
    name = node_name if node_name or not once else socket.gethostname().lower()
    if not name:
        message, expected = "the agent has to know its node", "a name, or $NODE_NAME"
        raise VmtError(Problem(Code.INVALID_FIELD, "--node-name", message, "none", expected))
    check_text(Annotated[str, GpuNode.name_text()], "--node-name", name)
    looking = Agent(sysfs_root=sysfs_root, nvml_deadline_s=nvml_deadline)
    try:
        if once:
            _print(gpu_node(name, looking.look()), output)
        else:
            _run(looking, name, interval, metrics_port, heartbeat, kubeconfig, context)
    finally:
        looking.nvml.close()


def _run(
    looking: Any,
    node: str,
    interval_s: float,
    port: int,
    heartbeat: Path | None,
    kubeconfig: Path | None,
    context: str | None,
) -> None:
    import logging
    import signal
    from contextlib import ExitStack

    from vmtenancy.agent.metrics import serving
    from vmtenancy.agent.publisher import Publisher
    from vmtenancy.errors import Code, Problem, VmtError
    from vmtenancy.kube.plain import PlainClient, connection

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    publisher = Publisher(PlainClient(connection(kubeconfig, context)), node)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: looking.stop())
    try:
        if heartbeat is not None:
            heartbeat.touch()
    except OSError as error:
        message, expected = error.strerror or str(error), "a file that can be written"
        raise VmtError(
            Problem(Code.INVALID_FIELD, "--heartbeat", message, str(heartbeat), expected)
        ) from None
    with ExitStack() as stack:
        if port:
            stack.enter_context(serving(port, lambda: looking.page(publisher)))
        looking.run(publisher, interval_s, heartbeat)


def _print(node: dict[str, Any], output: Output) -> None:
    if output is not Output.TABLE:
        show(node, output)
        return
    status = node["status"]
    nvml = status["conditions"][0]
    said = f"{nvml['reason']}: {nvml['message']}" if nvml["message"] else nvml["reason"]
    typer.echo(f"{node['metadata']['name']}: mode {status['mode'] or 'unknown'}, NVML {said}")
    typer.echo(
        f"driver {status.get('driverVersion', 'unknown')}, CUDA {status.get('cudaVersion', 'unknown')}, "
        f"{len(status['gpus'])} GPUs"
    )
    for gpu in status["gpus"]:
        health = (
            "healthy"
            if gpu["healthy"]
            else "; ".join(f"{r['reason']}: {r['message']}" for r in gpu["reasons"])
        )
        typer.echo(
            f"  {gpu['pciAddress']}  {gpu['product']:<28}  {gpu.get('memory', '?'):>8}  "
            f"{gpu.get('driver', 'no driver'):<10}  {health}"
        )
        typer.echo(f"    {', '.join(_details(gpu))}")


def _details(gpu: dict[str, Any]) -> Iterator[str]:
    """What else is known of a GPU, in a few words each."""
    names = {
        "uuid": "",
        "computeCapability": "compute capability ",
        "numaNode": "NUMA node ",
        "moduleId": "module ",
    }
    for name, words in names.items():
        if name in gpu:
            yield f"{words}{gpu[name]}"
    if "iommuGroup" in gpu:
        others = gpu.get("iommuGroupMembers", [])
        yield f"IOMMU group {gpu['iommuGroup']}" + (f" with {' '.join(others)}" if others else "")
    if mig := gpu.get("mig"):
        there = Counter(instance["profile"] for instance in mig["instances"])
        split = " ".join(f"{count}x{name}" for name, count in sorted(there.items()))
        yield f"MIG {split or 'enabled'}" if mig["enabled"] else "MIG possible"
    if types := gpu.get("vgpuTypes"):
        yield f"{len(types)} vGPU types, {sum(one.get('active', 0) for one in types)} active"
    if fabric := gpu.get("fabric"):
        yield f"fabric {fabric['state']}" + (f", clique {fabric['clique']}" if "clique" in fabric else "")
    if linked := sum(bool(peer.get("nvLinks")) for peer in gpu.get("peers", ())):
        yield f"NVLink to {linked} GPUs"
    if "nvmlSeenAt" in gpu:
        yield f"NVML facts of {gpu['nvmlSeenAt']}"
