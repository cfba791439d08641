"""A search in what gets better in one direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def first(candidates: Sequence[T], find: Callable[[T], R | None]) -> tuple[T, R] | None:
    """The first for which something is found, and what, where for all after it something is found, too.

    Asks at most 1 + ceil(log2 of their number) times, the last one first.
    """
    if not candidates or (found := find(candidates[-1])) is None:
        return None
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if (better := find(candidates[middle])) is None:
            low = middle + 1
        else:
            found, high = better, middle
    return candidates[high], found
