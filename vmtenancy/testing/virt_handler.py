"""A stand-in for virt-handler, KubeVirt's agent on each node, for clusters whose nodes run no machines.

virt-controller hands a VirtualMachineInstance over when its launcher pod is ready (phase Scheduled);
from then on only the node's virt-handler changes its phase. This program plays that part for all nodes at
once. It acts on instances in Scheduled or Running and on their launcher pods, and follows what v1.7 of the
real one does (its ``pkg/virt-handler``):

- Scheduled, and the pod has an address: the domain is defined and started, the instance is Running, with its
  interfaces, its machine type, and whether it can be migrated (not with GPUs, host devices or claims that
  are not shared).
- deletionTimestamp on the instance, or its launcher pod told to stop (the launcher passes SIGTERM on as an
  ACPI shutdown): the guest shuts down, the instance is Succeeded. The launcher's processes then end, so its
  pod is Succeeded too.
- all launcher pods on the instance's node failed: Failed. (If they are gone, virt-controller itself says so.)
- live migration: the target reports its address and ports, the source starts, the target sees the domain, and
  once virt-controller has noted that on the target pod the instance moves to the target's node.

It writes whole objects (PUT), as the real one does. A merge patch would drop null fields, and the JSON
patches by which virt-controller changes a running instance test the old value of what they replace: they would
then fail for ever.

Run it as ``python -m vmtenancy.testing.virt_handler --kubeconfig FILE``.
"""

import argparse
import copy
import datetime as dt
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kubernetes import client, config

from vmtenancy.testing.informer import Informer, Object, StandIn, key_of

VMIS = ("kubevirt.io", "v1", "virtualmachineinstances")
NODE = "kubevirt.io/nodeName"
MIGRATION_TARGET_NODE = "kubevirt.io/migrationTargetNodeName"
CREATED_BY = "kubevirt.io/created-by"
TARGET_READY = "kubevirt.io/migration-target-ready-timestamp"
LAUNCHER = "kubevirt.io=virt-launcher"
MACHINE_TYPE = "q35"
STRATEGIC_MERGE = "application/strategic-merge-patch+json"
MIGRATION_PORTS = {"49152": 49152, "49153": 49153}


def advance(vmi: Object, pods: Iterable[Object], now: dt.datetime) -> Object | None:
    """The instance as virt-handler would write it next, or None if it has nothing to do.

    ``pods`` are the launcher pods of this instance (those that its uid created); ``now`` is in UTC.
    """
    status = vmi.get("status", {})
    if status.get("phase") not in ("Scheduled", "Running"):
        return None
    here = [p for p in pods if p["spec"].get("nodeName") == status.get("nodeName")]
    new = copy.deepcopy(vmi)
    if "deletionTimestamp" in vmi["metadata"] or any(_told_to_stop(p) for p in here):
        _enter(new, "Succeeded", now)
    elif here and all(p["status"].get("phase") == "Failed" for p in here):
        _enter(new, "Failed", now)
    elif status["phase"] == "Scheduled":
        address = next((p["status"]["podIP"] for p in here if p["status"].get("podIP")), None)
        if address is None:
            return None
        _start(new, address, now)
    elif (migration := status.get("migrationState")) and not migration.get("endTimestamp"):
        _migrate(new, pods, now)
    return new if new != vmi else None


def ended(vmi: Object, pods: Iterable[Object]) -> list[Object]:
    """Launcher pods whose processes have ended without the pod saying so yet.

    Those of a finished instance, and the source of a completed migration.
    """
    status = vmi.get("status", {})
    final = status.get("phase") in ("Succeeded", "Failed")
    migration = status.get("migrationState") or {}
    moved = migration.get("completed") and not migration.get("failed")
    return [
        pod
        for pod in pods
        if pod["status"].get("phase") == "Running"
        and "deletionTimestamp" not in pod["metadata"]
        and (final or (moved and pod["metadata"]["name"] == migration.get("sourcePod")))
    ]


def _told_to_stop(pod: Object) -> bool:
    return pod["status"].get("phase") == "Succeeded" or "deletionTimestamp" in pod["metadata"]


def _start(vmi: Object, address: str, now: dt.datetime) -> None:
    status = vmi["status"]
    _enter(vmi, "Running", now)
    status["machine"] = {"type": MACHINE_TYPE}
    status["selinuxContext"] = "none"  # virt-controller makes no migration target before it is known
    migratable = {"type": "LiveMigratable", **_migratable(vmi)}
    migratable |= {"lastProbeTime": None, "lastTransitionTime": _stamp(now)}
    others = [c for c in status.get("conditions", []) if c["type"] != "LiveMigratable"]
    status["conditions"] = [*others, migratable]
    status["migrationMethod"] = "LiveMigration"
    _set_address(vmi, address)


def _migratable(vmi: Object) -> Object:
    devices = vmi["spec"]["domain"].get("devices", {})
    if devices.get("gpus") or devices.get("hostDevices"):
        message = "VMI uses a PCI host devices"
        return {"status": "False", "reason": "HostDeviceNotLiveMigratable", "message": message}
    for volume in vmi["status"].get("volumeStatus", []):
        claim = volume.get("persistentVolumeClaimInfo")
        if claim and "ReadWriteMany" not in claim.get("accessModes", []):
            message = f"cannot migrate VMI: PVC {claim['claimName']} is not shared (ReadWriteMany)"
            return {"status": "False", "reason": "DisksNotLiveMigratable", "message": message}
    return {"status": "True"}


