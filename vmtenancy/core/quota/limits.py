"""Rules as arrays: what each node of the quota tree has, keeps, lends and could have at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmtenancy.core.quota.rules import CohortQuota, PoolQuota, ResourceQuota, TenantQuota

#: Also the most that a subtree has: sums of it, and of what is charged beside it, stay within 64 bits.
_UNLIMITED = 1 << 60

Owner = CohortQuota | TenantQuota


class Limits(NamedTuple):
    """Arrays [nodes, columns] int64; the words are those of `vmtenancy.core.quota.tree`.

    `potential` is what each node could hold at most if nobody held anything.
    """

    nominal: NDArray[np.int64]
    borrowing: NDArray[np.int64]
    subtree: NDArray[np.int64]
    guaranteed: NDArray[np.int64]
    potential: NDArray[np.int64]


def limits_of(
    owners: Sequence[Owner], paths: Sequence[tuple[int, ...]], columns: Mapping[str, int]
) -> Limits:
    """The limits of all nodes. `paths` are, for each, the nodes up to its root, itself first; `columns` are places."""
    shape = (len(paths), len(columns))
    nominal: NDArray[np.int64] = np.zeros(shape, np.int64)
    borrowing: NDArray[np.int64] = np.full(shape, _UNLIMITED, np.int64)
    lending: NDArray[np.int64] = np.full(shape, _UNLIMITED, np.int64)
    for node, owner in enumerate(owners):
        for quota in rows(owner):
            p = columns[quota.column]
            nominal[node, p] = min(_UNLIMITED, quota.nominal * quota.unit)
            if quota.borrowing_limit is not None:
                borrowing[node, p] = min(_UNLIMITED, quota.borrowing_limit * quota.unit)
            if quota.lending_limit is not None:
                lending[node, p] = min(_UNLIMITED, quota.lending_limit * quota.unit)
    subtree, guaranteed = nominal.copy(), np.zeros(shape, np.int64)
    downwards = sorted(range(len(paths)), key=lambda node: len(paths[node]))
    for node in reversed(downwards):
        guaranteed[node] = np.maximum(0, subtree[node] - lending[node])
        if len(paths[node]) > 1:
            parent = subtree[paths[node][1]]
            parent += subtree[node] - guaranteed[node]
            np.minimum(parent, _UNLIMITED, out=parent)
    potential = subtree.copy()
    for node in downwards:
        if len(paths[node]) > 1:
            from_above = guaranteed[node] + potential[paths[node][1]]
            potential[node] = np.minimum(from_above, subtree[node] + borrowing[node])
    return Limits(nominal, borrowing, subtree, guaranteed, potential)


def rows(owner: Owner) -> tuple[PoolQuota | ResourceQuota, ...]:
    """All quota that an owner is given."""
    return (*owner.quota, *owner.resources)
