"""Tell a pod's owner by pod conditions, which vCluster's syncer carries into the virtual cluster.

`vmtenancy.io/Admitted` says why a gated pod waits; `vmtenancy.io/Degraded` that the node of a running one does not
have what was granted any more.
"""

from __future__ import annotations

from collections.abc import Iterable

from vmtenancy.api.names import ADMITTED_CONDITION, DEGRADED_CONDITION
from vmtenancy.reconcile.admit import Admission
from vmtenancy.reconcile.gate import root_owner
from vmtenancy.reconcile.holders import (
    PREEMPTING,
    TAKEN_BACK,
    has_notice,
    must_be_told,
    pods_holding,
    taken_back_message,
)
from vmtenancy.reconcile.node_trouble import trouble_of
from vmtenancy.reconcile.pods import is_gated
from vmtenancy.reconcile.status import Condition, condition, is_true, merged
from vmtenancy.reconcile.steps import Chain, Emit, Object, Replace
from vmtenancy.reconcile.view import Allocation, View
from vmtenancy.reconcile.world import is_deleting, ref_of, uid_of


def waiting_pod_chains(view: View, admission: Admission) -> list[Chain]:
    """Conditions, and at a new reason an event, on pods that wait, and on pods whose grant is not what it was."""
    chains = []
    for pod in view.gated_pods:
        if told := _why_it_waits(view, pod, admission):
            reason, message = told
            chains += _tell(view, pod, [Condition(ADMITTED_CONDITION, False, reason, message, True, True)])
    for grant in view.live:
        for pod in pods_holding(view, grant):
            if not is_gated(pod) and not is_deleting(pod):
                chains += _tell(view, pod, _of_running(view, pod, grant))
    return chains


def _why_it_waits(view: View, pod: Object, admission: Admission) -> tuple[str, str] | None:
    if grant := must_be_told(view, pod):
        return TAKEN_BACK, taken_back_message(grant)
    wait, unclear = admission.waits.get(uid_of(pod)), admission.unclear.get(uid_of(pod))
    if wait is not None:
        return str(wait.reason), wait.message
    if unclear is not None:
        return unclear.reason, unclear.message
    mismatch = _mismatch(view, pod)
    return ("GrantMismatch", mismatch) if mismatch else None


def _of_running(view: View, pod: Object, grant: Allocation) -> Iterable[Condition]:
    """What has changed for a pod that was let through: nothing for most."""
    told = condition(pod, ADMITTED_CONDITION)
    if grant.owner_kind == "Pod" and has_notice(view, grant):
        yield Condition(ADMITTED_CONDITION, True, PREEMPTING, grant.revoked_message, event=True, warning=True)
    elif told and (told["reason"] == PREEMPTING or not is_true(pod, ADMITTED_CONDITION)):
        yield Condition(ADMITTED_CONDITION, True, "Admitted", f"it has the grant {grant.name}")
    # A launcher's owner is told by its GpuVM.
    if grant.owner_kind == "Pod":
        if trouble := trouble_of(view, grant):
            yield Condition(DEGRADED_CONDITION, True, *trouble, event=True, warning=True)
        elif is_true(pod, DEGRADED_CONDITION):
            yield Condition(DEGRADED_CONDITION, False, "AsExpected")


def _tell(view: View, pod: Object, wanted: Iterable[Condition]) -> list[Chain]:
    """The chain that writes those of the conditions that the pod does not show yet."""
    new = []
    for want in wanted:
        old = condition(pod, want.type)
        shown = (old["status"], old["reason"], old["message"]) if old else None
        if shown != (str(want.status), want.reason, want.message):
            new.append((want, old))
    if not new:
        return []
    types = {want.type for want, _ in new}
    status = dict(pod.get("status") or {})
    kept = [c for c in status.get("conditions") or () if c["type"] not in types]
    written = merged(pod, (want for want, _ in new), 0, view.now)
    for found in written:
        found.pop("observedGeneration")
    status["conditions"] = [*kept, *written]
    events = [
        Emit(pod, want.reason, want.message, want.warning)
        for want, old in new
        if want.event and (old is None or old["reason"] != want.reason)
    ]
    reasons = ", ".join(want.reason for want, _ in new)
    return [
        Chain(f"tell {ref_of(pod)}: {reasons}", (Replace({**pod, "status": status}, status=True), *events))
    ]


def _mismatch(view: View, pod: Object) -> str:
    """What is wrong with a launcher pod that asks for other GPUs than its GpuVM was granted."""
    grant = view.live_by_owner.get(root_owner(view, pod))
    if grant is None or view.gpus(pod) == grant.resources:
        return ""
    return f"the pod asks for {_text(view.gpus(pod))}, granted is {_text(grant.resources)}"


def _text(resources: dict[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(resources.items())) or "nothing"
