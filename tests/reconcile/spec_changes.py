"""Which changes of a spec the API server refuses: the CRDs' rules on old and new object, once more in Python.

Only the API server evaluates them, so the walks in memory need a twin. `tests/api/test_spec_walks_real.py` compares
both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from vmtenancy.api.common import Kind
from vmtenancy.api.virtualcluster import VirtualClusterSpec

Spec = Any


def _stopped(old: Spec, new: Spec) -> bool:
    return "Halted" in (old.run_strategy, new.run_strategy)


def _guarantees(spec: VirtualClusterSpec) -> dict[str, int]:
    return {gpu.class_: gpu.guaranteed for gpu in spec.gpus}


#: Whether a change keeps a rule, by the text of what the rule expects.
KEEPS: Final[Mapping[str, Callable[[Spec, Spec], bool]]] = {
    "cpu and memory as they are while it runs: stop it first (runStrategy: Halted)": lambda old, new: (
        (old.cpu, old.memory) == (new.cpu, new.memory) or _stopped(old, new)
    ),
    "no change while it runs: stop it first (runStrategy: Halted)": lambda old, new: (
        (old.gpus, old.reservation) == (new.gpus, new.reservation) or _stopped(old, new)
    ),
    "the classes and guaranteed counts it was created with; max can change": lambda old, new: (
        _guarantees(old) == _guarantees(new)
    ),
}


def refusal(kind: type[Kind], old: dict[str, Any], new: dict[str, Any]) -> str:
    """What the first rule that a change from one spec to another breaks expects; `""` where it is allowed."""
    model = kind.model_fields["spec"].annotation
    before, after = (cast(Any, model).model_validate(spec) for spec in (old, new))
    for rule in cast(Any, model).rules:
        if rule.holds is None and not KEEPS[rule.expected](before, after):
            return str(rule.expected)
    return ""
