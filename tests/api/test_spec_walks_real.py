"""Random changes of random specs on the real API server: it takes what the offline check takes, and refuses the rest.

The walks in memory (`tests/reconcile/test_spec_walks.py`) go by Python's word on what is valid and what is immutable.
"""

from __future__ import annotations

import pytest
from callers import Caller
from hypothesis import HealthCheck, given, settings
from spec_changes import refusal
from test_spec_walks import WALKERS, Spec, two_specs

from vmtenancy.api import KINDS

pytestmark = pytest.mark.cluster

_STRICT = "?fieldValidation=Strict"


def agrees(admin: Caller, kind: str, first: Spec, second: Spec) -> str:
    """Make an object of the first spec and change it to the second and back; what was immutable, or `""`."""
    model = KINDS[kind]
    namespace, name = WALKERS[kind]
    if namespace:
        admin("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    folder = f"/apis/vmtenancy.io/v1alpha1/{f'namespaces/{namespace}/' if namespace else ''}{model.plural}"
    obj = {"apiVersion": "vmtenancy.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": first}
    made = admin("POST", folder + _STRICT, obj)
    assert made.code == 201, made.message
    try:
        wanted = refusal(model, first, second)
        changed = admin("PUT", f"{folder}/{name}{_STRICT}", {**made.body, "spec": second})
        if wanted:
            assert changed.code == 422, f"{first} -> {second} was not refused"
            assert wanted in changed.message
            return wanted
        assert changed.code == 200, changed.message
        back = admin("PUT", f"{folder}/{name}{_STRICT}", {**changed.body, "spec": first})
        assert back.code == 200, back.message
        # What is stored has defaults in it, so it is compared as the API server gave it.
        assert back.body["spec"] == made.body["spec"]
        return ""
    finally:
        gone = admin("DELETE", f"{folder}/{name}")
        assert gone.code == 200, gone.message


@pytest.mark.parametrize("kind", WALKERS)
def test_the_api_server_agrees(admin: Caller, kind: str) -> None:
    seen: set[str] = set()

    @settings(max_examples=15, suppress_health_check=list(HealthCheck))
    @given(two_specs(kind))
    def walk(specs: tuple[Spec, Spec]) -> None:
        seen.add(agrees(admin, kind, *specs))

    walk()
    assert "" in seen, "every change was refused"
    assert kind not in ("GpuVM", "VirtualCluster") or len(seen) > 1, "no change was refused"
