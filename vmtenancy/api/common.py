"""What all kinds share: the base model, its rules, metadata, conditions and types of fields.

A constraint is written once here or in a kind's model. The CRDs (`crdgen`), the reference pages and the
offline check (`parse`) are all made from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@dataclass(frozen=True, slots=True)
class Rule:
    """What schema keywords cannot say, in both forms: CEL for the API server, Python for the offline check.

    `cel` sees the object as `self`. `field` is the field that the message is about, relative to the object
    and as the API names it (`""`: the object itself); `found` is a CEL expression for the text of what is
    there. `holds` is None for a rule on the change from an old object to a new one, which only the API server
    can check.
    """

    cel: str
    holds: Callable[[Any], bool] | None
    expected: str
    field: str = ""
    found: str = ""

    def to_schema(self) -> JsonSchemaValue:
        """The rule as an entry of `x-kubernetes-validations`."""
        schema = {"rule": self.cel, "message": f"expected {self.expected}"}
        if self.found:
            schema["messageExpression"] = (
                f"'found ' + {self.found} + {_cel_string(f', expected {self.expected}')}"
            )
        if self.field:
            schema["fieldPath"] = f".{self.field}"
        return schema


def digits_of(expression: str, digits: int) -> str:
    """CEL for the decimal digits, at most `digits`, of an integer >= 0.

    `string()` of an integer has no bound that the API server's cost estimate knows, and it refuses a CRD whose
    messages may cost too much; parts of a literal have one.
    """
    parts = []
    for power in reversed(range(digits)):
        digit = f"{expression} / {10**power} % 10"
        part = f"'0123456789'.substring({digit}, {digit} + 1)"
        parts.append(f"({expression} >= {10**power} ? {part} : '')" if power else part)
    return " + ".join(parts)


def _cel_string(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class ApiModel(BaseModel):
    """Base of all models: camelCase names outside, frozen, unknown fields refused, types never coerced."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        strict=True,
        serialize_by_alias=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        broken = [rule for rule in self.rules if rule.holds is not None and not rule.holds(self)]
        if broken:
            raise PydanticCustomError("rules", "{text}", {"text": broken[0].expected, "broken": broken})
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        json_schema = handler(schema)
        if cls.rules:
            target = handler.resolve_ref_schema(json_schema)
            target["x-kubernetes-validations"] = [rule.to_schema() for rule in cls.rules]
        return json_schema

    def to_dict(self) -> dict[str, Any]:
        """The object as the API has it: camelCase names, plain types, nothing that is None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


@dataclass(frozen=True, slots=True)
class Text:
    """Annotation of a `str`: its pattern and greatest length, and in words what it is."""

    pattern: str
    max_length: int
    means: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        regex = re.compile(self.pattern)

        def check(value: str) -> str:
            if len(value) > self.max_length or regex.fullmatch(value) is None:
                raise PydanticCustomError("invalid", "{expected}", {"expected": self.means})
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "pattern": self.pattern, "maxLength": self.max_length}


@dataclass(frozen=True, slots=True)
class Items:
    """Annotation of a `tuple[X, ...]`: how many items, and what makes two of them the same.

    With `keys` no two items agree in these fields, and server-side apply merges item by item; with `unique`
    no two are equal.
    """

    most: int
    least: int = 0
    keys: tuple[str, ...] = ()
    unique: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # A list is the JSON form of our tuples; everything inside stays strict.
        schema = core_schema.no_info_before_validator_function(self._from_list, handler(source))
        if not self.keys and not self.unique:
            return schema
        return core_schema.no_info_after_validator_function(self._check_unique, schema)

    def _from_list(self, value: Any) -> Any:
        if isinstance(value, list | tuple) and not self.least <= len(value) <= self.most:
            raise PydanticCustomError(
                "invalid", "{expected}", {"expected": f"{self.least} to {self.most} items"}
            )
        return tuple(value) if isinstance(value, list) else value

    def _check_unique(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        seen: set[Any] = set()
        for index, item in enumerate(value):
            key = tuple(by_alias(item, name) for name in self.keys) if self.keys else item
            if key in seen:
                what = ", ".join(self.keys) if self.keys else "value"
                raise PydanticCustomError(
                    "duplicate",
                    "{expected}",
                    {"index": index, "expected": f"each {what} at most once", "found": item},
                )
            seen.add(key)
        return value

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        json_schema = handler(schema)
        json_schema["maxItems"] = self.most
        if self.least:
            json_schema["minItems"] = self.least
        if self.keys:
            json_schema["x-kubernetes-list-type"] = "map"
            json_schema["x-kubernetes-list-map-keys"] = list(self.keys)
        else:
            json_schema["x-kubernetes-list-type"] = "set" if self.unique else "atomic"
        return json_schema


def by_alias(item: BaseModel, alias: str) -> Any:
    """The value of a field by the name that the API has for it. Raises KeyError where there is none."""
    for name, field in type(item).model_fields.items():
        if field.alias == alias:
            return getattr(item, name)
    raise KeyError(alias)


DNS_LABEL_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"

DnsLabel = Annotated[
    str,
    Text(
        DNS_LABEL_PATTERN,
        63,
        "a DNS label: lower-case letters, digits and '-', at most 63, for example team-a",
    ),
]
#: Names of cluster-scoped kinds that others refer to; at most 63, since they become label values too.
ObjectName = Annotated[
    str,
    Text(
        DNS_SUBDOMAIN_PATTERN,
        63,
        "a DNS name: lower-case letters, digits, '-' and '.', at most 63, for example h100-80gb",
    ),
]
DnsSubdomain = Annotated[
    str, Text(DNS_SUBDOMAIN_PATTERN, 253, "a DNS name: lower-case letters, digits, '-' and '.', at most 253")
]
ResourceName = Annotated[
    str,
    Text(
        r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        253,
        "a resource name, for example nvidia.com/gpu",
    ),
]
PciAddress = Annotated[
    str,
    Text(
        r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$",
        16,
        "a PCI address in lower case, for example 0000:17:00.0",
    ),
]
#: A device as granted: the PCI address of its GPU, followed by the slice where it is one.
DeviceId = Annotated[str, Text(r"^[0-9A-Za-z][0-9A-Za-z:./_#-]*$", 64, "a device, for example 0000:17:00.0")]
Uid = Annotated[str, Text(r"^[0-9A-Za-z-]+$", 64, "a uid")]
#: GPUs as people read them, at most two decimals.
GpuAmount = Annotated[str, Text(r"^[0-9]+(\.[0-9]{1,2})?$", 16, "an amount of GPUs, for example 2.25")]
#: A part of a whole, or how many times it; exact enough to compare by eye.
Share = Annotated[str, Text(r"^[0-9]+(\.[0-9]{1,4})?$", 24, "a share, for example 0.25")]
FreeText = Annotated[str, Field(max_length=1024)]
Reason = Annotated[str, Text(r"^[A-Z][A-Za-z0-9]*$", 64, "a reason in CamelCase")]
Timestamp = Annotated[
    str,
    Text(
        r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?Z$",
        40,
        "a time in UTC, for example 2026-01-02T03:04:05Z",
    ),
]

Generation = Annotated[int, Field(ge=0)]


class ObjectMeta(ApiModel):
    """The part of `metadata` that we read; the rest of it belongs to the API server and is ignored."""

    model_config = ConfigDict(extra="ignore")

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: Annotated[tuple[str, ...], Items(most=1024)] = ()
    owner_references: Annotated[tuple[dict[str, Any], ...], Items(most=1024)] = ()

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value}


class Condition(ApiModel):
    """One observation of the object, as in metav1.Condition."""

    type: Annotated[str, Text(r"^[A-Z][A-Za-z]*$", 64, "a condition type in CamelCase")] = Field(
        description="What is observed."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it is so.")
    reason: Reason = Field(description="Why, as one word for programs.")
    message: Annotated[str, Field(max_length=4096)] = Field(
        default="", description="Why, as a sentence for people."
    )
    last_transition_time: Timestamp = Field(description="When `status` changed last.")
    observed_generation: Generation = Field(default=0, description="The generation that was judged.")


Conditions = Annotated[tuple[Condition, ...], Items(most=16, keys=("type",))]


class Status(ApiModel):
    """What every status has."""

    observed_generation: Generation | None = Field(
        default=None,
        description="The generation of the spec that this status is about; never ahead of what was applied.",
    )
    conditions: Conditions = Field(default=(), description="Observations, one per type.")


class PrinterColumn(BaseModel):
    """A column of `kubectl get`."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    name: str
    json_path: str
    type: Literal["string", "integer", "date"] = "string"
    priority: Literal[0, 1] = 0


