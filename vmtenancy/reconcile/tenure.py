"""What a grant has behind it, for preemption: since when, how much work, and until when it is left alone."""

from __future__ import annotations

from collections.abc import Iterable

from vmtenancy.api.lease import Duration, is_instant, seconds_of
from vmtenancy.api.names import CHECKPOINTED_ANNOTATION
from vmtenancy.api.tenant import Preemption, Tenant
from vmtenancy.core.requests import Demand, Tenure
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.status import seconds
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.view import Allocation, View
from vmtenancy.reconcile.world import annotations_of


def tenure_of(view: View, grant: Allocation, owner: Object | None) -> Tenure:
    """The tenure of a live grant of a GpuVM or a pod, its `owner`."""
    started = seconds(grant.object["metadata"]["creationTimestamp"])
    promised = grant.object["spec"].get("promisedAt")
    saved = checkpointed(owner) if owner else None
    least = preemption_of(view, grant.tenant).min_run_time
    return Tenure(
        since=min(started, seconds(promised)) if promised else started,
        work=max(0.0, view.now - max(started, saved or started)),
        safe_within_tenant=_still(view, started, least.within_tenant),
        safe_within_cohort=_still(view, started, least.within_cohort),
    )


def checkpointed(owner: Object) -> float | None:
    """When its owner saved its work last, as the owner says, in seconds; None: never, or not in the form that is told
    of (which the admission policy refuses).
    """
    said = annotations_of(owner).get(CHECKPOINTED_ANNOTATION, "")
    return seconds(said) if is_instant(said) else None


def promised_at(view: View, demands: Iterable[Demand]) -> dict[str, str]:
    """When others, of whom one is still there, were stopped for demands: by what is decided together
    (`Demand.together`), for they are stopped for one of a group.
    """
    together = {demand.key: demand.together for demand in demands}
    times: dict[str, str] = {}
    for grant in view.live if together else ():
        if (name := together.get(grant.preemptor)) is not None:
            at = grant.object["status"]["revoked"]["at"]
            times[name] = min(at, times.get(name, at))
    return times


def preemption_of(view: View, tenant: str) -> Preemption:
    """What a tenant says of preemption; the defaults where it can not be read."""
    obj = view.world.get("Tenant", "", tenant)
    found = view.parsed(obj, Tenant) if obj else None
    return Preemption() if found is None or isinstance(found, VmtError) else found.spec.preemption


def _still(view: View, started: float, least: Duration | None) -> float | None:
    until = started + seconds_of(least) if least else view.now
    return until if until > view.now else None
