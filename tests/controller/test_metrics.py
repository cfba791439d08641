"""Figures that are read when Prometheus asks."""

from __future__ import annotations

from prometheus_client import generate_latest

from vmtenancy.controller.metrics import Metrics, ResourceUse


def test_shares_are_those_of_the_tenants_that_there_are_now() -> None:
    metrics, shares = Metrics(), {"vision": 0.25, "llm": 0.0}
    metrics.observe(
        is_leader=lambda: True, chains_waiting=lambda: 0, fair_shares=lambda: shares, resources=lambda: ()
    )
    assert 'vmtenancy_tenant_fair_share{tenant="vision"} 0.25' in generate_latest(metrics.registry).decode()
    del shares["vision"]
    text = generate_latest(metrics.registry).decode()
    assert 'tenant="vision"' not in text
    assert 'vmtenancy_tenant_fair_share{tenant="llm"} 0.0' in text


def test_what_tenants_hold_of_resources_is_told() -> None:
    metrics, uses = Metrics(), [ResourceUse("vision", "cpu", 2.5, 16.0)]
    metrics.observe(
        is_leader=lambda: True, chains_waiting=lambda: 0, fair_shares=dict, resources=lambda: uses
    )
    text = generate_latest(metrics.registry).decode()
    assert 'vmtenancy_tenant_resource_used{resource="cpu",tenant="vision"} 2.5' in text
    assert 'vmtenancy_tenant_resource_nominal{resource="cpu",tenant="vision"} 16.0' in text
    uses.clear()
    assert 'resource="cpu"' not in generate_latest(metrics.registry).decode()
