"""A stand-in for the Containerized Data Importer, for clusters whose nodes run no machines.

CDI imports, clones or uploads a disk image into a PersistentVolumeClaim that it makes for a DataVolume, and
then says so in the DataVolume's status. Here there is no image: each DataVolume gets a PersistentVolume with
nothing behind it and a claim bound to it by the real controllers; then it is Succeeded. As with CDI, the claim
has the DataVolume's name and belongs to it, so it goes when the DataVolume goes; the volume is removed then.
"""

from typing import Any

from kubernetes import client

from vmtenancy.testing.informer import Informer, Object, StandIn, allowing, key_of

DATA_VOLUMES = ("cdi.kubevirt.io", "v1beta1", "datavolumes")
LABELS = {"app": "containerized-data-importer"}
_DONE = {"Bound": "True", "Ready": "True", "Running": "False"}


class DataImporter(StandIn):
    """Watches DataVolumes and their claims and provides them."""

    def __init__(self, api: client.ApiClient) -> None:
        super().__init__()
        self._core = client.CoreV1Api(api)
        self._custom = client.CustomObjectsApi(api)
        self._volumes = Informer(api, self._list_volumes, self.due.put)
        self._claims = Informer(api, self._list_claims, self._claim_changed)
        self.informers = (self._volumes, self._claims)

    def step(self, item: Object) -> None:
        """Provide a DataVolume, report on it, or clean up after it."""
        key = key_of(item)
        volume = self._volumes.get(key)
        if volume is None or volume["metadata"]["uid"] != item["metadata"]["uid"]:
            allowing(404, self._core.delete_persistent_volume, _volume_name(item))
            return
        phase = volume.get("status", {}).get("phase")
        if "deletionTimestamp" in volume["metadata"] or phase == "Succeeded":
            return
        claim = self._claims.get(key)
        if claim is None:
            spec = claim_spec(volume)
            allowing(409, self._core.create_persistent_volume, _persistent_volume(volume, spec))
            allowing(409, self._core.create_namespaced_persistent_volume_claim, key[0], _claim(volume, spec))
        elif claim["status"].get("phase") == "Bound":
            conditions = [{"type": kind, "status": value} for kind, value in _DONE.items()]
            status = {
                "phase": "Succeeded",
                "progress": "100.0%",
                "claimName": key[1],
                "conditions": conditions,
            }
            self._custom.patch_namespaced_custom_object_status(
                *DATA_VOLUMES[:2],
                key[0],
                DATA_VOLUMES[2],
                key[1],
                {"status": status},
                _content_type="application/merge-patch+json",
            )

    def _list_volumes(self, **kwargs: Any) -> Any:
        return self._custom.list_cluster_custom_object(*DATA_VOLUMES, **kwargs)

    def _list_claims(self, **kwargs: Any) -> Any:
        return self._core.list_persistent_volume_claim_for_all_namespaces(
            label_selector=",".join(f"{k}={v}" for k, v in LABELS.items()), **kwargs
        )

    def _claim_changed(self, claim: Object) -> None:
        if volume := self._volumes.get(key_of(claim)):
            self.due.put(volume)


def claim_spec(volume: Object) -> Object:
    """Spec of the claim for a DataVolume: its ``pvc``, or its ``storage`` with what CDI would fill in."""
    given = volume["spec"].get("pvc") or volume["spec"].get("storage", {})
    # An empty class keeps the default one's provisioner away. Without a size CDI asks the source for it.
    requests = {"storage": "1Gi"} | given.get("resources", {}).get("requests", {})
    return {
        "accessModes": given.get("accessModes") or ["ReadWriteOnce"],
        "volumeMode": given.get("volumeMode", "Filesystem"),
        "storageClassName": given.get("storageClassName", ""),
        "resources": {"requests": requests},
        "volumeName": _volume_name(volume),
    }


def _persistent_volume(volume: Object, spec: Object) -> Object:
    namespace, name = key_of(volume)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": _volume_name(volume), "labels": LABELS},
        "spec": {
            "accessModes": spec["accessModes"],
            "volumeMode": spec["volumeMode"],
            "storageClassName": spec["storageClassName"],
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": namespace,
                "name": name,
            },
            "csi": {"driver": "imaginary.example", "volumeHandle": _volume_name(volume)},
        },
    }


def _claim(volume: Object, spec: Object) -> Object:
    owner = {
        "apiVersion": "/".join(DATA_VOLUMES[:2]),
        "kind": "DataVolume",
        "name": volume["metadata"]["name"],
        "uid": volume["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    metadata = {"name": volume["metadata"]["name"], "labels": LABELS, "ownerReferences": [owner]}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def _volume_name(volume: Object) -> str:
    return f"dv-{volume['metadata']['uid']}"
