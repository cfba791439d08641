"""Who holds how much of a pool: for the explanations, which name those that hold what is missing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable


class Holders:
    """Parts by pool, tenant and holder."""

    def __init__(self) -> None:
        self._held: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        #: By pool and what was asked for; until the pool's next change.
        self._ranked: dict[str, dict[object, tuple[tuple[str, int], ...]]] = defaultdict(dict)

    def add(self, pool: str, tenant: str, holder: str, parts: int) -> None:
        """`parts` may be below 0; who is left with none is forgotten."""
        held = self._held[pool][tenant]
        if left := held.get(holder, 0) + parts:
            held[holder] = left
        else:
            held.pop(holder, None)
        self._ranked.pop(pool, None)

    def of(self, pool: str, tenant: str, holder: str) -> int:
        """What one holds."""
        return self._held[pool][tenant][holder]

    def ranked(
        self, pool: str, key: object = None, tenants: Iterable[str] | None = None
    ) -> tuple[tuple[str, int], ...]:
        """Those of `tenants` (None: of all) with what they hold, the largest first. `key` stands for the tenants."""
        known = self._ranked[pool]
        if key not in known:
            by_tenant = self._held[pool]
            total = Counter[str]()
            for tenant in by_tenant if tenants is None else tenants:
                for holder, parts in by_tenant[tenant].items() if tenant in by_tenant else ():
                    total[holder] += parts
            known[key] = tuple(sorted(total.items(), key=lambda item: (-item[1], item[0])))
        return known[key]

    def copy(self) -> Holders:
        """Another one that goes its own way."""
        twin = Holders()
        for pool, by_tenant in self._held.items():
            for tenant, held in by_tenant.items():
                twin._held[pool][tenant] = Counter(held)
        return twin
