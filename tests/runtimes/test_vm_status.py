"""VirtualMachine, VMI and launcher pods to an observation."""

from typing import Any

import pytest
from runtime_samples import Object, gpuvm

from vmtenancy.runtimes.kubevirt import VmObservation, observe


def machine(
    printable: str, run_strategy: str = "Always", ready: bool = False, **conditions: tuple[str, str]
) -> Object:
    status: dict[str, Any] = {"printableStatus": printable, "ready": ready, "conditions": listed(conditions)}
    return {"kind": "VirtualMachine", "spec": {"runStrategy": run_strategy}, "status": status}


def instance(phase: str, node: str = "", **conditions: tuple[str, str]) -> Object:
    return {
        "kind": "VirtualMachineInstance",
        "spec": {},
        "status": {"phase": phase, "nodeName": node, "conditions": listed(conditions)},
    }


def pod(phase: str, node: str = "") -> Object:
    return {"kind": "Pod", "spec": {"nodeName": node} if node else {}, "status": {"phase": phase}}


def listed(conditions: dict[str, tuple[str, str]]) -> list[dict[str, str]]:
    return [{"type": kind, "status": status, "message": text} for kind, (status, text) in conditions.items()]


def seen(*objects: Object) -> VmObservation:
    children: dict[str, list[Object]] = {}
    for obj in objects:
        children.setdefault(obj["kind"], []).append(obj)
    return observe(gpuvm(), children)


@pytest.mark.parametrize(
    ("objects", "phase", "holding", "node"),
    [
        ((), "Pending", False, ""),
        ((pod("Running", "n1"),), "Stopping", True, "n1"),
        ((machine(""),), "Starting", False, ""),
        ((machine("Starting"), instance("Scheduling"), pod("Pending")), "Starting", True, ""),
        ((machine("Starting"), instance("Scheduled", "n1"), pod("Running", "n1")), "Starting", True, "n1"),
        ((machine("Provisioning"),), "Starting", False, ""),
        ((machine("Running"), instance("Running", "n1"), pod("Running", "n1")), "Running", True, "n1"),
        # During a migration the VMI says which of the two pods' nodes it is on.
        (
            (machine("Migrating"), instance("Running", "n2"), pod("Running", "n1"), pod("Running", "n2")),
            "Running",
            True,
            "n2",
        ),
        ((machine("Stopping"), instance("Running", "n1"), pod("Running", "n1")), "Stopping", True, "n1"),
        # The run strategy was changed and KubeVirt has not seen it yet.
        (
            (machine("Running", "Halted"), instance("Running", "n1"), pod("Running", "n1")),
            "Stopping",
            True,
            "n1",
        ),
        (
            (machine("Stopped", "Halted"), instance("Succeeded", "n1"), pod("Running", "n1")),
            "Stopping",
            True,
            "n1",
        ),
        (
            (machine("Stopped", "Halted"), instance("Succeeded", "n1"), pod("Succeeded", "n1")),
            "Stopped",
            False,
            "",
        ),
        ((machine("Stopped", "Halted"),), "Stopped", False, ""),
        ((machine("Stopped", "Always"),), "Starting", False, ""),
        (
            (machine("Stopped", "RerunOnFailure"), instance("Succeeded"), pod("Succeeded")),
            "Stopped",
            False,
            "",
        ),
    ],
)
def test_phases(objects: tuple[Object, ...], phase: str, holding: bool, node: str) -> None:
    found = seen(*objects)
    assert (found.phase, found.holding, found.node, found.failed) == (phase, holding, node, False)
    assert not found.ready


def test_ready_is_what_kubevirt_says() -> None:
    assert seen(machine("Running", ready=True), instance("Running", "n1")).ready
    assert not seen(machine("Running", "Halted", ready=True), instance("Running", "n1")).ready
    paused = seen(machine("Paused"), instance("Running", "n1"))
    assert (paused.phase, paused.ready, paused.message) == ("Running", False, "the machine is paused")


REFUSED = "HostDevice nvidia.com/X is not permitted in permittedHostDevices configuration"


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ((machine("Starting"), instance("Pending", Synchronized=("False", REFUSED))), REFUSED),
        ((machine("Starting", Failure=("True", "exceeded quota")),), "exceeded quota"),
        ((machine("ErrImagePull"),), "can not be pulled"),
        ((machine("ErrorPvcNotFound"),), "does not exist"),
        ((machine("DataVolumeError"),), "has failed"),
        ((machine("CrashLoopBackOff"),), "ended several times"),
    ],
)
def test_errors_are_failures_with_their_message(objects: tuple[Object, ...], message: str) -> None:
    found = seen(*objects)
    assert (found.phase, found.failed, found.ready) == ("Failed", True, False)
    assert message in found.message


def test_what_may_pass_is_a_message_and_no_failure() -> None:
    waiting = seen(machine("ErrorUnschedulable", PodScheduled=("False", "0/5 nodes are available")))
    assert (waiting.phase, waiting.failed) == ("Starting", False)
    assert waiting.message == "the scheduler can not place its pod: 0/5 nodes are available"
    running = seen(
        machine("Running", ready=True, Synchronized=("False", "can not hotplug")), instance("Running", "n1")
    )
    assert (running.phase, running.failed, running.ready, running.message) == (
        "Running",
        False,
        True,
        "can not hotplug",
    )
    changed = seen(machine("Running", ready=True, RestartRequired=("True", "cpu")), instance("Running", "n1"))
    assert changed.message == "a change takes effect at the next start: cpu"
    halted = seen(machine("Stopped", "Halted", Failure=("True", "old trouble")))
    assert (halted.phase, halted.message) == ("Stopped", "")
