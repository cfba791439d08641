"""A backup: everything that vmtenancy knows, one JSON document per line.

The first line says what it is, the last one how many documents came between and their digest, so that a file that
was cut off is never taken for a whole one. All objects are read at one resourceVersion, page by page, and written
as they come. Secrets are not in it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from vmtenancy.api import parse
from vmtenancy.api.names import API_VERSION, TENANT_LABEL, VIRTUAL_CLUSTER_LABEL
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.kube.client import Client, path_of
from vmtenancy.kube.errors import KubeError, NotFoundError
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.world import is_deleting, labels_of, ref_of

#: Raised when an older vmtenancy could misread a newer file.
FORMAT: Final = 1
_HEADER, _TRAILER = "Backup", "BackupEnd"
#: What is in a backup. Namespaces come after what says which of them matter.
SAVED: Final = (
    *("GpuPool", "GpuClass", "GpuNode", "Cohort", "Tenant", "GpuGroup"),
    *("GpuReservation", "GpuVM", "VirtualCluster"),
    *("Namespace", "GpuLedger", "GpuAllocation"),
)
#: Owners, finalizers and versions mean nothing on another cluster. The uid tells what belonged to the object.
_METADATA: Final = ("name", "namespace", "uid", "creationTimestamp", "labels", "annotations")
#: One bad line is usually the same mistake on all of them.
_MOST_PROBLEMS: Final = 20


@dataclass(frozen=True, slots=True)
class Backup:
    """A file that was read and found whole. `objects` are those to bring back, `head` the ledger's at that time."""

    header: Mapping[str, Any]
    objects: tuple[Object, ...]
    head: Mapping[str, Any]


# -- writing ---------------------------------------------------------------------------------------------------


async def export(client: Client, write: Callable[[bytes], object], *, program: str) -> Mapping[str, int]:
    """Write a backup, line by line; the number of objects by kind. `program` is the version that writes it.

    Every kind is read at one resourceVersion, so the file shows one moment. Objects that are being deleted are left
    out. Raises `KubeError`; what was written until then has no last line.
    """
    digest = hashlib.sha256()
    counts: Counter[str] = Counter()

    def line(document: Mapping[str, Any]) -> None:
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        digest.update(text)
        write(text)

    version = await _version_now(client)
    line(await _header(client, version, program))
    used: set[str] = set()
    for kind in SAVED:
        async for page, _ in client.pages(KINDS[kind], at=version):
            for obj in page:
                if is_deleting(obj) or (kind == "Namespace" and not _is_tenants(obj, used)):
                    continue
                if kind in ("GpuVM", "VirtualCluster"):
                    used.add(obj["metadata"]["namespace"])
                line(_saved(obj))
                counts[kind] += 1
    trailer = {"apiVersion": API_VERSION, "kind": _TRAILER, "documents": counts.total()}
    line({**trailer, "sha256": digest.hexdigest()})
    return counts


async def _version_now(client: Client) -> str:
    try:
        answer = await client.request("GET", path_of(KINDS["GpuLedger"]), query={"limit": "1"})
    except NotFoundError as error:
        raise KubeError("the cluster has no GpuLedger: run `vmtenancy install` first") from error
    return str(answer["metadata"]["resourceVersion"])


async def _header(client: Client, version: str, program: str) -> Object:
    kubernetes = await client.request("GET", "/version")
    system = await client.get(KINDS["Namespace"], "", "kube-system")
    return {
        "apiVersion": API_VERSION,
        "kind": _HEADER,
        "format": FORMAT,
        "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "vmtenancy": program,
        "kubernetes": kubernetes["gitVersion"],
        # The uid of this namespace is how a cluster is usually told from others.
        "cluster": system["metadata"]["uid"],
        "resourceVersion": version,
    }


def _is_tenants(namespace: Object, used: set[str]) -> bool:
    labels = labels_of(namespace)
    # Host namespaces of virtual clusters are made anew by the controller.
    mine = TENANT_LABEL in labels and VIRTUAL_CLUSTER_LABEL not in labels
    return mine or namespace["metadata"]["name"] in used


def _saved(obj: Object) -> Object:
    metadata = {name: obj["metadata"][name] for name in _METADATA if name in obj["metadata"]}
    parts = () if obj["kind"] == "Namespace" else ("spec", "status")
    return {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "metadata": metadata,
        **{part: obj[part] for part in parts if part in obj},
    }


# -- reading ---------------------------------------------------------------------------------------------------


