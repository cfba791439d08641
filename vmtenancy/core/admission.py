"""Which waiting requests are admitted now, and why the others wait: quota and placement decided together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from vmtenancy.core.books import Books
from vmtenancy.core.calendar import Calendar, Reserved
from vmtenancy.core.explain import refusal
from vmtenancy.core.explain.refusal import Refusal
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.preemption import Nomination, Preemption
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.core.requests import Admit, Decision, Demand, Wait
from vmtenancy.errors import Code, Problem, VmtError

_Rank = tuple[bool, int, float, str]


def decide(
    fleet: Fleet,
    tree: QuotaTree,
    holds: Iterable[Admit],
    demands: Iterable[Demand],
    ending: frozenset[str] = frozenset(),
    promised: frozenset[str] = frozenset(),
    reserved: Sequence[Reserved] = (),
) -> list[Decision]:
    """Decide every demand; the result is in queue order: `promised` ones, priority (higher first), age, key.

    `holds` are the grants that live already, in the form in which this function returned them (of their
    demands only key, tenant, runtime, requests, parent and maximum are read, and for preemption priority and
    created; of a HOLD also what it was `charged`). `ending` are the keys of those that will end soon, whatever is
    decided; `promised` the demands for which some of them were stopped: else what was freed for one could go to
    another that is before it in the queue, and the two would stop others in turn. `fleet` carries supply and
    foreign pods, `tree` the rules; both come back unchanged. `reserved` are windows to come: what would still be
    there when one begins, and be in its way, waits (`Reason.RESERVED`).

    Best effort, not strict FIFO: who waits blocks nobody behind, so small requests may pass a large one for
    as long as it does not fit. But for who may preempt, or fits once `ending` have ended, a place is kept from its
    turn on (`Reason.NOMINATED`). Nothing is charged that can not be placed, and nobody is stopped for what could
    not be placed then. Demands of one `group` are admitted together or not at all. A pod is looked at after the
    hold of its virtual cluster. Reasons are those at the end of the round, when all that fits has been admitted.

    Raises VmtError for a key that is demanded twice, and (LEDGER) for holds that contradict each other (I1).
    """
    queue = _in_order(demands, promised)
    with fleet.what_if(), tree.what_if():
        live = tuple(holds)
        books = Books(fleet, tree, live)
        preemption = Preemption(books, tree, live, ending)
        calendar = Calendar(books, live, ending, reserved)
        decided: dict[str, Decision] = {}
        nominated: dict[str, Nomination] = {}

        def admit(admits: tuple[Admit, ...]) -> None:
            for each in admits:
                books.enter(each)
                decided[each.demand.key] = each
            preemption.admitted(admits)
            calendar.admitted(admits)

        for together in queue:
            later = calendar.refusal(together)
            verdict = later or books.judge_all(together)
            if not isinstance(verdict, Refusal):
                admit(verdict)
            elif later is None and (nomination := preemption.nominate(together)):
                nominated[together[0].key] = nomination
        ahead: Counter[str] = Counter()
        for together in queue:
            if together[0].key in decided:
                continue
            nomination = nominated.get(together[0].key)
            pools = books.pools_of(together)
            if nomination:
                why: tuple[Admit, ...] | Refusal = _place_to_come(nomination, pools)
            else:
                why = calendar.refusal(together) or books.judge_all(together)
            if not isinstance(why, Refusal):
                admit(why)  # admissions only take room away, but a group may fit better where less is free
                continue
            victims = tuple(victim.demand.key for victim in nomination.victims) if nomination else ()
            for demand in together:
                ahead.update(why.pools)
                position = max((ahead[pool] for pool in why.pools), default=0)
                told = _sentence(why.problem)
                if len(together) > 1:
                    told = f"the group {demand.group} waits as a whole: {told}"
                decided[demand.key] = Wait(
                    demand, why.reason, told, why.problem, position, why.shortage, victims
                )
                victims = ()  # they are stopped once
    return [decided[demand.key] for together in queue for demand in together]


def _place_to_come(nomination: Nomination, pools: Iterable[str]) -> Refusal:
    return refusal.nominated(sorted(pools), [victim.demand.key for victim in nomination.victims])


def _sentence(problem: Problem) -> str:
    """A problem for the owner's condition: what is wrong, and what would be right where that can be said."""
    return f"{problem.message}; expected {problem.expected}" if problem.expected else problem.message


def _in_order(demands: Iterable[Demand], promised: frozenset[str]) -> list[tuple[Demand, ...]]:
    """What is decided together, in the order of the queue; of a group, the largest first, for they fit worst."""
    by_key: dict[str, Demand] = {}
    groups: dict[str, list[Demand]] = defaultdict(list)
    for demand in demands:
        if demand.key in by_key:
            raise VmtError(Problem(Code.INVALID_FIELD, "demands", "keys must be unique", demand.key))
        by_key[demand.key] = demand
        groups[demand.group or f"/{demand.key}"].append(demand)

    first = {demand.group or key for key, demand in by_key.items() if key in promised}

    def rank(demand: Demand) -> _Rank:
        return ((demand.group or demand.key) not in first, -demand.priority, demand.created, demand.key)

    def order(demand: Demand) -> tuple[_Rank, bool, _Rank]:
        parent = by_key.get(demand.parent) if demand.parent is not None else None
        if parent is None or rank(parent) < rank(demand):
            return (rank(demand), False, rank(demand))
        return (rank(parent), True, rank(demand))

    def size(demand: Demand) -> tuple[int, _Rank]:
        return (-sum(count for _, count in demand.requests), rank(demand))

    # A group has the place of its last member: so a pod in it comes after the hold of its virtual cluster.
    by_turn = sorted(groups.values(), key=lambda members: max(map(order, members)))
    return [tuple(sorted(members, key=size)) for members in by_turn]
