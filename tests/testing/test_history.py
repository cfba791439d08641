"""The checker of the audit log's history, on histories made up to be right and to be wrong."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from vmtenancy.api.gpuclass import PARTS_PER_GPU
from vmtenancy.api.names import CONTROLLER_USER
from vmtenancy.core.ledger.head import Head, commit, take_over, trim
from vmtenancy.testing.history import History, Span, read, replay

GPU = "0000:17:00.0"


class Log:
    """Writes an audit log as the API server would; `version` is the resourceVersion of the last write."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.version = 0
        self.head = Head()
        self._clock = itertools.count(1)

    def write(
        self, verb: str, resource: str, obj: dict[str, Any], *, code: int = 200, by: str = CONTROLLER_USER
    ) -> int:
        entry: dict[str, Any] = {
            "verb": verb,
            "user": {"username": by},
            "objectRef": {"resource": resource, "name": obj["metadata"]["name"]},
            "requestURI": f"/apis/vmtenancy.io/v1alpha1/{resource}",
            "requestReceivedTimestamp": f"2026-11-24T10:00:00.{next(self._clock):06d}Z",
            "responseStatus": {"code": code},
            "requestObject": obj,
        }
        if code < 300 and verb != "delete":
            self.version += 1
            metadata = {**obj["metadata"], "resourceVersion": str(self.version)}
            entry["responseObject"] = {**obj, "metadata": metadata}
        self.entries.append(entry)
        return self.version

    def put(self, head: Head) -> int:
        verb, self.head = ("update" if self.head.epoch else "create"), head
        return self.write(verb, "gpuledgers", {"metadata": {"name": "fleet"}, "spec": head.to_spec()})

    def allocation(
        self,
        name: str,
        *,
        device: str = GPU,
        share: int = 1,
        resource: str = "nvidia.com/gpu",
        code: int = 201,
    ) -> None:
        self.write(
            "create", "gpuallocations", allocation(name, device, share, resource, self.head.epoch), code=code
        )

    def mark(self, name: str, sequence: int) -> int:
        made = allocation(name, GPU, 1, "nvidia.com/gpu", self.head.epoch)
        return self.write("update", "gpuallocations", made | {"status": {"sequence": sequence}})

    def delete(self, name: str, by: str = CONTROLLER_USER) -> None:
        self.write("delete", "gpuallocations", {"metadata": {"name": name}}, by=by)

    def commit(self, *grants: str, releases: tuple[str, ...] = ()) -> int:
        return self.put(commit(self.head, grants=grants, releases=releases))


def allocation(name: str, device: str, share: int, resource: str, epoch: int) -> dict[str, Any]:
    grant = {
        "class": "whole",
        "pool": "h100",
        "count": 1,
        "resource": resource,
        "devices": [device],
        "parts": PARTS_PER_GPU // share,
    }
    owner = {"kind": "GpuVM", "namespace": "vision", "name": name, "uid": f"uid-{name}"}
    return {
        "kind": "GpuAllocation",
        "metadata": {"name": name},
        "spec": {"epoch": epoch, "owner": owner, "node": "gpu-1", "grants": [grant]},
    }


@pytest.fixture
def log() -> Log:
    """A ledger that its first controller has taken over."""
    log = Log()
    log.put(take_over(Head(), "controller-1"))
    return log


def told(log: Log) -> History:
    return replay(log.entries)


def only(log: Log) -> str:
    (problem,) = told(log).problems
    return problem


def test_a_grant_lives_from_its_commit_to_its_release(log: Log) -> None:
    log.allocation("a")
    since = log.commit("a")
    log.mark("a", 1)
    log.put(trim(log.head, marked={"a"}, existing={"a"}))
    until = log.commit(releases=("a",))
    log.delete("a")
    history = told(log)
    assert history.spans == (Span("a", "GpuVM vision/a (uid-a)", since, until),)
    assert history.problems == ()
    assert history.heads == 4


def test_a_device_changes_hands_with_one_commit(log: Log) -> None:
    log.allocation("a")
    log.commit("a")
    log.allocation("b")
    log.commit("b", releases=("a",))
    assert told(log).problems == ()
    assert [(span.name, span.until is None) for span in told(log).spans] == [("a", False), ("b", True)]


def test_what_was_never_committed_counts_for_nothing(log: Log) -> None:
    for name in "ab":
        log.allocation(name)
    log.delete("b")
    assert told(log).problems == ()
    assert told(log).spans == ()


def test_a_device_with_two_owners_is_found(log: Log) -> None:
    for name in "ab":
        log.allocation(name)
        log.commit(name)
    assert only(log).endswith(f"{GPU} on gpu-1 is granted beyond one GPU: a, b")


def test_an_overlap_that_is_over_is_found(log: Log) -> None:
    for name in "ab":
        log.allocation(name)
    log.commit("a", "b")
    log.commit(releases=("a",))
    log.delete("a")
    assert "beyond one GPU" in only(log)


@pytest.mark.parametrize(
    ("shares", "problem"), [((2, 2), ""), ((2, 4, 4), ""), ((2, 2, 4), "beyond one GPU")]
)
def test_parts_of_a_gpu_add_up(log: Log, shares: tuple[int, ...], problem: str) -> None:
    names = [f"a{number}" for number in range(len(shares))]
    for name, share in zip(names, shares, strict=True):
        log.allocation(name, share=share, resource="nvidia.com/VGPU")
    log.commit(*names)
    assert problem in only(log) if problem else told(log).problems == ()


