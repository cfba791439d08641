from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from vmtenancy import resources
from vmtenancy.controller.metrics import Metrics
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.kube import errors
from vmtenancy.kube.cache import Cache
from vmtenancy.kube.client import Client
from vmtenancy.kube.executor import Executor, StoppedError
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import (
    Apply,
    Chain,
    Create,
    Delete,
    Emit,
    Object,
    Plan,
    Ref,
    RenderChart,
    Replace,
    Step,
)
from vmtenancy.testing.faults import FaultProxy, LoseResponse, Rule

CONFIG_MAPS = KINDS["ConfigMap"]


async def no_charts(_: RenderChart) -> Iterable[Object]:
    raise VmtError(Problem(Code.HELM, "", "no charts here"))


def executor(client: Client, cache: Cache, **options: Any) -> Executor:
    return Executor(client, cache, **{"render": no_charts, "may_write": lambda: True, **options})


def config_map(name: str, **data: str) -> Object:
    labels = {"app.kubernetes.io/managed-by": "vmtenancy"}
    meta = {"name": name, "namespace": "default", "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def plan(*steps: Step) -> Plan:
    return Plan((Chain("test", steps),))


def held(cache: Cache, name: str) -> Object:
    return cache.world.objects["ConfigMap"]["default", name]


def knows(cache: Cache, name: str) -> bool:
    return ("default", name) in cache.world.objects["ConfigMap"]


@pytest.mark.cluster
async def test_every_answer_is_in_the_cache_when_the_plan_is_done(client: Client) -> None:
    cache, counted = Cache(), []
    run = executor(client, cache, on_step=lambda *what: counted.append(what))
    await run.execute(plan(Create(config_map("a", x="1")), Apply(config_map("b", x="1"))))
    a = held(cache, "a")
    assert knows(cache, "b")
    [outcome] = await run.execute(plan(Replace({**a, "data": {"x": "2"}})))
    assert outcome.error is None
    after = held(cache, "a")
    assert after["data"] == {"x": "2"}
    await run.execute(plan(Delete(Ref("ConfigMap", "default", "a"), after["metadata"]["uid"])))
    assert not knows(cache, "a")
    assert counted == [("Create", "ok"), ("Apply", "ok"), ("Replace", "ok"), ("Delete", "ok")]


@pytest.mark.cluster
async def test_a_lost_compare_and_swap_stops_the_chain_and_shows_what_is_stored(client: Client) -> None:
    cache = Cache()
    stale = await client.create(config_map("head", x="1"))
    cache.wrote(stale)
    await client.replace({**stale, "data": {"x": "theirs"}})
    [outcome] = await executor(client, cache).execute(
        plan(Replace({**stale, "data": {"x": "ours"}}), Create(config_map("after")))
    )
    assert (outcome.done, type(outcome.error)) == (0, errors.ConflictError)
    head = held(cache, "head")
    assert head["data"] == {"x": "theirs"}
    with pytest.raises(errors.NotFoundError):
        await client.get(CONFIG_MAPS, "default", "after")


@pytest.mark.cluster
async def test_of_two_that_swap_at_once_one_wins(client: Client) -> None:
    """I8 rests on this: a head that was changed meanwhile can not be written."""
    head = await client.create(config_map("head"))
    chains = tuple(Chain(f"writer {n}", (Replace({**head, "data": {"by": str(n)}}),)) for n in range(8))
    outcomes = await executor(client, Cache()).execute(Plan(chains))
    winners = [outcome for outcome in outcomes if outcome.error is None]
    assert len(winners) == 1
    assert {type(o.error) for o in outcomes if o.error} == {errors.ConflictError}
    stored = await client.get(CONFIG_MAPS, "default", "head")
    assert f"writer {stored['data']['by']}" == winners[0].chain.why


@pytest.mark.cluster
async def test_a_taken_name_stops_the_chain_and_is_then_known(client: Client) -> None:
    cache = Cache()
    await client.create(config_map("a", by="another"))
    [outcome] = await executor(client, cache).execute(plan(Create(config_map("a"))))
    assert isinstance(outcome.error, errors.AlreadyExistsError)
    a = held(cache, "a")
    assert a["data"] == {"by": "another"}


@pytest.mark.cluster
async def test_deleting_what_is_gone_or_another_one(client: Client) -> None:
    cache = Cache()
    first = await client.create(config_map("a"))
    cache.wrote(first)
    await client.delete(CONFIG_MAPS, Ref("ConfigMap", "default", "a"))
    gone = Delete(Ref("ConfigMap", "default", "a"), first["metadata"]["uid"])
    [outcome] = await executor(client, cache).execute(plan(gone))
    assert outcome.error is None
    assert not knows(cache, "a")
    second = await client.create(config_map("a"))
    [outcome] = await executor(client, cache).execute(plan(gone))
    assert isinstance(outcome.error, errors.ConflictError)
    a = held(cache, "a")
    assert a["metadata"]["uid"] == second["metadata"]["uid"]


@pytest.mark.cluster
async def test_an_object_that_waits_for_its_finalizer_stays_known(client: Client) -> None:
    cache = Cache()
    obj = config_map("a")
    obj["metadata"]["finalizers"] = ["vmtenancy.io/release"]
    stored = await client.create(obj)
    delete = Delete(Ref("ConfigMap", "default", "a"), stored["metadata"]["uid"])
    [outcome] = await executor(client, cache).execute(plan(delete))
    going = held(cache, "a")
    assert outcome.error is None
    assert going["metadata"]["deletionTimestamp"]
    released = {**going, "metadata": {**going["metadata"], "finalizers": []}}
    await executor(client, cache).execute(plan(Replace(released)))
    with pytest.raises(errors.NotFoundError):
        await client.get(CONFIG_MAPS, "default", "a")


@pytest.mark.cluster
async def test_a_write_whose_answer_was_lost_is_read_again(behind_proxy: Client, proxy: FaultProxy) -> None:
    cache = Cache()
    proxy.add(Rule(lambda call: call.is_write, LoseResponse()))
    chains = plan(Create(config_map("a")), Create(config_map("b")))
    [outcome] = await executor(behind_proxy, cache).execute(chains)
    assert (outcome.done, type(outcome.error)) == (0, errors.UnknownOutcomeError)
    assert knows(cache, "a"), "it had happened, and the next plan knows"
    assert not knows(cache, "b")


@pytest.mark.cluster
async def test_status_is_written_apart(client: Client) -> None:
    cache = Cache()
    for crd in resources.objects(resources.folder("crds") / "cohorts.yaml"):
        await client.apply(crd)
    cohort: Object = {
        "apiVersion": "vmtenancy.io/v1alpha1",
        "kind": "Cohort",
        "metadata": {"name": "c"},
        "spec": {"quota": []},
    }
    async with asyncio.timeout(20):
        while True:
            try:
                stored = await client.create(cohort)
                break
            except errors.NotFoundError:  # not served yet
                await asyncio.sleep(0.02)
    status = {"observedGeneration": 1}
    wanted = {**stored, "spec": {"parent": "p", "quota": []}, "status": status}
    [outcome] = await executor(client, cache).execute(plan(Replace(wanted, status=True)))
    assert outcome.error is None
    after = cache.world.objects["Cohort"]["", "c"]
    assert after["status"] == status
    assert "parent" not in after["spec"]


@pytest.mark.cluster
async def test_events_are_written_and_never_stop_a_chain(client: Client) -> None:
    node: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "uid": "u"}}
    lost: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "no-such-namespace", "uid": "u"},
    }
    counted: list[tuple[str, str]] = []
    metrics = Metrics()
    run = executor(
        client, Cache(), instance="me", on_step=lambda *what: counted.append(what), on_event=metrics.event
    )
    steps = plan(Emit(lost, "Lost", "said to nobody"), Emit(node, "Admitted", "granted " * 300, warning=True))
    [outcome] = await run.execute(steps)
    assert (outcome.done, outcome.error) == (2, None)
    assert counted == [("Emit", "NotFoundError"), ("Emit", "ok")]
    assert metrics.registry.get_sample_value("vmtenancy_events_total", {"reason": "Admitted"}) == 1
    assert metrics.registry.get_sample_value("vmtenancy_events_total", {"reason": "Lost"}) is None
    info = await client.kind("events.k8s.io/v1", "Event")
    events = [e for e in (await client.list_all(info))[0] if e["regarding"].get("name") == "n"]
    [event] = events
    assert (event["reason"], event["type"], event["reportingController"]) == (
        "Admitted",
        "Warning",
        "vmtenancy.io/controller",
    )


