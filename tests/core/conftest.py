"""Hypothesis: the same examples on every run, judged by what they show and not by how fast this machine is."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("core", deadline=None, derandomize=True, database=None)
settings.load_profile("core")
