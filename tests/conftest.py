"""Hypothesis: the same examples on every run, judged by what they show and not by how fast this machine is."""

from __future__ import annotations

from hypothesis import Phase, settings

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
# For `make mutants`: that something fails is all it asks.
settings.register_profile(
    "first-failure",
    settings.get_profile("repeatable"),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.target),
)
settings.load_profile("repeatable")
