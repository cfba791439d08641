"""Why a demand can not be admitted: the reason, the words for people, and what is missing as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from vmtenancy.core.explain.shortage import Shortage, amount, counted, gpus, held_by, named, utc
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import MODES, Offering, Runtime
from vmtenancy.core.placement.best_fit import NoPlacement, Obstacle
from vmtenancy.core.quota.resources import Resource
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.errors import Code, Problem

_USERS = {
    Runtime.VM: "a virtual machine",
    Runtime.POD: "a pod",
    Runtime.HOLD: "the pods of a virtual cluster",
}


class Reason(StrEnum):
    """Why a demand waits; the reasons of the condition `Admitted=False`."""

    UNKNOWN_CLASS = "UnknownClass"
    NOT_DELIVERABLE = "NotDeliverable"
    NO_QUOTA = "NoQuota"
    HOLD_PENDING = "HoldPending"
    MAX_REACHED = "MaxReached"
    CLASS_LIMIT = "ClassLimit"
    QUOTA_EXCEEDED = "QuotaExceeded"
    OWN_QUOTA_EXCEEDED = "OwnQuotaExceeded"
    NO_CAPACITY = "NoCapacity"
    NOMINATED = "Nominated"
    RESERVED = "Reserved"


@dataclass(frozen=True)
class Refusal:
    """Why a demand can not be admitted as things stand. `pools` is empty where waiting would not help.

    Most refusals are only asked whether they are one, and who holds what is missing costs more to say than all else.
    So `told`, the words and what is missing as data, is made when it is first asked for: before anything changes.
    """

    reason: Reason
    tell: Callable[[], tuple[Problem, Shortage | None]]
    pools: tuple[str, ...] = ()

    @cached_property
    def told(self) -> tuple[Problem, Shortage | None]:
        """The problem in words, and what is missing where that can be said."""
        return self.tell()


def _plain(reason: Reason, problem: Problem, pools: tuple[str, ...] = ()) -> Refusal:
    return Refusal(reason, lambda: (problem, None), pools)


def unknown_class(index: int, name: str, known: Iterable[str]) -> Refusal:
    """The class does not exist."""
    expected = f"one of {', '.join(sorted(known)) or 'none: there are no classes'}"
    problem = Problem(
        Code.UNKNOWN_REFERENCE, f"spec.gpus[{index}].class", f"class {name} does not exist", name, expected
    )
    return _plain(Reason.UNKNOWN_CLASS, problem)


def unknown_pool(index: int, offering: Offering) -> Refusal:
    """The class exists, its pool does not."""
    message = f"class {offering.name} is of pool {offering.pool}, which does not exist"
    problem = Problem(Code.UNKNOWN_REFERENCE, f"spec.gpus[{index}].class", message, offering.pool)
    return _plain(Reason.UNKNOWN_CLASS, problem)


def not_deliverable(runtime: Runtime, offerings: Iterable[Offering]) -> Refusal:
    """No node could ever deliver all of the classes to the runtime at once."""
    offerings = tuple(offerings)
    undelivered = [o.name for o in offerings if not any(mode in o.resources for mode in MODES[runtime])]
    names = ", ".join(offering.name for offering in offerings)
    pools = sorted({offering.pool for offering in offerings})
    if undelivered:
        message = f"class {', '.join(undelivered)} is not delivered to {_USERS[runtime]}"
    elif len(pools) > 1:
        several = ", ".join(pools)
        message = (
            f"classes {names} are of pools {several}, and the devices of one workload come from one node"
        )
    else:
        message = f"classes {names} are delivered by nodes in different modes, and a node has one mode"
    return _plain(Reason.NOT_DELIVERABLE, Problem(Code.NOT_DELIVERABLE, "spec.gpus", message))


def no_quota(tree: QuotaTree, tenant: str, pool: str) -> Refusal:
    """The tenant's quota does not name the pool."""
    if tree.knows(tenant):
        problem = Problem(Code.NO_QUOTA, "", f"tenant {tenant} has no quota in pool {pool}")
    else:
        problem = Problem(Code.NO_QUOTA, "", f"tenant {tenant} does not exist")
    return _plain(Reason.NO_QUOTA, problem)


def hold_pending(parent: str, pools: tuple[str, ...]) -> Refusal:
    """A pod came before its virtual cluster was admitted."""
    message = f"{parent} does not hold its guaranteed GPUs yet"
    return _plain(Reason.HOLD_PENDING, Problem(Code.HOLD_PENDING, "", message), pools)


def max_reached(
    parent: str, name: str, *, asked: int, used: int, maximum: int, pools: tuple[str, ...]
) -> Refusal:
    """The virtual cluster's own maximum of a class."""
    message = (
        f"class {name}: needs {asked}, {max(0, maximum - used)} free of the {maximum} that {parent} may use"
    )
    return _plain(Reason.MAX_REACHED, Problem(Code.MAX_REACHED, "", message), pools)


def class_limit(tenant: str, name: str, *, asked: int, room: int, pools: tuple[str, ...]) -> Refusal:
    """The tenant's cap on a class."""
    message = f"class {name}: needs {asked}, {max(0, room)} left under the limit of tenant {tenant}"
    return _plain(Reason.CLASS_LIMIT, Problem(Code.CLASS_LIMIT, "", message), pools)


