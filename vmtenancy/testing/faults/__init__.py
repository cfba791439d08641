"""Faults on purpose: a scriptable proxy before the API server, paused processes, stepped clocks.

A test runs its controller through a `FaultProxy` and says with rules what goes wrong and when::

    with FaultProxy(cluster.kubeconfig, tmp_path) as proxy:
        proxy.add(Rule(lambda call: call.is_write, StopAfter(controller.kill), skip=4))
        ...

The fifth write is then committed, its answer is lost and the controller is killed. `docs/testing.md` shows more.
"""

from vmtenancy.testing.faults.actions import (
    Action,
    Answer,
    Cut,
    Delay,
    Expire,
    Hold,
    LoseResponse,
    ReplayList,
    SlowBody,
    StopAfter,
    StopBefore,
)
from vmtenancy.testing.faults.calls import Call
from vmtenancy.testing.faults.clock import SteppedClock
from vmtenancy.testing.faults.proxy import FaultProxy
from vmtenancy.testing.faults.rules import MissedError, Rule
from vmtenancy.testing.process import paused

__all__ = [
    "Action",
    "Answer",
    "Call",
    "Cut",
    "Delay",
    "Expire",
    "FaultProxy",
    "Hold",
    "LoseResponse",
    "MissedError",
    "ReplayList",
    "Rule",
    "SlowBody",
    "SteppedClock",
    "StopAfter",
    "StopBefore",
    "paused",
]
