"""Which waiting requests are admitted now, and why the others wait: quota and placement decided together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from vmtenancy.core.books import Books
from vmtenancy.core.calendar import Calendar, Reserved
from vmtenancy.core.choice import Choice
from vmtenancy.core.explain import refusal
from vmtenancy.core.explain.refusal import Reason, Refusal
from vmtenancy.core.explain.shortage import utc
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.options import Units, has_options, instead
from vmtenancy.core.policies import DEFAULT, Policies
from vmtenancy.core.preemption import Preemption
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.core.requests import Admit, Decision, Demand, Wait
from vmtenancy.core.turns import turns
from vmtenancy.core.victims import Nomination
from vmtenancy.errors import Problem


def decide(
    fleet: Fleet,
    tree: QuotaTree,
    holds: Iterable[Admit],
    demands: Iterable[Demand],
    ending: frozenset[str] = frozenset(),
    promised: frozenset[str] = frozenset(),
    reserved: Sequence[Reserved] = (),
    promises: Mapping[str, Units] = MappingProxyType({}),
    policies: Policies = DEFAULT,
) -> list[Decision]:
    """Decide every demand; the result is in queue order: `promised` ones, priority (higher first), fair share, age.

    `holds` are the grants that live already, in the form in which this function returned them (of their
    demands only key, tenant, runtime, requests, parent and maximum are read, and for preemption priority, created
    and their tenure; of a HOLD also what it was `charged`). `ending` are the keys of those that will end soon, whatever
    is decided; `promised` the demands for which some of them were stopped: else what was freed for one could go to
    another that is before it in the queue, and the two would stop others in turn. `fleet` carries supply and
    foreign pods, `tree` the rules; both come back unchanged. `reserved` are windows to come: what would still be
    there when one begins, and be in its way, waits (`Reason.RESERVED`). `promises` are, by key, the units by class
    for which others were stopped (`Wait.nominated`), of demands that leave a choice: they get these, and no more, as
    long as they can. With more, one could borrow what nobody was stopped for, be stopped for that, and so on for ever.
    `policies` replace the engine's own orders and choices.

    Best effort, not strict FIFO: who waits blocks nobody behind, so small requests may pass a large one for
    as long as it does not fit. But for who may preempt, or fits once `ending` have ended, a place is kept from its
    turn on (`Reason.NOMINATED`). Nothing is charged that can not be placed, and nobody is stopped for what could
    not be placed then. A demand with `alternatives` or a `minimum` gets what `core.choice` says: its `Admit` has a
    demand that asks for just that. Demands of one `group` are admitted together or not at all. A pod is looked at
    after the hold of its virtual cluster. Reasons are those at the end of the round, when all that fits has been
    admitted.

    Raises VmtError for a key that is demanded twice, and (LEDGER) for holds that contradict each other (I1).
    """
    tree = tree.copy()  # to undo every charge at the end would cost as much again
    with fleet.what_if():
        live = tuple(holds)
        books = Books(fleet, tree, live)
        preemption = Preemption(books, tree, live, ending, policies)
        calendar = Calendar(books, live, ending, reserved)
        choice = Choice(books, preemption, calendar, promises)
        decided: dict[str, Decision] = {}
        nominated: dict[str, Nomination] = {}

        def admit(admits: tuple[Admit, ...]) -> None:
            for each in admits:
                books.enter(each)
                decided[each.demand.key] = each
            preemption.admitted(admits)
            calendar.admitted(admits)

        queue = []
        for together in turns(demands, promised, books, policies.ordering):
            queue.append(together)
            chosen = choice.best(together)
            if isinstance(chosen, Nomination):
                preemption.keep(chosen)
                nominated[together[0].key] = chosen
            elif chosen is not None:
                admit(chosen)
        ahead: Counter[str] = Counter()
        for together in queue:
            if together[0].key in decided:
                continue
            nomination = nominated.get(together[0].key)
            if nomination:
                why: tuple[Admit, ...] | Refusal = _place_to_come(together, nomination, books)
            else:
                why = choice.verdict(together)
            if not isinstance(why, Refusal):
                admit(why)  # admissions only take room away, but a group may fit better where less is free
                continue
            problem, shortage = why.told
            victims = tuple(victim.demand.key for victim in nomination.victims) if nomination else ()
            to_come = _to_come(together, nomination) if nomination else {}
            stops_from = None
            if (
                nomination is None
                and why.reason is not Reason.RESERVED
                and why.pools
                and (then := choice.later(together))
            ):
                stops_from, to_stop = then
                keys = [victim.demand.key for victim in to_stop.victims]
                more = f"; from {utc(stops_from)} on {', '.join(keys)} may be stopped for it"
                problem = replace(problem, message=problem.message + more)
            for demand in together:
                ahead.update(why.pools)
                position = max((ahead[pool] for pool in why.pools), default=0)
                told = _sentence(problem)
                if len(together) > 1:
                    told = f"the group {demand.group} waits as a whole: {told}"
                gets = to_come.get(demand.key, ())
                decided[demand.key] = Wait(
                    demand,
                    why.reason,
                    told,
                    problem,
                    position,
                    shortage,
                    victims,
                    gets,
                    stops_from,
                    why.pools,
                )
                victims = ()  # they are stopped once
    return [decided[demand.key] for together in queue for demand in together]


def _to_come(demands: Sequence[Demand], nomination: Nomination) -> dict[str, Units]:
    """What each gets then, of those that leave a choice."""
    pairs = zip(demands, nomination.admits, strict=True)
    return {demand.key: admit.demand.requests for demand, admit in pairs if has_options([demand])}


def _place_to_come(demands: Sequence[Demand], nomination: Nomination, books: Books) -> Refusal:
    granted = [admit.demand for admit in nomination.admits]
    pools = sorted(books.pools_of(granted))
    return refusal.nominated(
        pools, [victim.demand.key for victim in nomination.victims], instead(demands, granted)
    )


def _sentence(problem: Problem) -> str:
    """A problem for the owner's condition: what is wrong, and what would be right where that can be said."""
    return f"{problem.message}; expected {problem.expected}" if problem.expected else problem.message
