"""What the controller tells Prometheus. Telemetry goes here, never into objects (I7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class _FairShares(Collector):
    """Made anew at each reading, so that a tenant that is gone is gone here."""

    def __init__(self, read: Callable[[], Mapping[str, float]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "vmtenancy_tenant_fair_share",
            "What a tenant has borrowed of all that its cohort could give it, by its weight, where that is the most",
            labels=["tenant"],
        )
        for tenant, share in self._read().items():
            family.add_metric([tenant], share)
        yield family


@dataclass(frozen=True, slots=True)
class ResourceUse:
    """What a tenant holds of a resource that it is limited in, in cores or bytes."""

    tenant: str
    resource: str
    used: float
    nominal: float


class _Resources(Collector):
    """Made anew at each reading, as the shares."""

    def __init__(self, read: Callable[[], Iterable[ResourceUse]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ["tenant", "resource"]
        used = GaugeMetricFamily(
            "vmtenancy_tenant_resource_used",
            "What a tenant holds of cpu (cores), memory or storage (bytes), where it is limited in it",
            labels=labels,
        )
        nominal = GaugeMetricFamily(
            "vmtenancy_tenant_resource_nominal",
            "The nominal quota of a tenant of cpu (cores), memory or storage (bytes)",
            labels=labels,
        )
        for each in self._read():
            used.add_metric([each.tenant, each.resource], each.used)
            nominal.add_metric([each.tenant, each.resource], each.nominal)
        yield used
        yield nominal


class Metrics:
    """One registry of its own, so that two controllers in one process (tests) do not share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.plan_seconds = Histogram(
            "vmtenancy_plan_seconds",
            "Time that making one plan took",
            registry=self.registry,
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30),
        )
        self.plan_errors = Counter(
            "vmtenancy_plan_errors", "Plans that could not be made: a bug", registry=self.registry
        )
        self.ledger_rewinds = Counter(
            "vmtenancy_ledger_rewinds",
            "Times that the ledger was found behind what was seen of it: deleted, or restored from a backup",
            registry=self.registry,
        )
        self._steps = Counter(
            "vmtenancy_steps",
            "Steps run, by kind of step and outcome (ok, or the class of the error)",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self._events = Counter(
            "vmtenancy_events",
            "Events written, by reason: LeaseExpired, LeaseEnding, Preempted, NotBound, ...",
            ["reason"],
            registry=self.registry,
        )
        self.chains_failed = Counter(
            "vmtenancy_chains_failed", "Chains stopped by an error", registry=self.registry
        )
        self.chains_held = Gauge(
            "vmtenancy_chains_held",
            "Chains of the last plan that failed before and wait for their next attempt",
            registry=self.registry,
        )
        self._chains_waiting = Gauge(
            "vmtenancy_chains_waiting",
            "Chains of the plan in hand that have not begun",
            registry=self.registry,
        )
        self._is_leader = Gauge(
            "vmtenancy_is_leader", "1 while this process holds the Lease", registry=self.registry
        )
        self._watch_restarts = Counter(
            "vmtenancy_watch_restarts",
            "Watches that broke and were started again, by kind and reason",
            ["kind", "reason"],
            registry=self.registry,
        )

    def step(self, kind: str, outcome: str) -> None:
        """Count one step."""
        self._steps.labels(kind, outcome).inc()

    def event(self, reason: str) -> None:
        """Count one Event."""
        self._events.labels(reason).inc()

    def watch_restart(self, kind: str, reason: str) -> None:
        """Count one restart of a watch."""
        self._watch_restarts.labels(kind, reason).inc()

    def observe(
        self,
        *,
        is_leader: Callable[[], bool],
        chains_waiting: Callable[[], int],
        fair_shares: Callable[[], Mapping[str, float]],
        resources: Callable[[], Iterable[ResourceUse]],
    ) -> None:
        """Have these read whenever Prometheus asks; `fair_shares` by tenant."""
        self.registry.register(_FairShares(fair_shares))
        self.registry.register(_Resources(resources))
        self._is_leader.set_function(lambda: float(is_leader()))
        self._chains_waiting.set_function(chains_waiting)

    @contextmanager
    def serving(self, port: int) -> Iterator[None]:
        """Serve `/metrics` on all addresses, from a thread of its own.

        Raises `OSError` where the port is taken.
        """
        server, thread = start_http_server(port, registry=self.registry)
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
