"""A status is written when it differs from what is there, and a condition's time moves when its status turns (I7)."""

from __future__ import annotations

from vmtenancy.reconcile.status import Condition, condition, status_steps
from vmtenancy.reconcile.steps import Emit, Object, Replace

NOW, LATER = 1_000_000.0, 1_000_060.0
WAITS = Condition("Ready", False, "Pending", "it waits", event=True)
RUNS = Condition("Ready", True, "Running", "it runs", event=True)
BARE: Object = {"kind": "GpuVM", "metadata": {"name": "a", "namespace": "vision", "generation": 1}}


def reported(obj: Object, wanted: Condition, now: float) -> tuple[Object, list[Emit]]:
    """The object with what is to be written, and the events beside it."""
    steps = status_steps(obj, {"phase": wanted.reason, "message": ""}, [wanted], generation=1, now=now)
    (write,) = (step for step in steps if isinstance(step, Replace))
    return write.object, [step for step in steps if isinstance(step, Emit)]


def test_what_is_there_is_not_written_again_however_late_it_is() -> None:
    obj, _ = reported(BARE, WAITS, NOW)
    assert obj["status"]["observedGeneration"] == 1
    assert "message" not in obj["status"]
    fields = {"phase": "Pending", "message": ""}
    assert status_steps(obj, fields, [WAITS], generation=1, now=LATER) == ()


def test_the_time_of_a_condition_moves_with_its_status_alone() -> None:
    obj, _ = reported(BARE, WAITS, NOW)
    since = (condition(obj, "Ready") or {})["lastTransitionTime"]
    other, _ = reported(obj, Condition("Ready", False, "Failed", "it failed"), LATER)
    assert (condition(other, "Ready") or {})["lastTransitionTime"] == since
    turned, _ = reported(other, RUNS, LATER)
    assert (condition(turned, "Ready") or {})["lastTransitionTime"] > since


def test_an_event_is_told_at_a_transition_alone() -> None:
    obj, events = reported(BARE, WAITS, NOW)
    assert [event.reason for event in events] == ["Pending"]
    longer = Condition("Ready", False, "Pending", "it waits still", event=True)
    obj, events = reported(obj, longer, LATER)
    assert events == []
    _, events = reported(obj, RUNS, LATER)
    assert [event.reason for event in events] == ["Running"]
