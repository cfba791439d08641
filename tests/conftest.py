"""Hypothesis: the same examples on every run, judged by what they show and not by how fast this machine is; order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import Phase, settings

FAULTS = Path(__file__).parent / "faults"

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
# For `make mutants`: that something fails is all it asks.
settings.register_profile(
    "first-failure",
    settings.get_profile("repeatable"),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.target),
)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses the real KubeVirt comes last: it runs from then on, beside tests that play its part by themselves.

    Where tests run in parallel, those of one group stay together, and the largest group is first: no worker has a
    control plane with KubeVirt before those that must not see it.
    """
    items.sort(key=_uses_kubevirt)
    for item in items:
        if item.path.is_relative_to(FAULTS):
            item.add_marker(pytest.mark.xdist_group("faults"))
        elif _uses_kubevirt(item):
            item.add_marker(pytest.mark.xdist_group("kubevirt"))
        elif item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.xdist_group("cluster"))


def _uses_kubevirt(item: pytest.Item) -> bool:
    return "kubevirt" in getattr(item, "fixturenames", ())