def test_parts_in_two_ways_are_found(log: Log) -> None:
    log.allocation("a", share=4, resource="nvidia.com/VGPU-10C")
    log.allocation("b", share=4, resource="nvidia.com/VGPU-20C")
    log.commit("a", "b")
    assert "granted in two ways: a, b" in only(log)


def test_a_released_name_that_comes_back_is_found(log: Log) -> None:
    log.allocation("a")
    log.commit("a")
    log.commit(releases=("a",))
    log.delete("a")
    log.put(trim(log.head, marked=(), existing=()))
    log.allocation("a")
    log.commit("a")
    assert "a came back" in only(log)


def test_a_grant_that_ends_without_a_release_is_found(log: Log) -> None:
    log.allocation("a")
    log.commit("a")
    log.put(trim(log.head, marked={"a"}, existing={"a"}))  # it had no mark
    assert "a ended by a write of the head, it was never released" in only(log)


def test_a_live_grant_may_be_deleted_by_an_administrator_only(log: Log) -> None:
    log.allocation("a")
    log.commit("a")
    log.delete("a", by="admin")
    assert told(log).problems == ()
    log.entries[-1]["user"]["username"] = CONTROLLER_USER
    assert "a ended by delete of a" in only(log)


def test_two_grants_of_one_owner_are_found(log: Log) -> None:
    log.allocation("a", device="0000:17:00.0")
    log.allocation("b", device="0000:18:00.0")
    log.commit("a", "b")
    assert told(log).problems == ()
    for entry in log.entries[1:3]:
        for obj in (entry["requestObject"], entry["responseObject"]):
            obj["spec"]["owner"] = {"kind": "GpuVM", "namespace": "vision", "name": "a", "uid": "uid-a"}
    assert "GpuVM vision/a (uid-a) has several grants: a, b" in only(log)


def test_a_mark_does_not_make_a_grant(log: Log) -> None:
    log.allocation("a")
    log.mark("a", 1)
    assert "a was marked, but the head had not committed it" in only(log)


def test_a_wrong_mark_is_found(log: Log) -> None:
    log.allocation("a")
    log.commit("a")
    log.mark("a", 7)
    assert only(log) == "a was marked 7, the head committed it as 1"


def test_a_commit_of_nothing_is_found(log: Log) -> None:
    log.commit("a")
    assert "the head committed a, which did not exist" in only(log)


def test_a_create_that_was_carried_out_without_an_answer_counts(log: Log) -> None:
    for name in "ab":
        log.allocation(name, code=504)
    log.commit("a", "b")
    assert "beyond one GPU: a, b" in only(log)


def test_a_refused_create_does_not(log: Log) -> None:
    log.allocation("a", code=409)
    log.commit("a")
    assert "did not exist" in only(log)


def test_a_commit_of_an_older_epoch_is_found(log: Log) -> None:
    log.allocation("a")
    log.put(take_over(log.head, "controller-2"))
    log.commit("a")
    assert "a of epoch 1 was committed in epoch 2" in only(log)


def test_epochs_and_sequences_only_rise(log: Log) -> None:
    log.allocation("a")
    log.commit("a")
    one = log.head
    log.put(Head(epoch=1, holder="controller-2", sequence=1, committed=one.committed))
    assert "controller-2 took over without raising epoch 1" in only(log)
    log.put(Head(epoch=2, holder="controller-2", sequence=0, committed=one.committed))
    assert told(log).problems[1:] == ("at 5: sequence 1 became 0",)
    log.put(Head(epoch=1, holder="controller-2", sequence=0, committed=one.committed))
    assert told(log).problems[2:] == ("at 6: epoch 2 became 1",)


def test_a_commit_raises_the_sequence(log: Log) -> None:
    log.allocation("a")
    log.put(Head(epoch=1, holder="controller-1", sequence=0, committed={"a": 0}))
    assert only(log) == "at 3: a commit left the sequence at 0"


def test_the_order_is_that_of_versions_not_of_lines(log: Log) -> None:
    log.allocation("a")
    log.commit("a")
    log.commit(releases=("a",))
    log.delete("a")
    log.allocation("b")
    log.commit("b")
    assert told(log).problems == ()
    log.entries.reverse()
    assert told(log).problems == ()


def test_what_was_before_counts(log: Log) -> None:
    log.allocation("b")
    log.commit("b")
    head = {"kind": "GpuLedger", "metadata": {"name": "fleet"}, "spec": log.head.to_spec()}
    earlier = allocation("a", GPU, 1, "nvidia.com/gpu", 1) | {"status": {"sequence": 1}}
    assert told(log).problems == ()
    log.entries = log.entries[1:]
    head["spec"] |= {"committed": [], "sequence": 0}
    history = replay(log.entries, [head, earlier])
    assert "beyond one GPU: a, b" in history.problems[0]
    assert history.spans[0].since == 0


def test_reading_starts_where_it_is_told(tmp_path: Path, log: Log) -> None:
    log.allocation("a")
    other = {"objectRef": {"resource": "pods"}, "verb": "create"}
    dry = {**log.entries[-1], "requestURI": "/apis/vmtenancy.io/v1alpha1/gpuallocations?dryRun=All"}
    lines = [json.dumps(entry) + "\n" for entry in (log.entries[0], other, dry, log.entries[1])]
    file = tmp_path / "audit.log"
    file.write_text("".join(lines))
    assert read(file) == [log.entries[0], log.entries[1]]
    assert read(file, len(lines[0])) == [log.entries[1]]
