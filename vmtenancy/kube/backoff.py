"""Delays between attempts."""

from __future__ import annotations

import random
from typing import Final

FIRST_DELAY_S: Final = 0.2
LONGEST_DELAY_S: Final = 30.0


class Backoff:
    """Exponential delays with full jitter on the upper half: 0.1-0.2, 0.2-0.4, … up to the longest."""

    def __init__(self, first_s: float = FIRST_DELAY_S, longest_s: float = LONGEST_DELAY_S) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._attempts = 0

    def reset(self) -> None:
        """What was tried has worked."""
        self._attempts = 0

    def next_s(self) -> float:
        """Seconds to wait before the next attempt."""
        delay = min(self._longest_s, self._first_s * 2.0 ** min(self._attempts, 30))
        self._attempts += 1
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
