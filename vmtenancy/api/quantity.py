"""Kubernetes quantities, exactly: no floats, no dependency on a Kubernetes client.

Grammar: k8s.io/apimachinery/pkg/api/resource, `Quantity`. Like `Quantity.Value()`, a conversion to an integer
rounds away from zero, so that a limit never becomes smaller than what was asked.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, ClassVar, Final, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

#: Digits and exponent are bounded, so that no quantity costs more to read than a number of 40 digits.
PATTERN: Final = (
    r"^([+-]?)([0-9]{1,20}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})"
    r"(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E|[eE][+-]?[0-9]{1,2})?$"
)
MAX_LENGTH: Final = 40
_REGEX: Final = re.compile(PATTERN)
_BINARY: Final = {
    unit: 1 << (10 * power) for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)
}
_DECIMAL: Final = {
    unit: power for power, unit in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), start=-3)
}


def parse_quantity(text: str | int) -> Fraction:
    """The exact value of a Kubernetes quantity (`"1.5Gi"`, `"250m"`, `3`, `"1e3"`).

    Raises:
        ValueError: `text` is no quantity.
    """
    match = _REGEX.fullmatch(str(text))
    if match is None or isinstance(text, bool):
        raise ValueError(f"{text!r} is no Kubernetes quantity")
    sign, digits, unit = match.groups(default="")
    number = Fraction(digits.rstrip(".")) * (-1 if sign == "-" else 1)
    if unit in _BINARY:
        return number * _BINARY[unit]
    if unit in _DECIMAL:
        return number * Fraction(1000) ** _DECIMAL[unit]
    return number * Fraction(10) ** int(unit[1:])


def to_bytes(text: str | int) -> int:
    """A quantity as a whole number (bytes, devices), rounded away from zero.

    Raises:
        ValueError: `text` is no quantity.
    """
    return _round_away(parse_quantity(text))


def to_milli(text: str | int) -> int:
    """A quantity in thousandths (milli-cpu), rounded away from zero.

    Raises:
        ValueError: `text` is no quantity.
    """
    return _round_away(parse_quantity(text) * 1000)


def cpu_text(milli: int) -> str:
    """Millicores as a quantity: `"2"`, `"250m"`."""
    return f"{milli}m" if milli % 1000 else str(milli // 1000)


def memory_text(count: int) -> str:
    """Bytes as a quantity, in the largest binary unit that divides them: `"6Gi"`, `"1025"`."""
    for unit, size in reversed(_BINARY.items()):
        if count and count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def _round_away(value: Fraction) -> int:
    magnitude = -(-abs(value.numerator) // value.denominator)
    return magnitude if value >= 0 else -magnitude


class Quantity(str):
    """A Kubernetes quantity greater than 0, kept as it was written; `Quantity("80Gi").bytes == 80 << 30`."""

    __slots__ = ()
    means: ClassVar[str] = "a quantity greater than 0, for example 16Gi"
    #: CEL over the quantity `{}`.
    cel: ClassVar[str] = "{}.isGreaterThan(quantity('0'))"

    @property
    def bytes(self) -> int:
        """The value as a whole number of bytes, rounded up."""
        return to_bytes(self)

    @property
    def milli(self) -> int:
        """The value in thousandths, rounded up."""
        return to_milli(self)

    @staticmethod
    def allows(value: Fraction) -> bool:
        """Whether it may be this much: what `cel` says."""
        return value > 0

    @classmethod
    def _validate(cls, value: Any) -> Self:
        refused = PydanticCustomError("invalid", "{expected}", {"expected": cls.means})
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise refused
        try:
            allowed = cls.allows(parse_quantity(value))
        except ValueError:
            allowed = False
        if not allowed:
            raise refused
        return cls(value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": PATTERN,
            "maxLength": MAX_LENGTH,
            "x-kubernetes-validations": [
                {
                    "rule": f"isQuantity(string(self)) && {cls.cel.format('quantity(string(self))')}",
                    "message": f"must be {cls.means}",
                    "messageExpression": f"'found ' + string(self) + ', expected {cls.means}'",
                }
            ],
        }


class Amount(Quantity):
    """A Kubernetes quantity from 0 to 256Pi, as quota is given: sums of it stay within 64 bits."""

    __slots__ = ()
    means: ClassVar[str] = "a quantity from 0 to 256Pi, for example 64 or 512Gi"
    cel: ClassVar[str] = "!{0}.isLessThan(quantity('0')) && !{0}.isGreaterThan(quantity('256Pi'))"

    @staticmethod
    def allows(value: Fraction) -> bool:
        """Whether it may be this much: what `cel` says."""
        return 0 <= value <= 1 << 58
