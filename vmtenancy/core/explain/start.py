"""When a demand that waits may start, from what ends by itself: leases, reservations, grants that are ending.

Between two bounds, both found by the engine on the holds as they will be at each such moment:

- *earliest*: when enough will have ended for it alone, as if nobody else waited;
- *latest*: when it is admitted if all others that wait are admitted as soon as they fit, and each of them stays for as
  long as its lease says, or for ever.

Both assume that nobody new comes, no lease is renewed, nobody stops anything by hand, and nodes and quota stay as they
are. What is preempted meanwhile waits again. So a person may make it sooner or later, but not by chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vmtenancy.core.calendar import Reserved, lasts
from vmtenancy.core.explain.question import Outcome, Question
from vmtenancy.core.explain.shortage import utc
from vmtenancy.core.requests import Admit, Demand, Wait
from vmtenancy.core.search import first

#: Most runs of the engine that look for the latest moment: fewer where each has much to decide.
MOST_RUNS, LEAST_RUNS, ENOUGH = 64, 8, 20_000
#: Most runs that look past windows for the earliest one.
MOST_RUNS_ALONE = 16


@dataclass(frozen=True, slots=True)
class Start:
    """An estimate, in seconds as `Demand.ends`: not before `earliest`, `latest` by then if all goes on as it is known
    now. `latest` None: nobody knows. A moment that is now, `at_once`, comes when what is being stopped has ended.
    """

    earliest: float
    latest: float | None
    now: float

    @property
    def at_once(self) -> bool:
        """Whether nothing but what is being stopped has to end."""
        return self.latest is not None and self.latest <= self.now

    def __str__(self) -> str:
        if self.at_once:
            return "starts when what is being stopped has ended"
        after = "" if self.earliest <= self.now else f" not before {utc(self.earliest)}"
        if self.latest is None:
            return f"starts{after or ' once others make room'}, nobody knows when"
        if self.latest == self.earliest:
            return f"starts at {utc(self.latest)}"
        return f"starts{after and after + ','} at {utc(self.latest)} at the latest"


def start_of(question: Question, outcome: Outcome, now: float) -> Start | None:
    """Between which moments the demand starts, of which `outcome` was decided now; None: nobody knows.

    Asks at most 1 + log2 of the moments at which something ends or begins, and `MOST_RUNS` + `MOST_RUNS_ALONE` times.
    Of `MOST_RUNS` only as many, but `LEAST_RUNS`, as look at `ENOUGH` holds and demands in all.
    """
    stopped = frozenset(v for d in outcome.decisions if isinstance(d, Wait) for v in d.victims)
    earliest = _Alone(question, now, stopped).earliest()
    if earliest is None:
        return None
    latest = _latest(question, now)
    return Start(min(earliest, latest) if latest is not None else earliest, latest, now)


def _moments(question: Question, now: float) -> list[float]:
    """Now, and all at which something ends or begins by itself."""
    times = [admit.demand.ends for admit in question.holds]
    times += [time for window in question.reserved for time in (window.start, window.demand.ends)]
    return sorted({now, *(time for time in times if time is not None and time > now)})


class _Alone:
    """The demand with its group, and what holds for it, as if nobody else waited; `stopped` are about to end."""

    def __init__(self, question: Question, now: float, stopped: frozenset[str]) -> None:
        self._question, self._now, self._stopped = question, now, stopped
        with_it = {*question.group, question.demand.parent}
        self._demands = [demand for demand in question.demands if demand.key in with_it]

    def earliest(self) -> float | None:
        moments = _moments(self._question, self._now)
        # Without windows there is only ever more room.
        found = first(moments, lambda moment: self._has_place(moment, windows=False) or None)
        bound = found and found[0]
        if bound is None or not self._question.reserved:
            return bound
        after = [moment for moment in moments if moment >= bound][:MOST_RUNS_ALONE]
        return next((moment for moment in after if self._has_place(moment, windows=True)), bound)

    def _has_place(self, moment: float, *, windows: bool) -> bool:
        reserved = self._question.reserved if windows else ()
        world = _World(self._question, self._demands, self._now, self._stopped, reserved)
        world.go_to(moment)
        return world.ask().has_place


def _latest(question: Question, now: float) -> float | None:
    world = _World(question, question.demands, now, frozenset(), question.reserved)
    size = 1 + len(question.holds) + len(question.demands)
    runs, most = 0, min(MOST_RUNS, max(LEAST_RUNS, ENOUGH // size))
    moment: float | None = now
    while moment is not None:
        world.go_to(moment)
        changed = True
        while changed:
            if runs == most:
                return None
            runs += 1
            outcome = world.ask()
            if outcome.is_admitted:
                return moment
            changed = world.go_on(outcome)
        moment = world.next_moment()
    return None


class _World:
    """Holds and demands as they will be."""

    def __init__(
        self,
        question: Question,
        demands: Iterable[Demand],
        now: float,
        stopped: frozenset[str],
        reserved: Sequence[Reserved],
    ) -> None:
        self._question, self._now, self._moment = question, now, now
        gone = question.ending | stopped
        self._holds = {a.demand.key: a for a in question.holds if a.demand.key not in gone}
        self._waiting = {demand.key: demand for demand in demands}
        self._promised = set(question.promised)
        self._windows = list(reserved)

    def go_to(self, moment: float) -> None:
        """What ends by then has ended, what begins by then asks."""
        self._moment = moment
        self._holds = {key: a for key, a in self._holds.items() if lasts(a.demand, moment)}
        begun = [window.demand for window in self._windows if window.start <= moment]
        self._windows = [window for window in self._windows if window.start > moment]
        self._waiting |= {demand.key: demand for demand in begun}
        self._promised |= {demand.key for demand in begun}
        over = [key for key, d in self._waiting.items() if d.quota_alone and not lasts(d, moment)]
        for key in over:
            del self._waiting[key]

    def ask(self) -> Outcome:
        """What is decided then."""
        demands = [self._then(demand) for demand in self._waiting.values()]
        return self._question.ask(
            self._holds.values(),
            demands,
            ending=frozenset(),
            promised=frozenset(self._promised),
            reserved=self._windows,
        )

    def go_on(self, outcome: Outcome) -> bool:
        """Who is admitted holds, who is stopped waits again. Whether more can be decided at this moment."""
        stopped = False
        for decision in outcome.decisions:
            if isinstance(decision, Admit):
                self._holds[decision.demand.key] = decision
                del self._waiting[decision.demand.key]
            elif decision.victims:
                stopped = True
                self._promised.add(decision.demand.key)
                for key in decision.victims:
                    # Nobody knows for how long it asks when it asks again.
                    self._waiting[key] = replace(self._holds.pop(key).demand, ends=None)
        return stopped

    def next_moment(self) -> float | None:
        """The next at which something ends or begins."""
        times = [admit.demand.ends for admit in self._holds.values()]
        times += [window.start for window in self._windows]
        return min((time for time in times if time is not None and time > self._moment), default=None)

    def _then(self, demand: Demand) -> Demand:
        """A lease begins when it is admitted, and ends with what it draws on."""
        if demand.ends is None or demand.quota_alone:
            return demand
        ends = demand.ends + self._moment - self._now
        parent = self._holds.get(demand.parent) if demand.parent is not None else None
        if parent is not None and parent.demand.ends is not None:
            ends = min(ends, parent.demand.ends)
        return replace(demand, ends=ends)
