"""Random valid changes A -> B -> A of every kind end in the state that A alone gives, or are refused as immutable.

Specs are made from the models, so a new field walks too. What runs on the fleet meanwhile is taken away and made anew
before the states are compared, where it depends on what was there in between: nothing is taken from whoever was
admitted while there was more quota or supply.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab import Lab, differences, end_state, fork, gpu_pod, gpu_vm, manifest, small_lab, virtual_cluster
from pydantic import BaseModel
from spec_changes import KEEPS, refusal
from spec_strategies import NoStrategyError, field, is_valid, objects, spec_of

from vmtenancy.api import KINDS
from vmtenancy.api.common import ApiModel

#: The object of each kind that walks, in the lab.
WALKERS = {
    "GpuPool": ("", "h100"),
    "GpuClass": ("", "whole"),
    "GpuNode": ("", "machines"),
    "Cohort": ("", "research"),
    "Tenant": ("", "vision"),
    "GpuVM": ("vision", "a"),
    "GpuGroup": ("vision", "g"),
    "VirtualCluster": ("llm", "lab"),
}
#: Written by the controller alone.
_OURS = {"GpuAllocation", "GpuLedger"}
#: Specs that never change.
_IMMUTABLE = {"GpuReservation"}
Spec = dict[str, Any]


def base_lab() -> Lab:
    lab = small_lab()
    lab.apply(manifest("Cohort", "above", {}))
    for name in ("vision", "llm", "shared"):
        if lab.find("Namespace", "", name) is None:
            lab.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    lab.settle()
    lab.quota_just_decided = False
    return lab


_BASE = base_lab()


def lab_for(kind: str, spec: Spec) -> Lab:
    """A lab in which the walker never had another spec."""
    lab = fork(_BASE)
    namespace, name = WALKERS[kind]
    if kind != "GpuNode" and lab.find(kind, namespace, name):
        lab.delete(kind, namespace, name)
        lab.settle()
    put(lab, kind, spec)
    lab.settle()
    return lab


def put(lab: Lab, kind: str, spec: Spec) -> None:
    """`kubectl replace`: fields that are not in `spec` are unset."""
    namespace, name = WALKERS[kind]
    if obj := lab.find(kind, namespace, name):
        lab.cluster.replace({**obj, "spec": spec})
    else:
        lab.cluster.create(manifest(kind, name, spec, namespace))


def work(lab: Lab, kind: str) -> None:
    """Something of each runtime that depends on the walker."""
    if kind == "GpuGroup":
        lab.apply(gpu_vm("m", group="g"), gpu_vm("q", group="g"))
    elif kind not in ("GpuVM", "VirtualCluster"):
        lab.apply(gpu_vm("m", 2), gpu_vm("q", of="quarter"), virtual_cluster("c", guaranteed=1, most=2))
        lab.apply(gpu_pod("p", namespace="llm"))
    lab.settle()
    if kind == "VirtualCluster":
        home = lab.status(kind, *WALKERS[kind]).get("namespace", "")
        if lab.find("Namespace", "", home):
            lab.inside("lab", gpu_pod("p"))
            lab.settle()


def end_work(lab: Lab) -> None:
    for kind, namespace, name in (
        ("GpuVM", "vision", "m"),
        ("GpuVM", "vision", "q"),
        ("VirtualCluster", "llm", "c"),
    ):
        lab.delete(kind, namespace, name)
    lab.delete("Pod", "llm", "p")
    lab.settle()


_APPLIED_LATER = re.compile(r'"observedGeneration": \d+')


def outcome(lab: Lab) -> dict[str, str]:
    """The end state. A namespace that a tenant gave up stays, as any other; numbers of generations differ."""
    found = {
        name: _APPLIED_LATER.sub('"observedGeneration": *', text)
        for name, text in end_state(lab.cluster.world).items()
    }
    labelled = {
        str(obj["metadata"]["name"])
        for obj in lab.cluster.world.of("Namespace")
        if any(key.startswith("vmtenancy.io/") for key in obj["metadata"].get("labels") or {})
    }
    return {
        name: text
        for name, text in found.items()
        if not name.startswith("Namespace ") or name.removeprefix("Namespace ") in labelled
    }


def path(kind: str, old: Spec, new: Spec) -> list[Spec] | None:
    """The way from one spec to the other that the API server allows; None where there is none.

    What is refused while a machine runs goes by way of a stopped one, as the message says.
    """
    if not refusal(KINDS[kind], old, new):
        return [new]
    if kind == "GpuVM":
        return [old | {"runStrategy": "Halted"}, new | {"runStrategy": "Halted"}, new]
    return None


def alone(kind: str, spec: Spec) -> list[dict[str, str]]:
    """The states that are right for a spec, whatever was before: that of the spec alone, and more for a machine.

    One that ran once keeps its VirtualMachine, stopped; one that has its GPUs keeps them, when it is stopped with
    `Hold` or joins a group that waits.
    """
    lab = lab_for(kind, spec)
    work(lab, kind)
    states = [outcome(lab)]
    if kind == "GpuVM":
        small = {"gpus": [{"class": "whole"}], "cpu": {"cores": 1}, "memory": "1Gi"}
        itself = {name: value for name, value in spec.items() if name != "group"} | {"runStrategy": "Always"}
        for before in (small, itself):
            lab = lab_for(kind, before)
            for step in path(kind, before, spec) or ():
                put(lab, kind, step)
                lab.settle()
            states.append(outcome(lab))
    return states


def cannot_be_rendered(lab: Lab, kind: str) -> bool:
    """Whether the walker says so. What ran before goes on then, so its state depends on that."""
    conditions = lab.status(kind, *WALKERS[kind]).get("conditions", ())
    return any(found["reason"] == "CannotRender" for found in conditions)


def walk(kind: str, first: Spec, second: Spec) -> str:
    """Play the walk and compare. Returns how it went: `"walked"`, or what is immutable."""
    there = path(kind, first, second)
    if there is None:
        return refusal(KINDS[kind], first, second)
    back = path(kind, second, first)
    assert back is not None, "the way there, but not back"
    lab = lab_for(kind, first)
    work(lab, kind)
    for spec in (*there, *back):
        put(lab, kind, spec)
        lab.settle()
    if kind not in ("GpuVM", "VirtualCluster"):
        end_work(lab)
        work(lab, kind)
    only = lab_for(kind, first)
    if cannot_be_rendered(only, kind):
        assert cannot_be_rendered(lab, kind)
        return "cannot be rendered"
    right, found = alone(kind, first), outcome(lab)
    assert found in right, [differences(state, found) for state in right]
    return "walked"


@st.composite
def two_specs(draw: st.DrawFn, kind: str) -> tuple[Spec, Spec]:
    """A spec, and another one or the same with some of its fields changed."""
    model = KINDS[kind].model_fields["spec"].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    first, other = draw(spec_of(KINDS[kind])), draw(spec_of(KINDS[kind]))
    names = [str(info.alias) for info in model.model_fields.values()]
    changed = draw(st.one_of(st.sets(st.sampled_from(names), min_size=1, max_size=2), st.just(set(names))))
    second = {name: value for name, value in first.items() if name not in changed}
    second |= {name: value for name, value in other.items() if name in changed}
    return first, second if is_valid(model, second) else other


def walks(kind: str, examples: int) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(two_specs(kind))
    def walk_one(specs: tuple[Spec, Spec]) -> None:
        seen[walk(kind, *specs)] += 1

    walk_one()
    assert seen["walked"], seen
    print(f"{kind}: {dict(seen)}")


@pytest.mark.parametrize("kind", WALKERS)
def test_a_walk_leads_back(kind: str) -> None:
    walks(kind, 4)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", WALKERS)
def test_many_walks_lead_back(kind: str) -> None:
    walks(kind, 300)


def test_every_kind_that_people_write_walks() -> None:
    assert set(WALKERS) == set(KINDS) - _OURS - _IMMUTABLE


def models() -> list[type[BaseModel]]:
    """The models of all specs that people write, nested ones too."""
    found: dict[type[BaseModel], None] = {}

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation not in found:
                found[annotation] = None
                for info in annotation.model_fields.values():
                    visit(info.annotation)
                    for constraint in info.metadata:
                        visit(constraint)
            return
        for argument in getattr(annotation, "__args__", ()):
            visit(argument)

    for kind in WALKERS:
        visit(KINDS[kind].model_fields["spec"].annotation)
    return list(found)


@pytest.mark.parametrize("model", models(), ids=lambda model: str(model.__name__))
def test_every_field_has_a_strategy(model: type[BaseModel]) -> None:
    for name in model.model_fields:
        assert field(model, name) is not None


@pytest.mark.parametrize(
    "annotation", [int, str, float, list[int], dict[str, bytes], tuple[int, ...], int | str]
)
def test_a_field_that_no_strategy_covers_is_told(annotation: Any) -> None:
    model = type("Later", (ApiModel,), {"__annotations__": {"later": annotation}, "__module__": __name__})
    with pytest.raises((NoStrategyError, ValueError), match=r"later|unpack"):
        objects(model)


def test_every_rule_on_a_change_has_a_twin() -> None:
    rules = {
        rule.expected for model in models() for rule in getattr(model, "rules", ()) if rule.holds is None
    }
    assert rules == set(KEEPS)