AGE: Final = PrinterColumn(name="Age", json_path=".metadata.creationTimestamp", type="date")


class Kind(ApiModel):
    """Base of the kinds. Class attributes say what a CRD needs beside the schema."""

    plural: ClassVar[str]
    short_name: ClassVar[str]
    namespaced: ClassVar[bool] = False
    has_status: ClassVar[bool] = True
    #: Names are DNS labels (they become parts of host names and namespaces); else DNS names.
    name_is_label: ClassVar[bool] = False
    name_length: ClassVar[int] = 63
    columns: ClassVar[tuple[PrinterColumn, ...]] = ()

    api_version: Literal["vmtenancy.io/v1alpha1"] = "vmtenancy.io/v1alpha1"
    metadata: ObjectMeta

    @classmethod
    def name_text(cls) -> Text:
        """What a name of this kind has to be."""
        pattern, means = (
            (DNS_LABEL_PATTERN, "a DNS label: lower-case letters, digits and '-'")
            if cls.name_is_label
            else (DNS_SUBDOMAIN_PATTERN, "a DNS name: lower-case letters, digits, '-' and '.'")
        )
        return Text(pattern, cls.name_length, f"{means}, at most {cls.name_length}")

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        text, name = self.name_text(), self.metadata.name
        if len(name) > text.max_length or re.fullmatch(text.pattern, name) is None:
            raise PydanticCustomError("name", "{expected}", {"expected": text.means, "found": name})
        return self
