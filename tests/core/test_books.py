"""What enters the books inside of a what-if, or leaves them, is undone after it: holds as well, however it nests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from described import fleet, node
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_preemption import tree

from vmtenancy.core.books import Books
from vmtenancy.core.explain.refusal import Refusal
from vmtenancy.core.fleet.model import Mode, Runtime
from vmtenancy.core.requests import Admit, Demand

HOLDS = ("lab", "other")


def hold(name: str) -> Admit:
    return Admit(Demand(name, "a", Runtime.HOLD, (("whole", 1),), maximum=(("whole", 2),)), None)


def pod(name: str, parent: str) -> Demand:
    return Demand(name, "a", Runtime.POD, (("whole", 1),), parent=parent)


def seen(books: Books) -> list[object]:
    """What one more pod of each hold would be told."""
    answers = [books.judge(pod("one more", parent)) for parent in HOLDS]
    return [a.told if isinstance(a, Refusal) else (a.charged, a.borrowed) for a in answers]


@dataclass
class Player:
    """Plays moves on books: what is there beside, by hold."""

    books: Books
    pods: dict[str, list[Admit]] = field(default_factory=dict)

    def play(self, moves: Iterator[tuple[str, str]], number: int = 0) -> None:
        """Until the moves end, or one says that the what-if does."""
        for move, name in moves:
            number += 1
            if move == "out":
                return
            if move == "what if":
                before, pods = seen(self.books), {key: list(held) for key, held in self.pods.items()}
                with self.books.what_if():
                    self.play(moves, 100 * number)
                self.pods = pods
                assert seen(self.books) == before
            elif name not in self.pods:
                self.books.enter(hold(name))
                self.pods[name] = []
            elif move == "enter" and isinstance(
                answer := self.books.judge(pod(f"pod-{number}", name)), Admit
            ):
                self.books.enter(answer)
                self.pods[name].append(answer)
            elif move == "leave" and self.pods[name]:
                self.books.leave(self.pods[name].pop())
            elif move == "leave":
                self.books.leave(hold(name))
                del self.pods[name]


@settings(max_examples=100)
@example([("enter", "lab"), ("enter", "lab"), ("what if", "lab"), ("leave", "lab")])
@given(
    st.lists(
        st.tuples(st.sampled_from(["enter", "enter", "leave", "what if", "out"]), st.sampled_from(HOLDS)),
        max_size=30,
    )
)
def test_what_if_leaves_nothing_of_holds(moves: list[tuple[str, str]]) -> None:
    Player(Books(fleet(node("n", Mode.CONTAINER, 8)), tree(a=8), [])).play(iter(moves))
