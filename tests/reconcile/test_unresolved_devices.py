"""A machine that came from another platform does not start while devices of it are not mapped."""

from __future__ import annotations

import pytest
from lab import Lab, gpu_vm

from vmtenancy.api.names import UNRESOLVED_ANNOTATION
from vmtenancy.reconcile.status import condition
from vmtenancy.reconcile.steps import Object


def came_with(listed: str | None) -> Object:
    obj = gpu_vm("a")
    if listed is not None:
        obj["metadata"]["annotations"] = {UNRESOLVED_ANNOTATION: listed}
    return obj


@pytest.mark.parametrize(
    ("listed", "words"),
    [('[{"path": "hostpci0"}]', "1 device"), ("{", "can not be read"), ('{"a": 1}', "can not")],
)
def test_it_waits_until_nothing_is_listed(lab: Lab, listed: str, words: str) -> None:
    lab.apply(came_with(listed))
    lab.settle()
    found = condition(lab.get("GpuVM", "vision", "a"), "Admitted")
    assert found
    assert (found["status"], found["reason"]) == ("False", "UnresolvedDevices")
    assert words in found["message"]
    assert UNRESOLVED_ANNOTATION in found["message"]
    assert not lab.live_grants()
    assert lab.events("GpuVM", "vision", "a").count("UnresolvedDevices") == 1
    lab.apply(came_with("[]"))
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"


def test_an_empty_list_stops_nobody(lab: Lab) -> None:
    lab.apply(came_with("[]"))
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"


def test_what_runs_goes_on(lab: Lab) -> None:
    lab.apply(came_with(None))
    lab.settle()
    lab.apply(came_with('[{"path": "hostpci0"}]'))
    lab.settle()
    assert lab.status("GpuVM", "vision", "a")["phase"] == "Running"
