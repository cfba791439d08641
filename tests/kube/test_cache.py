from __future__ import annotations

import random

import pytest

from vmtenancy.kube.cache import Cache
from vmtenancy.reconcile.kinds import KINDS
from vmtenancy.reconcile.steps import Object, Ref

PODS = KINDS["Pod"]
SERVICES = KINDS["Service"]


def pod(name: str, version: int, uid: str = "") -> Object:
    meta = {"name": name, "namespace": "ns", "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}}


def versions(cache: Cache) -> dict[str, str]:
    return {name: obj["metadata"]["resourceVersion"] for (_, name), obj in cache.world.objects["Pod"].items()}


@pytest.fixture
def cache() -> Cache:
    return Cache()


def test_an_older_version_never_replaces_a_newer_one(cache: Cache) -> None:
    cache.wrote(pod("a", 10))
    cache.observe("MODIFIED", pod("a", 9))
    cache.relist(PODS, [pod("a", 8)], "9", begun_at=0)
    assert versions(cache) == {"a": "10"}


def test_versions_are_numbers_not_text(cache: Cache) -> None:
    cache.observe("ADDED", pod("a", 9))
    cache.observe("MODIFIED", pod("a", 10))
    assert versions(cache) == {"a": "10"}


def test_what_we_wrote_is_seen_at_once_and_survives_a_list_made_before(cache: Cache) -> None:
    begun_at = cache.newest("Pod")
    cache.wrote(pod("ours", 20))
    cache.relist(PODS, [pod("other", 5)], "15", begun_at)
    assert versions(cache) == {"ours": "20", "other": "5"}


def test_what_vanished_in_a_gap_is_removed_by_the_next_list(cache: Cache) -> None:
    cache.relist(PODS, [pod("a", 1), pod("b", 2)], "2", begun_at=0)
    cache.relist(PODS, [pod("b", 2)], "9", begun_at=2)
    assert versions(cache) == {"b": "2"}


@pytest.mark.parametrize("late", ["ADDED", "MODIFIED"])
def test_a_late_event_does_not_bring_back_the_dead(cache: Cache, late: str) -> None:
    cache.observe("ADDED", pod("a", 1))
    cache.gone(Ref("Pod", "ns", "a"), "uid-a")
    cache.observe(late, pod("a", 2))
    cache.wrote(pod("a", 3))
    assert versions(cache) == {}


def test_a_new_object_under_the_name_of_a_dead_one_is_seen(cache: Cache) -> None:
    cache.observe("ADDED", pod("a", 1))
    cache.gone(Ref("Pod", "ns", "a"), "uid-a")
    cache.observe("ADDED", pod("a", 5, uid="second"))
    cache.observe("DELETED", pod("a", 4))  # of the first, late
    assert versions(cache) == {"a": "5"}


def test_a_deletion_of_the_one_before_does_not_remove_its_successor(cache: Cache) -> None:
    cache.observe("ADDED", pod("a", 1))
    cache.wrote(pod("a", 7, uid="second"))
    cache.observe("DELETED", pod("a", 6))
    cache.observe("MODIFIED", pod("a", 6))
    assert versions(cache) == {"a": "7"}


def test_an_answer_that_comes_after_a_list_without_the_object_is_too_late(cache: Cache) -> None:
    cache.relist(PODS, [], "20", begun_at=0)
    cache.wrote(pod("a", 10))
    assert versions(cache) == {}


def test_a_server_restored_from_a_backup_is_believed(cache: Cache) -> None:
    cache.relist(PODS, [pod("a", 100), pod("b", 90)], "100", begun_at=0)
    cache.relist(PODS, [pod("b", 40)], "50", begun_at=cache.newest("Pod"))
    assert versions(cache) == {"b": "40"}


def test_a_restored_server_is_believed_once_it_has_caught_up_too(cache: Cache) -> None:
    """A consistent list that has an older version than was held at or before it: that version is no more."""
    cache.relist(PODS, [pod("a", 100), pod("b", 90)], "100", begun_at=0)
    cache.gone(Ref("Pod", "ns", "b"), "uid-b")
    cache.world.memo[("Pod", "uid-a", "40")] = "of the other history"
    cache.relist(PODS, [pod("a", 40), pod("b", 30)], "200", begun_at=cache.newest("Pod"))
    assert versions(cache) == {"a": "40", "b": "30"}
    assert not cache.world.memo
    cache.wrote(pod("a", 201))
    cache.relist(PODS, [pod("a", 40), pod("b", 30)], "200", begun_at=100)
    assert versions(cache)["a"] == "201", "written after the list was made"


def test_a_history_that_went_back_is_told_once_and_each_kind_is_listed_anew(cache: Cache) -> None:
    """Other kinds did not give themselves away: what they hold may be of the other history all the same."""
    told: list[str] = []
    cache.on_rewind.append(lambda: told.append("went back"))
    service = {**pod("s", 90), "kind": "Service"}
    stale = {**service, "metadata": {**service["metadata"], "name": "stale", "uid": "uid-stale"}}
    cache.relist(SERVICES, [service, stale], "100", begun_at=0)
    cache.gone(Ref("Service", "ns", "s"), "uid-s")
    cache.relist(PODS, [pod("a", 100)], "100", begun_at=0)
    cache.relist(PODS, [pod("a", 40)], "50", begun_at=cache.newest("Pod"))
    assert told == ["went back"]
    assert ("ns", "stale") in cache.world.objects["Service"], (
        "until it is listed, the old is better than nothing"
    )
    again = {**service, "metadata": {**service["metadata"], "resourceVersion": "30"}}
    cache.relist(SERVICES, [again], "55", begun_at=cache.newest("Service"))
    assert told == ["went back"]
    assert set(cache.world.objects["Service"]) == {("ns", "s")}, (
        "what was deleted in the other history is back"
    )
    cache.wrote(pod("b", 52))
    assert versions(cache) == {"a": "40", "b": "52"}


def test_answers_that_no_watch_would_show_are_left_out(cache: Cache) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "namespace": "ns", "uid": "u", "resourceVersion": "1"},
    }
    cache.wrote(service)
    assert not cache.world.objects["Service"]
    labelled = {
        **service,
        "metadata": {**service["metadata"], "labels": {"app.kubernetes.io/managed-by": "vmtenancy"}},
    }
    cache.wrote(labelled)
    assert cache.world.objects["Service"]
    cache.wrote({**pod("a", 1), "kind": "Lease", "apiVersion": "coordination.k8s.io/v1"})
    assert "Lease" not in cache.world.objects


