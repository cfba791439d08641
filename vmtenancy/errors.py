"""Stable error codes.

One `Problem` is one thing that is wrong: where (`path`), what was found, what would be right. Codes never change
their meaning; `docs/errors.md` has one entry for each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """Every stable code, with its one-line meaning as the docstring of the docs page."""

    INVALID_FIELD = "VMT-A001"
    UNKNOWN_FIELD = "VMT-A002"
    OWNED_PATH = "VMT-A003"
    UNKNOWN_REFERENCE = "VMT-A004"
    QUOTA_EXCEEDED = "VMT-Q001"
    NO_QUOTA = "VMT-Q002"
    COHORT_CYCLE = "VMT-Q003"
    CLASS_LIMIT = "VMT-Q004"
    MAX_REACHED = "VMT-Q005"
    HOLD_PENDING = "VMT-Q006"
    NOMINATED = "VMT-Q007"
    OWN_QUOTA_EXCEEDED = "VMT-Q008"
    RESERVED = "VMT-T001"
    RESERVATION_CONFLICT = "VMT-T002"
    NO_CAPACITY = "VMT-P001"
    NOT_DELIVERABLE = "VMT-P002"
    TEMPLATE = "VMT-R001"
    OUTPUT_REFUSED = "VMT-R002"
    HELM = "VMT-H001"
    LEDGER = "VMT-L001"
    ADOPT = "VMT-L002"
    BACKUP = "VMT-B001"
    SOURCE = "VMT-M001"
    NO_GPU = "VMT-M002"
    CLUSTER = "VMT-K001"
    COMPONENT = "VMT-D001"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    `path` is a field path as Kubernetes prints it (`spec.gpus[0].count`), or `""` where no field is meant.
    """

    code: Code
    path: str
    message: str
    found: str = ""
    expected: str = ""

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        found = f" (found {self.found})" if self.found else ""
        expected = f"; expected {self.expected}" if self.expected else ""
        return f"{self.code}: {where}{self.message}{found}{expected}"


class VmtError(Exception):
    """Raised for bad input or a failed dependency; holds every problem found, never just the first."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems: tuple[Problem, ...] = problems

    @property
    def code(self) -> Code:
        """The code of the first problem."""
        return self.problems[0].code

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> VmtError:
        """Build from any iterable of at least one problem."""
        return cls(*problems)
