"""The loop: look, publish what changed, wait for an event of NVML's or the next slow look."""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from vmtenancy.agent.metrics import family, gpu_families
from vmtenancy.agent.publisher import Publisher
from vmtenancy.devices import sysfs
from vmtenancy.devices.facts import status_of
from vmtenancy.devices.nvml_facts import number
from vmtenancy.devices.nvml_process import NvmlProcess
from vmtenancy.errors import VmtError

Facts = dict[str, Any]

_LOG: Final = logging.getLogger(__name__)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_STOP: Final = object()
#: Events that come at once are looked at in one go, and no more often than this.
_LEAST_S: Final = 1.0


def utc_now() -> str:
    """The time, as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True)
class Counts:
    """What the agent tells of itself."""

    looks: int = 0
    own_seconds: float = 0.0
    failed_writes: int = 0


@dataclass(slots=True)
class Agent:
    """Looks at one node.

    `sysfs_root` stands for `/sys`. `boot_id` is read where it is not given. `nvml_deadline_s` is how long one GPU
    may take to answer all questions; NVML's initialisation may take three times that.
    """

    sysfs_root: Path = Path("/sys")
    nvml_deadline_s: float = 10.0
    boot_id: str | None = None
    clock: Callable[[], str] = utc_now
    counts: Counts = field(default_factory=Counts)
    nvml: NvmlProcess = field(init=False)
    _events: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    _xids: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.nvml = NvmlProcess(self.nvml_deadline_s, self._on_event)
        if self.boot_id is None:
            text = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
            self.boot_id = text if re.fullmatch(r"[0-9a-f-]{1,64}", text) else ""

    def look(self, before: Facts | None = None) -> Facts:
        """The status of the node now; `before` is the one that was published last."""
        began = time.monotonic()
        tree = sysfs.gpus_of(sysfs.read(self.sysfs_root))
        asked = time.monotonic()
        reading = self.nvml.facts()
        answered = time.monotonic()
        with self._lock:
            xids = dict(self._xids)
        status = status_of(tree, reading, before or {}, xids, now=self.clock(), boot_id=self.boot_id or "")
        self.counts.looks += 1
        self.counts.own_seconds += (asked - began) + (time.monotonic() - answered)
        return status

    def run(self, publisher: Publisher, interval_s: float, heartbeat: Path | None = None) -> None:
        """Look and publish until `stop`. A look comes `interval_s` after the last one, or with an event before
        that. `heartbeat` is touched after each round, also one that the API server refused."""
        while True:
            self._publish(publisher)
            if heartbeat is not None:
                heartbeat.touch()
            if self._wait(interval_s):
                return

    def stop(self) -> None:
        """Have `run` come to its end; callable from a signal handler."""
        self._events.put(_STOP)

    def _publish(self, publisher: Publisher) -> None:
        """One round. What fails is logged and done in the next one, from what stands then."""
        try:
            before = publisher.published()
            reported = dict(self._xids)
            if publisher.publish(self.look(before), before):
                _LOG.info("published what changed")
        except VmtError as error:
            self.counts.failed_writes += 1
            _LOG.warning("%s", error)
            return
        with self._lock:  # they stand in the status now, and outlive us there
            for address, xid in reported.items():
                if self._xids.get(address) == xid:
                    del self._xids[address]

    def _wait(self, interval_s: float) -> bool:
        """Wait for the next round. Whether it was the end instead."""
        end = time.monotonic() + interval_s
        soonest = time.monotonic() + min(_LEAST_S, interval_s)
        while (left := end - time.monotonic()) > 0:
            try:
                if self._events.get(timeout=left) is _STOP:
                    return True
            except queue.Empty:
                return False
            end = min(end, soonest)
        return False

    def _on_event(self, event: Facts) -> None:
        address, xid = event.get("address"), number(0, 1 << 32)(event.get("xid"))
        _LOG.warning("NVML reports XID %s of %s", xid, address or "a GPU that it does not name")
        if address and xid is not None:
            with self._lock:
                self._xids[address] = xid
        self._events.put(address)

    # -- metrics ---------------------------------------------------------------------------------------------

    def page(self, publisher: Publisher | None = None) -> str:
        """What Prometheus gets."""
        reading = self.nvml.samples()
        own = (
            ("vmtenancy_agent_looks_total", "counter", "Times that the agent looked", self.counts.looks),
            (
                "vmtenancy_agent_own_seconds_total",
                "counter",
                "Time that looking took beside NVML's calls",
                self.counts.own_seconds,
            ),
            (
                "vmtenancy_agent_nvml_starts_total",
                "counter",
                "Starts of the process that asks NVML: more than one means that calls hung or killed it",
                self.nvml.starts,
            ),
            ("vmtenancy_agent_nvml_up", "gauge", "1 while NVML answers", reading.trouble is None),
            (
                "vmtenancy_agent_writes_total",
                "counter",
                "Writes of the GpuNode: at rest none",
                publisher.writes if publisher else 0,
            ),
            (
                "vmtenancy_agent_failed_writes_total",
                "counter",
                "Rounds that ended with an error of the API server",
                self.counts.failed_writes,
            ),
        )
        lines = list(gpu_families(reading.samples))
        for name, kind, help_text, value in own:
            lines += family(name, kind, help_text, [({}, float(value))])
        return "\n".join(lines) + "\n"
