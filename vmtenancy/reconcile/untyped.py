"""The untyped parts of our kinds (`vm:`, `values:`) may have any shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vmtenancy.errors import Code, Problem, VmtError


@contextmanager
def refuse_wrong_shapes(path: str) -> Iterator[None]:
    """Turn what a wrong shape below `path` breaks into a `VmtError`.

    Such an error is the owner's and stands in its condition; it must never end a plan for everybody else.
    """
    try:
        yield
    except (TypeError, AttributeError, LookupError, ValueError, OverflowError) as error:
        problem = Problem(Code.INVALID_FIELD, path, "something in it has the wrong form", str(error))
        raise VmtError(problem) from error
