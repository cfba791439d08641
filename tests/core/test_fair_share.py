"""Whose turn it is when several want to borrow: dominant shares, weights, and the comparison at each level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import pytest
from described import GPU, OFFERINGS, fleet, node
from described import POOLS as H100
from hypothesis import given, settings
from hypothesis import strategies as st

from vmtenancy.core.admission import decide
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import Mode, Offering, Pool, Runtime
from vmtenancy.core.quota.tree import CohortQuota, PoolQuota, QuotaTree, TenantQuota
from vmtenancy.core.requests import Admit, Decision, Demand
from vmtenancy.errors import VmtError


def quota(nominal: int, borrowing: int | None = None, lending: int | None = None) -> tuple[PoolQuota, ...]:
    return (PoolQuota("h100", nominal, borrowing, lending),)


def tenant(name: str, nominal: int, cohort: str = "team", weight: int = 1) -> TenantQuota:
    return TenantQuota(name, cohort, quota(nominal), weight=weight)


def ask(key: str, tenant: str, count: int = 1, **more: object) -> Demand:
    return Demand(key, tenant, Runtime.VM, (("whole", count),), **more)  # type: ignore[arg-type]


LARGE = fleet(*(node(f"n{i}", Mode.PASSTHROUGH) for i in range(4)))


def keys(decisions: Sequence[Decision]) -> str:
    return " ".join(decision.demand.key for decision in decisions)


def shares(rules: QuotaTree, tenant: str, more: Mapping[str, int] | None = None) -> list[float]:
    return [rules.share(tenant, more or {}, level) for level in range(len(rules.path(tenant)))]


def let_in(decisions: Sequence[Decision]) -> str:
    return keys([decision for decision in decisions if isinstance(decision, Admit)])


def test_the_extent_is_of_the_root_by_all_weights_on_the_way() -> None:
    rules = QuotaTree.build(
        [TenantQuota("a", "sub", quota(2), weight=3)],
        [CohortQuota("team", None, quota(6)), CohortQuota("sub", "team", quota(0), weight=2)],
    )
    rules.charge("a", "h100", 6 * GPU, "x")
    assert [rules.extent("a", level) for level in range(2)] == [4 / 8 / (3 * 2), 4 / 8 / 2]


def test_without_any_quota_nobody_has_borrowed() -> None:
    assert QuotaTree.build([TenantQuota("a", "team")], [CohortQuota("team")]).share("a") == 0


def test_the_share_is_what_was_borrowed_of_all_that_the_cohort_could_give_by_weight() -> None:
    rules = QuotaTree.build(
        [
            tenant("a", 4, weight=2),
            TenantQuota("b", "team", quota(4, None, 1)),
            TenantQuota("alone", None, quota(1)),
        ],
        [CohortQuota("team", None, quota(3))],
    )
    assert rules.path("a") == ("tenant a", "cohort team")
    assert shares(rules, "a") == [0, 0], "what is its own counts for nothing"
    rules.charge("a", "h100", 6 * GPU, "x")
    assert shares(rules, "a") == [2 / 16, 0], "the cohort can give 4 of a, 1 of b and 3 of its own"
    assert shares(rules, "a", {"h100": GPU, "unknown": 1}) == [3 / 16, 0]
    assert shares(rules, "b", {"h100": 5 * GPU}) == [1 / 8, 0]
    assert shares(rules, "alone", {"h100": 5 * GPU}) == [0]
    assert rules.path("nobody") == ("tenant nobody",)
    assert shares(rules, "nobody", {"h100": GPU}) == [0]


def test_the_pool_with_the_largest_share_is_the_dominant_one() -> None:
    pools = (PoolQuota("h100", 1), PoolQuota("a100", 1))
    rules = QuotaTree.build(
        [
            TenantQuota("a", "team", pools),
            TenantQuota("b", "team", (PoolQuota("h100", 3), PoolQuota("a100", 1))),
        ],
        [CohortQuota("team")],
    )
    rules.charge("a", "h100", 2 * GPU, "x")
    assert shares(rules, "a") == [1 / 4, 0]
    assert shares(rules, "a", {"a100": 2 * GPU}) == [1 / 2, 0]


def test_a_weight_of_0_is_refused() -> None:
    with pytest.raises(VmtError, match=r"a\.fairShare\.weight: is not above 0 .*at least 1"):
        tenant("a", 1, weight=0)
    with pytest.raises(VmtError, match=r"c\.fairShare\.weight"):
        CohortQuota("c", weight=-1)


def test_who_has_borrowed_less_goes_first_and_the_turns_follow_what_is_admitted() -> None:
    rules = QuotaTree.build([tenant("a", 0), tenant("b", 0)], [CohortQuota("team", None, quota(4))])
    asked = [ask(f"a{i}", "a", created=i) for i in range(4)] + [
        ask(f"b{i}", "b", created=9 + i) for i in range(4)
    ]
    assert let_in(decide(LARGE, rules, [], asked)) == "a0 b0 a1 b1"
    live = [d for d in decide(LARGE, rules, [], asked[:2]) if isinstance(d, Admit)]
    assert let_in(decide(LARGE, rules, live, asked[2:])) == "b0 b1", "a has its two already"
    urgent = ask("urgent", "a", created=99, priority=1)
    assert let_in(decide(LARGE, rules, live, [*asked[2:], urgent])) == "urgent b0", "priority comes before"


def test_what_a_tenant_has_by_its_own_quota_comes_before_what_others_borrow() -> None:
    rules = QuotaTree.build([tenant("a", 0), tenant("b", 2)], [CohortQuota("team")])
    asked = [ask("a0", "a", 2, created=1), ask("b0", "b", 2, created=2)]
    assert let_in(decide(LARGE, rules, [], asked)) == "b0"


def test_weights_divide_what_is_borrowed() -> None:
    rules = QuotaTree.build([tenant("a", 0, weight=3), tenant("b", 0)], [CohortQuota("team", None, quota(8))])
    asked = [ask(f"{name}{i}", name, created=i) for name in "ab" for i in range(8)]
    taken = let_in(decide(LARGE, rules, [], asked))
    assert (taken.count("a"), taken.count("b")) == (6, 2)


def test_tenants_are_compared_below_the_lowest_cohort_that_both_belong_to() -> None:
    """`big` has three members and may not have three times what `small` has by that."""
    rules = QuotaTree.build(
        [*(tenant(name, 0, "big") for name in ("x", "y", "z")), tenant("w", 0, "small")],
        [
            CohortQuota("top", None, quota(8)),
            CohortQuota("big", "top"),
            CohortQuota("small", "top", weight=1),
        ],
    )
    asked = [ask(f"{name}{i}", name, created=i) for name in "wxyz" for i in range(8)]
    taken = let_in(decide(LARGE, rules, [], asked))
    assert [taken.count(name) for name in "wxyz"] == [4, 2, 1, 1]
    heavy = QuotaTree.build(
        [*(tenant(name, 0, "big") for name in ("x", "y", "z")), tenant("w", 0, "small")],
        [
            CohortQuota("top", None, quota(8)),
            CohortQuota("big", "top", weight=3),
            CohortQuota("small", "top"),
        ],
    )
    taken = let_in(decide(LARGE, heavy, [], asked))
    assert [taken.count(name) for name in "wxyz"] == [2, 2, 2, 2]


def test_what_a_pod_draws_on_a_guarantee_costs_no_share() -> None:
    on = fleet(node("c", Mode.CONTAINER))
    rules = QuotaTree.build([tenant("a", 1), tenant("b", 0)], [CohortQuota("team", None, quota(2))])
    lab = Demand("lab", "a", Runtime.HOLD, (("whole", 2),), maximum=(("whole", 3),))
    (live,) = [d for d in decide(on, rules, [], [lab]) if isinstance(d, Admit)]
    pods = [Demand(f"p{i}", "a", Runtime.POD, (("whole", 1),), created=i, parent="lab") for i in range(3)]
    other = Demand("b0", "b", Runtime.POD, (("whole", 1),), created=9)
    # a's share is 1/3 with its hold, and its pods add nothing to that; the third would add 1/3. b's would be 1/3.
    assert keys(decide(on, rules, [live], [*pods, other])) == "p0 p1 b0 p2"


def test_among_promised_ones_there_is_no_fair_share() -> None:
    rules = QuotaTree.build([tenant("a", 0), tenant("b", 0)], [CohortQuota("team", None, quota(3))])
    live = [d for d in decide(LARGE, rules, [], [ask("a0", "a")]) if isinstance(d, Admit)]
    asked = [ask("a1", "a", created=1), ask("b1", "b", created=2), ask("b2", "b", created=3)]
    assert keys(decide(LARGE, rules, live, asked)) == "b1 a1 b2"
    assert keys(decide(LARGE, rules, live, asked, promised=frozenset({"a1", "b1"}))) == "a1 b1 b2"


# -- the plain reading ---------------------------------------------------------------------------------------------

POOLS = ("h100", "a100")
LIMIT = st.sampled_from([None, None, 0, 1])


@st.composite
def described(draw: st.DrawFn) -> tuple[list[TenantQuota], list[CohortQuota]]:
    """Up to 3 cohorts, each below one before it or a root, and up to 4 tenants."""

    def some() -> tuple[PoolQuota, ...]:
        return tuple(
            PoolQuota(pool, draw(st.integers(0, 3)), draw(st.sampled_from([None, None, 2])), draw(LIMIT))
            for pool in POOLS
        )

    cohorts: list[CohortQuota] = []
    for i in range(draw(st.integers(1, 3))):
        parent = draw(st.sampled_from([None, *(cohort.name for cohort in cohorts)]))
        cohorts.append(CohortQuota(f"c{i}", parent, some(), draw(st.integers(1, 3))))
    homes = [None, *(cohort.name for cohort in cohorts)]
    tenants = [
        TenantQuota(f"t{i}", draw(st.sampled_from(homes)), some(), weight=draw(st.integers(1, 3)))
        for i in range(draw(st.integers(2, 4)))
    ]
    return tenants, cohorts


class Plain:
    """A node of the tree with its subtree, everything computed anew when it is asked for, in whole GPUs."""

    def __init__(self, owner: TenantQuota | CohortQuota) -> None:
        self.owner, self.name = owner, owner.name
        self.parent: Plain | None = None
        self.children: list[Plain] = []
        self.charged = dict.fromkeys(POOLS, 0)
        self.queue: list[Demand] = []

    def given(self, pool: str) -> PoolQuota:
        return next(quota for quota in self.owner.quota if quota.pool == pool)

    def subtree(self, pool: str) -> int:
        return self.given(pool).nominal + sum(
            child.subtree(pool) - child.kept(pool) for child in self.children
        )

    def kept(self, pool: str) -> int:
        lending = self.given(pool).lending_limit
        return 0 if lending is None else max(0, self.subtree(pool) - lending)

    def used(self, pool: str) -> int:
        below = sum(max(0, child.used(pool) - child.kept(pool)) for child in self.children)
        return self.charged[pool] + below

    def could_have(self, pool: str) -> int:
        if self.parent is None:
            return self.subtree(pool)
        most, borrowing = self.kept(pool) + self.parent.could_have(pool), self.given(pool).borrowing_limit
        return most if borrowing is None else min(most, self.subtree(pool) + borrowing)

    def share(self) -> Fraction:
        if self.parent is None:
            return Fraction(0)
        shares = [
            Fraction(self.used(pool) - self.subtree(pool), self.parent.could_have(pool) * self.owner.weight)
            for pool in POOLS
            if self.parent.could_have(pool)
        ]
        return max([Fraction(0), *shares])

    def champion(self) -> tuple[Plain, Demand] | None:
        """Whose turn it is below this node."""
        if self.queue:
            return self, self.queue[0]
        found = []
        for child in self.children:
            if best := child.champion():
                owner, demand = best
                (key, count), *_ = demand.requests
                owner.charged[POOL_OF[key]] += count
                found.append((child.share(), demand.created, demand.key, best))
                owner.charged[POOL_OF[key]] -= count
        return min(found)[3] if found else None


POOL_OF = {"whole": "h100", "other": "a100"}
TWO_POOLS = Fleet.build(
    [
        *(node(f"n{i}", Mode.PASSTHROUGH) for i in range(5)),
        *(node(f"a{i}", Mode.PASSTHROUGH, product="A100", capacity={"nvidia.com/A100": 8}) for i in range(5)),
    ],
    (*H100, Pool("a100", frozenset({"A100"}))),
    (*OFFERINGS, Offering("other", "a100", GPU, {Mode.PASSTHROUGH: "nvidia.com/A100"})),
)
asked_of = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["whole", "other"]), st.integers(1, 2), st.integers(0, 1)),
    max_size=10,
)


@settings(max_examples=150)
@given(rules=described(), before=asked_of, after=asked_of)
def test_the_order_is_the_plain_reading(
    rules: tuple[list[TenantQuota], list[CohortQuota]],
    before: list[tuple[int, str, int, int]],
    after: list[tuple[int, str, int, int]],
) -> None:
    tenants, cohorts = rules
    owners: list[TenantQuota | CohortQuota] = [*cohorts, *tenants]
    nodes = {owner.name: Plain(owner) for owner in owners}
    for name, above in [(c.name, c.parent) for c in cohorts] + [(t.name, t.cohort) for t in tenants]:
        if above is not None:
            nodes[name].parent = nodes[above]
            nodes[above].children.append(nodes[name])
    tree = QuotaTree.build(tenants, cohorts)

    def demands(drawn: list[tuple[int, str, int, int]], first: str) -> list[Demand]:
        return [
            Demand(f"{first}{i}", f"t{t % len(tenants)}", Runtime.VM, ((name, count),), priority, float(i))
            for i, (t, name, count, priority) in enumerate(drawn)
        ]

    def enter(decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            for name, count in decision.demand.requests if isinstance(decision, Admit) else ():
                nodes[decision.demand.tenant].charged[POOL_OF[name]] += count

    live = decide(TWO_POOLS, tree, [], demands(before, "b"))
    enter(live)
    waiting = demands(after, "a")
    decisions = decide(TWO_POOLS, tree, [d for d in live if isinstance(d, Admit)], waiting)
    for decision in decisions:
        level = max(demand.priority for demand in waiting)
        for owner in tenants:
            nodes[owner.name].queue = [d for d in waiting if d.tenant == owner.name and d.priority == level]
        everywhere = Plain(CohortQuota("everywhere"))
        everywhere.children = [plain for plain in nodes.values() if plain.parent is None]
        turn = everywhere.champion()
        assert turn is not None
        assert decision.demand == turn[1]
        enter([decision])
        waiting.remove(decision.demand)
    assert not waiting
    for owner in tenants:
        with tree.what_if():
            for other in tenants:
                for pool, count in nodes[other.name].charged.items() if other is not owner else ():
                    tree.charge(other.name, pool, count * GPU, other.name)
            charged = {pool: count * GPU for pool, count in nodes[owner.name].charged.items()}
            for level, name in enumerate(tree.path(owner.name)):
                assert tree.share(owner.name, charged, level) == float(nodes[name.split()[1]].share())
