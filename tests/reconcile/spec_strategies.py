"""Hypothesis strategies for the specs of all kinds, made from their models: a new field is covered by itself."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, Final

from annotated_types import Ge, Le, MaxLen
from hypothesis import reject
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from vmtenancy.api.cohort import CohortSpec, PoolQuota
from vmtenancy.api.common import DNS_LABEL_PATTERN, DNS_SUBDOMAIN_PATTERN, Items, Kind, Text
from vmtenancy.api.gpuclass import Delivery, GpuClassSpec
from vmtenancy.api.gpunode import GpuNodeSpec
from vmtenancy.api.gpupool import PoolSelector
from vmtenancy.api.gpurequest import GpuRequest
from vmtenancy.api.gpuvm import GpuVMSpec, TemplateRef
from vmtenancy.api.lease import Lease, TenantLeases
from vmtenancy.api.overlay import Overlay
from vmtenancy.api.quantity import Amount, Quantity
from vmtenancy.api.tenant import ClassLimit, MinRunTime, Preemption, TenantSpec
from vmtenancy.api.virtualcluster import ElasticGpus, VirtualClusterSpec
from vmtenancy.testing.story import PASSTHROUGH, VGPU

Json = Any

_POOLS: Final = st.sampled_from(["h100", "h100", "h100", "other"])
_CLASSES: Final = st.sampled_from(["whole", "whole", "quarter", "unknown"])
#: None ends, and no warning is due, while a walk lasts: how long that is differs from way to way.
_LENGTHS: Final = st.sampled_from(["8h", "99999h"])
#: Fields that refer to something: mostly to what the lab has. Of a field that is not listed here, any value will do.
REFERENCES: Final[Mapping[tuple[type[BaseModel], str], st.SearchStrategy[Json]]] = {
    (PoolQuota, "pool"): _POOLS,
    (GpuClassSpec, "pool"): _POOLS,
    (CohortSpec, "parent"): st.sampled_from(["above", "unknown"]),
    (TenantSpec, "cohort"): st.sampled_from(["research", "above", "unknown"]),
    (TenantSpec, "namespaces"): st.lists(
        st.sampled_from(["vision", "llm", "shared", "new", "kube-system"]),
        min_size=1,
        max_size=3,
        unique=True,
    ).map(sorted),
    (ClassLimit, "name"): _CLASSES,
    (GpuRequest, "class_"): _CLASSES,
    (GpuRequest, "alternatives"): st.lists(_CLASSES, max_size=2, unique=True),
    (ElasticGpus, "class_"): _CLASSES,
    (Delivery, "resource"): st.sampled_from(["nvidia.com/gpu", PASSTHROUGH, VGPU, "nvidia.com/other"]),
    (PoolSelector, "products"): st.lists(
        st.sampled_from(["NVIDIA-H100-80GB-HBM3", "NVIDIA-A100"]), max_size=2, unique=True
    ),
    (PoolSelector, "node_labels"): st.dictionaries(
        st.just("nvidia.com/gpu.workload.config"),
        st.sampled_from(["container", "vm-passthrough", "vm-vgpu"]),
        max_size=1,
    ),
    (GpuNodeSpec, "cordoned_devices"): st.lists(
        st.sampled_from([f"0000:{0x10 + 0x0A * index:02x}:00.0" for index in range(4)]),
        max_size=4,
        unique=True,
    ),
    (TemplateRef, "name"): st.sampled_from(["default", "ubuntu-cuda", "windows", "unknown"]),
    (TemplateRef, "parameters"): st.sampled_from([{}, {}, {"driver": "570"}, {"diskBus": "virtio"}]),
    (GpuVMSpec, "group"): st.sampled_from(["g", "h"]),
    (Lease, "duration"): _LENGTHS,
    (Lease, "warn_before"): st.lists(st.sampled_from(["1s", "10m"]), max_size=2, unique=True),
    # Long ago, in the time of the lab, and far ahead.
    (Lease, "renewed_at"): st.sampled_from(
        ["2026-01-01T00:00:00Z", "2027-01-15T08:00:20Z", "2099-12-31T23:59:59Z"]
    ),
    (TenantLeases, "default"): _LENGTHS,
    (TenantLeases, "maximum"): _LENGTHS,
    (Preemption, "notice"): _LENGTHS,
    (MinRunTime, "within_tenant"): _LENGTHS,
    (MinRunTime, "within_cohort"): _LENGTHS,
    (GpuVMSpec, "reservation"): st.just("unknown"),
    (GpuVMSpec, "vm"): st.sampled_from(
        [
            {},
            {"template": {"metadata": {"labels": {"team": "ada"}, "annotations": {"note": "seen"}}}},
            {"template": {"spec": {"terminationGracePeriodSeconds": 30, "hostname": "h"}}},
            {
                "template": {
                    "spec": {"domain": {"devices": {"tpm": {}}}, "tolerations": [{"operator": "Exists"}]}
                }
            },
            {"template": {"spec": {"volumes": "no list"}}},
        ]
    ),
    (VirtualClusterSpec, "values"): st.sampled_from(
        [
            {},
            {"controlPlane": {"coredns": {"enabled": False}}},
            {"sync": {"toHost": {"ingresses": {"enabled": True}}}},
            {"controlPlane": "no mapping"},
        ]
    ),
}
#: Patterns for which `from_regex` would find many names that mean the same.
_TEXTS: Final[Mapping[str, st.SearchStrategy[str]]] = {
    DNS_LABEL_PATTERN: st.sampled_from(["a", "b", "root", "data-0"]),
    DNS_SUBDOMAIN_PATTERN: st.sampled_from(["a", "b.c", "keys"]),
}


class NoStrategyError(TypeError):
    """A field of a type that no strategy is known for: teach `spec_strategies` the type."""


def spec_of(kind: type[Kind]) -> st.SearchStrategy[dict[str, Json]]:
    """Valid specs of a kind."""
    model = kind.model_fields["spec"].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return objects(model)


def objects(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Json]]:
    """Valid objects of a model as JSON: each optional field is there or not."""
    fields = {name: (info, field(model, name)) for name, info in model.model_fields.items()}
    optional = [name for name, (info, _) in fields.items() if not info.is_required()]

    @st.composite
    def drawn(draw: st.DrawFn) -> dict[str, Json]:
        for _ in range(10):
            some = st.sets(st.sampled_from(optional)) if optional else st.just(set())
            one = st.sampled_from([{name} for name in optional]) if optional else st.just(set())
            present = draw(st.one_of(some, one))  # "exactly one of" is rare among all subsets
            value = {
                str(info.alias): draw(strategy)
                for name, (info, strategy) in fields.items()
                if info.is_required() or name in present
            }
            if is_valid(model, value):
                return value
        return reject()

    return drawn()


def is_valid(model: type[BaseModel], value: Json) -> bool:
    """Whether the offline check takes it."""
    try:
        model.model_validate(value)
    except ValidationError:
        return False
    return True


def field(model: type[BaseModel], name: str) -> st.SearchStrategy[Json]:
    """Values of one field. Raises `NoStrategyError`."""
    for owner in model.__mro__:
        if (owner, name) in REFERENCES:
            return REFERENCES[owner, name]
    info: FieldInfo = model.model_fields[name]
    try:
        return _of(info.annotation, list(info.metadata))
    except NoStrategyError as error:
        raise NoStrategyError(f"{model.__name__}.{name}: {error}") from None


def _of(annotation: Any, constraints: list[Any]) -> st.SearchStrategy[Json]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _of(arguments[0], [*constraints, *arguments[1:]])
    if origin in (typing.Union, types.UnionType):
        (one,) = [argument for argument in arguments if argument is not type(None)]
        return _of(one, constraints)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return _lists(arguments[0], constraints)
    if origin is dict:
        if any(isinstance(constraint, Overlay) for constraint in constraints):
            raise NoStrategyError("an overlay: add values of it to REFERENCES")
        return st.dictionaries(st.sampled_from(["a", "b", "c"]), _of(arguments[1], []), max_size=2)
    if not isinstance(annotation, type):
        raise NoStrategyError(f"{annotation!r}")
    if issubclass(annotation, BaseModel):
        return objects(annotation)
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return _integers(constraints)
    if annotation is Amount:
        return st.sampled_from(["0", "0.5", "4", "6Gi", "32Gi", "256Pi"])
    if annotation is Quantity:
        return st.sampled_from(["1", "500m", "1Gi", "4Gi", "80Gi", "2Ti"])
    if annotation is str:
        return _strings(constraints)
    raise NoStrategyError(annotation.__name__)


def _constraint(constraints: list[Any], kind: type) -> Any:
    for constraint in constraints:
        for one in (constraint, *getattr(constraint, "metadata", ())):
            if isinstance(one, kind):
                return one
    return None


def _integers(constraints: list[Any]) -> st.SearchStrategy[int]:
    """Small ones, where quota and counts of a small fleet are decided, and the greatest."""
    least, most = _constraint(constraints, Ge), _constraint(constraints, Le)
    if least is None or most is None:
        raise NoStrategyError("an integer without bounds")
    start = max(least.ge, min(0, most.le))
    small = st.integers(start, min(most.le, start + 4))
    return st.one_of(small, small, small, st.sampled_from([least.ge, most.le]))


def _strings(constraints: list[Any]) -> st.SearchStrategy[str]:
    text, longest = _constraint(constraints, Text), _constraint(constraints, MaxLen)
    if text is not None:
        if text.pattern in _TEXTS:
            return _TEXTS[text.pattern]
        return st.from_regex(
            text.pattern, fullmatch=True, alphabet=st.characters(codec="ascii", exclude_categories=["Cc"])
        ).filter(lambda value: len(value) <= text.max_length)
    if longest is not None:
        return st.sampled_from(["", "x", "x" * longest.max_length])
    raise NoStrategyError("a string without a pattern or a greatest length")


def _lists(item: Any, constraints: list[Any]) -> st.SearchStrategy[list[Json]]:
    items = _constraint(constraints, Items)
    if items is None:
        raise NoStrategyError("a list without bounds")
    values = _of(item, [])
    most = min(items.most, max(items.least, 3))
    if items.keys:
        defaults = typing.get_args(item)[0] if typing.get_origin(item) is typing.Annotated else item
        return st.lists(
            values,
            min_size=items.least,
            max_size=most,
            unique_by=lambda value: _key(defaults, value, items.keys),
        )
    unique_by = repr if items.unique else None
    return st.lists(values, min_size=items.least, max_size=most, unique_by=unique_by)


def _key(model: type[BaseModel], value: dict[str, Json], keys: tuple[str, ...]) -> tuple[Json, ...]:
    typed = model.model_validate(value).model_dump(mode="json", by_alias=True)
    return tuple(typed[key] for key in keys)
