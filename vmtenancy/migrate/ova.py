"""OVA archives: the descriptor in them, and nothing that an archive should not have.

Only headers are read, so that an archive may be as large as its disks are. Not by `tarfile`: it reads an extended
header whole, however long that says it is. Rules: DMTF DSP0243 (a tar whose first file is the descriptor), POSIX ustar
and pax.
"""

from __future__ import annotations

from typing import BinaryIO, Final

from vmtenancy.migrate.text import refuse

_BLOCK: Final = 512
#: As many members as an archive may have, and as many bytes as a header of names.
_MEMBERS: Final = 10_000
_NAMES: Final = 1 << 20
#: More than any archive has.
_MOST: Final = 1 << 50


def is_archive(head: bytes) -> bool:
    """Whether a file that begins like this is a tar."""
    return head[257:262] == b"ustar"


def descriptor(file: BinaryIO, most: int) -> bytes:
    """The descriptor of an archive, at most `most` bytes.

    Raises VmtError (SOURCE): for names that lead out of it, links and devices, and for what is too large.
    """
    found: bytes | None = None
    name, members, offset = "", 0, 0
    while True:
        file.seek(offset)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK or not any(header):
            break
        members += 1
        if members > _MEMBERS:
            raise refuse(f"byte {offset}", "has too many members", expected=f"at most {_MEMBERS}")
        size, kind = _size(header, offset), header[156:157]
        offset += _BLOCK
        if kind in (b"x", b"g", b"L", b"K"):
            if size > _NAMES:
                raise refuse(
                    f"byte {offset - _BLOCK}",
                    "has a header that is too large",
                    f"{size} bytes",
                    f"at most {_NAMES}",
                )
            name = _long_name(file.read(size), kind, offset) or name
        else:
            name = name or _text(header[345:500]) + "/" * bool(header[345]) + _text(header[:100])
            if kind not in (b"0", b"\0", b"5", b"7"):
                raise refuse(
                    name, "is a link or device", f"type {kind.decode('ascii', 'replace')}", "files only"
                )
            parts = name.replace("\\", "/").split("/")
            if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
                raise refuse(name, "leads out of the archive", name, "a plain file name")
            if name.lower().endswith(".ovf"):
                if found is not None:
                    raise refuse(name, "is a second descriptor", expected="one file that ends in .ovf")
                if size > most:
                    raise refuse(name, "is too large", f"{size} bytes", f"at most {most}")
                found = file.read(size)
                if len(found) < size:
                    raise refuse(name, "is cut off", f"{len(found)} of {size} bytes")
            name = ""
        offset += -(-size // _BLOCK) * _BLOCK
    if found is None:
        raise refuse("", "has no descriptor", expected="a file that ends in .ovf")
    return found


def _size(header: bytes, offset: int) -> int:
    total = sum(header[:148]) + 8 * 32 + sum(header[156:])
    field = header[124:136]
    try:
        if int(header[148:156].split(b"\0")[0].strip() or b"0", 8) != total:
            raise ValueError
        octal = field.split(b"\0")[0].strip() or b"0"
        # Base 256 is for what is larger than the octal digits.
        size = int.from_bytes(field[1:], "big") if field[0] & 0x80 else int(octal, 8)
        if not 0 <= size < _MOST:
            raise ValueError
        return size
    except ValueError:
        raise refuse(f"byte {offset}", "is no header of a tar", expected="an OVA that is whole") from None


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "replace")


def _long_name(data: bytes, kind: bytes, offset: int) -> str:
    """The name that a pax or GNU header gives to the next member; other records do not concern us, but sizes do."""
    if kind == b"L":
        return _text(data)
    name = ""
    for record in data.split(b"\n") if kind in (b"x", b"g") else ():
        key, _, value = record.partition(b" ")[2].partition(b"=")
        if key == b"path" and kind == b"x":
            name = value.decode("utf-8", "replace")
        elif key == b"size":
            raise refuse(f"byte {offset}", "has a size in a pax header", expected="sizes in the headers")
    return name
