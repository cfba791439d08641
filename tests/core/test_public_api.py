"""`import vmtenancy`: light, complete, and enough for the library example."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vmtenancy

ROOT = Path(__file__).parents[2]
HEAVY = ("kubernetes", "kopf", "numpy", "pydantic", "aiohttp", "yaml")


def python(*args: str) -> str:
    """Run a new interpreter at the root of the project."""
    done = subprocess.run(
        [sys.executable, *args], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy() -> None:
    found = python("-c", f"import sys, vmtenancy; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert found.strip() == "[]"


def test_the_example_places_without_a_cluster() -> None:
    source = (ROOT / "examples" / "library.py").read_text()
    assert len(source.splitlines()) <= 30
    check = (
        "import runpy, sys; runpy.run_path('examples/library.py'); "
        "print([name for name in ('kubernetes', 'kopf') if name in sys.modules])"
    )
    assert python("-c", check).splitlines() == [
        "GpuVM trainer -> node-vm-passthrough 0000:00:00.0 0000:01:00.0",
        "Pod notebook -> node-container 0000:00:00.0",
        "pool h100: needs 2 GPUs, 1 free of 4; held by GpuVM trainer 2, Pod notebook 1; "
        "starts once others make room, nobody knows when; would be admitted now with 1 x h100-80gb; "
        "would be admitted now with priority 1",
        "[]",
    ]


def test_the_example_of_policies_replaces_all_of_them() -> None:
    shown = python("-c", "import runpy; runpy.run_path('examples/policies.py')")
    assert shown.splitlines() == [
        "test stops night",
        "prod stops sim",
        "prod stops train",
        "test stops nobody",
    ]


def test_every_public_name_is_there() -> None:
    for name in vmtenancy.__all__:
        assert getattr(vmtenancy, name) is not None
        assert name in dir(vmtenancy)
    with pytest.raises(AttributeError, match="no attribute 'Flett'"):
        _ = vmtenancy.Flett  # type: ignore[attr-defined]


def test_types_are_seen_as_they_are_at_run_time() -> None:
    """What a type checker is told under TYPE_CHECKING is what `__getattr__` loads."""
    source = (ROOT / "vmtenancy" / "__init__.py").read_text()
    told = {line.split()[-1] for line in source.splitlines() if line.startswith("    from ")}
    assert told == set(vmtenancy.__all__) - {"__version__"}


def test_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert vmtenancy.__version__ == project["version"]
