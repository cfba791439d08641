"""Rules as nodes of the quota tree, and as arrays: what each has, keeps, lends and could have at most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmtenancy.core.quota.parents import chain_of, sound_parents
from vmtenancy.core.quota.rules import CohortQuota, PoolQuota, ResourceQuota, TenantQuota
from vmtenancy.errors import Code, Problem, VmtError

#: Also the most that a subtree has: sums of it, and of what is charged beside it, stay within 64 bits.
_UNLIMITED = 1 << 60

Owner = CohortQuota | TenantQuota


class Nodes(NamedTuple):
    """The nodes of a tree, cohorts first: their names for people, and for each the nodes up to its root, itself first.

    Problems are by name: of cohorts on a cycle or with a missing parent, and of tenants whose cohort is missing.
    """

    labels: list[str]
    paths: list[tuple[int, ...]]
    cohort_problems: Mapping[str, Problem]
    tenant_problems: Mapping[str, Problem]


def nodes_of(tenants: Sequence[TenantQuota], cohorts: Sequence[CohortQuota]) -> Nodes:
    """The nodes of a tree. Raises VmtError where a name, or a pool or resource of one owner, is given twice."""
    _refuse_twice("cohorts", (cohort.name for cohort in cohorts))
    _refuse_twice("tenants", (tenant.name for tenant in tenants))
    owners: list[Owner] = [*cohorts, *tenants]
    for owner in owners:
        _refuse_twice(f"{owner.name}.quota", (quota.pool for quota in owner.quota))
        _refuse_twice(f"{owner.name}.resources", (quota.resource.label for quota in owner.resources))
    parents, cohort_problems = sound_parents({cohort.name: cohort.parent for cohort in cohorts})
    labels = [f"cohort {cohort.name}" for cohort in cohorts] + [f"tenant {tenant.name}" for tenant in tenants]
    index = {cohort.name: i for i, cohort in enumerate(cohorts)}
    paths = [tuple(index[name] for name in chain_of(cohort.name, parents)) for cohort in cohorts]
    tenant_problems = {}
    for node, tenant in enumerate(tenants, start=len(cohorts)):
        above = paths[index[tenant.cohort]] if tenant.cohort in index else ()
        if tenant.cohort is not None and not above:
            message = "the cohort does not exist; nothing is borrowed"
            problem = Problem(Code.UNKNOWN_REFERENCE, "spec.cohort", message, tenant.cohort)
            tenant_problems[tenant.name] = problem
        paths.append((node, *above))
    return Nodes(labels, paths, cohort_problems, tenant_problems)


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


def _refuse_twice(path: str, names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise VmtError(Problem(Code.INVALID_FIELD, path, "names must be unique", ", ".join(twice)))
