"""Hypothesis: the same examples on every run, judged by what they show and not by how fast this machine is; order."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
# For `make mutants`: that something fails is all it asks.
settings.register_profile(
    "first-failure",
    settings.get_profile("repeatable"),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.target),
)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses the real KubeVirt comes last: it runs from then on, beside tests that play its part by themselves."""
    items.sort(key=lambda item: "kubevirt" in getattr(item, "fixturenames", ()))
