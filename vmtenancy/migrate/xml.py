"""XML from strangers: no document types, no entities, bounded depth; and what of it was never read.

A reader asks a `Node` for what it knows; `unread` then names everything that it did not ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.parsers import expat

from vmtenancy.migrate.text import HIDDEN, refuse, shown

_DEPTH: Final = 64
_NODES: Final = 50_000


class Node:
    """An element, by its local name. Asking marks what was asked for as read."""

    __slots__ = (
        "_attributes",
        "_counts",
        "_position",
        "_read",
        "_texts",
        "_wanted",
        "nodes",
        "parent",
        "tag",
    )

    def __init__(self, tag: str, attributes: dict[str, str], parent: Node | None) -> None:
        self.tag, self.parent = tag, parent
        self._counts: dict[str, int] = {}
        self._position = 1
        if parent is not None:
            self._position = parent._counts[tag] = parent._counts.get(tag, 0) + 1
            parent.nodes.append(self)
        self.nodes: list[Node] = []
        self._attributes = attributes
        self._texts: list[str] = []
        self._read: set[str] = set()
        self._wanted = False

    @property
    def path(self) -> str:
        """`domain/devices/hostdev[2]`, counted among siblings of one name where there are several."""
        if self.parent is None:
            return self.tag
        index = f"[{self._position}]" if self.parent._counts[self.tag] > 1 else ""
        return f"{self.parent.path}/{self.tag}{index}"

    def rename(self, tag: str) -> None:
        """Call it by what it is, where a format says so in an attribute."""
        self.tag = tag
        if self.parent is not None:
            self._position = self.parent._counts[tag] = self.parent._counts.get(tag, 0) + 1

    def get(self, name: str, default: str = "") -> str:
        """An attribute, by its local name."""
        self._read.add(name)
        return self._attributes.get(name, default)

    def at(self, name: str) -> str:
        """The path of an attribute."""
        return f"{self.path}@{name}"

    @property
    def text(self) -> str:
        """Its own text, without white space around it."""
        self._wanted = True
        return "".join(self._texts).strip()

    def all(self, *tags: str) -> list[Node]:
        """Its children of these names."""
        return [node for node in self.nodes if node.tag in tags]

    def find(self, way: str) -> Node | None:
        """The first node down a way of names, `os/type`."""
        at: Node | None = self
        for tag in way.split("/"):
            at = next((node for node in at.nodes if node.tag == tag), None) if at else None
        return at

    def text_of(self, way: str, default: str = "") -> str:
        """The text of the node down there."""
        node = self.find(way)
        return default if node is None else node.text

    def value(self, way: str, name: str, default: str = "") -> str:
        """An attribute of the node down there."""
        node = self.find(way)
        return default if node is None else node.get(name, default)

    def skip(self) -> None:
        """Mark it read with all that is in it: the reader knows that it says nothing of the machine itself."""
        self._read.update(self._attributes)
        self._wanted = True
        for node in self.nodes:
            node.skip()

    def unread(self) -> Iterator[tuple[str, str]]:
        """Path and value of everything that nobody asked for; an element of which nothing was, as one."""
        text = "".join(self._texts).strip()
        if self._untouched:
            yield self.path, self._summary()
            return
        for name, value in self._attributes.items():
            if name not in self._read:
                yield self.at(name), value
        if text and not self._wanted:
            yield self.path, shown(self.tag, text)
        for node in self.nodes:
            yield from node.unread()

    @property
    def _untouched(self) -> bool:
        return not (self._read or self._wanted) and all(node._untouched for node in self.nodes)

    def _summary(self) -> str:
        parts = [f"{name}={shown(name, value)}" for name, value in self._attributes.items()]
        text = "".join(self._texts).strip()
        parts += [HIDDEN if self.tag == "oemStrings" else shown(self.tag, text)] if text else []
        inside = () if self.tag == "oemStrings" else self.nodes  # credentials for systemd are given so
        parts += [f"{node.tag}({node._summary()})" for node in inside]
        return " ".join(parts)


def _local(name: str) -> str:
    return name.rpartition(":")[2]


def parse(data: bytes) -> Node:
    """The root element. Raises VmtError (SOURCE) for what is not well formed, and for attacks."""
    # Without namespaces: a prefix that nobody declared is no reason to read nothing.
    parser = expat.ParserCreate()
    # One character data call per text, and no other encodings than expat's own.
    parser.buffer_text = True
    root: list[Node] = []
    open_nodes: list[Node] = []
    count = 0

    def where() -> str:
        return f"line {parser.CurrentLineNumber}"

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if len(open_nodes) >= _DEPTH or count > _NODES:
            raise refuse(where(), "too large", expected=f"at most {_NODES} elements, {_DEPTH} deep")
        plain = {_local(key): value for key, value in attributes.items() if not key.startswith("xmlns")}
        parent = open_nodes[-1] if open_nodes else None
        node = Node(_local(name), plain, parent)
        if parent is None:
            root.append(node)
        open_nodes.append(node)

    def end(_: str) -> None:
        open_nodes.pop()

    def text(data: str) -> None:
        if open_nodes:
            open_nodes[-1]._texts.append(data)

    def doctype(*_: object) -> None:
        raise refuse(where(), "has a document type", "<!DOCTYPE", "none: entities are not read")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise refuse(f"line {error.lineno}", "is no well-formed XML", expat.ErrorString(error.code)) from None
    except (LookupError, ValueError) as error:  # an encoding that there is not
        raise refuse(where(), "can not be decoded", str(error), "UTF-8") from None
    return root[0]
