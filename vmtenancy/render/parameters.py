"""The parameters of a template: what they may be, and the strings that a GpuVM gives for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import model_validator

from vmtenancy.api.common import ApiModel, Items, Text
from vmtenancy.errors import Code, Problem, VmtError

Scalar: TypeAlias = str | int | bool

MAX_VALUE: Final = 1024
#: Names that have a meaning in every template.
RESERVED: Final = frozenset({"vm", "loop", "range", "true", "false", "none", "True", "False", "None"})
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
_BOOLEANS: Final[Mapping[str, bool]] = {"true": True, "false": False}


class Parameter(ApiModel):
    """One parameter. A string is one line of printable text that `pattern` matches whole, and one of `enum`.

    Values are written as strings everywhere, `default` too. Without a default, a GpuVM has to give a value.
    """

    name: Annotated[str, Text(r"^[a-z][a-zA-Z0-9]*$", 63, "a name in camelCase")]
    type: Literal["string", "integer", "boolean"]
    description: str
    default: str | None = None
    pattern: str | None = None
    enum: Annotated[tuple[str, ...], Items(most=64, unique=True)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name in RESERVED:
            raise ValueError(f"{self.name} has a meaning of its own in templates")
        if self.type != "string" and (self.enum or self.pattern is not None):
            raise ValueError("pattern and enum are for strings")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"pattern is no regular expression: {error}") from error
        for text in (*self.enum, *(() if self.default is None else (self.default,))):
            try:
                self.parse(text)
            except ValueError as error:
                raise ValueError(f"{text!r} is not a value of this parameter; expected {error}") from error
        return self

    def parse(self, text: str) -> Scalar:
        """Return the value that `text` stands for. Raises `ValueError` with what would be right."""
        if self.type == "boolean":
            if text not in _BOOLEANS:
                raise ValueError("true or false")
            return _BOOLEANS[text]
        if self.type == "integer":
            if _INTEGER.fullmatch(text) is None:
                raise ValueError("a whole number of at most 18 digits")
            return int(text)
        if len(text) > MAX_VALUE or not text.isprintable():
            raise ValueError(f"one line of printable text, at most {MAX_VALUE} characters")
        if self.enum and text not in self.enum:
            raise ValueError("one of " + ", ".join(self.enum))
        if self.pattern is not None and re.fullmatch(self.pattern, text) is None:
            raise ValueError(f"text that matches {self.pattern}")
        return text


def values_of(template: str, parameters: Sequence[Parameter], given: Mapping[str, str]) -> dict[str, Scalar]:
    """Return the value of each parameter. Raises `VmtError` with every unknown, missing or refused one."""
    known = {parameter.name: parameter for parameter in parameters}
    problems = [
        Problem(
            Code.UNKNOWN_FIELD,
            _path(name),
            f"template {template} has no such parameter",
            expected="one of " + ", ".join(known) if known else "no parameters",
        )
        for name in given
        if name not in known
    ]
    values: dict[str, Scalar] = {}
    for name, parameter in known.items():
        text = given.get(name, parameter.default)
        if text is None:
            message = f"template {template} needs a value"
            problems.append(Problem(Code.TEMPLATE, _path(name), message, expected=parameter.description))
            continue
        try:
            values[name] = parameter.parse(text)
        except ValueError as error:
            message = f"template {template} does not allow this value"
            problems.append(Problem(Code.TEMPLATE, _path(name), message, repr(text[:80]), str(error)))
    if problems:
        raise VmtError.of(problems)
    return values


def _path(name: str) -> str:
    return f"spec.template.parameters.{name}"