def quota_exceeded(tree: QuotaTree, tenant: str, column: str, asked: int) -> Refusal:
    """Nominal quota and what may be borrowed now do not suffice, of a pool or a resource."""

    def tell() -> tuple[Problem, Shortage]:
        shortage = tree.shortage(tenant, column, asked)
        nominal = tree.nominal(tenant, column)
        borrowable = shortage.total - nominal
        own, more = amount(column, nominal), amount(column, borrowable)
        split = f" (nominal {own} + up to {more} borrowed)" if borrowable else ""
        where = f" in {shortage.binds}" if shortage.binds.startswith("cohort ") else ""
        free = f"{amount(column, shortage.free)} free of {amount(column, shortage.total)}"
        held = held_by(shortage.holders, column)
        message = f"{named(column)}: needs {counted(asked, column)}, {free}{split}{where}{held}"
        return Problem(Code.QUOTA_EXCEEDED, "", message), shortage

    return Refusal(Reason.QUOTA_EXCEEDED, tell, (column,))


def own_quota_exceeded(tree: QuotaTree, tenant: str, column: str, asked: int) -> Refusal:
    """What is never stopped for others has to be the tenant's own."""

    def tell() -> tuple[Problem, Shortage]:
        nominal, free = tree.nominal(tenant, column), max(0, tree.own_room(tenant, column))
        shortage = Shortage(column, asked, free, nominal, f"tenant {tenant}", ())
        taken = "volumes" if column is Resource.STORAGE else "guarantees and what is not preemptible"
        message = (
            f"{named(column)}: is not preemptible and needs {counted(asked, column)} of the nominal quota of tenant "
            f"{tenant}, {amount(column, free)} of {amount(column, nominal)} are not taken by {taken}"
        )
        return Problem(Code.OWN_QUOTA_EXCEEDED, "", message), shortage

    return Refusal(Reason.OWN_QUOTA_EXCEEDED, tell, (column,))


def no_node(tree: QuotaTree, pool: str, parts: int, answer: NoPlacement) -> Refusal:
    """Quota would suffice, but no node has room."""

    def tell() -> tuple[Problem, Shortage]:
        holders = tree.holders(pool) if Obstacle.BUSY in answer.obstacles else ()
        shortage = Shortage(pool, parts, answer.most_free, answer.largest, "nodes", holders)
        rules = ", ".join(f"{count} {obstacle}" for obstacle, count in answer.obstacles.items())
        total = sum(answer.obstacles.values())
        nodes = f"of {total} node{'' if total == 1 else 's'}: {rules}" if total else "the pool has no nodes"
        message = (
            f"pool {pool}: needs {counted(parts)} on one node, at most {gpus(answer.most_free)} free of "
            f"{gpus(answer.largest)}; {nodes}{held_by(holders)}"
        )
        return Problem(Code.NO_CAPACITY, "", message), shortage

    return Refusal(Reason.NO_CAPACITY, tell, (pool,))


def no_supply(fleet: Fleet, tree: QuotaTree, pool: str, parts: int, kept: int) -> Refusal:
    """What is free in container mode is guaranteed to virtual clusters, or does not exist."""

    def tell() -> tuple[Problem, Shortage]:
        free, total = fleet.supply(pool, Runtime.POD)
        shortage = Shortage(pool, parts, max(0, free - kept), total, "nodes", tree.holders(pool))
        message = (
            f"pool {pool}: needs {counted(parts)}, {gpus(shortage.free)} free of {gpus(total)} in container mode "
            f"({gpus(kept)} kept for guarantees of virtual clusters){held_by(shortage.holders)}"
        )
        return Problem(Code.NO_CAPACITY, "", message), shortage

    return Refusal(Reason.NO_CAPACITY, tell, (pool,))


def nominated(pools: Iterable[str], victims: Iterable[str], instead: str = "") -> Refusal:
    """It gets its place as soon as others have ended: those that are stopped for it, and those ending anyway.

    `instead` says with what, where that is not what it asks for first.
    """
    stopped = ", ".join(victims)
    place = f"a place with {instead}" if instead else "a place"
    message = f"has {place} once {stopped or 'others'} {'ends' if stopped and ',' not in stopped else 'end'}"
    if stopped:
        message += ", stopped for it"
    return _plain(Reason.NOMINATED, Problem(Code.NOMINATED, "", message), tuple(pools))


#: As many alternatives as are named in a message; the rest is counted.
_NAMED = 4


def none_of(first: Refusal, others: Sequence[tuple[str, Refusal]], fewest: str) -> Refusal:
    """Neither what is asked for first nor the `others` (named as people read them) can be had, nor fewer down to
    `fewest` (empty: there is no fewer).
    """

    def tell() -> tuple[Problem, Shortage | None]:
        problem, shortage = first.told
        named = [f"{what} ({_briefly(other)})" for what, other in others[:_NAMED]]
        if len(others) > _NAMED:
            named.append(f"{len(others) - _NAMED} other ways")
        message = problem.message + (f"; nor with {', '.join(named)}" if named else "")
        message += f"; nor with fewer, down to {fewest}" if fewest else ""
        return replace(problem, message=message), shortage

    return Refusal(first.reason, tell, first.pools)


def _briefly(why: Refusal) -> str:
    problem, shortage = why.told
    if shortage is None:
        return f"{why.reason}: {problem.message}"
    free, total = (amount(shortage.pool, n) for n in (shortage.free, shortage.total))
    where = (
        f"of {named(shortage.pool)}" if isinstance(shortage.pool, Resource) else f"in {named(shortage.pool)}"
    )
    return f"{why.reason}: {free} free of {total} {where}"


def reserved(then: Refusal, windows: str, start: float) -> Refusal:
    """It would be in the way of what is reserved from `start` (seconds) on, when `then` will be so."""
    missing, shortage = then.told
    message = f"from {utc(start)} on {windows} needs it: then {missing.message}"
    problem = Problem(Code.RESERVED, "", message, expected="a lease that ends before, or less")
    return Refusal(Reason.RESERVED, lambda: (problem, shortage), then.pools)