class Unused:
    """A client that must not be reached."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was called")


async def test_nothing_is_written_without_the_lease() -> None:
    run = executor(Unused(), Cache(), may_write=lambda: False)  # type: ignore[arg-type]
    [outcome] = await run.execute(plan(Create(config_map("a"))))
    assert (outcome.done, type(outcome.error)) == (0, StoppedError)


async def test_the_lease_is_asked_for_before_every_step() -> None:
    cache, answers = Cache(), [True, False]

    async def render(_: RenderChart) -> Iterable[Object]:
        return [config_map("rendered")]

    run = executor(Unused(), cache, may_write=lambda: answers.pop(0), render=render)  # type: ignore[arg-type]
    [outcome] = await run.execute(plan(RenderChart("k", "r", "ns", {}), Create(config_map("a"))))
    assert (outcome.done, type(outcome.error)) == (1, StoppedError)
    assert [o["metadata"]["name"] for o in cache.world.charts["k"]] == ["rendered"]


async def test_a_chart_that_can_not_be_rendered_is_known_as_such() -> None:
    cache = Cache()
    [outcome] = await executor(Unused(), cache).execute(plan(RenderChart("k", "r", "ns", {})))  # type: ignore[arg-type]
    assert outcome.error is None
    assert "no charts here" in cache.world.chart_errors["k"]


async def test_after_stop_the_chain_in_hand_ends_and_no_other_begins() -> None:
    cache, began, go_on = Cache(), asyncio.Event(), asyncio.Event()

    async def render(_: RenderChart) -> Iterable[Object]:
        began.set()
        await go_on.wait()
        return []

    run = executor(Unused(), cache, render=render)  # type: ignore[arg-type]
    chains = [
        Chain(str(n), (RenderChart(f"a{n}", "r", "ns", {}), RenderChart(f"b{n}", "r", "ns", {})))
        for n in range(40)
    ]
    running = asyncio.create_task(run.execute(Plan(tuple(chains))))
    await began.wait()
    run.stop()
    go_on.set()
    outcomes = await running
    done = [outcome for outcome in outcomes if outcome.error is None]
    assert all(outcome.done == 2 for outcome in done)
    assert 0 < len(done) <= 16
    assert {type(o.error) for o in outcomes if o.error} == {StoppedError}
