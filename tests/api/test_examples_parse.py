"""Every manifest under `examples/` passes the offline check."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vmtenancy.api import KINDS, parse

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_is_valid(path: Path) -> None:
    ours = [obj for obj in yaml.safe_load_all(path.read_text()) if obj.get("kind") in KINDS]
    for obj in ours:
        parse(obj)
