"""Reference pages from the models, one per kind: `python -m vmtenancy.api.reference [--check] DIR`.

A page is made from the kind's CRD schema, so that it says what the API server enforces.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, Final

from pydantic.json_schema import JsonSchemaValue

from vmtenancy.api.common import Kind
from vmtenancy.api.crdgen import object_schema, run
from vmtenancy.api.names import API_VERSION
from vmtenancy.api.parsing import KINDS
from vmtenancy.api.quantity import PATTERN as QUANTITY_PATTERN

_HEADER: Final = (
    "<!-- Made from the models by `python -m vmtenancy.api.reference docs/reference`; do not edit. -->\n"
)


def page(model: type[Kind]) -> str:
    """The page of one kind, in Markdown."""
    kind = model.__name__
    schema = object_schema(model)
    name = model.name_text()
    parts = [
        _HEADER,
        f"# {kind}\n",
        f"{schema['description']}\n",
        f"- API version: `{API_VERSION}`; {'namespaced' if model.namespaced else 'cluster-scoped'}",
        f"- `kubectl get {model.plural}`, or `{model.short_name}`",
        f"- `metadata.name`: {name.means}\n",
    ]
    for part in ("spec", "status"):
        if part in schema["properties"]:
            parts += [f"## {part}\n", *_section(schema["properties"][part], part)]
    return "\n".join(parts).rstrip("\n") + "\n"


def _section(schema: JsonSchemaValue, part: str) -> Iterator[str]:
    if description := schema.get("description"):
        yield f"{description}\n"
    yield "| field | type | what it is |"
    yield "|---|---|---|"
    for path, field, required in _fields(schema, part):
        text = field.get("description", "")
        facts = [*(["Required."] if required else []), *_facts(field)]
        yield f"| `{path}` | {_type(field)} | {_cell(' '.join([text, *facts]).strip())} |"
    yield ""
    rules = list(dict.fromkeys(_rules(schema, part)))
    if rules:
        yield "Beyond types and limits:\n"
        yield from (f"- {rule}" for rule in rules)
        yield ""


def _fields(schema: JsonSchemaValue, path: str) -> Iterator[tuple[str, JsonSchemaValue, bool]]:
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return  # an overlay: what is declared in it are the paths that are refused
    for key, field in schema.get("properties", {}).items():
        inner = f"{path}.{key}"
        yield inner, field, key in schema.get("required", ())
        items = field.get("items", field)
        yield from _fields(items, f"{inner}[]" if "items" in field else inner)


def _rules(schema: JsonSchemaValue, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if schema.get("pattern") != QUANTITY_PATTERN:
            yield f"`{path}{rule.get('fieldPath', '')}`: {rule['message']}."
    for key, field in schema.get("properties", {}).items():
        inner = f"{path}.{key}"
        yield from _rules(field, inner)
        if "items" in field:
            yield from _rules(field["items"], f"{inner}[]")


def _type(field: JsonSchemaValue) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    match field.get("type"):
        case "array":
            return f"list of {_type(field['items'])}"
        case "object" if isinstance(field.get("additionalProperties"), dict):
            return f"map of {_type(field['additionalProperties'])}"
        case kind:
            return str(kind)


def _facts(field: JsonSchemaValue) -> Iterator[str]:
    if "enum" in field:
        yield "One of " + ", ".join(f"`{_literal(value)}`" for value in field["enum"]) + "."
    if field.get("pattern") == QUANTITY_PATTERN:
        yield "Greater than 0."
    if "minimum" in field and "maximum" in field:
        yield f"{field['minimum']} to {field['maximum']}."
    elif "minimum" in field:
        yield f"At least {field['minimum']}."
    if "maxItems" in field:
        yield f"{field.get('minItems', 0)} to {field['maxItems']} items."
    if keys := field.get("x-kubernetes-list-map-keys"):
        yield f"Each `{', '.join(keys)}` once."
    if "default" in field and not isinstance(field["default"], dict):
        yield f"Default `{_literal(field['default'])}`."


def _literal(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def pages() -> dict[str, str]:
    """File name to text, for every kind."""
    return {f"{name.lower()}.md": page(model) for name, model in KINDS.items()}


if __name__ == "__main__":
    sys.exit(run(pages, ".md"))