def read(lines: Iterable[bytes], name: str) -> Backup:
    """Read a backup and check all of it; `name` is how errors call the file.

    Raises `VmtError` with one problem for each document that can not be used, by line; a file that is no backup, of a
    newer format or not whole has one problem.
    """
    numbered = enumerate(lines, start=1)
    first = next(numbered, (1, b""))[1]
    header = _checked_header(first, name)
    digest = hashlib.sha256(first)
    reading = _Reading(name)
    for number, text in numbered:
        document = reading.document(number, text)
        if document.get("kind") == _TRAILER:
            reading.check_trailer(number, document, digest.hexdigest())
            break
        digest.update(text)
        reading.take(number, document)
        if len(reading.problems) >= _MOST_PROBLEMS:
            break
    else:
        cut = _bad(name, "the file is cut off", f"no {_TRAILER} as its last line", "a whole backup")
        reading.problems.append(cut)
    if reading.problems:
        raise VmtError.of(reading.problems)
    for number, text in numbered:
        if text.strip():
            where = f"{name}:{number}"
            raise VmtError(_bad(where, "more after the end", _short(text), f"nothing after {_TRAILER}"))
    return Backup(header, tuple(reading.objects), reading.head)


class _Reading:
    """What was read so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.objects: list[Object] = []
        self.counts: Counter[str] = Counter()
        self.head: Mapping[str, Any] = {}
        self.problems: list[Problem] = []
        self._lines: dict[Ref, int] = {}

    def document(self, number: int, text: bytes) -> Object:
        """The JSON object of a line; one that is none is a problem, and empty."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and isinstance(found.get("kind"), str):
            return found
        self.problems.append(
            _bad(f"{self.name}:{number}", "no document", _short(text), "a Kubernetes object as JSON")
        )
        return {}

    def take(self, number: int, document: Object) -> None:
        """Check one document, and keep what is brought back of it."""
        if not document:
            return
        where, kind = f"{self.name}:{number}", document["kind"]
        found = list(_problems(document, where))
        self.problems += found
        self.counts[kind] += 1
        if found:
            return
        ref = ref_of(document)
        if ref in self._lines:
            once = f"once: it is in line {self._lines[ref]} already"
            self.problems.append(_bad(where, "an object can be there once only", str(ref), once))
        self._lines[ref] = number
        if kind == "GpuLedger":
            self.head = document["spec"]
        elif kind != "GpuAllocation":
            self.objects.append(document)

    def check_trailer(self, number: int, trailer: Object, digest: str) -> None:
        """Whether all that was written is here, as it was written."""
        where, documents = f"{self.name}:{number}", self.counts.total()
        if self.problems:
            return
        if trailer.get("documents") != documents:
            expected = f"{trailer.get('documents')}, as the last line says"
            self.problems.append(_bad(where, "documents are missing or too many", str(documents), expected))
        elif trailer.get("sha256") != digest:
            expected = f"{trailer.get('sha256')}, as the last line says"
            self.problems.append(_bad(where, "the file was changed", f"sha256 {digest}", expected))


def _checked_header(text: bytes, name: str) -> Object:
    """The first line. Raises `VmtError` where it is not one that this version understands."""
    reading = _Reading(name)
    header = reading.document(1, text)
    if header.get("kind") != _HEADER or not isinstance(header.get("format"), int):
        raise VmtError(
            _bad(f"{name}:1", "no backup of vmtenancy", _short(text), "a file of `vmtenancy export`")
        )
    if header["format"] > FORMAT:
        expected = (
            f"at most {FORMAT}: use the vmtenancy that wrote it ({header.get('vmtenancy')}) or a newer one"
        )
        raise VmtError(_bad(f"{name}:1: format", "a newer format", str(header["format"]), expected))
    return header


def _problems(document: Object, where: str) -> Iterator[Problem]:
    kind = document["kind"]
    if kind not in SAVED:
        yield _bad(f"{where}: kind", "not part of a backup", kind, f"one of {', '.join(SAVED)}")
    elif kind == "Namespace":
        name = (document.get("metadata") or {}).get("name")
        if not isinstance(name, str) or not name:
            yield _bad(f"{where}: metadata.name", "a Namespace without a name", str(name), "a name")
    else:
        try:
            parse(document)
        except VmtError as error:
            for problem in error.problems:
                yield replace(problem, path=f"{where}: {problem.path}")


def _bad(path: str, message: str, found: str, expected: str) -> Problem:
    return Problem(Code.BACKUP, path, message, found, expected)


def _short(text: bytes) -> str:
    return (
        repr(text[:60].decode(errors="replace").strip() + ("…" if len(text) > 60 else ""))
        if text
        else "nothing"
    )
