"""Texts of sources: numbers and sizes with one clear error, and values that must not be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from vmtenancy.errors import Code, Problem, VmtError

HIDDEN: Final = "(not shown)"
#: As much of a value as is shown, and as is looked at for it.
_SHOWN: Final = 200
_SEEN: Final = 4096
_SECRET_NAME: Final = re.compile(
    r"pass(w(or)?d|phrase)?(?![a-z])|passw|secret(?!type)|token|credential|private.?key|(?:^|[.@_-])key$|admin_?pass|user.?data",
    re.I,
)
_SECRET_IN_TEXT: Final = re.compile(
    r"((?<![\w.-])(?:[\w.-]*?(?:passw|passphrase|secret|token|api_?key|osk)[\w.-]*|pass)\"?\s*[=:]\s*)"
    r"(\"[^\"]*\"|'[^']*'|[^\s,;&]+)",
    re.I,
)
_USER_IN_URL: Final = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.I)
_PEM: Final = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S)
_PCI: Final = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,4}):([0-9a-f]{1,2})(?:\.([0-9a-f]))?", re.I)


def refuse(path: str, message: str, found: str = "", expected: str = "") -> VmtError:
    """The error for a source that can not be read; `found` is shown as far as it may be."""
    return VmtError(Problem(Code.SOURCE, path, message, shown(path, found) if found else "", expected))


def shown(name: str, value: str) -> str:
    """`value` on one line as far as it may be shown under this name: no credentials, and cut when long."""
    if _SECRET_NAME.search(name.rpartition("/")[2]):
        return HIDDEN
    text = " ".join(without_credentials(value[:_SEEN]).split())
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def without_credentials(text: str) -> str:
    """`text` with what looks like a password, token or private key in it hidden."""
    text = _USER_IN_URL.sub(rf"\1{HIDDEN}@", _PEM.sub(HIDDEN, text))
    return _SECRET_IN_TEXT.sub(rf"\1{HIDDEN}", text)


def integer(path: str, text: str, least: int = 0, most: int = 1 << 62, base: int = 10) -> int:
    """A whole number. `base` 0: as C writes it, `0x` for hex and `0` for octal. Raises VmtError (SOURCE)."""
    digits = text.strip()
    if base == 0:
        base = 16 if re.match(r"[-+]?0x", digits, re.I) else 8 if re.match(r"[-+]?0[0-9]", digits) else 10
    try:
        # int() also takes underscores and digits of other scripts, which no source means.
        value = int(digits, base) if re.fullmatch(r"[-+]?[0-9A-Za-z]+", digits, re.ASCII) else None
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        bounds = f"a whole number of at least {least}" + (f", at most {most}" if most < 1 << 62 else "")
        raise refuse(path, "invalid value", text or "nothing", bounds)
    return value


def scaled(path: str, text: str, unit: str, units: Mapping[str, int]) -> int:
    """A whole number in `unit`, in bytes; `units` by their names in lower case. Raises VmtError (SOURCE)."""
    if unit.lower() not in units:
        raise refuse(path, "unknown unit", unit, f"one of {', '.join(units)}")
    return integer(path, text) * units[unit.lower()]


def pci_address(text: str, *, decimal: bool = False) -> str | None:
    """`0000:01:00.0`, or `0000:01:00` for a whole card, from the ways in which it is written; None: it is none.

    With `decimal`, domain, bus and slot are decimal, as VMware writes them.
    """
    match = _PCI.fullmatch(text.strip())
    if match is None:
        return None
    try:
        domain, bus, slot = (int(part or "0", 10 if decimal else 16) for part in match.groups()[:3])
    except ValueError:
        return None
    function = "" if match[4] is None else f".{int(match[4], 16)}"
    if bus > 0xFF or slot > 0xFF:
        return None
    return f"{domain:04x}:{bus:02x}:{slot:02x}{function}"


def pci_ids(vendor: int, device: int) -> str:
    """`10de:2330`. Negative numbers are sixteen bits with a sign."""
    return f"{vendor & 0xFFFF:04x}:{device & 0xFFFF:04x}"
