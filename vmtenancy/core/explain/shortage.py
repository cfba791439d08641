"""What is missing, as data and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction

from vmtenancy.api.gpuclass import PARTS_PER_GPU
from vmtenancy.core.quota.resources import Resource

_SHOWN = 4


def gpus(parts: int) -> str:
    """Parts as GPUs, exact: `2`, `0.25`, or a fraction (`3/7`) where decimals do not end within 3 digits."""
    if parts % PARTS_PER_GPU == 0:
        return str(parts // PARTS_PER_GPU)
    value = Fraction(parts, PARTS_PER_GPU)
    if 1000 % value.denominator:
        return str(value)
    whole, thousandths = divmod(int(value * 1000), 1000)
    return f"{whole}.{thousandths:03}".rstrip("0").rstrip(".")


def utc(moment: float) -> str:
    """Seconds since the epoch as Kubernetes writes a time."""
    return datetime.fromtimestamp(int(moment), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def named(column: str) -> str:
    """What is short: `pool h100`, `cpu`."""
    return column.label if isinstance(column, Resource) else f"pool {column}"


def amount(column: str, count: int) -> str:
    """So much of a pool, in GPUs, or of a resource, as a quantity: `0.25`, `250m`, `6Gi`."""
    return column.text(count) if isinstance(column, Resource) else gpus(count)


def counted(count: int, column: str = "") -> str:
    """The same with the noun, where it has one: `1 GPU`, `0.25 GPUs`, `250m`."""
    noun = "" if isinstance(column, Resource) else " GPU" if count == PARTS_PER_GPU else " GPUs"
    return f"{amount(column, count)}{noun}"


def held_by(holders: Sequence[tuple[str, int]], column: str = "") -> str:
    """`; held by vision/trainer 2, llm/lab 4`, the largest first, the rest counted; empty where nobody
    holds.
    """
    if not holders:
        return ""
    shown = ", ".join(f"{key} {amount(column, held)}" for key, held in holders[:_SHOWN])
    more = f" and {len(holders) - _SHOWN} more" if len(holders) > _SHOWN else ""
    return f"; held by {shown}{more}"


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is missing, in parts of a GPU of `pool`: `requested` when `free` of `total` could be had. `pool` may be a
    `Resource`: then millicores or bytes.

    `binds` is what sets the limit: `tenant vision` (its nominal quota or borrowing limit), `cohort research`
    (what is shared there), or `nodes` (what exists). `holders` have the rest, the largest first.
    """

    pool: str
    requested: int
    free: int
    total: int
    binds: str
    holders: tuple[tuple[str, int], ...]
