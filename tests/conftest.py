"""Hypothesis: the same examples on every run, judged by what they show and not by how fast this machine is; order."""

from __future__ import annotations

from pathlib import Path

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

_FAULTS = Path(__file__).parent / "faults"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses the real KubeVirt comes last: it runs from then on, beside tests that play its part by themselves.

    Tests on the real programs leave half of two cores idle, and those of `tests/faults` have a control plane of their
    own: so these are one half of two that can run side by side (`--dist loadgroup`).
    """
    items.sort(key=lambda item: "kubevirt" in getattr(item, "fixturenames", ()))
    for item in items:
        item.add_marker(pytest.mark.xdist_group("faults" if _FAULTS in item.path.parents else "others"))
