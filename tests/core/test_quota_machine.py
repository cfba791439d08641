"""The quota engine under random load: see `quota_machine`."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from quota_machine import QuotaMachine


def test_what_holds_after_every_step() -> None:
    run_state_machine_as_test(QuotaMachine, settings=settings(max_examples=30, stateful_step_count=20))


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_what_holds_after_very_many_steps() -> None:
    run_state_machine_as_test(QuotaMachine, settings=settings(max_examples=2000, stateful_step_count=40))
