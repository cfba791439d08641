"""The real controller as a process, as tests and the demo run it: `vmtenancy controller` with its own account."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import yaml

from vmtenancy import resources
from vmtenancy.kube.client import Client
from vmtenancy.kube.install import install
from vmtenancy.testing import build
from vmtenancy.testing.faults import SteppedClock
from vmtenancy.testing.process import Process
from vmtenancy.testing.vcluster import SCHEDULING


def install_into(kubeconfig: Path, tell: Callable[[str], None] = lambda line: None) -> None:
    """What `vmtenancy install` does. Raises `VmtError`."""

    async def run() -> None:
        async with await Client.connect(kubeconfig) as client:
            crds = resources.objects(resources.folder("crds"))
            await install(client, crds, resources.objects(resources.folder("manifests")), tell=tell)

    asyncio.run(run())


class ControllerProcess:
    """`with ControllerProcess(kubeconfig, folder)`: an administrator's kubeconfig, a folder for values and logs.

    It starts virtual clusters with the chart in the Go module that the vCluster programs are built from, on the node
    of `vmtenancy.testing.vcluster`.
    """

    def __init__(
        self,
        kubeconfig: Path,
        folder: Path,
        *,
        name: str = "controller",
        lease_duration_s: float = 3.0,
        bind_deadline_s: float = 300.0,
        clock: SteppedClock | None = None,
    ) -> None:
        """`kubeconfig` may be a `FaultProxy`'s. `clock` is the wall clock of the process, else this machine's."""
        values = folder / "vcluster-values.yaml"
        values.write_text(yaml.safe_dump({"controlPlane": {"statefulSet": {"scheduling": dict(SCHEDULING)}}}))
        self._name = name
        self._log = folder / f"{name}.log"
        arguments = [
            *("controller", "--act-as-account"),
            *("--kubeconfig", str(kubeconfig), "--lease-duration", str(lease_duration_s)),
            *("--bind-deadline", str(bind_deadline_s)),
            *("--vcluster-chart", str(build.module_dir("vcluster", "github.com/loft-sh/vcluster", "chart"))),
            *("--vcluster-values", str(values), "--helm", str(build.resolve("helm"))),
            *("--health-port", "0", "--metrics-port", "0"),
        ]
        start = clock.command("vmtenancy") if clock else [sys.executable, "-m", "vmtenancy"]
        self._command = [*start, *arguments]
        self.process = self._new()

    def _new(self) -> Process:
        return Process(self._name, self._command, log=self._log)

    def __enter__(self) -> ControllerProcess:
        self.process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.stop()

    def kill_and_restart(self) -> None:
        """`kill -9`, and a new process that knows nothing of the old one."""
        self.process.signal(signal.SIGKILL)
        self.process.stop(grace_s=0)
        self.process = self._new()
        self.process.start()
