"""Cpu, memory and storage: columns of the one quota tree, charged beside GPUs and taken back as they are."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from described import GPU, fleet, node
from hypothesis import given
from hypothesis import strategies as st

from vmtenancy.core.admission import decide
from vmtenancy.core.explain.refusal import Reason
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import DeviceFacts, Mode, NodeFacts, Offering, Pool, Runtime
from vmtenancy.core.quota.policy import NOBODY, BorrowWithinCohort, PreemptionPolicy, Preempts
from vmtenancy.core.quota.resources import Resource
from vmtenancy.core.quota.tree import CohortQuota, PoolQuota, QuotaTree, ResourceQuota, TenantQuota
from vmtenancy.core.requests import Admit, Decision, Demand, Wait, volumes
from vmtenancy.errors import VmtError

CPU, MEMORY, STORAGE = Resource.CPU, Resource.MEMORY, Resource.STORAGE
RECLAIM = PreemptionPolicy(reclaim_within_cohort=Preempts.ANY)
WITHIN = PreemptionPolicy(within_tenant=Preempts.LOWER_PRIORITY)
GI = 1 << 30


def cpu(nominal: int, *limits: int | None) -> ResourceQuota:
    return ResourceQuota(CPU, nominal * 1000, *(None if limit is None else limit * 1000 for limit in limits))


def tenant(
    name: str, *resources: ResourceQuota, gpus: int = 8, policy: PreemptionPolicy = NOBODY
) -> TenantQuota:
    return TenantQuota(name, "team", (PoolQuota("h100", gpus),), policy, resources=resources)


def rules(*tenants: TenantQuota, cohort: Sequence[ResourceQuota] = ()) -> QuotaTree:
    return QuotaTree.build(tenants, [CohortQuota("team", resources=tuple(cohort))])


def vm(key: str, of: str = "a", count: int = 1, **more: object) -> Demand:
    return Demand(key, of, Runtime.VM, (("whole", count),), **more)  # type: ignore[arg-type]


def supply() -> Fleet:
    return fleet(*(node(f"n{i}", Mode.PASSTHROUGH) for i in range(3)), node("pods", Mode.CONTAINER))


def admitted(decisions: Iterable[Decision]) -> list[Admit]:
    return [decision for decision in decisions if isinstance(decision, Admit)]


def running(tree: QuotaTree, *demands: Demand, live: Sequence[Admit] = ()) -> list[Admit]:
    found = admitted(decide(supply(), tree, live, demands))
    assert len(found) == len(demands)
    return [*live, *found]


def only(tree: QuotaTree, live: Sequence[Admit], demand: Demand) -> Wait:
    (wait,) = decide(supply(), tree, live, [demand])
    assert isinstance(wait, Wait)
    return wait


def test_what_is_missing_is_told_in_its_unit() -> None:
    tree = rules(tenant("a", cpu(24, 8)), tenant("b", cpu(40)))
    live = running(tree, vm("x", cpu=24_000), vm("y", "b", cpu=250))
    wait = only(tree, live, vm("w", cpu=16_000))
    assert (wait.reason, wait.message) == (
        Reason.QUOTA_EXCEEDED,
        "cpu: needs 16, 8 free of 32 (nominal 24 + up to 8 borrowed); held by x 24",
    )
    memory = rules(tenant("a", ResourceQuota(MEMORY, 6 * GI)))
    message = only(memory, running(memory, vm("x", memory=4 * GI)), vm("w", memory=3 * GI)).message
    assert message == "memory: needs 3Gi, 2Gi free of 6Gi in cohort team; held by x 4Gi"


def test_borrowed_amounts_are_told_and_charged() -> None:
    tree = rules(tenant("a", cpu(2)), tenant("b", cpu(4)))
    (admit,) = decide(supply(), tree, [], [vm("w", cpu=3_000, memory=5 * GI, storage=7)])
    assert isinstance(admit, Admit)
    assert (admit.charged, admit.borrowed) == ({"h100": GPU, CPU: 3_000}, {CPU: 1_000})
    assert only(tree, [admit], vm("more", "b", cpu=3_500)).shortage.free == 3_000  # type: ignore[union-attr]


def test_who_is_not_limited_takes_what_is_there_and_is_charged_nothing() -> None:
    tree = rules(tenant("a", cpu(2)), tenant("b"), cohort=[cpu(2)])
    live = running(tree, vm("free", "b", cpu=60_000), vm("mine", cpu=4_000))
    assert live[0].charged == {"h100": GPU}
    assert only(tree, live, vm("w", cpu=1)).reason is Reason.QUOTA_EXCEEDED
    assert running(tree, vm("none"), live=live)[-1].charged == {"h100": GPU}, (
        "what takes nothing is not looked at"
    )


def test_a_pool_may_be_called_as_a_resource_is() -> None:
    tree = QuotaTree.build([TenantQuota("a", None, (PoolQuota("cpu", 2),), resources=(cpu(5),))])
    tree.charge("a", "cpu", GPU, "x")
    tree.charge("a", CPU, 5_000, "x")
    assert (tree.available("a", "cpu"), tree.available("a", CPU)) == (GPU, 0)
    assert (tree.columns, tree.is_open("a", "cpu"), tree.limited("a")) == (["cpu", CPU], True, (CPU,))


def test_a_resource_is_given_once_and_is_not_negative() -> None:
    with pytest.raises(VmtError, match=r"a.resources: names must be unique \(found cpu\)"):
        QuotaTree.build([TenantQuota("a", resources=(cpu(1), cpu(2)))])
    with pytest.raises(VmtError, match=r"resources\[cpu\].lendingLimit: is negative \(found -1000\)"):
        cpu(1, None, -1)


def test_the_largest_quota_does_not_overflow() -> None:
    most = ResourceQuota(STORAGE, 1 << 58, 1 << 58, 1 << 58)
    names = [f"t{i}" for i in range(64)]
    tree = QuotaTree.build(
        [TenantQuota(name, "below", resources=(most,)) for name in names],
        [CohortQuota("root", resources=(most,)), CohortQuota("below", "root", resources=(most,))],
    )
    assert tree.available("t0", STORAGE) == 1 << 59
    for name in names:
        tree.charge(name, STORAGE, 1 << 54, name)
    assert tree.available("t0", STORAGE) == 1 << 58
    assert tree.share("t0", {STORAGE: 1 << 58}) < 1


def test_pods_take_cpu_of_their_own_and_a_guarantee_has_none() -> None:
    tree = rules(tenant("a", cpu(4)))
    hold = Demand("lab", "a", Runtime.HOLD, (("whole", 2),), maximum=(("whole", 3),))
    pods = [
        Demand(f"p{i}", "a", Runtime.POD, (("whole", 1),), cpu=2_000, parent="lab", created=float(i))
        for i in range(3)
    ]
    answers = decide(supply(), tree, [], [hold, *pods])
    assert [dict(admit.charged) for admit in admitted(answers)] == [
        {"h100": 2 * GPU},
        {CPU: 2_000},
        {CPU: 2_000},
    ]
    wait = only(tree, admitted(answers), pods[2])
    assert wait.message == "cpu: needs 2, 0 free of 4 in cohort team; held by lab 4"


def test_volumes_are_charged_without_a_grant_and_never_given_back() -> None:
    tree = rules(tenant("a", ResourceQuota(STORAGE, 10), policy=WITHIN))
    live = [volumes("x", "a", 6), *running(tree, vm("x"))]
    wait = only(tree, live, vm("w", storage=5, priority=9))
    assert (wait.reason, wait.victims) == (Reason.QUOTA_EXCEEDED, ())
    assert wait.message == "storage: needs 5, 4 free of 10 in cohort team; held by volumes of x 6"
    more = running(tree, vm("w", storage=4), live=live)
    assert more[-1].charged == {"h100": GPU, STORAGE: 4}
    assert only(tree, more, vm("v", storage=1, priority=9)).victims == (), "its volumes would stay"


def test_what_is_not_preemptible_takes_of_the_nominal_quota_alone() -> None:
    tree = rules(
        tenant("a", cpu(4), ResourceQuota(STORAGE, 10)), tenant("b", cpu(4), ResourceQuota(STORAGE, 10))
    )
    live = running(tree, vm("firm", cpu=3_000, preemptible=False), vm("soft", cpu=1_000))
    wait = only(tree, live, vm("w", cpu=2_000, preemptible=False))
    assert (wait.reason, wait.message) == (
        Reason.OWN_QUOTA_EXCEEDED,
        "cpu: is not preemptible and needs 2 of the nominal quota of tenant a, 1 of 4 are not taken by guarantees "
        "and what is not preemptible",
    )
    assert running(tree, vm("w", cpu=2_000), live=live)[-1].borrowed == {CPU: 2_000}
    together = [vm("soft", storage=6), vm("w", storage=5, preemptible=False, created=1.0)]
    _, wait = decide(supply(), tree, [], together)
    assert isinstance(wait, Wait), "volumes are not given back, whoever has them"
    assert wait.reason is Reason.OWN_QUOTA_EXCEEDED
    wait = only(tree, [volumes("soft", "a", 6)], vm("w", storage=5, preemptible=False))
    assert wait.message.endswith("needs 5 of the nominal quota of tenant a, 4 of 10 are not taken by volumes")


def test_the_dominant_share_is_over_pools_and_resources() -> None:
    tree = QuotaTree.build(
        [tenant("a", cpu(0)), tenant("b", cpu(8))], [CohortQuota("team", resources=(cpu(8),))]
    )
    tree.charge("a", "h100", 10 * GPU, "x")
    assert tree.share("a") == 2 / 16
    assert tree.share("a", {CPU: 4_000}) == 4 / 16
    turn = decide(
        supply(),
        tree,
        [],
        [
            vm("a1", cpu=6_000, created=1.0),
            vm("a2", cpu=6_000, created=2.0),
            vm("b1", "b", cpu=16_000, created=3.0),
        ],
    )
    assert [decision.demand.key for decision in turn] == ["a1", "b1", "a2"], "b has borrowed less"


# -- making room ------------------------------------------------------------------------------------------------------


def test_only_cpu_is_short_and_only_who_borrowed_it_makes_room() -> None:
    """`a` may hold the GPU that it asks for; `b` has borrowed GPUs and no cpu, `c` cpu and no GPU."""
    tree = rules(
        tenant("a", cpu(4), gpus=4, policy=RECLAIM), tenant("b", cpu(8), gpus=1), tenant("c", cpu(2), gpus=3)
    )
    live = running(
        tree,
        vm("b1", "b", 2),
        vm("b2", "b", cpu=8_000, created=2.0),
        vm("c1", "c", cpu=2_000),
        vm("c2", "c", cpu=3_000, created=1.0),
    )
    wait = only(tree, live, vm("w", cpu=4_000))
    assert (wait.reason, wait.victims) == (Reason.NOMINATED, ("c2",)), "b2 is younger, and would be enough"


def test_what_is_ones_own_of_cpu_is_not_taken_for_it() -> None:
    """`b` has borrowed GPUs, and holds of cpu what is its own."""
    tree = rules(
        tenant("a", cpu(8), gpus=4, policy=RECLAIM), tenant("b", cpu(4), gpus=1), tenant("c", cpu(2))
    )
    live = running(tree, vm("b1", "b", 2, cpu=4_000), vm("c1", "c", cpu=6_000, preemptible=True))
    firm = [replace(live[0]), replace(live[1], demand=replace(live[1].demand, preemptible=False))]
    wait = only(tree, firm, vm("w", cpu=8_000))
    assert (wait.reason, wait.victims) == (Reason.QUOTA_EXCEEDED, ())


def test_gpus_of_who_borrowed_them_are_taken_where_devices_are_short_too() -> None:
    tree = rules(tenant("a", cpu(4), gpus=24, policy=RECLAIM), tenant("b", gpus=16), tenant("c", cpu(2)))
    sizes = [vm(f"b{i}", "b", count, created=float(i)) for i, count in enumerate((8, 8, 4))]
    live = running(tree, *sizes, vm("c1", "c", 4, cpu=3_000, created=9.0))
    wait = only(tree, live, vm("w", count=8, cpu=4_000))
    assert (wait.reason, set(wait.victims)) == (Reason.NOMINATED, {"b2", "c1"}), "they share a node"


def test_a_workload_on_other_gpus_makes_room_for_cpu() -> None:
    """What it holds of another pool is none of what is asked for."""
    quota = (PoolQuota("h100", 8), PoolQuota("a100", 8))
    tree = QuotaTree.build([TenantQuota("a", None, quota, WITHIN, resources=(cpu(4),))])
    offerings = [Offering(p, p, GPU, {Mode.PASSTHROUGH: f"nvidia.com/{p}"}) for p in ("h100", "a100")]
    nodes = [
        NodeFacts(
            p,
            Mode.PASSTHROUGH,
            product=p,
            devices=(DeviceFacts("g0"), DeviceFacts("g1")),
            capacity={f"nvidia.com/{p}": 2},
            cpu=64_000,
        )
        for p in ("h100", "a100")
    ]
    place = Fleet.build(nodes, [Pool(p, frozenset({p})) for p in ("h100", "a100")], offerings)
    low = Demand("low", "a", Runtime.VM, (("a100", 1),), cpu=3_000)
    none = Demand("none", "a", Runtime.VM, (("a100", 1),))
    live = admitted(decide(place, tree, [], [low, none]))
    high = Demand("high", "a", Runtime.VM, (("h100", 1),), priority=1, cpu=4_000)
    (wait,) = decide(place, tree, live, [high])
    assert isinstance(wait, Wait)
    assert (wait.reason, wait.victims) == (Reason.NOMINATED, ("low",))


def test_devices_and_cpu_are_taken_where_both_are_short() -> None:
    tree = rules(tenant("a", cpu(6), gpus=24, policy=WITHIN))
    live = running(tree, *(vm(f"vm{i}", count=8, cpu=2_000, created=float(i)) for i in range(3)))
    wait = only(tree, live, vm("w", count=8, cpu=3_000, priority=1))
    assert set(wait.victims) == {"vm1", "vm2"}, "one would free the GPUs, and not the cpu"


def test_taking_back_cpu_never_borrows_and_the_fewest_go() -> None:
    tree = rules(tenant("a", cpu(4), policy=RECLAIM), tenant("b", cpu(4)))
    live = running(tree, *(vm(f"b{i}", "b", cpu=1_000 * (1 + i), created=-float(i)) for i in range(3)))
    assert only(tree, live, vm("w", cpu=3_000)).victims == ("b0",), "6 of 8 are held, and 1 more is enough"
    assert only(tree, live, vm("w", cpu=4_000)).victims == ("b1",)
    live = running(tree, vm("own", cpu=2_000), live=live)
    assert only(tree, live, vm("w", cpu=3_000)).victims == (), "it would hold 5, and has 4"
    borrow = PreemptionPolicy(Preempts.NEVER, Preempts.ANY, BorrowWithinCohort())
    may = rules(tenant("a", cpu(4), policy=borrow), tenant("b", cpu(4)))
    assert only(may, live, vm("w", cpu=3_000, priority=1)).victims == ("b2",)


def test_what_draws_on_a_guarantee_is_not_stopped_for_its_cpu() -> None:
    tree = rules(
        tenant("a", cpu(4), policy=PreemptionPolicy(reclaim_within_cohort=Preempts.ANY)), tenant("b", cpu(0))
    )
    hold = Demand("lab", "b", Runtime.HOLD, (("whole", 1),), maximum=(("whole", 2),))
    pods = [
        Demand(f"p{i}", "b", Runtime.POD, (("whole", 1),), cpu=2_000, parent="lab", created=float(i))
        for i in range(2)
    ]
    live = running(tree, hold, pods[0])
    assert only(tree, live, vm("w", cpu=4_000)).victims == ()
    live = running(tree, pods[1], live=live)
    assert only(tree, live, vm("w", cpu=2_000)).victims == ("p1",), "what is beyond the guarantee is"


# -- all together -----------------------------------------------------------------------------------------------------

LIMIT = st.none() | st.integers(0, 6)
#: A pool that is called as a resource, and two resources.
COLUMNS = ("cpu", CPU, STORAGE)
_UNIT = {"cpu": GPU, CPU: 1_000, STORAGE: GI}


@st.composite
def trees(draw: st.DrawFn) -> dict[str, tuple[list[TenantQuota], list[CohortQuota]]]:
    """One tree of all columns (under ""), and for each column alone a tree in which it is a pool of that name."""
    parents: list[str | None] = [None]
    above = [
        draw(st.sampled_from(parents + [f"c{j}" for j in range(i)])) for i in range(draw(st.integers(0, 3)))
    ]
    homes = [
        draw(st.sampled_from([None, *(f"c{i}" for i in range(len(above)))]))
        for _ in range(draw(st.integers(1, 3)))
    ]
    owners = [f"c{i}" for i in range(len(above))] + [f"t{i}" for i in range(len(homes))]
    given = {
        (owner, column): (draw(st.integers(0, 6)), draw(LIMIT), draw(LIMIT))
        for owner, column in itertools.product(owners, COLUMNS)
        if draw(st.integers(0, 4))
    }

    def pool(owner: str, column: str, name: str) -> tuple[PoolQuota, ...]:
        return (PoolQuota(name, *given[owner, column]),) if (owner, column) in given else ()

    def resources(owner: str) -> tuple[ResourceQuota, ...]:
        return tuple(
            ResourceQuota(
                column,
                *(None if n is None else n * _UNIT[column] for n in given[owner, column]),  # type: ignore[arg-type]
            )
            for column in (CPU, STORAGE)
            if (owner, column) in given
        )

    def tree(of: str) -> tuple[list[TenantQuota], list[CohortQuota]]:
        quota = {owner: pool(owner, of or "cpu", "cpu" if not of else "alone") for owner in owners}
        more = {owner: () if of else resources(owner) for owner in owners}
        return (
            [
                TenantQuota(f"t{i}", home, quota[f"t{i}"], resources=more[f"t{i}"])
                for i, home in enumerate(homes)
            ],
            [CohortQuota(f"c{i}", up, quota[f"c{i}"], resources=more[f"c{i}"]) for i, up in enumerate(above)],
        )

    return {of: tree(of) for of in ("", *COLUMNS)}


@given(described=trees(), data=st.data())
def test_a_resource_counts_as_a_pool_does_and_what_if_leaves_nothing(
    described: dict[str, tuple[list[TenantQuota], list[CohortQuota]]], data: st.DataObject
) -> None:
    whole = QuotaTree.build(*described[""])
    alone = {column: QuotaTree.build(*described[column]) for column in COLUMNS}
    names = [tenant.name for tenant in described[""][0]]
    held: Counter[tuple[str, str]] = Counter()

    def check() -> None:
        for name, column in itertools.product(names, COLUMNS):
            is_open = alone[column].is_open(name, "alone")
            assert whole.is_open(name, column) is is_open
            scale = GPU // _UNIT[column] if column == "cpu" else 1
            assert whole.available(name, column) * GPU * scale == (
                alone[column].available(name, "alone") * _UNIT[column] * scale
            )
            assert whole.usage(name, column) == held[name, column] * _UNIT[column]
        for name in names:
            limited = {column for column in COLUMNS[1:] if alone[column].is_open(name, "alone")}
            assert set(whole.limited(name)) == limited
            for level in range(len(whole.path(name))):
                shares = [
                    alone[column].share(name, level=level) for column in COLUMNS if alone[column].columns
                ]
                assert whole.share(name, level=level) == pytest.approx(max(shares, default=0.0))

    for _ in range(data.draw(st.integers(0, 8))):
        name, column = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(COLUMNS))
        count = data.draw(st.integers(1, 4))
        if held[name, column] >= count and data.draw(st.booleans()):
            whole.uncharge(name, column, count * _UNIT[column], name)
            alone[column].uncharge(name, "alone", count * GPU, name)
            held[name, column] -= count
        elif whole.is_open(name, column):
            whole.charge(name, column, count * _UNIT[column], name)
            alone[column].charge(name, "alone", count * GPU, name)
            held[name, column] += count
        check()
        with whole.what_if():
            for other, where in itertools.product(names, COLUMNS):
                whole.charge(other, where, 3, "x")
        check()


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[TenantQuota], list[ResourceQuota], list[list[Demand]]]:
    """Tenants of one cohort, some limited, and two rounds of requests."""
    policy = PreemptionPolicy(
        draw(st.sampled_from([Preempts.NEVER, Preempts.LOWER_PRIORITY])),
        draw(st.sampled_from(Preempts)),
        draw(st.sampled_from([None, BorrowWithinCohort()])),
    )

    def limited(lending: bool) -> tuple[ResourceQuota, ...]:
        return tuple(
            ResourceQuota(resource, draw(st.integers(0, 6)), draw(LIMIT), draw(LIMIT) if lending else None)
            for resource in (CPU, STORAGE)
            if draw(st.integers(0, 3))
        )

    tenants = [
        tenant(name, *limited(lending=True), gpus=draw(st.integers(0, 3)), policy=policy) for name in "abc"
    ]
    asked = [
        [
            vm(
                f"{number}-{i}",
                draw(st.sampled_from("abc")),
                cpu=draw(st.integers(0, 5)),
                storage=draw(st.integers(0, 3)),
                priority=draw(st.integers(0, 2)),
                created=float(10 * number + i),
                preemptible=draw(st.integers(0, 3)) > 0,
            )
            for i in range(draw(st.integers(1, 5)))
        ]
        for number in range(2)
    ]
    return tenants, list(limited(lending=False)), asked


@given(scene=rounds())
def test_no_admission_goes_beyond_what_may_be_held(
    scene: tuple[list[TenantQuota], list[ResourceQuota], list[list[Demand]]],
) -> None:
    """I2, with what is held added up by hand; who was stopped keeps its volumes, and what waits gets no less then."""
    tenants, shared, asked = scene
    tree, live = rules(*tenants, cohort=shared), list[Admit]()
    there: dict[str, Demand] = {}
    for demands in asked:
        decided = decide(supply(), tree, live, demands)
        for admit in admitted(decided):
            there[admit.demand.key] = admit.demand
        stopped = {key for wait in decided if isinstance(wait, Wait) for key in wait.victims}
        running_now = [admit for admit in [*live, *admitted(decided)] if admit.demand.runtime is Runtime.VM]
        for resource in (CPU, STORAGE):
            holding = there.values() if resource is STORAGE else [admit.demand for admit in running_now]
            held = Counter[str]()
            for demand in holding:
                held[demand.tenant] += demand.takes(resource)
            given_ = {t.name: row for t in tenants for row in t.resources if row.resource is resource}
            for name, row in given_.items():
                if row.borrowing_limit is not None:
                    assert held[name] <= row.nominal + row.borrowing_limit
            common = sum(row.nominal for row in shared if row.resource is resource)
            most = common + sum(row.nominal for row in given_.values())
            assert sum(held[name] for name in given_) <= most
        kept = [admit for admit in running_now if admit.demand.key not in stopped]
        live = [replace(admit, demand=replace(admit.demand, storage=0)) for admit in kept]
        live += [
            volumes(key, demand.tenant, demand.storage) for key, demand in there.items() if demand.storage
        ]
    for wait in decide(supply(), tree, live, [d for d in asked[-1] if d.key not in there]):
        if isinstance(wait, Wait) and wait.reason is Reason.QUOTA_EXCEEDED:
            assert wait.shortage is not None
            assert wait.shortage.requested > wait.shortage.free
