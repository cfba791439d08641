"""One YAML document, read the strict way: every value is JSON, and nothing in it can grow or hide.

Refused are anchors and aliases (a few lines of them make millions of nodes), keys given twice (the last would
win in silence), a second document, tags, keys that are no strings, NaN and infinity, and deep nesting. Dates stay
strings.
"""

from __future__ import annotations

import math
from typing import Any, Final

import yaml

MAX_DEPTH: Final = 40


class DocumentError(ValueError):
    """The text is not one plain document; the message says where."""


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _error(event.start_mark, "anchors and aliases are not allowed")
        if getattr(event, "tag", None) is not None:
            raise _error(event.start_mark, "tags are not allowed")
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_document(text: str) -> Any:
    """Return the one document in `text` (None when it is empty). Raises `DocumentError`."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _value(loader, node, 1)
    except yaml.MarkedYAMLError as error:
        raise _error(error.problem_mark, error.problem or "this is no YAML") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"this is no YAML: {error}") from error
    finally:
        loader.dispose()


def _value(loader: _Loader, node: yaml.Node, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise _error(node.start_mark, f"nested more than {MAX_DEPTH} deep")
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, depth + 1) for item in node.value]
    if not isinstance(node, yaml.MappingNode):
        value = loader.construct_object(node)
        if isinstance(value, float) and not math.isfinite(value):
            raise _error(node.start_mark, "a number must be finite")
        return value
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _value(loader, key_node, depth + 1)
        if not isinstance(key, str):
            raise _error(key_node.start_mark, f"a key must be a string, not {key!r}")
        if key in found:
            raise _error(key_node.start_mark, f"the key {key!r} is given twice")
        found[key] = _value(loader, value_node, depth + 1)
    return found


def _error(mark: yaml.Mark | None, message: str) -> DocumentError:
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return DocumentError(where + message)
