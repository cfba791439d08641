"""What a VirtualMachine, its VMI and its launcher pods say about a GpuVM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.runtimes.base import Children, Object, Observation

#: VirtualMachine.status.printableStatus -> phase. Names: kubevirt.io/api/core/v1 VirtualMachinePrintableStatus.
_PHASES: Final[Mapping[str, str]] = {
    "Running": "Running",
    "Migrating": "Running",
    "Paused": "Running",
    "Stopping": "Stopping",
    "Terminating": "Stopping",
    "Stopped": "Stopped",
    "CrashLoopBackOff": "Failed",
    "ErrImagePull": "Failed",
    "ImagePullBackOff": "Failed",
    "ErrorPvcNotFound": "Failed",
    "DataVolumeError": "Failed",
}
_MESSAGES: Final[Mapping[str, str]] = {
    "Paused": "the machine is paused",
    "Provisioning": "its disks are being filled",
    "WaitingForVolumeBinding": "its volumes are not bound yet",
    "ErrorUnschedulable": "the scheduler can not place its pod",
    "CrashLoopBackOff": "the machine ended several times soon after it started; KubeVirt waits before it tries again",
    "ErrImagePull": "an image of its disks can not be pulled",
    "ImagePullBackOff": "an image of its disks can not be pulled",
    "ErrorPvcNotFound": "a PersistentVolumeClaim of its disks does not exist",
    "DataVolumeError": "a DataVolume of its disks has failed",
}
_FINAL: Final = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class VmObservation(Observation):
    """`phase` is one of GpuVM's, `Pending` as long as there is no VirtualMachine.

    `node` is where the VMI or its launcher pod is, else `""`. `holding` is True while a VMI or a launcher pod that is
    not finished exists.
    """

    node: str = ""


def observe(vm: GpuVM, children: Children) -> VmObservation:
    """Read the kinds `VirtualMachine`, `VirtualMachineInstance` and `Pod` (launchers) of `children`."""
    machine = next(iter(children.get("VirtualMachine", ())), None)
    instances = [vmi for vmi in children.get("VirtualMachineInstance", ()) if _is_live(vmi)]
    pods = [pod for pod in children.get("Pod", ()) if _is_live(pod)]
    holding = bool(instances or pods)
    instance = instances[0] if instances else None
    if machine is None:
        return VmObservation(
            phase="Stopping" if holding else "Pending",
            ready=False,
            holding=holding,
            node=_node(instance, pods),
        )
    status = machine.get("status") or {}
    printable = status.get("printableStatus", "")
    phase = _PHASES.get(printable, "Starting")
    halted = machine["spec"].get("runStrategy") == "Halted"
    if halted:
        # KubeVirt may not have seen the change yet; and devices are free only once the pod is gone.
        phase = "Stopping" if holding else "Stopped"
    elif phase == "Stopped" and machine["spec"].get("runStrategy") == "Always":
        phase = "Starting"
    error = "" if halted else _error(machine, instance)
    if error and phase != "Running":
        phase = "Failed"
    ready = phase == "Running" and status.get("ready") is True
    return VmObservation(
        phase=phase,
        ready=ready,
        message=error or _message(phase, printable, machine),
        failed=phase == "Failed",
        holding=holding,
        node=_node(instance, pods),
    )


def _is_live(obj: Object) -> bool:
    return (obj.get("status") or {}).get("phase") not in _FINAL


def _node(instance: Object | None, pods: Iterable[Object]) -> str:
    """The VMI's node, since during a migration there are two launcher pods."""
    reported = (instance.get("status") or {}).get("nodeName") if instance else None
    bound = (pod["spec"].get("nodeName") for pod in pods)
    return str(reported or next((node for node in bound if node), ""))


def _error(machine: Object, instance: Object | None) -> str:
    """What KubeVirt refuses: a device that is not permitted, an object that it can not create."""
    for obj, kind, status in (
        (instance, "Synchronized", "False"),
        (machine, "Synchronized", "False"),
        (machine, "Failure", "True"),
    ):
        if found := _condition(obj, kind, status):
            return found
    return ""


def _message(phase: str, printable: str, machine: Object) -> str:
    if phase in ("Stopped", "Stopping"):
        return ""
    message = _MESSAGES.get(printable, "")
    if phase == "Running":
        restart = _condition(machine, "RestartRequired", "True")
        return message or (f"a change takes effect at the next start: {restart}" if restart else "")
    scheduled = _condition(machine, "PodScheduled", "False") if printable == "ErrorUnschedulable" else ""
    return f"{message}: {scheduled}" if scheduled else message


def _condition(obj: Object | None, kind: str, status: str) -> str:
    """The message (or reason) of a condition that has this status, else `""`."""
    conditions: Iterable[Mapping[str, Any]] = ((obj or {}).get("status") or {}).get("conditions") or ()
    for condition in conditions:
        if condition.get("type") == kind and condition.get("status") == status:
            return str(condition.get("message") or condition.get("reason") or kind)
    return ""
