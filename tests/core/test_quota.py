"""The quota tree against a naive recursive reading of the same rules, I2, and trees that contradict
themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmtenancy.api.gpuclass import PARTS_PER_GPU as GPU
from vmtenancy.core.quota.tree import CohortQuota, PoolQuota, QuotaTree, TenantQuota
from vmtenancy.errors import Code, VmtError

POOL = "h100"


def quota(
    nominal: int, borrowing: int | None = None, lending: int | None = None, **classes: int
) -> tuple[PoolQuota, ...]:
    return (PoolQuota(POOL, nominal, borrowing, lending, classes),)


def free(tree: QuotaTree, tenant: str) -> float:
    return tree.available(tenant, POOL) / GPU


def pair(**limits: tuple[PoolQuota, ...]) -> QuotaTree:
    return QuotaTree.build(
        [TenantQuota(name, "team", of) for name, of in limits.items()], [CohortQuota("team")]
    )


def test_nominal_alone() -> None:
    tree = QuotaTree.build([TenantQuota("a", None, quota(4))])
    tree.charge("a", POOL, 3 * GPU, "vm")
    assert (free(tree, "a"), tree.fits("a", POOL, GPU), tree.fits("a", POOL, GPU + 1)) == (1, True, False)


def test_what_others_do_not_use_is_borrowed_up_to_the_limit() -> None:
    tree = pair(a=quota(4, borrowing=2), b=quota(4))
    assert (free(tree, "a"), free(tree, "b")) == (6, 8)
    tree.charge("b", POOL, 3 * GPU, "vm")
    assert free(tree, "a") == 5
    tree.charge("a", POOL, 5 * GPU, "vm")
    assert (free(tree, "a"), free(tree, "b")) == (0, 0)


def test_what_is_above_the_lending_limit_is_never_lent() -> None:
    tree = pair(a=quota(0), b=quota(8, lending=3))
    assert free(tree, "a") == 3
    tree.charge("a", POOL, 3 * GPU, "vm")
    assert free(tree, "b") == 5
    tree.charge("b", POOL, 5 * GPU, "vm")
    assert free(tree, "b") == 0


def test_cohorts_nest_and_each_level_has_its_limits() -> None:
    tree = QuotaTree.build(
        [TenantQuota("a", "left", quota(1)), TenantQuota("b", "right", quota(6))],
        [
            CohortQuota("root", None, quota(2)),
            CohortQuota("left", "root", quota(0, borrowing=3)),
            CohortQuota("right", "root", quota(0, lending=4)),
        ],
    )
    assert (free(tree, "a"), free(tree, "b")) == (4, 9)
    tree.charge("b", POOL, 6 * GPU, "vm")
    assert free(tree, "a") == 3


def test_a_pool_that_the_quota_does_not_name_is_closed_and_nominal_0_may_borrow() -> None:
    tree = QuotaTree.build(
        [TenantQuota("a", "team"), TenantQuota("b", "team", quota(0))], [CohortQuota("team", None, quota(2))]
    )
    assert (tree.is_open("a", POOL), free(tree, "a"), tree.available("a", "other")) == (False, 0, 0)
    assert (tree.is_open("b", POOL), free(tree, "b"), tree.available("nobody", POOL)) == (True, 2, 0)


def test_quota_lowered_under_load_is_a_debt_that_the_cohort_shares() -> None:
    """As in Kueue: what is over-used is subtracted even from what another tenant never lends."""
    tree = pair(a=quota(1), b=quota(4, lending=0))
    tree.charge("a", POOL, 3 * GPU, "vm")
    assert (free(tree, "a"), free(tree, "b")) == (0, 2)
    assert tree.fits("a", POOL, 0)
    assert tree.shortage("a", POOL, GPU).free == 0


def test_shortage_names_the_node_that_binds_and_its_holders() -> None:
    tree = pair(a=quota(4, borrowing=2), b=quota(4))
    tree.charge("a", POOL, 3 * GPU, "a/one")
    tree.charge("b", POOL, 4 * GPU, "b/two")
    shortage = tree.shortage("a", POOL, 2 * GPU)
    assert (shortage.free, shortage.total, shortage.binds) == (GPU, 6 * GPU, "cohort team")
    assert shortage.holders == (("b/two", 4 * GPU), ("a/one", 3 * GPU))
    tree.uncharge("b", POOL, GPU, "b/two")
    shortage = tree.shortage("a", POOL, 3 * GPU)
    assert shortage.holders == (("a/one", 3 * GPU), ("b/two", 3 * GPU))
    tree.uncharge("b", POOL, 2 * GPU, "b/two")
    shortage = tree.shortage("a", POOL, 4 * GPU)
    assert (shortage.free, shortage.total, shortage.binds) == (3 * GPU, 6 * GPU, "tenant a")
    assert shortage.holders == (("a/one", 3 * GPU),), "b holds nothing of what binds"


def test_class_caps_count_units() -> None:
    tree = pair(a=quota(4, vgpu=2))
    assert (tree.class_room("a", "vgpu"), tree.class_room("a", "whole")) == (2, None)
    tree.charge("a", POOL, GPU, "vm", {"vgpu": 3})
    assert tree.class_room("a", "vgpu") == -1
    tree.uncharge("a", POOL, GPU, "vm", {"vgpu": 3})
    assert tree.class_room("a", "vgpu") == 2


def test_a_charge_of_what_the_rules_do_not_name_is_a_holder() -> None:
    tree = pair(a=quota(1))
    tree.charge("gone", POOL, GPU, "x")
    tree.charge("a", "old-pool", GPU, "y")
    assert (tree.holders(POOL), tree.holders("old-pool"), free(tree, "a")) == (
        (("x", GPU),),
        (("y", GPU),),
        1,
    )
    with pytest.raises(VmtError, match="gives back more"):
        tree.uncharge("gone", POOL, GPU + 1, "x")


def test_a_cycle_and_a_missing_parent_degrade_their_own_part() -> None:
    tree = QuotaTree.build(
        [
            TenantQuota("a", "one", quota(2)),
            TenantQuota("b", "two", quota(2)),
            TenantQuota("c", "below", quota(1)),
            TenantQuota("d", "lost", quota(3)),
            TenantQuota("e", "nowhere", quota(4)),
            TenantQuota("f", "sound", quota(5)),
            TenantQuota("g", "sound", quota(6)),
        ],
        [
            CohortQuota("one", "two"),
            CohortQuota("two", "one"),
            CohortQuota("below", "two"),
            CohortQuota("self", "self"),
            CohortQuota("lost", "missing"),
            CohortQuota("sound"),
        ],
    )
    assert {name: problem.code for name, problem in tree.cohort_problems.items()} == {
        "one": Code.COHORT_CYCLE,
        "two": Code.COHORT_CYCLE,
        "self": Code.COHORT_CYCLE,
        "lost": Code.UNKNOWN_REFERENCE,
    }
    assert tree.cohort_problems["one"].found == "one → two → one"
    assert list(tree.tenant_problems) == ["e"]
    assert len(tree.problems) == 5
    assert {name: free(tree, name) for name in "abcdefg"} == {
        "a": 2,
        "b": 3,
        "c": 3,
        "d": 3,
        "e": 4,
        "f": 11,
        "g": 11,
    }


@pytest.mark.parametrize(
    ("bad", "path"), [((-1,), "nominal"), ((1, -1), "borrowingLimit"), ((1, 1, -1), "lendingLimit")]
)
def test_negative_quota_is_refused(bad: tuple[int, ...], path: str) -> None:
    with pytest.raises(
        VmtError, match=rf"quota\[h100\].{path}: is negative \(found -1\); expected at least 0"
    ):
        PoolQuota(POOL, *bad)


def test_names_are_unique() -> None:
    for tenants, cohorts in (
        ([TenantQuota("a"), TenantQuota("a")], []),
        ([], [CohortQuota("a"), CohortQuota("a")]),
        ([TenantQuota("a", None, quota(1) + quota(2))], []),
    ):
        with pytest.raises(VmtError, match="names must be unique"):
            QuotaTree.build(tenants, cohorts)


# -- the naive reading ------------------------------------------------------------------------------------------------


@dataclass
class Naive:
    """A node of the tree as an object; every figure computed anew from the leaves."""

    own: PoolQuota
    children: list[Naive] = field(default_factory=list)
    parent: Naive | None = None
    charged: int = 0

    def subtree(self) -> int:
        return self.own.nominal * GPU + sum(child.subtree() - child.guaranteed() for child in self.children)

    def guaranteed(self) -> int:
        return 0 if self.own.lending_limit is None else max(0, self.subtree() - self.own.lending_limit * GPU)

    def usage(self) -> int:
        return self.charged + sum(max(0, child.usage() - child.guaranteed()) for child in self.children)

    def available(self) -> int:
        if self.parent is None:
            return self.subtree() - self.usage()
        above = self.parent.available()
        if self.own.borrowing_limit is not None:
            share = self.subtree() - self.guaranteed() - max(0, self.usage() - self.guaranteed())
            above = min(above, share + self.own.borrowing_limit * GPU)
        return max(0, self.guaranteed() - self.usage()) + above

    def leaves(self) -> int:
        return self.charged + sum(child.leaves() for child in self.children)

    def nominals(self) -> int:
        return self.own.nominal * GPU + sum(child.nominals() for child in self.children)


LIMIT = st.none() | st.integers(0, 6)


@st.composite
def rules(draw: st.DrawFn) -> tuple[list[TenantQuota], list[CohortQuota]]:
    """Up to 4 cohorts (a parent always comes before its child, so there is no cycle) and up to 4 tenants."""

    def some_quota() -> tuple[PoolQuota, ...]:
        return quota(draw(st.integers(0, 6)), draw(LIMIT), draw(LIMIT))

    cohorts: list[CohortQuota] = []
    for i in range(draw(st.integers(0, 4))):
        parent = draw(st.sampled_from([None, *(cohort.name for cohort in cohorts)]))
        cohorts.append(CohortQuota(f"c{i}", parent, some_quota()))
    names = [None, *(cohort.name for cohort in cohorts)]
    tenants = [
        TenantQuota(f"t{i}", draw(st.sampled_from(names)), some_quota())
        for i in range(draw(st.integers(1, 4)))
    ]
    return tenants, cohorts


def naive(
    tenants: list[TenantQuota], cohorts: list[CohortQuota], charged: dict[str, int]
) -> dict[str, Naive]:
    nodes = {owner.name: Naive(owner.quota[0]) for owner in (*cohorts, *tenants)}
    links = [(c.name, c.parent) for c in cohorts] + [(t.name, t.cohort) for t in tenants]
    for child, parent in links:
        if parent is not None:
            nodes[child].parent = nodes[parent]
            nodes[parent].children.append(nodes[child])
    for name, parts in charged.items():
        if name in nodes:
            nodes[name].charged = parts
    return nodes


@given(before=rules(), after=rules(), data=st.data())
def test_available_is_the_naive_reading_and_i2_holds(
    before: tuple[list[TenantQuota], list[CohortQuota]],
    after: tuple[list[TenantQuota], list[CohortQuota]],
    data: st.DataObject,
) -> None:
    """Random admissions and ends, with all quota edited half way (what is charged stays)."""
    charged: dict[str, int] = {}
    for tenants, cohorts in (before, after):
        tree = QuotaTree.build(data.draw(st.permutations(tenants)), data.draw(st.permutations(cohorts)))
        for name, parts in charged.items():
            tree.charge(name, POOL, parts, name)
        for _ in range(data.draw(st.integers(0, 6))):
            name = data.draw(st.sampled_from([tenant.name for tenant in tenants]))
            parts = data.draw(st.integers(1, 12)) * GPU // 2
            if charged.get(name, 0) >= parts and data.draw(st.booleans()):
                tree.uncharge(name, POOL, parts, name)
                charged[name] -= parts
            elif tree.fits(name, POOL, parts):
                tree.charge(name, POOL, parts, name)
                charged = {**charged, name: charged.get(name, 0) + parts}
                check_i2(naive(tenants, cohorts, charged)[name])
            nodes = naive(tenants, cohorts, charged)
            for tenant in tenants:
                assert tree.available(tenant.name, POOL) == max(0, nodes[tenant.name].available())
                assert tree.usage(tenant.name, POOL) == charged.get(tenant.name, 0)
        nodes = naive(tenants, cohorts, charged)
        with tree.what_if():
            for tenant in tenants:
                tree.charge(tenant.name, POOL, 5 * GPU, "x", {"vgpu": 1})
        for tenant in tenants:
            assert tree.available(tenant.name, POOL) == max(0, nodes[tenant.name].available())
        assert ("x", 5 * GPU) not in tree.holders(POOL)


def check_i2(node: Naive | None) -> None:
    """From an admitted tenant to its root: nothing above its nominals plus what it may borrow, the root above
    none.
    """
    while node is not None:
        if node.parent is None:
            assert node.leaves() <= node.nominals()
        elif node.own.borrowing_limit is not None:
            assert node.leaves() <= node.nominals() + node.own.borrowing_limit * GPU
        node = node.parent
