"""What the API server's audit log says of the controller."""

from __future__ import annotations

import json
import time
from typing import Any

from vmtenancy.api.names import CONTROLLER_USER
from vmtenancy.testing.controlplane import ControlPlane


def writes_by_controller(cluster: ControlPlane, *, skip: int = 0) -> list[dict[str, Any]]:
    """The controller's writes so far but for Leases, from the `skip`-th line of the log on."""
    lines = cluster.audit_log.read_text().splitlines()[skip:]
    entries = [json.loads(line) for line in lines]
    return [
        entry
        for entry in entries
        if entry["user"]["username"] == CONTROLLER_USER and entry["objectRef"].get("resource") != "leases"
    ]


def writes_at_rest(cluster: ControlPlane, quiet: float = 3.0, patience: float = 30.0) -> list[str]:
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
