"""Overlays: objects of another API that users may fill freely, except for the paths that vmtenancy owns.

One table of owned paths gives the Python check, the CEL rules and the schema that they need: CEL sees only
declared properties, so each owned path and what leads to it is declared, with a type; the rest stays unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

#: Schemas of owned fields. They are never filled, so they are as open as a structural schema allows.
_OPEN: Final[dict[str, JsonSchemaValue]] = {
    "object": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    "array": {
        "type": "array",
        "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "maxItems": 64,
        "x-kubernetes-list-type": "atomic",
    },
    "string": {"type": "string", "maxLength": 253},
    "boolean": {"type": "boolean"},
}
#: CEL for the text of an owned field's value; what has no bounded text is named by its type.
_SHOWN: Final[dict[str, str]] = {
    "object": "'an object'",
    "array": "'a list'",
    "string": "{}",
    "boolean": "({} ? 'true' : 'false')",
}


@dataclass(frozen=True, slots=True)
class OwnedPath:
    """A path of an overlay that vmtenancy sets itself, the type it has there, and what to use instead."""

    path: str
    type: str
    instead: str

    @property
    def keys(self) -> tuple[str, ...]:
        """The path's parts."""
        return tuple(self.path.split("."))

    def find(self, overlay: dict[str, Any]) -> Any:
        """What `overlay` has there, None where it has nothing."""
        at: Any = overlay
        for key in self.keys:
            if not isinstance(at, dict) or key not in at:
                return None
            at = at[key]
        return at

    def blocked(self, overlay: dict[str, Any]) -> tuple[str, Any] | None:
        """The first part of the way there that is no object, which the schema wants it to be, and what it is."""
        at: Any = overlay
        for end, key in enumerate(self.keys[:-1], start=1):
            if key not in at:
                return None
            at = at[key]
            if not isinstance(at, dict):
                return ".".join(self.keys[:end]), at
        return None

    def rule(self) -> JsonSchemaValue:
        """As `x-kubernetes-validations` of the overlay."""
        keys = self.keys
        prefixes = [".".join(("self", *keys[: end + 1])) for end in range(len(keys))]
        text = f"{self.path} is set by vmtenancy, expected nothing here: {self.instead}"
        return {
            "rule": "!(" + " && ".join(f"has({prefix})" for prefix in prefixes) + ")",
            "message": text,
            "messageExpression": f"'found ' + {_SHOWN[self.type].format(prefixes[-1])} + ', but {text}'",
            "fieldPath": f".{self.path}",
            "reason": "FieldValueForbidden",
        }


@dataclass(frozen=True, slots=True)
class Overlay:
    """Annotation of a `dict[str, Any]` field."""

    owned: tuple[OwnedPath, ...] = field(default=())

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: dict[str, Any]) -> dict[str, Any]:
        found = [(owned, owned.find(value)) for owned in self.owned if owned.find(value) is not None]
        if found:
            raise PydanticCustomError("owned", "{text}", {"text": "an owned path is set", "found": found})
        blocked = dict(way for owned in self.owned if (way := owned.blocked(value)) is not None)
        if blocked:
            raise PydanticCustomError("shape", "{text}", {"text": "not an object", "found": blocked})
        return value

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        root: JsonSchemaValue = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        for owned in self.owned:
            at = root
            *parents, last = owned.keys
            for key in parents:
                at = at.setdefault("properties", {}).setdefault(
                    key, {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
                )
            at.setdefault("properties", {})[last] = dict(_OPEN[owned.type])
        root["x-kubernetes-validations"] = [owned.rule() for owned in self.owned]
        return root
