"""Real virtual clusters on a control plane without machines: vCluster and its API server run as processes.

`VClusterRunner` is the kubelet of one node, `NODE`, where control planes of virtual clusters run. All before
it is real: the chart's StatefulSet, its pod, its place, and whether the StatefulSet becomes ready. The
container is replaced by a sandbox (see ``sandbox.py``) in which the real vCluster finds what the pod would
have given it: the configuration from the Secret ``vc-config-NAME``, the pod's environment and volumes, and
the token of its service account, so that it may do on the host what the chart's Role allows and no more.

Three settings differ from what the chart wrote, as there are no images and no cluster network: data is in
an etcd beside it (not in SQLite behind kine), nothing is reported to the vendor, and the kubeconfig in the
Secret ``vc-NAME`` names a port of this machine, whatever ``exportKubeConfig.server`` was.
"""

import datetime as dt
import logging
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from kubernetes import client
from urllib3.exceptions import HTTPError

from vmtenancy.testing import build, sandbox
from vmtenancy.testing.cluster import Cluster
from vmtenancy.testing.informer import Informer, Object, StandIn, allowing, key_of
from vmtenancy.testing.process import ProcessError, free_port
from vmtenancy.testing.vcluster_pod import PodWorker

NODE: Final = "vcluster-host"
#: Label of that node, and its taint: only what asks for it runs there.
NODE_LABEL: Final = "vmtenancy.io/vcluster-host"
#: Chart values (``controlPlane.statefulSet.scheduling``) that put a control plane on the runner's node.
#: On any other node KWOK calls the pod ready as soon as it is bound.
SCHEDULING: Final[Mapping[str, Any]] = {
    "nodeSelector": {NODE_LABEL: "true"},
    "tolerations": [{"key": NODE_LABEL, "operator": "Exists"}],
}

# Tenants choose the labels of what is synced from inside, but not whether it has that of the syncer.
_SELECTOR = "app=vcluster,release,!vcluster.loft.sh/managed-by"
_PROGRAMS = ("vcluster", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
_LEASE = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NODE}?fieldManager=kubelet"
_VOLUMES = "/api/v1/persistentvolumes"
_HEARTBEAT_S = 10.0

log = logging.getLogger(__name__)


def can_run() -> str | None:
    """Why virtual clusters can not run on this machine (the reason to skip a test with), or None."""
    return sandbox.missing()


