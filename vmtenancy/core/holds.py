"""Holds: what virtual clusters and reservations are guaranteed; what their workloads draw on is charged once."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping

from vmtenancy.core.requests import Demand


class Hold:
    """A virtual cluster's guarantee, and what its pods use: per pool it is charged the larger of the two."""

    __slots__ = ("drawn", "guaranteed", "key", "maximum", "parts", "quota_alone", "tenant", "used")

    def __init__(self, demand: Demand, parts: Mapping[str, int]) -> None:
        self.key = demand.key
        self.tenant = demand.tenant
        self.guaranteed = dict(demand.requests)
        self.maximum = dict(demand.maximum)
        self.used: Counter[str] = Counter()
        self.parts = dict(parts)
        self.drawn: Counter[str] = Counter()
        self.quota_alone = demand.quota_alone

    def copy(self) -> Hold:
        """Another one that goes its own way."""
        twin = copy.copy(self)
        twin.used, twin.drawn = Counter(self.used), Counter(self.drawn)
        return twin

    def undrawn(self, pool: str) -> int:
        """Parts of the supply that are guaranteed and in no pod's use."""
        return 0 if self.quota_alone else max(0, self.parts.get(pool, 0) - self.drawn[pool])


def net_of(
    hold: Hold | None, gross: Mapping[str, int], requests: Iterable[tuple[str, int]]
) -> tuple[dict[str, int], dict[str, int]]:
    """What a request adds to its tenant's charge, in parts by pool, and to its units by class (nothing
    twice).
    """
    if hold is None:
        return dict(gross), dict(requests)

    def more(guaranteed: int, used: int, count: int) -> int:
        return max(guaranteed, used + count) - max(guaranteed, used)

    parts = {pool: more(hold.parts.get(pool, 0), hold.drawn[pool], count) for pool, count in gross.items()}
    return parts, {
        name: more(hold.guaranteed.get(name, 0), hold.used[name], count) for name, count in requests
    }
