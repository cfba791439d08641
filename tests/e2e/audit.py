"""What the API server's audit log says of the controller, and of the grants that it made."""

from __future__ import annotations

import json
import time
from typing import Any

from vmtenancy.api.names import CONTROLLER_USER
from vmtenancy.reconcile import Violation, check
from vmtenancy.testing import history
from vmtenancy.testing.cluster import Cluster
from vmtenancy.testing.history import History
from vmtenancy.testing.stage_cluster import ClusterStage
from vmtenancy.testing.story import StoryError


def writes_by_controller(cluster: Cluster, *, skip: int = 0) -> list[dict[str, Any]]:
    """The controller's writes so far but for Leases, from the `skip`-th line of the log on."""
    lines = cluster.audit_log.read_text().splitlines()[skip:]
    entries = [json.loads(line) for line in lines]
    return [
        entry
        for entry in entries
        if entry["user"]["username"] == CONTROLLER_USER and entry["objectRef"].get("resource") != "leases"
    ]


def writes_at_rest(cluster: Cluster, quiet: float = 3.0, patience: float = 30.0) -> list[str]:
    """What the controller still writes when nothing happens any more (I7): nothing, once it was `quiet` that long.

    What surrounds it may take a moment to come to rest; writes that go on for `patience` seconds are returned.
    """
    end = time.monotonic() + patience
    first = seen = len(writes_by_controller(cluster))
    quiet_since = time.monotonic()
    while time.monotonic() < end:
        time.sleep(0.1)
        now = len(writes_by_controller(cluster))
        if now != seen:
            seen, quiet_since = now, time.monotonic()
        elif time.monotonic() - quiet_since >= quiet:
            return []
    return [f"{entry['verb']} {entry['requestURI']}" for entry in writes_by_controller(cluster)[first:]]


def violations(stage: ClusterStage, patience: float = 10.0) -> list[Violation]:
    """What is wrong in the world as it is seen now.

    Watches of different kinds are not in step: a pod may be seen before the grant that it was bound with. So what is
    gone once all was seen does not count here; that grants never overlapped is read from the audit log.
    """
    try:
        stage.wait("nothing to be wrong", lambda world: not check(world), patience)
    except StoryError:
        return check(stage.world())
    return []


class Audit:
    """Everything that the audit log says of the ledger from now on."""

    def __init__(self, cluster: Cluster) -> None:
        self._log = cluster.audit_log
        self._start = self._log.stat().st_size
        self._before = [obj for plural in ("gpuledgers", "gpuallocations") for obj in _all(cluster, plural)]

    def history(self) -> History:
        """Which grant was live when; its problems are to be none."""
        return history.replay(history.read(self._log, self._start), self._before)


def _all(cluster: Cluster, plural: str) -> list[dict[str, Any]]:
    from kubernetes.client import ApiException

    try:
        items = cluster.request("GET", f"/apis/vmtenancy.io/v1alpha1/{plural}")["items"]
    except ApiException as error:
        if error.status == 404:  # nothing is installed yet
            return []
        raise
    return list(items)
