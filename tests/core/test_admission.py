"""Decisions: quota and placement together, holds of virtual clusters, order, and reasons that are true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from described import GPU, OFFERINGS, POOLS, devices, fleet, node, node_lists
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fleet import state

from vmtenancy.core.admission import decide
from vmtenancy.core.explain.refusal import Reason
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import Mode, NodeFacts, Offering, Runtime
from vmtenancy.core.quota.tree import CohortQuota, PoolQuota, QuotaTree, TenantQuota
from vmtenancy.core.requests import Admit, Demand, Wait
from vmtenancy.errors import Code, VmtError

VM, POD, HOLD = Runtime.VM, Runtime.POD, Runtime.HOLD


def quotas(**nominal: int) -> QuotaTree:
    """Tenants of one cohort, each with a nominal quota in the pool."""
    return QuotaTree.build(
        [TenantQuota(name, "team", (PoolQuota("h100", gpus),)) for name, gpus in nominal.items()],
        [CohortQuota("team")],
    )


def vm(key: str, tenant: str, count: int = 1, **more: object) -> Demand:
    return Demand(key, tenant, VM, (("whole", count),), **more)  # type: ignore[arg-type]


def pod(key: str, tenant: str, count: int = 1, **more: object) -> Demand:
    return Demand(key, tenant, POD, (("whole", count),), **more)  # type: ignore[arg-type]


def hold(key: str, tenant: str, guaranteed: int, maximum: int, **more: object) -> Demand:
    requests = (("whole", guaranteed),)
    return Demand(key, tenant, HOLD, requests, maximum=(("whole", maximum),), **more)  # type: ignore[arg-type]


def waits(decisions: Sequence[Admit | Wait]) -> dict[str, Wait]:
    return {decision.demand.key: decision for decision in decisions if isinstance(decision, Wait)}


def admits(decisions: Sequence[Admit | Wait]) -> dict[str, Admit]:
    return {decision.demand.key: decision for decision in decisions if isinstance(decision, Admit)}


MIXED = (node("container", Mode.CONTAINER), node("through", Mode.PASSTHROUGH), node("vgpu", Mode.VGPU))


def test_a_vm_and_a_pod_share_one_quota_and_land_where_their_mode_is() -> None:
    answers = admits(
        decide(fleet(*MIXED), quotas(vision=4), [], [vm("vm", "vision", 2), pod("pod", "vision", 2)])
    )
    assert {key: admit.placement.node for key, admit in answers.items() if admit.placement} == {
        "vm": "through",
        "pod": "container",
    }
    assert answers["vm"].charged == {"h100": 2 * GPU}


def test_over_quota_names_pool_need_free_and_holders() -> None:
    tree = QuotaTree.build(
        [
            TenantQuota("vision", "team", (PoolQuota("h100", 4, borrowing_limit=4),)),
            TenantQuota("llm", "team", (PoolQuota("h100", 5),)),
        ],
        [CohortQuota("team")],
    )
    live = decide(fleet(*MIXED), tree, [], [vm("vision/trainer", "vision", 2), hold("llm/lab", "llm", 6, 6)])
    third = decide(fleet(*MIXED), tree, [*admits(live).values()], [vm("vision/third", "vision", 2)])
    wait = waits(third)["vision/third"]
    assert wait.reason is Reason.QUOTA_EXCEEDED
    assert wait.message == (
        "pool h100: needs 2 GPUs, 1 free of 8 (nominal 4 + up to 4 borrowed) in cohort team; "
        "held by llm/lab 6, vision/trainer 2"
    )
    assert wait.problem.code is Code.QUOTA_EXCEEDED
    assert wait.shortage
    assert (wait.shortage.free, wait.shortage.requested, wait.position) == (GPU, 2 * GPU, 1)


def test_borrowing_is_told_apart() -> None:
    answers = admits(
        decide(fleet(*MIXED), quotas(a=1, b=8), [], [vm("one", "a", 3), vm("two", "a", 1, created=1)])
    )
    assert answers["one"].borrowed == {"h100": 2 * GPU}
    assert answers["two"].borrowed == {"h100": GPU}


def test_nothing_is_charged_that_can_not_be_placed() -> None:
    demands = [vm("big", "a", 9, priority=1), vm("small", "a", 8)]
    answers = decide(fleet(*MIXED), quotas(a=9), [], demands)
    assert list(admits(answers)) == ["small"]
    wait = waits(answers)["big"]
    assert wait.reason is Reason.QUOTA_EXCEEDED
    assert waits(decide(fleet(*MIXED), quotas(a=9), [], demands[:1]))["big"].message == (
        "pool h100: needs 9 GPUs on one node, at most 8 free of 8; "
        "of 3 nodes: 2 in a mode that does not deliver it, 1 advertise too few devices"
    )


def test_order_is_priority_then_age_then_key() -> None:
    demands = [
        vm("c", "a", created=2),
        vm("b", "a", created=1),
        vm("a", "a", created=1),
        vm("urgent", "a", created=9, priority=5),
        vm("lazy", "a", priority=-5),
    ]
    answers = decide(fleet(*MIXED), quotas(a=2), [], demands)
    assert [answer.demand.key for answer in answers] == ["urgent", "a", "b", "c", "lazy"]
    assert list(admits(answers)) == ["urgent", "a"]
    assert [wait.position for wait in waits(answers).values()] == [1, 2, 3]


def test_best_effort_a_large_request_that_waits_blocks_nobody() -> None:
    answers = decide(
        fleet(*MIXED), quotas(a=2, b=2), [], [vm("large", "a", 5), vm("small", "b", 1, created=1)]
    )
    assert list(admits(answers)) == ["small"]
    assert waits(answers)["large"].message.endswith("held by small 1")


@pytest.mark.parametrize(
    ("demand", "reason", "message"),
    [
        (
            Demand("x", "a", VM, (("wholes", 1),)),
            Reason.UNKNOWN_CLASS,
            "class wholes does not exist; expected one of half, lost, other, quarter, slice, slice3, whole",
        ),
        (
            Demand("x", "a", VM, (("lost", 1),)),
            Reason.UNKNOWN_CLASS,
            "class lost is of pool gone, which does not exist",
        ),
        (
            Demand("x", "a", VM, (("slice", 1),)),
            Reason.NOT_DELIVERABLE,
            "class slice is not delivered to a virtual machine",
        ),
        (
            Demand("x", "a", POD, (("half", 1),)),
            Reason.NOT_DELIVERABLE,
            "class half is not delivered to a pod",
        ),
        (
            Demand("x", "a", HOLD, (("half", 1),)),
            Reason.NOT_DELIVERABLE,
            "class half is not delivered to the pods of a virtual cluster",
        ),
        (
            Demand("x", "a", VM, (("whole", 1), ("half", 1))),
            Reason.NOT_DELIVERABLE,
            "classes whole, half are delivered by nodes in different modes, and a node has one mode",
        ),
        (
            Demand("x", "a", POD, (("whole", 1), ("other", 1))),
            Reason.NOT_DELIVERABLE,
            "classes whole, other are of pools a100, h100, and the devices of one workload come from one node",
        ),
        (Demand("x", "b", VM, (("whole", 1),)), Reason.NO_QUOTA, "tenant b has no quota in pool h100"),
        (Demand("x", "c", VM, (("whole", 1),)), Reason.NO_QUOTA, "tenant c does not exist"),
        (
            Demand("x", "a", POD, (("whole", 1),), parent="lab"),
            Reason.HOLD_PENDING,
            "lab does not hold its guaranteed GPUs yet",
        ),
        (
            Demand("x", "a", VM, (("half", 3),)),
            Reason.CLASS_LIMIT,
            "class half: needs 3, 2 left under the limit of tenant a",
        ),
        (
            Demand("x", "a", POD, (("other", 1),)),
            Reason.NO_CAPACITY,
            "pool a100: needs 1 GPU on one node, at most 0 free of 0; the pool has no nodes",
        ),
    ],
)
def test_reasons(demand: Demand, reason: Reason, message: str) -> None:
    extra = (
        Offering("lost", "gone", GPU, OFFERINGS[0].resources),
        Offering("other", "a100", GPU, OFFERINGS[0].resources),
    )
    supply = Fleet.build(
        MIXED, (*POOLS, replace(POOLS[0], name="a100", products=frozenset({"A100"}))), OFFERINGS + extra
    )
    quota = (PoolQuota("h100", 8, classes={"half": 2}), PoolQuota("a100", 8))
    tree = QuotaTree.build([TenantQuota("a", None, quota), TenantQuota("b")])
    wait = waits(decide(supply, tree, [], [demand]))["x"]
    assert (wait.reason, wait.message) == (reason, message)
    assert (wait.position == 0) == (reason in {Reason.UNKNOWN_CLASS, Reason.NOT_DELIVERABLE, Reason.NO_QUOTA})


@pytest.mark.parametrize(
    ("requests", "runtime", "path"),
    [
        ((("whole", 0),), VM, r"spec\.gpus\[0\]\.count"),
        ((("whole", -1),), HOLD, r"spec\.gpus\[0\]\.count"),
        ((("whole", 1), ("whole", 1)), VM, r"spec\.gpus: must name classes, each once"),
        ((), POD, r"spec\.gpus: must name classes, each once"),
    ],
)
def test_bad_demands_are_refused(requests: tuple[tuple[str, int], ...], runtime: Runtime, path: str) -> None:
    with pytest.raises(VmtError, match=path):
        Demand("x", "a", runtime, requests)


def test_a_key_twice_is_refused() -> None:
    with pytest.raises(VmtError, match="keys must be unique"):
        decide(fleet(), quotas(), [], [vm("x", "a"), vm("x", "a", 2)])


def test_i1_grants_that_contradict_each_other_are_refused() -> None:
    one = admits(decide(fleet(*MIXED), quotas(a=8), [], [vm("x", "a")]))["x"]
    with pytest.raises(VmtError, match="I1"):
        decide(fleet(*MIXED), quotas(a=8), [one, replace(one, demand=vm("y", "a"))], [])


# -- virtual clusters ---------------------------------------------------------------------------------------------


def test_pods_draw_on_the_hold_first_then_on_quota_up_to_the_maximum() -> None:
    supply, tree = fleet(*MIXED), quotas(a=4)
    live = list(admits(decide(supply, tree, [], [hold("lab", "a", 2, 3)])).values())
    assert live[0].charged == {"h100": 2 * GPU}
    assert live[0].placement is None
    pods = [pod(f"p{i}", "a", parent="lab", created=i) for i in range(4)]
    answers = decide(supply, tree, live, [*pods, vm("vm", "a", 2, created=9)])
    assert [admit.charged for admit in admits(answers).values()] == [{}, {}, {"h100": GPU}]
    assert waits(answers)["p3"].reason is Reason.MAX_REACHED
    assert waits(answers)["p3"].message == "class whole: needs 1, 0 free of the 3 that lab may use"
    assert (
        waits(answers)["vm"].message == "pool h100: needs 2 GPUs, 1 free of 4 in cohort team; held by lab 3"
    )


def test_a_pod_is_decided_after_the_hold_that_comes_with_it() -> None:
    answers = decide(
        fleet(*MIXED), quotas(a=2), [], [pod("pod", "a", parent="lab", priority=9), hold("lab", "a", 1, 2)]
    )
    assert list(admits(answers)) == ["lab", "pod"]


def test_a_hold_of_another_tenant_is_no_parent() -> None:
    live = list(admits(decide(fleet(*MIXED), quotas(a=2, b=2), [], [hold("lab", "a", 1, 2)])).values())
    wait = waits(decide(fleet(*MIXED), quotas(a=2, b=2), live, [pod("pod", "b", parent="lab")]))["pod"]
    assert wait.reason is Reason.HOLD_PENDING


def test_a_hold_is_admitted_only_while_nodes_of_its_mode_can_keep_it() -> None:
    supply = fleet(node("c", Mode.CONTAINER, 4), node("p", Mode.PASSTHROUGH))
    demands = [hold("one", "a", 3, 4), hold("two", "a", 2, 2, created=1), pod("pod", "a", 2, created=2)]
    answers = decide(supply, quotas(a=12), [], demands)
    assert list(admits(answers)) == ["one"]
    for key in ("two", "pod"):
        assert waits(answers)[key].reason is Reason.NO_CAPACITY
        assert waits(answers)[key].message == (
            "pool h100: needs 2 GPUs, 1 free of 4 in container mode (3 kept for guarantees of virtual clusters); "
            "held by one 3"
        )


def test_what_its_pods_have_drawn_is_kept_no_more() -> None:
    supply, tree = fleet(node("c", Mode.CONTAINER, 4)), quotas(a=8)
    pods = [
        pod("in", "a", 2, parent="lab", created=1),
        pod("out", "a", 2, created=2),
        pod("late", "a", created=3),
    ]
    answers = decide(supply, tree, [], [hold("lab", "a", 2, 4), *pods])
    assert list(admits(answers)) == ["lab", "in", "out"]
    assert "at most 0 free of 4" in waits(answers)["late"].message


def test_a_hold_keeps_what_its_own_pods_need_even_when_nodes_are_lost() -> None:
    tree = quotas(a=12)
    live = list(admits(decide(fleet(node("c", Mode.CONTAINER)), tree, [], [hold("lab", "a", 8, 8)])).values())
    shrunk = fleet(node("c", Mode.CONTAINER, devices=devices(8, cordoned=6)))
    answers = decide(shrunk, tree, live, [pod("in", "a", 2, parent="lab"), pod("out", "a", 1)])
    assert list(admits(answers)) == ["in"]


def test_a_cluster_that_is_guaranteed_nothing_gives_its_pods_a_maximum() -> None:
    elastic = Admit(Demand("lab", "a", HOLD, (), maximum=(("whole", 1),)), None)
    answers = decide(
        fleet(*MIXED), quotas(a=8), [elastic], [pod("p1", "a", parent="lab"), pod("p2", "a", parent="lab")]
    )
    assert admits(answers)["p1"].charged == {"h100": GPU}
    assert waits(answers)["p2"].reason is Reason.MAX_REACHED


def test_a_live_hold_is_charged_what_was_charged_then() -> None:
    demand = hold("lab", "a", 2, 2)
    for charged, free in (({"h100": 3 * GPU}, 1), ({}, 2)):
        answers = decide(fleet(*MIXED), quotas(a=4), [Admit(demand, None, charged)], [vm("vm", "a", 3)])
        assert waits(answers)["vm"].shortage.free == free * GPU  # type: ignore[union-attr]


# -- random fleets, quotas and queues ------------------------------------------------------------------------------


TENANTS = ("t0", "t1", "t2")


@st.composite
def trees(draw: st.DrawFn) -> list[TenantQuota]:
    small = st.integers(0, 4)
    return [
        TenantQuota(
            name,
            draw(st.sampled_from([None, "team", "team"])),
            (
                PoolQuota(
                    "h100",
                    draw(small),
                    draw(st.none() | small),
                    draw(st.none() | small),
                    draw(st.sampled_from([{}, {}, {"whole": 1, "quarter": 2}])),
                ),
            )
            if draw(st.integers(0, 9))
            else (),
        )
        for name in TENANTS
    ]


@st.composite
def queues(draw: st.DrawFn) -> list[Demand]:
    demands: list[Demand] = []
    for i in range(draw(st.integers(1, 8))):
        runtime = draw(st.sampled_from([VM, POD, POD, HOLD]))
        classes = {
            VM: [("whole",), ("half", "quarter"), ("quarter",), ("slice",)],
            POD: [("whole",), ("slice",), ("whole", "slice3")],
            HOLD: [("whole",), ("whole", "slice")],
        }[runtime]
        requests = tuple((name, draw(st.integers(1, 3))) for name in draw(st.sampled_from(classes)))
        holds = [demand for demand in demands if demand.runtime is HOLD]
        parent = draw(st.sampled_from([None, *holds])) if runtime is POD else None
        demands.append(
            Demand(
                f"d{i}",
                parent.tenant if parent else draw(st.sampled_from(TENANTS)),
                runtime,
                requests,
                priority=draw(st.integers(0, 2)),
                created=float(draw(st.integers(0, 2))),
                cpu=draw(st.sampled_from([0, 1_000])),
                parent=parent.key if parent else None,
                maximum=tuple((name, count + 1) for name, count in requests) if runtime is HOLD else (),
            )
        )
    return demands


def build(nodes: Sequence[NodeFacts], tenants: Sequence[TenantQuota]) -> tuple[Fleet, QuotaTree]:
    return Fleet.build(nodes, POOLS, OFFERINGS), QuotaTree.build(tenants, [CohortQuota("team")])


def charges(grants: Sequence[Admit]) -> Counter[str]:
    """Parts by tenant, by the rule itself: of a virtual cluster the larger of its hold and the sum of its
    pods.
    """
    parts = {offering.name: offering.parts for offering in OFFERINGS}
    gross = {g.demand.key: sum(parts[name] * count for name, count in g.demand.requests) for g in grants}
    total: Counter[str] = Counter()
    for grant in grants:
        if grant.demand.runtime is HOLD:
            pods = sum(gross[g.demand.key] for g in grants if g.demand.parent == grant.demand.key)
            total[grant.demand.tenant] += max(gross[grant.demand.key], pods)
        elif grant.demand.parent is None:
            total[grant.demand.tenant] += gross[grant.demand.key]
    return total


SCENES = {"nodes": node_lists(), "tenants": trees(), "first": queues(), "second": queues(), "data": st.data()}


@given(**SCENES)
def test_random_rounds(
    nodes: list[NodeFacts],
    tenants: list[TenantQuota],
    first: list[Demand],
    second: list[Demand],
    data: st.DataObject,
) -> None:
    """I1, I2, each charge once, the same answer whatever the order of what comes in, and inputs left as they
    were.
    """
    supply, tree = build(nodes, tenants)
    live = [answer for answer in decide(supply, tree, [], first) if isinstance(answer, Admit)]
    live = data.draw(st.permutations(live))
    gone = {admit.demand.key for admit in live[: len(live) // 2]}
    live = [admit for admit in live if not {admit.demand.key, admit.demand.parent} & gone]
    again = [
        replace(demand, key=f"n{demand.key}", parent=demand.parent and f"n{demand.parent}")
        for demand in second
    ]
    before = (state(supply), tree.holders("h100"))
    answers = decide(supply, tree, live, again)
    assert (state(supply), tree.holders("h100")) == before
    other_fleet, other_tree = build(data.draw(st.permutations(nodes)), data.draw(st.permutations(tenants)))
    shuffled = decide(
        other_fleet, other_tree, data.draw(st.permutations(live)), data.draw(st.permutations(again))
    )
    assert shuffled == answers
    granted = [*live, *admits(answers).values()]
    for admit in granted:
        if admit.placement is not None:
            supply.hold(admit.placement)
    used = charges(granted)
    assert (
        charges(live)
        + Counter(
            {
                t: sum(sum(a.charged.values()) for a in admits(answers).values() if a.demand.tenant == t)
                for t in TENANTS
            }
        )
        == used
    )
    for tenant, rule in zip(TENANTS, tenants, strict=True):
        if rule.quota and rule.quota[0].borrowing_limit is not None and rule.cohort:
            assert used[tenant] <= (rule.quota[0].nominal + rule.quota[0].borrowing_limit) * GPU
        if not rule.cohort or not rule.quota:
            assert used[tenant] <= (rule.quota[0].nominal * GPU if rule.quota else 0)
    team = [
        (tenant, rule) for tenant, rule in zip(TENANTS, tenants, strict=True) if rule.cohort and rule.quota
    ]
    assert sum(used[tenant] for tenant, _ in team) <= sum(rule.quota[0].nominal for _, rule in team) * GPU


@settings(max_examples=150)
@given(nodes=node_lists(), tenants=trees(), queue=queues())
def test_the_reason_is_true(nodes: list[NodeFacts], tenants: list[TenantQuota], queue: list[Demand]) -> None:
    """Nothing changes if nothing is given; and giving just what the reason names leads to admission."""
    supply, tree = build(nodes, tenants)
    answers = decide(supply, tree, [], queue)
    live = list(admits(answers).values())
    for key, wait in waits(answers).items():
        demand = wait.demand
        alone = waits(decide(supply, tree, live, [demand]))[key]
        assert replace(alone, position=0) == replace(wait, position=0)
        if wait.reason in {Reason.UNKNOWN_CLASS, Reason.NOT_DELIVERABLE, Reason.HOLD_PENDING}:
            continue
        given_nodes, given_tenants, given_live = (
            list(nodes),
            {tenant.name: tenant for tenant in tenants},
            list(live),
        )
        for step in range(20):
            answer = decide(*build(given_nodes, list(given_tenants.values())), given_live, [demand])[0]
            if isinstance(answer, Admit):
                break
            give(answer, given_nodes, given_tenants, given_live, step)
        assert isinstance(answer, Admit), answer


def give(
    wait: Wait, nodes: list[NodeFacts], tenants: dict[str, TenantQuota], live: list[Admit], step: int
) -> None:
    """Give exactly the thing that the reason names."""
    rule = tenants[wait.demand.tenant]
    if wait.reason is Reason.NO_CAPACITY:
        assert wait.shortage
        if wait.demand.runtime is not VM and "in container mode" in wait.message:
            assert wait.shortage.requested > wait.shortage.free
        mode = {VM: Mode.VGPU if wait.demand.requests[0][0] in {"half", "quarter"} else Mode.PASSTHROUGH}.get(
            wait.demand.runtime, Mode.CONTAINER
        )
        nodes.append(node(f"new-{step}", mode, 6))
        return
    if wait.reason is Reason.MAX_REACHED:
        for i, admit in enumerate(live):
            if admit.demand.key == wait.demand.parent:
                bigger = tuple((name, 99) for name, _ in wait.demand.requests)
                live[i] = replace(admit, demand=replace(admit.demand, maximum=bigger))
        return
    if wait.reason is Reason.NO_QUOTA:
        assert not rule.quota
        tenants[rule.name] = replace(rule, quota=(PoolQuota("h100", 0),))
        return
    quota = rule.quota[0]
    if wait.reason is Reason.CLASS_LIMIT:
        quota = replace(quota, classes={})
    else:
        assert wait.reason is Reason.QUOTA_EXCEEDED
        assert wait.shortage
        missing = wait.shortage.requested - wait.shortage.free
        assert missing > 0
        quota = replace(quota, nominal=quota.nominal + -(-missing // GPU))
    tenants[rule.name] = replace(rule, quota=(quota,))
