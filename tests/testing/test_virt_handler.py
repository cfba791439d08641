"""What the stand-in for virt-handler writes, given an instance and its launcher pods."""

import copy
import datetime as dt
from typing import Any

import pytest

from vmtenancy.testing.virt_handler import TARGET_READY, advance, ended

Object = dict[str, Any]
NOW = dt.datetime(2026, 11, 24, 12, 0, 0, tzinfo=dt.UTC)


def vmi(phase: str, *, gpus: int = 0, deleted: bool = False, **status: Any) -> Object:
    metadata: Object = {"name": "trainer", "namespace": "vision", "labels": {"kubevirt.io/nodeName": "a"}}
    if deleted:
        metadata["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    devices: Object = {"interfaces": [{"name": "default", "masquerade": {}}]}
    if gpus:
        devices["gpus"] = [{"name": f"gpu{i}", "deviceName": "nvidia.com/H100"} for i in range(gpus)]
    return {
        "metadata": metadata,
        "spec": {"domain": {"devices": devices}},
        "status": {"phase": phase, "nodeName": "a", **status},
    }


def pod(name: str = "launcher", node: str = "a", phase: str = "Running", *, deleted: bool = False) -> Object:
    metadata: Object = {"name": name}
    if deleted:
        metadata["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    status = {"phase": phase, "podIP": f"10.244.0.{len(name)}", "hostIP": f"10.0.0.{ord(node)}"}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": status}


def condition(item: Object, kind: str) -> Object:
    return next(c for c in item["status"]["conditions"] if c["type"] == kind)


def test_a_scheduled_instance_with_an_address_runs() -> None:
    new = advance(vmi("Scheduled"), [pod()], NOW)
    assert new is not None
    assert new["status"]["phase"] == "Running"
    assert new["status"]["interfaces"] == [
        {
            "infoSource": "domain",
            "name": "default",
            "ipAddress": "10.244.0.8",
            "ipAddresses": ["10.244.0.8"],
        }
    ]
    assert new["status"]["machine"] == {"type": "q35"}
    assert new["status"]["phaseTransitionTimestamps"] == [
        {"phase": "Running", "phaseTransitionTimestamp": "2026-11-24T12:00:00Z"}
    ]
    assert condition(new, "LiveMigratable")["status"] == "True"


def test_an_instance_with_gpus_can_not_be_migrated() -> None:
    new = advance(vmi("Scheduled", gpus=2), [pod()], NOW)
    assert new is not None
    assert condition(new, "LiveMigratable")["status"] == "False"
    assert condition(new, "LiveMigratable")["reason"] == "HostDeviceNotLiveMigratable"


@pytest.mark.parametrize(("modes", "status"), [(["ReadWriteOnce"], "False"), (["ReadWriteMany"], "True")])
def test_an_instance_on_a_claim_can_be_migrated_only_if_it_is_shared(modes: list[str], status: str) -> None:
    claim = {"claimName": "root", "accessModes": modes}
    volumes = [{"name": "root", "persistentVolumeClaimInfo": claim}, {"name": "cloudinit"}]
    new = advance(vmi("Scheduled", volumeStatus=volumes), [pod()], NOW)
    assert new is not None
    assert condition(new, "LiveMigratable")["status"] == status


def test_a_pod_without_an_address_is_waited_for() -> None:
    waiting = pod()
    del waiting["status"]["podIP"]
    assert advance(vmi("Scheduled"), [waiting], NOW) is None


@pytest.mark.parametrize("phase", ["Pending", "Scheduling", "Succeeded", "Failed"])
def test_phases_of_virt_controller_are_left_alone(phase: str) -> None:
    assert advance(vmi(phase, deleted=True), [pod(phase="Failed")], NOW) is None


@pytest.mark.parametrize(
    ("instance", "pods", "phase"),
    [
        (vmi("Running", deleted=True), [pod()], "Succeeded"),
        (vmi("Scheduled", deleted=True), [pod()], "Succeeded"),
        (vmi("Running"), [pod(deleted=True)], "Succeeded"),
        (vmi("Running"), [pod(phase="Succeeded")], "Succeeded"),
        (vmi("Running"), [pod(phase="Failed")], "Failed"),
        (vmi("Running"), [pod(phase="Failed"), pod("other", "b")], "Failed"),
    ],
)
def test_the_guest_ends(instance: Object, pods: list[Object], phase: str) -> None:
    new = advance(instance, pods, NOW)
    assert new is not None
    assert new["status"]["phase"] == phase


@pytest.mark.parametrize("pods", [[pod()], [], [pod(), pod("other", "b", "Failed")]])
def test_a_running_guest_goes_on(pods: list[Object]) -> None:
    assert advance(vmi("Running"), pods, NOW) is None


def test_nothing_is_written_twice() -> None:
    new = advance(vmi("Scheduled"), [pod()], NOW)
    assert new is not None
    assert advance(new, [pod()], NOW + dt.timedelta(seconds=9)) is None


def test_the_input_is_not_changed() -> None:
    instance = vmi("Scheduled", conditions=[{"type": "Ready", "status": "False"}])
    before = copy.deepcopy(instance)
    assert advance(instance, [pod()], NOW) is not None
    assert instance == before


def test_live_migration_takes_one_step_at_a_time() -> None:
    state = {"sourcePod": "launcher", "targetPod": "target", "targetNode": "b", "targetState": {}}
    instance = vmi("Running", migrationState=state)
    instance["metadata"]["labels"]["kubevirt.io/migrationTargetNodeName"] = "b"
    pods = [pod(), pod("target", "b")]
    seen = []
    while new := advance(instance, pods, NOW):
        seen.append(sorted(new["status"]["migrationState"].keys() - state.keys()))
        instance, state = new, new["status"]["migrationState"]
    assert seen == [
        ["targetDirectMigrationNodePorts", "targetNodeAddress"],
        ["startTimestamp"],
        ["targetNodeDomainDetected", "targetNodeDomainReadyTimestamp"],
    ]
    assert instance["status"]["nodeName"] == "a"
    assert state["targetState"]["nodeAddress"] == "10.0.0.98"
    assert ended(instance, pods) == []

    pods[1]["metadata"]["annotations"] = {TARGET_READY: "2026-11-24T12:00:00Z"}
    moved = advance(instance, pods, NOW)
    assert moved is not None
    assert moved["status"]["nodeName"] == "b"
    assert moved["metadata"]["labels"] == {"kubevirt.io/nodeName": "b"}
    assert moved["status"]["migrationState"]["completed"] is True
    assert moved["status"]["interfaces"][0]["ipAddress"] == "10.244.0.6"
    assert ended(moved, pods) == [pods[0]]
    assert advance(moved, [pod(phase="Succeeded"), pods[1]], NOW) is None


def test_a_target_without_an_address_is_waited_for() -> None:
    instance = vmi("Running", migrationState={"targetPod": "target", "targetNode": "b"})
    assert advance(instance, [pod()], NOW) is None


def test_the_pods_of_a_finished_instance_end() -> None:
    gone = [pod("deleted", deleted=True), pod("done", phase="Succeeded")]
    assert ended(vmi("Succeeded"), [pod(), *gone]) == [pod()]
    assert ended(vmi("Running"), [pod(), *gone]) == []