class VClusterRunner(StandIn):
    """Runs every virtual cluster's control plane on ``cluster``: ``with VClusterRunner(cluster)``.

    A pod of the chart (label ``app=vcluster``) is started once it is bound to a node and stopped when it is
    deleted; on `NODE` it is Ready when vCluster's own ``/readyz`` says so. Its claims get volumes, whose data
    lives as long as the claim. Logs: ``<cluster.logs>/vcluster-<namespace>-<pod>.log``.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster = cluster
        self.workers: dict[str, PodWorker] = {}
        """The pods that run, by uid."""
        self._data = cluster.data_dir / "vcluster"
        self._programs: dict[str, Path] = {}
        self._ports: dict[tuple[str, str], int] = {}

    def start(self) -> None:
        """Build what is missing, register the node and start working.

        Raises ``BuildError``, or ``ProcessError`` where `can_run` gives a reason.
        """
        if reason := can_run():
            raise ProcessError(f"virtual clusters can not run here: {reason}")
        self._programs = {name: build.resolve(name) for name in _PROGRAMS}
        self._pods = Informer(self.cluster.client, self._list, self.due.put)
        self.informers = (self._pods,)
        self._claims = _Claims(self.cluster, self._data / "claims")
        self._register()
        super().start()
        self._claims.start()
        threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Stop every control plane and take the node away. Safe to call twice."""
        if not self._programs:
            return
        self._programs = {}
        super().stop()
        self._claims.stop()
        for worker in self.workers.values():
            worker.stop()
        self.workers.clear()
        allowing(404, self.cluster.request, "DELETE", f"/api/v1/nodes/{NODE}")
        shutil.rmtree(self._data, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def step(self, item: Object) -> None:
        """Start, stop or remove one pod."""
        uid = item["metadata"]["uid"]
        namespace, name = key_of(item)
        pod = self._pods.get((namespace, name))
        if pod is None or pod["metadata"]["uid"] != uid:
            self._end(uid)
        elif "deletionTimestamp" in pod["metadata"]:
            self._end(uid)
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
            path = f"/api/v1/namespaces/{namespace}/pods/{name}"
            allowing(404, self.cluster.request, "DELETE", path, options)
        elif pod["spec"].get("nodeName") and uid not in self.workers:
            self.workers[uid] = PodWorker(
                self.cluster,
                pod,
                # A pod that takes the place of another (a restart, a new version) is found at the same port.
                port=self._ports.setdefault((namespace, name), free_port()),
                folder=self._data / "pods" / uid,
                data=self._data_of(pod),
                programs=self._programs,
            )
            self.workers[uid].start()

    def _end(self, uid: str) -> None:
        if worker := self.workers.pop(uid, None):
            worker.stop()

    def _data_of(self, pod: Object) -> Path:
        """Where the pod's volume ``data`` is: with its claim, or with the pod."""
        metadata = pod["metadata"]
        for volume in pod["spec"]["volumes"]:
            if volume["name"] == "data" and (source := volume.get("persistentVolumeClaim")):
                return self._claims.folder_of(metadata["namespace"], source["claimName"])
        return Path(self._data, "pods", metadata["uid"], "data")

    def _list(self, **kwargs: Any) -> Any:
        core = client.CoreV1Api(self.cluster.client)
        return core.list_pod_for_all_namespaces(label_selector=_SELECTOR, **kwargs)

    def _register(self) -> None:
        offered = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": "250"}
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "runs processes"}
        node = {
            "metadata": {"name": NODE, "labels": {NODE_LABEL: "true", "kubernetes.io/hostname": NODE}},
            "spec": {"taints": [{"key": NODE_LABEL, "effect": "NoSchedule"}]},
            "status": {
                "capacity": offered,
                "allocatable": offered,
                "conditions": [ready | {"lastHeartbeatTime": now, "lastTransitionTime": now}],
            },
        }
        self.cluster.request("POST", "/api/v1/nodes", node)
        self._beat()

    def _heartbeat(self) -> None:
        while not self._stop.wait(_HEARTBEAT_S):
            try:
                self._beat()
            except (client.ApiException, HTTPError) as error:
                log.warning("heartbeat: %s", error)

    def _beat(self) -> None:
        renewed = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": NODE, "leaseDurationSeconds": 40, "renewTime": renewed}
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": NODE},
            "spec": spec,
        }
        self.cluster.request("PATCH", _LEASE, lease, content_type="application/apply-patch+yaml")


class _Claims(StandIn):
    """Gives each claim of a control plane a volume, and removes volume and data when the claim is gone."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        super().__init__()
        self._cluster = cluster
        self._folder = folder
        self._claims = Informer(cluster.client, self._list, self.due.put)
        self.informers = (self._claims,)

    def folder_of(self, namespace: str, name: str) -> Path:
        """Where a claim's data is."""
        path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"
        uid: str = self._cluster.request("GET", path)["metadata"]["uid"]
        return self._folder / uid

    def step(self, item: Object) -> None:
        """Provide a claim, or clean up after it."""
        uid = item["metadata"]["uid"]
        claim = self._claims.get(key_of(item))
        if claim is None or claim["metadata"]["uid"] != uid:
            allowing(404, self._cluster.request, "DELETE", f"{_VOLUMES}/{_volume_name(uid)}")
            shutil.rmtree(self._folder / uid, ignore_errors=True)
        elif not claim["spec"].get("volumeName"):
            allowing(409, self._cluster.request, "POST", _VOLUMES, _volume(claim))

    def _list(self, **kwargs: Any) -> Any:
        core = client.CoreV1Api(self._cluster.client)
        return core.list_persistent_volume_claim_for_all_namespaces(label_selector=_SELECTOR, **kwargs)


def _volume(claim: Object) -> Object:
    spec = claim["spec"]
    namespace, name = key_of(claim)
    uid = claim["metadata"]["uid"]
    return {
        "metadata": {"name": _volume_name(uid)},
        "spec": {
            "accessModes": spec["accessModes"],
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "storageClassName": spec.get("storageClassName", ""),
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": namespace, "name": name, "uid": uid},
            "csi": {"driver": "imaginary.example", "volumeHandle": _volume_name(uid)},
        },
    }


def _volume_name(uid: str) -> str:
    return f"vcluster-{uid}"