def _set_address(vmi: Object, address: str) -> None:
    known = {i["name"]: i for i in vmi["status"].get("interfaces", []) if "name" in i}
    vmi["status"]["interfaces"] = [
        {"infoSource": "domain", **known.get(i["name"], {}), "name": i["name"]}
        | {"ipAddress": address, "ipAddresses": [address]}
        for i in vmi["spec"]["domain"].get("devices", {}).get("interfaces", [])
    ]


def _migrate(vmi: Object, pods: Iterable[Object], now: dt.datetime) -> None:
    """One step of a live migration per call: each is seen by virt-controller before the next."""
    state = vmi["status"]["migrationState"]
    target = next((p for p in pods if p["metadata"]["name"] == state.get("targetPod")), None)
    if not state.get("targetNode") or target is None or not target["status"].get("podIP"):
        return
    ports = dict(MIGRATION_PORTS)
    if not state.get("targetNodeAddress"):
        state |= {"targetNodeAddress": target["status"]["hostIP"], "targetDirectMigrationNodePorts": ports}
        if "targetState" in state:
            state["targetState"] |= {
                "nodeAddress": target["status"]["hostIP"],
                "directMigrationNodePorts": ports,
            }
    elif not state.get("startTimestamp"):
        state["startTimestamp"] = _stamp(now)
    elif not state.get("targetNodeDomainReadyTimestamp"):
        state |= {"targetNodeDomainDetected": True, "targetNodeDomainReadyTimestamp": _stamp(now)}
        if "targetState" in state:
            state["targetState"] |= {"domainDetected": True, "domainReadyTimestamp": _stamp(now)}
    elif TARGET_READY in target["metadata"].get("annotations", {}):
        state |= {"endTimestamp": _stamp(now), "completed": True}
        labels = vmi["metadata"].setdefault("labels", {})
        labels[NODE] = vmi["status"]["nodeName"] = state["targetNode"]
        labels.pop(MIGRATION_TARGET_NODE, None)
        vmi["status"].pop("evacuationNodeName", None)
        vmi["status"]["launcherContainerImageVersion"] = ""
        _set_address(vmi, target["status"]["podIP"])


def _enter(vmi: Object, phase: str, now: dt.datetime) -> None:
    vmi["status"]["phase"] = phase
    vmi["status"].setdefault("phaseTransitionTimestamps", []).append(
        {"phase": phase, "phaseTransitionTimestamp": _stamp(now)}
    )


def _stamp(now: dt.datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


class VirtHandler(StandIn):
    """Watches instances and launcher pods of a cluster and writes what `advance` and `ended` say."""

    def __init__(self, api: client.ApiClient) -> None:
        super().__init__()
        self._core = client.CoreV1Api(api)
        self._custom = client.CustomObjectsApi(api)
        self._vmis = Informer(api, self._list_vmis, self.due.put)
        self._pods = Informer(api, self._list_pods, self._pod_changed)
        self.informers = (self._vmis, self._pods)

    def step(self, item: Object) -> None:
        """End what has ended, then write the instance's next state."""
        if (vmi := self._vmis.get(key_of(item))) is None:
            return
        namespace, name = key_of(vmi)
        pods = [p for p in self._pods.all() if _creator(p) == vmi["metadata"]["uid"]]
        for pod in ended(vmi, pods):
            self._core.patch_namespaced_pod_status(
                pod["metadata"]["name"],
                namespace,
                {"status": _terminated(pod)},
                _content_type=STRATEGIC_MERGE,
            )
        if new := advance(vmi, pods, dt.datetime.now(dt.UTC)):
            self._custom.replace_namespaced_custom_object(*VMIS[:2], namespace, VMIS[2], name, new)

    def _list_vmis(self, **kwargs: Any) -> Any:
        return self._custom.list_cluster_custom_object(*VMIS, **kwargs)

    def _list_pods(self, **kwargs: Any) -> Any:
        return self._core.list_pod_for_all_namespaces(label_selector=LAUNCHER, **kwargs)

    def _pod_changed(self, pod: Object) -> None:
        for vmi in self._vmis.all():
            if vmi["metadata"]["uid"] == _creator(pod):
                self.due.put(vmi)


def _creator(pod: Object) -> str | None:
    uid: str | None = pod["metadata"]["labels"].get(CREATED_BY)
    return uid


def _terminated(pod: Object) -> Object:
    """Status of a launcher pod whose processes have all ended well."""
    state = {"terminated": {"exitCode": 0, "reason": "Completed"}}
    statuses = [
        s | {"state": state, "ready": False, "started": False}
        for s in pod["status"].get("containerStatuses", [])
    ]
    ready = {"type": "Ready", "status": "False", "reason": "PodCompleted"}
    return {"phase": "Succeeded", "containerStatuses": statuses, "conditions": [ready]}


def main() -> None:
    """Command line: run until killed."""
    parser = argparse.ArgumentParser(description="stand-in for KubeVirt's virt-handler")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    api = config.new_client_from_config(str(options.kubeconfig))  # type: ignore[no-untyped-call]
    handler = VirtHandler(api)
    handler.start()
    handler.join()


if __name__ == "__main__":
    main()
