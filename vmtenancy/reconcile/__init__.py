"""Observed world in, steps out: the pure heart of the controller, over all kinds."""

from vmtenancy.reconcile.invariants import Violation, check
from vmtenancy.reconcile.planner import plan
from vmtenancy.reconcile.steps import Plan
from vmtenancy.reconcile.world import World

__all__ = ["Plan", "Violation", "World", "check", "plan"]
