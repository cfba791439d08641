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


def writes_at_rest(cluster: ControlPlane, seconds: float = 2.0) -> list[str]:
    """What the controller writes in a while in which nothing happens (I7); a quiet second comes first."""
    quiet_since = time.monotonic()
    seen = len(writes_by_controller(cluster))
    end = quiet_since + 30
    while time.monotonic() < quiet_since + 1.0 and time.monotonic() < end:
        time.sleep(0.1)
        now = len(writes_by_controller(cluster))
        if now != seen:
            seen, quiet_since = now, time.monotonic()
    time.sleep(seconds)
    return [f"{entry['verb']} {entry['requestURI']}" for entry in writes_by_controller(cluster)[seen:]]
