"""CustomResourceDefinitions from the models: `python -m vmtenancy.api.crdgen [--check] DIR`.

Pydantic's JSON schema becomes what Kubernetes calls structural: references inlined, one type per value, no
null. `crds/` holds the result; with `--check` nothing is written, and the exit status is 1 where a file
differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic.json_schema import JsonSchemaValue

from vmtenancy.api.common import Kind
from vmtenancy.api.names import GROUP, VERSION
from vmtenancy.api.parsing import KINDS

_HEADER: Final = "# Made from the models by `python -m vmtenancy.api.crdgen crds`; do not edit.\n"
#: Keywords that Kubernetes refuses, or that say what a structural schema says anyway.
_DROPPED: Final = frozenset({"title", "$defs", "additionalProperties", "const"})


def crd(model: type[Kind]) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    kind = model.__name__
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [
            column.model_dump(by_alias=True, exclude_defaults=True) | {"type": column.type}
            for column in model.columns
        ],
        "schema": {"openAPIV3Schema": object_schema(model)},
    }
    if model.has_status:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{model.plural}.{GROUP}", "labels": {"app.kubernetes.io/part-of": "vmtenancy"}},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": model.plural,
                "singular": kind.lower(),
                "shortNames": [model.short_name],
                "categories": ["vmtenancy"],
            },
            "scope": "Namespaced" if model.namespaced else "Cluster",
            "versions": [version],
        },
    }


def object_schema(model: type[Kind]) -> JsonSchemaValue:
    """The structural schema of a kind's objects."""
    source = model.model_json_schema(by_alias=True)
    schema = _structural(source, source.get("$defs", {}))
    properties = schema["properties"]
    name = model.name_text()
    properties["apiVersion"] = {"type": "string", "description": f"{GROUP}/{VERSION}."}
    properties["kind"] = {"type": "string", "description": f"{model.__name__}."}
    properties["metadata"] = {
        "type": "object",
        "properties": {"name": {"type": "string", "pattern": name.pattern, "maxLength": name.max_length}},
    }
    # Observation is never filled in by the API server.
    properties.get("status", {}).pop("default", None)
    order = [key for key in ("apiVersion", "kind", "metadata", "spec", "status") if key in properties]
    schema["properties"] = {key: properties[key] for key in order}
    schema["required"] = [key for key in schema.get("required", ()) if key != "metadata"] or ["spec"]
    if "default" in properties["spec"]:
        del schema["required"]
    return schema


def _structural(node: JsonSchemaValue, defs: Mapping[str, JsonSchemaValue]) -> JsonSchemaValue:
    node = _resolve(node, defs)
    result: JsonSchemaValue = {}
    if "description" in node:
        result["description"] = " ".join(node["description"].split())
    result |= {key: value for key, value in node.items() if key not in _DROPPED and key not in result}
    if "properties" in node:
        result["properties"] = {key: _structural(value, defs) for key, value in node["properties"].items()}
    if isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(node["additionalProperties"], defs)
    if "items" in node:
        result["items"] = _structural(node["items"], defs)
    if result.get("type") == "integer":
        result["format"] = "int64"
    match node.get("default"):
        case dict() if "properties" in result:
            # The API server fills in the defaults of its fields.
            result["default"] = {}
        case None | {} | []:
            result.pop("default", None)
        case default:
            result["default"] = _without_null(default)
    return result


def _without_null(value: Any) -> Any:
    match value:
        case dict():
            return {key: _without_null(item) for key, item in value.items() if item is not None}
        case list():
            return [_without_null(item) for item in value]
    return value


def _resolve(node: JsonSchemaValue, defs: Mapping[str, JsonSchemaValue]) -> JsonSchemaValue:
    """`node` without reference and without the null of an optional field; what is said at the field wins."""
    while True:
        options = [option for option in node.get("anyOf", ()) if option != {"type": "null"}]
        if "$ref" in node:
            inner = defs[node["$ref"].rpartition("/")[2]]
            node = {**inner, **{key: value for key, value in node.items() if key != "$ref"}}
        elif len(options) == 1:
            node = {**options[0], **{key: value for key, value in node.items() if key != "anyOf"}}
        else:
            return node


class _Dumper(yaml.SafeDumper):
    """Writes shared objects out in full: anchors are no part of a manifest."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def manifests() -> dict[str, str]:
    """File name to text, for every kind."""
    return {
        f"{model.plural}.yaml": _HEADER
        + yaml.dump(crd(model), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
        for model in KINDS.values()
    }


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """One line for each file that is missing, differs, or should not be there."""
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            lines.append(f"{name}: missing")
        elif name not in expected:
            lines.append(f"{name}: not generated from any model")
        elif expected[name] != found[name]:
            lines.append(f"{name}: differs")
    return lines


def run(texts: Callable[[], dict[str, str]], suffix: str, arguments: list[str] | None = None) -> int:
    """Write `texts()` into a folder or, with `--check`, compare; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file differs")
    parser.add_argument("directory", type=Path)
    options = parser.parse_args(arguments)
    directory: Path = options.directory
    expected = texts()
    if options.check:
        wrong = differences(expected, {path.name: path.read_text() for path in directory.glob(f"*{suffix}")})
        sys.stderr.writelines(f"{directory / line}\n" for line in wrong)
        return 1 if wrong else 0
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in expected.items():
        (directory / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(run(manifests, ".yaml"))