def test_synced_once_every_kind_was_listed() -> None:
    changes = []
    cache = Cache(on_change=lambda: changes.append(1))
    kinds = list(KINDS.values())
    for info in kinds[:-1]:
        cache.relist(info, [], "1", begun_at=0)
    assert not cache.synced.is_set()
    cache.relist(kinds[-1], [], "1", begun_at=0)
    assert cache.synced.is_set()
    before = len(changes)
    cache.relist(kinds[0], [], "1", begun_at=0)
    assert len(changes) == before, "a list that changes nothing wakes nobody"


def test_a_snapshot_stays_as_it_was(cache: Cache) -> None:
    cache.observe("ADDED", pod("a", 1))
    snapshot = cache.snapshot()
    cache.observe("DELETED", pod("a", 2))
    cache.observe("ADDED", pod("b", 3))
    assert [name for _, name in snapshot.objects["Pod"]] == ["a"]


def test_managed_fields_are_not_kept(cache: Cache) -> None:
    obj = pod("a", 1)
    obj["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    cache.observe("ADDED", obj)
    assert "managedFields" not in cache.world.objects["Pod"]["ns", "a"]["metadata"]


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_events_and_answers_ends_at_the_truth(seed: int) -> None:
    """History of three names, each written, deleted and made anew.

    Then told twice, in any order per source.
    """
    rng = random.Random(seed)
    truth: dict[str, Object] = {}
    history = []
    for version in range(1, 61):
        name = rng.choice("abc")
        if name in truth and rng.random() < 0.3:
            last = truth.pop(name)
            history.append(("DELETED", pod(name, version, last["metadata"]["uid"])))
        else:
            held = truth.get(name)
            uid = held["metadata"]["uid"] if held else f"{name}-{version}"
            truth[name] = pod(name, version, uid)
            history.append(("MODIFIED" if held else "ADDED", truth[name]))
    cache = Cache()
    answers = [obj for kind, obj in history if kind != "DELETED"]
    rng.shuffle(answers)
    for event, obj in history:
        cache.observe(event, obj)
        for _ in range(rng.randrange(3)):
            if answers:
                # Answers to writes that the watch may or may not have shown yet, late ones too.
                late = answers.pop()
                if int(late["metadata"]["resourceVersion"]) <= int(obj["metadata"]["resourceVersion"]):
                    cache.wrote(late)
    assert versions(cache) == {name: obj["metadata"]["resourceVersion"] for name, obj in truth.items()}
