"""The head of the ledger against the simplest model there is: a set of grants that are live."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from vmtenancy.api import parse
from vmtenancy.api.names import API_VERSION
from vmtenancy.core.ledger import head as ledger
from vmtenancy.core.ledger.head import MAX_LOG, Head, commit, is_live, room, take_over, trim
from vmtenancy.errors import Code, VmtError

NAMES = st.from_regex(r"(vm|vc|pod)-[0-9a-f]{4}-[1-9]-[1-9]", fullmatch=True)


@st.composite
def heads(draw: st.DrawFn) -> Head:
    """A head as commits leave it: no name in both logs, no sequence above its own."""
    sequence = draw(st.integers(0, 50))
    committed = draw(st.dictionaries(NAMES, st.integers(1, sequence), max_size=6)) if sequence else {}
    released = draw(st.frozensets(NAMES, max_size=6)) - set(committed)
    return Head(draw(st.integers(0, 9)), draw(st.text("abc-", max_size=8)), sequence, committed, released)


@given(heads())
def test_it_comes_back_from_its_spec_as_it_was(head: Head) -> None:
    stored = json.loads(json.dumps(head.to_spec()))
    assert Head.from_spec(stored) == head
    assert Head.from_spec(stored).to_spec() == head.to_spec()


@given(heads())
def test_its_spec_is_what_the_kind_allows(head: Head) -> None:
    parse(
        {
            "apiVersion": API_VERSION,
            "kind": "GpuLedger",
            "metadata": {"name": "fleet"},
            "spec": head.to_spec(),
        }
    )


@given(heads(), st.randoms())
def test_equal_heads_are_written_alike(head: Head, random: object) -> None:
    turned = Head(
        head.epoch, head.holder, head.sequence, dict(reversed(head.committed.items())), head.released
    )
    assert turned.to_spec() == head.to_spec()


def test_logs_that_are_left_out_are_empty() -> None:
    assert Head.from_spec({"epoch": 1, "holder": "a", "sequence": 2}) == Head(1, "a", 2)


@given(heads(), st.text(max_size=5))
def test_taking_over_raises_the_epoch_and_nothing_else(head: Head, holder: str) -> None:
    new = take_over(head, holder)
    assert (new.epoch, new.holder) == (head.epoch + 1, holder)
    assert (new.sequence, new.committed, new.released) == (head.sequence, head.committed, head.released)


@given(heads(), st.lists(NAMES, unique=True, max_size=4), st.lists(NAMES, max_size=4))
def test_a_commit_is_all_or_nothing(head: Head, grants: list[str], releases: list[str]) -> None:
    before = head.to_spec()
    used = {*head.committed, *head.released, *releases}
    if used & set(grants):
        with pytest.raises(VmtError) as refused:
            commit(head, grants=grants, releases=releases)
        assert refused.value.code is Code.LEDGER
    else:
        new = commit(head, grants=grants, releases=releases)
        assert new.sequence == head.sequence + 1
        assert all(is_live(new, name, 0) for name in grants)
        assert not any(is_live(new, name, mark) for name in releases for mark in (0, 1))
        untouched = {*head.committed, *head.released} - {*grants, *releases}
        assert all(is_live(new, name, 0) == is_live(head, name, 0) for name in untouched)
    assert head.to_spec() == before


def test_a_name_is_committed_once() -> None:
    head = commit(Head(), grants=["a"])
    for grants, releases in ((["a"], []), (["b", "b"], []), (["b"], ["b"])):
        with pytest.raises(VmtError) as refused:
            commit(head, grants=grants, releases=releases)
        assert refused.value.code is Code.LEDGER
    with pytest.raises(VmtError):
        commit(commit(head, releases=["a"]), grants=["a"])


def test_trimming_forgets_what_the_objects_say_and_nothing_else() -> None:
    head = Head(
        sequence=3, committed={"marked": 1, "new": 3, "vanished": 2}, released=frozenset({"going", "cleared"})
    )
    trimmed = trim(head, marked={"marked", "going"}, existing={"marked", "new", "going"})
    assert trimmed == Head(sequence=3, committed={"new": 3}, released=frozenset({"going"}))
    assert is_live(trimmed, "marked", 1)
    assert is_live(trimmed, "new", 0)
    assert not is_live(trimmed, "going", 2)


def test_a_full_log_is_refused_and_room_says_so_before() -> None:
    half = [f"a{n}" for n in range(MAX_LOG // 2)]
    head = commit(Head(), grants=half)
    assert room(head) == MAX_LOG // 2
    full = commit(head, grants=[f"b{n}" for n in range(room(head))])
    assert room(full) == 0
    with pytest.raises(VmtError) as refused:
        commit(full, grants=["one-more"])
    assert refused.value.code is Code.LEDGER
    emptied = commit(full, releases=full.committed)
    assert (len(emptied.committed), len(emptied.released)) == (0, MAX_LOG)
    with pytest.raises(VmtError):
        commit(emptied, releases=["one-more"])


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6), st.integers(0, 6))
def test_what_room_allows_is_never_refused(committed: int, released: int, grants: int, releases: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "MAX_LOG", 6)
        head = Head(
            sequence=1,
            committed={f"c{n}": 1 for n in range(committed)},
            released=frozenset(f"r{n}" for n in range(released)),
        )
        most = room(head)
        new = [f"n{n}" for n in range(min(grants, most))]
        ended = [f"c{n}" for n in range(min(releases, most, committed))]
        assert commit(head, grants=new, releases=ended).sequence == 2


class Ledger(RuleBasedStateMachine):
    """Commits, marks, deletions, trims and take-overs in any order.

    The model knows of each name that was ever used whether it is live. `objects` are the allocation objects that
    exist, with their marks, as the controller would find them.
    """

    allocations = Bundle("allocations")

    @initialize()
    def start(self) -> None:
        self.head = take_over(Head(), "first")
        self.model: dict[str, bool] = {}
        self.objects: dict[str, int] = {}
        self.number = 0

    @rule(target=allocations, count=st.integers(1, 3))
    def create(self, count: int) -> object:
        """Objects that nobody has committed: they mean nothing."""
        names = []
        for _ in range(count):
            self.number += 1
            name = f"vm-{self.number}-{self.head.epoch}-{self.head.sequence + 1}"
            assert name not in self.model
            self.model[name], self.objects[name] = False, 0
            names.append(name)
        return multiple(*names)

    @rule(grants=st.sets(allocations, max_size=3), releases=st.sets(allocations, max_size=3))
    def commit(self, grants: set[str], releases: set[str]) -> None:
        new = {name for name in grants if name in self.objects and not self.model[name]}
        new -= self.head.released
        ended = {name for name in releases if self.model[name]}
        self.head = commit(self.head, grants=sorted(new), releases=ended)
        self.model |= dict.fromkeys(new, True) | dict.fromkeys(ended, False)

    @rule(name=allocations)
    def mark(self, name: str) -> None:
        if self.model[name] and name in self.objects and name in self.head.committed:
            self.objects[name] = self.head.committed[name]

    @rule(name=consumes(allocations))
    def clear_away(self, name: str) -> None:
        """As housekeeping: only what is not live is deleted."""
        if not self.model[name]:
            self.objects.pop(name, None)

    @rule()
    def trim(self) -> None:
        marked = {name for name, mark in self.objects.items() if mark}
        self.head = trim(self.head, marked=marked, existing=set(self.objects))

    @rule(holder=st.sampled_from("abc"))
    def take_over(self, holder: str) -> None:
        self.head = take_over(self.head, holder)

    @rule(name=allocations)
    def granting_twice_is_refused(self, name: str) -> None:
        if name in self.head.committed or name in self.head.released:
            with pytest.raises(VmtError):
                commit(self.head, grants=[name])

    @precondition(lambda self: hasattr(self, "head"))
    @invariant()
    def the_head_and_the_model_agree(self) -> None:
        for name, live in self.model.items():
            if name in self.objects:
                assert is_live(self.head, name, self.objects[name]) == live, name
        assert not set(self.head.committed) & self.head.released
        assert all(sequence <= self.head.sequence for sequence in self.head.committed.values())

    def teardown(self) -> None:
        if not hasattr(self, "head"):
            return
        self.head = commit(self.head, releases=[name for name, live in self.model.items() if live])
        self.objects.clear()
        self.trim()
        assert (self.head.committed, self.head.released) == ({}, frozenset())


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=40)
