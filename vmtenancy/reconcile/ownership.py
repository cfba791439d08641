"""Which fields of an object are still as we applied them, by the API server's own account: `metadata.managedFields`.

The account of an apply is a set of paths (`fieldsV1`). When anyone else writes another value into a field, or removes
it, the API server takes the path out of it. So a child was changed by hand where a path that we apply is missing; what
others added beside it is theirs. Format: k8s.io/apimachinery, `FieldsV1`; sigs.k8s.io/structured-merge-diff.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from vmtenancy.api.names import FIELD_MANAGER
from vmtenancy.reconcile.steps import Object

Fields = dict[str, Any]
"""Paths as a tree: `f:name` a field, `k:{...}` an item of a list by its keys, `v:...` an item by its value."""

#: Not fields that anyone owns: they name the object, or guard the write.
_NAMES: Final = frozenset({"apiVersion", "kind"})
_METADATA: Final = frozenset({"name", "namespace", "uid", "resourceVersion"})


def is_our_apply(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of `managedFields` is the account of what we applied."""
    return (
        entry.get("manager") == FIELD_MANAGER
        and entry.get("operation") == "Apply"
        and not entry.get("subresource")
    )


def lost_fields(applied: Object, stored: Object) -> list[str]:
    """Paths of `applied` that are not ours any more in the object as stored, for people and in order."""
    entries = stored["metadata"].get("managedFields") or ()
    ours: Fields = next((entry["fieldsV1"] for entry in entries if is_our_apply(entry)), {})
    return list(_missing(_owned_part(applied), ours, ""))


def fields_of(applied: Object) -> Fields:
    """The account that the API server makes of an apply, with every list as one field."""
    return _fields(_owned_part(applied))


def without_changed(fields: Fields, before: Any, after: Any) -> Fields:
    """What is left of an account of `fields_of` once someone else has written `after` over `before`."""
    left = {}
    for key, inner in fields.items():
        name = key.removeprefix("f:")
        if not isinstance(after, Mapping) or name not in after:
            continue
        if not inner and before[name] == after[name]:
            left[key] = inner
        elif inner and (kept := without_changed(inner, before[name], after[name])):
            left[key] = kept
    return left


def _owned_part(obj: Object) -> Object:
    metadata = {key: value for key, value in obj["metadata"].items() if key not in _METADATA}
    return {key: value for key, value in obj.items() if key not in _NAMES} | {"metadata": metadata}


def _fields(value: Any) -> Fields:
    return {f"f:{key}": _fields(inner) for key, inner in value.items()} if isinstance(value, Mapping) else {}


def _missing(value: Any, owned: Fields, path: str) -> Iterator[str]:
    """What of `value` is not in `owned`. An owned path with nothing below it is owned as a whole."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _missing_at(inner, owned.get(f"f:{key}"), f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _missing_at(inner, _item(inner, owned), f"{path}[{index}]")


def _missing_at(value: Any, owned: Fields | None, path: str) -> Iterator[str]:
    if value is None or value in ({}, []):
        return  # the API server may leave out what is empty
    if owned is None:
        yield path
    elif owned:
        yield from _missing(value, owned, path)


def _item(item: Any, owned: Fields) -> Fields | None:
    """The account of a list's item. A key may have a default that the item does not spell out."""
    for key, inner in owned.items():
        if key.startswith("v:") and json.loads(key[2:]) == item:
            return dict(inner)
        if key.startswith("k:") and isinstance(item, Mapping):
            keys: Mapping[str, Any] = json.loads(key[2:])
            if all(item.get(name, wanted) == wanted for name, wanted in keys.items()):
                return dict(inner)
    return None
