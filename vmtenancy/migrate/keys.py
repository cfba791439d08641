"""Flat `key = value` descriptions: values by key, and which were never asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from vmtenancy.migrate.model import Lost
from vmtenancy.migrate.text import integer, refuse, shown

_MOST: Final = 20_000


class Keys:
    """Values by key, case ignored. Asking marks a key as read; `unread` has the others.

    Raises VmtError (SOURCE) for more of them than a machine can have.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        if len(values) > _MOST:
            raise refuse("", "has too many entries", str(len(values)), f"at most {_MOST}")
        self._values = {key.lower(): value for key, value in values.items()}
        self._spelt = {key.lower(): key for key in values}
        self._read: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, key: str) -> bool:
        return key.lower() in self._values

    def get(self, key: str, default: str = "") -> str:
        """The value of a key."""
        self._read.add(key.lower())
        return self._values.get(key.lower(), default)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Whether it is switched on."""
        return self.get(key, "1" if default else "0").strip().lower() in ("true", "1", "yes", "on", "enabled")

    def number(self, key: str, default: int, least: int = 0) -> int:
        """A whole number. Raises VmtError (SOURCE)."""
        value = self.get(key).strip()
        return integer(self.spelt(key), value, least=least) if value else default

    def spelt(self, key: str) -> str:
        """The key as the file has it."""
        return self._spelt.get(key.lower(), key)

    def skip(self, prefixes: Iterable[str]) -> None:
        """Mark what begins like this as read: it says nothing of the machine itself."""
        starts = tuple(prefix.lower() for prefix in prefixes)
        self._read.update(key for key in self._values if key.startswith(starts))

    def unread(self) -> Iterator[Lost]:
        """Everything that nobody asked for."""
        for key, value in self._values.items():
            if key not in self._read:
                yield Lost(self._spelt[key], shown(key, value), "no field of a KubeVirt machine takes it")
