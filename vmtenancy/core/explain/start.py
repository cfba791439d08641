"""When a demand that waits may start, from what ends by itself: leases, reservations, grants that are ending, and the
least run times of those that may be stopped for it afterwards.

Between two bounds, both found by the engine on the holds as they will be at each such moment:

- *earliest*: when enough will have ended for it alone, as if nobody else waited;
- *latest*: when it is admitted if all others that wait are admitted as soon as they fit, and each of them stays for as
  long as its lease says, or for ever.

Both assume that nobody new comes, no lease is renewed, nobody stops anything by hand, and nodes and quota stay as they
are. What is preempted meanwhile waits again; what is admitted meanwhile has no least run time, for the engine is not
told of any. So a person may make it sooner or later, but not by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vmtenancy.core.calendar import Reserved, lasts
from vmtenancy.core.explain.question import Outcome, Question
from vmtenancy.core.explain.shortage import utc
from vmtenancy.core.requests import Admit, Demand, Wait
from vmtenancy.core.search import first
from vmtenancy.core.victims import safe_at, safe_times

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

    Asks at most 1 + log2 of the moments at which something ends, least run times too, or begins, and `MOST_RUNS` +
    `MOST_RUNS_ALONE` times.
    Of `MOST_RUNS` only as many, but `LEAST_RUNS`, as look at `ENOUGH` holds and demands in all.
    """
    stopped = frozenset(v for d in outcome.decisions if isinstance(d, Wait) for v in d.victims)
    earliest = _Alone(question, now, stopped).earliest()
    if earliest is None:
        return None
    latest = _latest(question, now)
    return Start(min(earliest, latest) if latest is not None else earliest, latest, now)


def _after(moment: float, times: Iterable[float | None]) -> float | None:
    """The next of the times after a moment."""
    return min((time for time in times if time is not None and time > moment), default=None)


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
        question, end = self._question, self._end()
        moments = [moment for moment in _moments(question, self._now) if moment < end]
        least = {until for admit in question.holds for until in safe_times(admit) if self._now < until < end}
        # Without windows there is only ever more room.
        found = first(sorted(least.union(moments)), self._placed)
        if found is None or not question.reserved:
            return found and found[0]
        moment = found[0]
        for _ in range(MOST_RUNS_ALONE):
            outcome = self._decided(moment, windows=True)
            if outcome.has_place:
                return moment
            later = _after(moment, [*moments, outcome.stops_from])
            if later is None:
                break
            moment = later
        return found[0]

    def _end(self) -> float:
        """From when on it can not start any more: a window is over, or what it draws on."""
        demand, holds = self._question.demand, self._question.holds
        over = [admit.demand.ends for admit in holds if admit.demand.key == demand.parent]
        over += [demand.ends] if demand.quota_alone else []
        return min((end for end in over if end is not None), default=math.inf)

    def _placed(self, moment: float) -> Outcome | None:
        """What is decided then, without windows, if it has a place."""
        return outcome if (outcome := self._decided(moment, windows=False)).has_place else None

    def _decided(self, moment: float, *, windows: bool) -> Outcome:
        reserved = self._question.reserved if windows else ()
        world = _World(self._question, self._demands, self._now, self._stopped, reserved)
        world.go_to(moment)
        return world.ask()


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
        moment = world.next_moment(outcome)
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
        self._promised, self._promises = set(question.promised), dict(question.promises)
        #: Windows that have begun, by key: promised as long as they ask.
        self._begun = {
            key for key in question.promised if key in self._waiting and self._waiting[key].quota_alone
        }
        self._windows = list(reserved)

    def go_to(self, moment: float) -> None:
        """What ends by then has ended, what begins asks, and who has run for the least time may be stopped."""
        self._moment = moment
        self._holds = {key: safe_at(a, moment) for key, a in self._holds.items() if lasts(a.demand, moment)}
        begun = [window.demand for window in self._windows if window.start <= moment]
        self._windows = [window for window in self._windows if window.start > moment]
        self._waiting |= {demand.key: demand for demand in begun}
        self._begun |= {demand.key for demand in begun}
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
            promised=frozenset(self._promised | self._begun),
            reserved=self._windows,
            promises=self._promises,
        )

    def go_on(self, outcome: Outcome) -> bool:
        """Who is admitted holds, who is stopped waits again. Whether more can be decided at this moment."""
        waits = [decision for decision in outcome.decisions if isinstance(decision, Wait)]
        served = {wait.demand.together for wait in waits if wait.victims}
        # What others were stopped for is promised once: they are gone when it is decided again.
        promised = [wait for wait in waits if wait.demand.together in served]
        self._promised = {wait.demand.key for wait in promised}
        self._promises = {wait.demand.key: wait.nominated for wait in promised if wait.nominated}
        for decision in outcome.decisions:
            if isinstance(decision, Admit):
                self._holds[decision.demand.key] = decision
                del self._waiting[decision.demand.key]
            for key in decision.victims if isinstance(decision, Wait) else ():
                # Nobody knows for how long it asks when it asks again.
                self._waiting[key] = replace(self._holds.pop(key).demand, ends=None)
        return bool(served)

    def next_moment(self, outcome: Outcome) -> float | None:
        """The next at which something ends or begins, or others may be stopped for those that wait by the outcome."""
        times = [admit.demand.ends for admit in self._holds.values()]
        times += [window.start for window in self._windows]
        times += [decision.stops_from for decision in outcome.decisions if isinstance(decision, Wait)]
        return _after(self._moment, times)

    def _then(self, demand: Demand) -> Demand:
        """A lease begins when it is admitted, and ends with what it draws on."""
        if demand.ends is None or demand.quota_alone:
            return demand
        ends = demand.ends + self._moment - self._now
        parent = self._holds.get(demand.parent) if demand.parent is not None else None
        if parent is not None and parent.demand.ends is not None:
            ends = min(ends, parent.demand.ends)
        return replace(demand, ends=ends)
