"""Tell a gated pod's owner why it waits: a pod condition, which vCluster's syncer carries into the virtual cluster."""

from __future__ import annotations

from vmtenancy.api.names import GROUP
from vmtenancy.reconcile.admit import Admission
from vmtenancy.reconcile.gate import root_owner
from vmtenancy.reconcile.status import condition, timestamp
from vmtenancy.reconcile.steps import Chain, Emit, Object, Replace
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import ref_of, uid_of

ADMITTED = f"{GROUP}/Admitted"


def waiting_pod_chains(view: View, admission: Admission) -> list[Chain]:
    """A condition, and at a new reason an event, on every gated pod whose request was decided to wait."""
    chains = []
    for pod in view.gated_pods:
        wait, unclear = admission.waits.get(uid_of(pod)), admission.unclear.get(uid_of(pod))
        if wait is not None:
            reason, message = str(wait.reason), wait.message
        elif unclear is not None:
            reason, message = unclear.reason, unclear.message
        elif mismatch := _mismatch(view, pod):
            reason, message = "GrantMismatch", mismatch
        else:
            continue
        old = condition(pod, ADMITTED)
        if old and (old["reason"], old["message"]) == (reason, message):
            continue
        since = old["lastTransitionTime"] if old and old["status"] == "False" else timestamp(view.now)
        new = {
            "type": ADMITTED,
            "status": "False",
            "reason": reason,
            "message": message,
            "lastTransitionTime": since,
        }
        status = dict(pod.get("status") or {})
        status["conditions"] = [*(c for c in status.get("conditions") or () if c["type"] != ADMITTED), new]
        steps: list[Replace | Emit] = [Replace({**pod, "status": status}, status=True)]
        if not old or old["reason"] != reason:
            steps.append(Emit(pod, reason, message, warning=True))
        chains.append(Chain(f"tell {ref_of(pod)} why it waits: {reason}", tuple(steps)))
    return chains


def _mismatch(view: View, pod: Object) -> str:
    """What is wrong with a launcher pod that asks for other GPUs than its GpuVM was granted."""
    grant = view.live_by_owner.get(root_owner(view, pod))
    if grant is None or view.gpus(pod) == grant.resources:
        return ""
    return f"the pod asks for {_text(view.gpus(pod))}, granted is {_text(grant.resources)}"


def _text(resources: dict[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(resources.items())) or "nothing"
