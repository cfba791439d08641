"""Raw Kubernetes objects to models, with every problem reported at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from vmtenancy.api.cohort import Cohort
from vmtenancy.api.common import Kind, Rule
from vmtenancy.api.gpuallocation import GpuAllocation
from vmtenancy.api.gpuclass import GpuClass
from vmtenancy.api.gpugroup import GpuGroup
from vmtenancy.api.gpuledger import GpuLedger
from vmtenancy.api.gpunode import GpuNode
from vmtenancy.api.gpupool import GpuPool
from vmtenancy.api.gpureservation import GpuReservation
from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.names import API_VERSION
from vmtenancy.api.overlay import OwnedPath
from vmtenancy.api.tenant import Tenant
from vmtenancy.api.virtualcluster import VirtualCluster
from vmtenancy.errors import Code, Problem, VmtError

_Model = TypeVar("_Model", bound=BaseModel)

KINDS: Final[dict[str, type[Kind]]] = {
    model.__name__: model
    for model in (
        *(GpuPool, GpuClass, GpuNode, Cohort, Tenant),
        *(GpuVM, VirtualCluster, GpuGroup, GpuReservation, GpuAllocation, GpuLedger),
    )
}


def parse(obj: dict[str, Any]) -> Kind:
    """The model of a raw object of one of our kinds, defaults filled in.

    Raises:
        VmtError: one problem for each thing that is wrong; `VMT-A002` for an unknown field, `VMT-A003` for an
            owned path in an overlay, else `VMT-A001`.
    """
    kind = obj.get("kind")
    if obj.get("apiVersion") != API_VERSION:
        raise VmtError(_invalid("apiVersion", obj.get("apiVersion"), API_VERSION))
    if not isinstance(kind, str) or kind not in KINDS:
        raise VmtError(_invalid("kind", kind, f"one of {', '.join(KINDS)}"))
    return validate(KINDS[kind], obj)


def validate(model: type[_Model], value: object) -> _Model:
    """The model of a raw value, defaults filled in. Raises VmtError as `parse` does."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [problem for detail in error.errors() for problem in _problems(model, detail)]
        raise VmtError.of(problems) from None


def check_text(form: Any, path: str, value: str) -> None:
    """Raise VmtError where a text that came by another way than an object is not of a type of `common`."""
    try:
        TypeAdapter(form).validate_python(value)
    except ValidationError as error:
        (detail,) = error.errors()
        raise VmtError(_invalid(path, value, detail["ctx"]["expected"])) from None


def field_path(parts: tuple[str | int, ...]) -> str:
    """A field path as Kubernetes prints it: `spec.gpus[0].count`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def _invalid(path: str, found: object, expected: str) -> Problem:
    return Problem(Code.INVALID_FIELD, path, "invalid value", _show(found), expected)


def _show(value: object) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, default=_plain)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plain(value: object) -> object:
    return value.model_dump(mode="json", exclude_unset=True) if isinstance(value, BaseModel) else str(value)


def _problems(model: type[BaseModel], detail: ErrorDetails) -> Iterator[Problem]:
    location, context = detail["loc"], detail.get("ctx", {})
    path = field_path(location)
    match detail["type"]:
        case "extra_forbidden":
            known = ", ".join(_fields_at(model, location[:-1]))
            yield Problem(
                Code.UNKNOWN_FIELD,
                path,
                "unknown field",
                _show(detail["input"]),
                f"one of {known}" if known else "",
            )
        case "missing":
            yield Problem(Code.INVALID_FIELD, path, "is required", "nothing", _description(model, location))
        case "owned":
            for owned, found in context["found"]:
                yield _owned(path, owned, found)
        case "shape":
            for inside, found in context["found"].items():
                yield _invalid(f"{path}.{inside}", found, "an object")
        case "rules":
            for rule in context["broken"]:
                yield _broken(location, rule, detail["input"])
        case "duplicate":
            yield _invalid(field_path((*location, context["index"])), context["found"], context["expected"])
        case "name":
            yield _invalid("metadata.name", context["found"], context["expected"])
        case "invalid":
            yield _invalid(path, detail["input"], context["expected"])
        case _:
            yield _invalid(path, detail["input"], detail["msg"].removeprefix("Input should be "))


def _owned(path: str, owned: OwnedPath, found: object) -> Problem:
    return Problem(
        Code.OWNED_PATH,
        f"{path}.{owned.path}",
        "is set by vmtenancy",
        _show(found),
        f"nothing here: {owned.instead}",
    )


def _broken(location: tuple[str | int, ...], rule: Rule, value: Any) -> Problem:
    found = value
    for key in rule.field.split(".") if rule.field else ():
        found = found.get(key) if isinstance(found, dict) else None
    return _invalid(field_path((*location, *filter(None, rule.field.split(".")))), found, rule.expected)


def _model_at(model: type[BaseModel], location: tuple[str | int, ...]) -> type[BaseModel] | None:
    at: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or at is None:
            continue
        info = next((info for info in at.model_fields.values() if info.alias == part), None)
        at = _nested(info.annotation) if info else None
    return at


def _nested(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _nested(arg)) is not None), None)


def _fields_at(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    at = _model_at(model, location)
    return [str(info.alias) for info in at.model_fields.values()] if at else []


def _description(model: type[BaseModel], location: tuple[str | int, ...]) -> str:
    at = _model_at(model, location[:-1])
    found = (
        [info.description for info in at.model_fields.values() if info.alias == location[-1]] if at else []
    )
    return (found[0] or "").rstrip(".") if found else ""
