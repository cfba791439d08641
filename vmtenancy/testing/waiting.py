"""Waiting for a condition with a deadline, in place of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(what: str, probe: Callable[[], T | None], deadline_s: float = 30.0) -> T:
    """The first true value that ``probe`` returns, asked every 50 ms.

    Raises ``TimeoutError`` with ``what`` (a condition, as in "pod is Running") after ``deadline_s`` seconds.
    """
    end = time.monotonic() + deadline_s
    while True:
        if value := probe():
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"not after {deadline_s:g} s: {what}")
        time.sleep(0.05)
