"""Writes `GpuNode.status` by server-side apply, and only when a fact has changed (I7)."""

from __future__ import annotations

from typing import Any, Final

from vmtenancy.api.names import API_VERSION
from vmtenancy.kube import errors
from vmtenancy.kube.plain import PlainClient

Facts = dict[str, Any]

FIELD_MANAGER: Final = "vmtenancy-agent"


def gpu_node(name: str, status: Facts) -> Facts:
    """The whole object, as `--once` prints it."""
    return {
        "apiVersion": API_VERSION,
        "kind": "GpuNode",
        "metadata": {"name": name},
        "spec": {},
        "status": status,
    }


class Publisher:
    """One node's `GpuNode`. What was published last is read from the API server, so it outlives the agent."""

    def __init__(self, client: PlainClient, node: str) -> None:
        self._client, self._node = client, node
        self._path = f"/apis/{API_VERSION}/gpunodes"
        self.writes = 0

    def published(self) -> Facts | None:
        """The status that stands now; None where there is no object. Raises `KubeError`."""
        try:
            return dict(self._client.get(f"{self._path}/{self._node}").get("status") or {})
        except errors.NotFoundError:
            return None

    def publish(self, status: Facts, before: Facts | None) -> bool:
        """Have the status stand; `before` is what stands now. Whether anything was written. Raises `KubeError`."""
        if before is None:
            bare = gpu_node(self._node, {})
            del bare["status"]
            self._client.create(self._path, bare, FIELD_MANAGER)
            self.writes += 1
        elif same(status, before):
            return False
        body = gpu_node(self._node, status)
        del body["spec"]
        self._client.apply(f"{self._path}/{self._node}/status", body, FIELD_MANAGER)
        self.writes += 1
        return True


def same(status: Facts, stored: Facts) -> bool:
    """Whether what is stored says what we say. The server fills in what we leave out: defaults."""
    return _fits(status, stored) and _fits(stored, status)


def _fits(one: Any, other: Any) -> bool:
    """Whether all that `one` says is in `other`; what is empty, zero or false may be left out there."""
    if isinstance(one, dict):
        other = other if isinstance(other, dict) else {}
        return all(_fits(value, other.get(name)) for name, value in one.items())
    if isinstance(one, list):
        other = other if isinstance(other, list) else []
        return len(one) == len(other) and all(map(_fits, one, other))
    return bool(one == other) or (other is None and one in ("", 0, False))
