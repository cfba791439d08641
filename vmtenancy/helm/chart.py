"""Charts rendered by `helm template` in a subprocess, with limits on time and output.

Helm never sees the cluster: `lookup` finds nothing, hooks are not run, no release is stored. What comes out
is plain objects, which the caller checks and applies like its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from vmtenancy.errors import Code, Problem, VmtError

MAX_OUTPUT_BYTES: Final = 4 * 1024 * 1024
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
# One line of a schema error: "- at '/sync/toHost/pods': additional properties 'x' not allowed".
_SCHEMA_LINE = re.compile(r"^\s*- at '(?P<pointer>[^']*)': (?P<message>.+)$", re.MULTILINE)


class Chart:
    """A chart that is read once and rendered often: the same values are not rendered twice.

    The chart must not change while it is in use (it is part of an image, or a folder made by a build).
    Thread-safe.
    """

    def __init__(
        self, path: Path, *, helm: Path | None = None, kube_version: str | None = None, cached: int = 256
    ) -> None:
        """`kube_version` is the host cluster's (`v1.36.3`); charts choose by it. Raises `VmtError`."""
        self.path = path
        self.digest = _digest(path)
        self._helm = find_helm(helm)
        self._kube_version = kube_version
        self._limit = cached
        self._cache: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def key(self, release: str, namespace: str, values: Mapping[str, Any]) -> str:
        """Digest of all that determines what is rendered: equal keys mean equal objects."""
        inputs = [self.digest, self._kube_version, release, namespace, values]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def render(
        self, release: str, namespace: str, values: Mapping[str, Any], *, timeout_s: float = 30.0
    ) -> list[dict[str, Any]]:
        """As `render_chart`. The objects belong to the caller, who may change them."""
        key = self.key(release, namespace, values)
        with self._lock:
            text = self._cache.get(key)
            if text is not None:
                self._cache.move_to_end(key)
        if text is None:
            objects = render_chart(
                self.path,
                release,
                namespace,
                values,
                helm=self._helm,
                kube_version=self._kube_version,
                timeout_s=timeout_s,
            )
            text = json.dumps(objects)
            with self._lock:
                self._cache[key] = text
                while len(self._cache) > self._limit:
                    self._cache.popitem(last=False)
        rendered: list[dict[str, Any]] = json.loads(text)
        return rendered


def find_helm(helm: Path | None = None) -> Path:
    """The Helm program: the one given, else `$VMTENANCY_HELM`, else `helm` on PATH. Raises `VmtError`."""
    wanted = str(helm or os.environ.get("VMTENANCY_HELM") or "helm")
    if found := shutil.which(wanted):
        return Path(found)
    raise _error("no Helm that can be run", found=wanted, expected="helm on PATH, or VMTENANCY_HELM")


def render_chart(
    chart: Path,
    release: str,
    namespace: str,
    values: Mapping[str, Any],
    *,
    helm: Path | None = None,
    kube_version: str | None = None,
    timeout_s: float = 30.0,
    max_output_bytes: int = MAX_OUTPUT_BYTES,
) -> list[dict[str, Any]]:
    """Render a chart (a folder or a `.tgz`) and parse it, in the chart's order, CRDs of the chart first.

    Raises `VmtError` (`Code.HELM`): Helm or chart missing, a release or namespace that is no DNS label,
    values that the chart refuses (one problem per value, `path` starting with `values`, and Helm's own
    words), output that is not Kubernetes objects, or a limit reached. Blocks: in async code, call it from a
    thread.
    """
    program = find_helm(helm)
    if not (chart.is_file() or (chart / "Chart.yaml").is_file()):
        raise _error("no chart there", found=str(chart), expected="a folder with Chart.yaml, or a .tgz")
    for what, name, longest in (("release", release, 53), ("namespace", namespace, 63)):
        if not _DNS_LABEL.fullmatch(name) or len(name) > longest:
            expected = f"a DNS label of at most {longest} characters"
            raise _error(f"the {what} has no valid name", found=repr(name), expected=expected)
    with tempfile.TemporaryDirectory(prefix="vmtenancy-helm-") as scratch:
        values_file = Path(scratch, "values.json")
        values_file.write_text(json.dumps(values))
        command = [
            *(str(program), "template", release, str(chart.absolute()), "--namespace", namespace),
            *("--values", str(values_file), "--include-crds", "--skip-tests", "--no-hooks"),
        ]
        if kube_version:
            command += ["--kube-version", kube_version]
        return _objects(_run(command, Path(scratch), timeout_s, max_output_bytes))


def _run(command: Sequence[str], scratch: Path, timeout_s: float, max_output_bytes: int) -> bytes:
    # The user's Helm configuration (plugins, repositories) takes no part, and nothing is written to it.
    homes = {f"HELM_{n}_HOME": str(scratch / n.lower()) for n in ("CACHE", "CONFIG", "DATA")}
    env = {"PATH": os.environ.get("PATH", ""), "HOME": str(scratch), **homes}
    late = threading.Event()
    with (scratch / "stderr").open("w+b") as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=env, cwd=scratch
        )

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout_s, stop)
        timer.start()
        try:
            assert process.stdout is not None  # noqa: S101 - PIPE was asked for
            output = process.stdout.read(max_output_bytes + 1)
            if len(output) > max_output_bytes:
                process.kill()
            process.stdout.close()
            process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        stderr.seek(0)
        message = stderr.read(64 * 1024).decode(errors="replace")
    if late.is_set():
        raise _error("Helm took too long and was stopped", found=f"more than {timeout_s:g} s")
    if len(output) > max_output_bytes:
        raise _error("the chart renders too much", found=f"more than {max_output_bytes} bytes")
    if process.returncode != 0:
        raise VmtError.of(_refusals(message))
    return output


def _refusals(message: str) -> list[Problem]:
    """Helm's stderr as problems: one per value that the chart's schema refuses, else the message as it is."""
    refused = [
        Problem(Code.HELM, _field_path(m["pointer"]), m["message"])
        for m in _SCHEMA_LINE.finditer(message)
        if m["message"] != "validation failed"  # the line above the real ones
    ]
    text = " ".join(message.split()).removeprefix("Error: ")[:2000] or "no message"
    return refused or [Problem(Code.HELM, "", f"Helm can not render the chart: {text}")]


def _field_path(pointer: str) -> str:
    parts = [p.replace("~1", "/").replace("~0", "~") for p in pointer.split("/")[1:]]
    return "values" + "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in parts if p)


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: no dates, so that every value is JSON."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def _objects(output: bytes) -> list[dict[str, Any]]:
    try:
        documents = list(yaml.load_all(output, Loader=_Loader))
    except yaml.YAMLError as error:
        raise _error(f"the chart renders no YAML: {error}") from error
    return list(_checked(documents))


def _checked(documents: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for document in documents:
        if document is None:  # a template whose conditions were all false
            continue
        if not isinstance(document, dict) or not document.get("apiVersion") or not document.get("kind"):
            raise _error("the chart renders what is no Kubernetes object", found=repr(document)[:200])
        yield json.loads(json.dumps(document))  # YAML keys may be numbers or booleans: names, as in JSON


def _digest(chart: Path) -> str:
    """SHA-256 over names and contents of a chart's files."""
    files = [chart] if chart.is_file() else sorted(p for p in chart.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(chart)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _error(message: str, *, found: str = "", expected: str = "") -> VmtError:
    return VmtError(Problem(Code.HELM, "", message, found=found, expected=expected))
