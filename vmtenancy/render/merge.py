"""Laying one part of a spec over another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def merge(base: Any, overlay: Any) -> Any:
    """Return `base` with `overlay` laid over it; neither is changed.

    Mappings are merged key by key, and null in the overlay removes the key. Lists whose items all have a name (`name`,
    or `metadata.name`) are merged item by item: items of the same name are merged, new ones are appended. Anything
    else, an empty list too, replaces what was there.
    """
    if isinstance(base, Mapping) and isinstance(overlay, Mapping):
        merged = dict(base)
        for key, value in overlay.items():
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = merge(merged.get(key), value)
        return merged
    if isinstance(base, list) and isinstance(overlay, list) and base and overlay:
        names = [_name(item) for item in (*base, *overlay)]
        if all(names):
            return _merge_named(base, overlay)
    return without_nulls(overlay)


def _merge_named(base: Sequence[Any], overlay: Sequence[Any]) -> list[Any]:
    items = {_name(item): item for item in base}
    for item in overlay:
        name = _name(item)
        items[name] = merge(items.get(name), item)
    return list(items.values())


def _name(item: Any) -> str:
    if not isinstance(item, Mapping):
        return ""
    metadata = item.get("metadata")
    name = item.get("name") or (metadata.get("name") if isinstance(metadata, Mapping) else None)
    return name if isinstance(name, str) else ""


def without_nulls(value: Any) -> Any:
    """Return `value` without the keys of its mappings that are null, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
