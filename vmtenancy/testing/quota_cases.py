"""Quota cases: who is admitted, who borrows, who makes room, as data that any program can read.

``python -m vmtenancy.testing.quota_cases FILE...`` runs cases through vmtenancy's engine and compares what it decides
with what they expect. The format is described in ``docs/quota-cases.md``.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import yaml

from vmtenancy.api.gpuclass import PARTS_PER_GPU, share_parts
from vmtenancy.api.parsing import validate
from vmtenancy.core import admission
from vmtenancy.core.explain.shortage import gpus
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.fleet.model import DeviceFacts, Mode, NodeFacts, Offering, Pool, Runtime
from vmtenancy.core.placement.best_fit import NoPlacement, Request, best_fit
from vmtenancy.core.quota import tree
from vmtenancy.core.quota.policy import BorrowWithinCohort, Fungibility, PreemptionPolicy, Preempts
from vmtenancy.core.quota.resources import BY_LABEL, Resource
from vmtenancy.core.requests import Admit, Decision, Demand, Tenure, Wait, volumes
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.reconcile.supply import MOST, pool_quota, resource_quota, units
from vmtenancy.testing.quota_case_format import (
    Cohort,
    Incoming,
    Preemption,
    Queue,
    QuotaCase,
    Running,
    Workload,
    check_names,
)

#: Until when a workload is left alone that has not run for its least time: any time after the case.
_LATER = 1_800_000_000.0
_FAIRLY = {
    "Never": Preempts.NEVER,
    "LowerPriority": Preempts.LOWER_PRIORITY,
    "Any": Preempts.LOWER_OR_EQUAL_PRIORITY,
}
_MODES = tuple(Mode)
_RUNTIMES = {"VM": Runtime.VM, "Pod": Runtime.POD, "VirtualCluster": Runtime.HOLD}


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that was decided otherwise than expected."""

    field: str
    expected: object
    found: object

    def __str__(self) -> str:
        return f"{self.field}: expected {_shown(self.expected)}, found {_shown(self.found)}"


def load(path: Path) -> list[QuotaCase]:
    """The cases of a YAML or JSON file: one object, or a list of them. Raises VmtError."""
    try:
        content = yaml.load(path.read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise VmtError(Problem(Code.INVALID_FIELD, "", f"the file can not be read: {reason}")) from None
    except yaml.YAMLError as error:
        found = " ".join(str(error).split())
        raise VmtError(Problem(Code.INVALID_FIELD, "", "is neither YAML nor JSON", found)) from None
    return parse(content)


def parse(content: object) -> list[QuotaCase]:
    """The cases of what a file holds. Raises VmtError with all that is wrong, by path (`[2].queues[0].name`)."""
    items = content if isinstance(content, list) else [content]
    cases: list[QuotaCase] = []
    problems: list[Problem] = []
    for index, item in enumerate(items):
        prefix = f"[{index}]" if isinstance(content, list) else ""
        try:
            case = validate(QuotaCase, item)
            check_names(case)
        except VmtError as error:
            problems += [_below(prefix, problem) for problem in error.problems]
        else:
            cases.append(case)
    twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    problems += [
        Problem(Code.INVALID_FIELD, "name", "names must be unique in a file", name) for name in twice
    ]
    if not items:
        problems.append(Problem(Code.INVALID_FIELD, "", "has no cases", "an empty list", "at least one case"))
    if problems:
        raise VmtError.of(problems)
    return cases


def decide(case: QuotaCase) -> list[Decision]:
    """What the engine decides in one round. Raises VmtError where the case can not be set up."""
    offerings = _offerings(case)
    fleet = Fleet.build(_nodes(case, offerings), [Pool(p, frozenset({p})) for p in _pools(case)], offerings)
    live = list(_placed(case, fleet))
    return admission.decide(
        fleet,
        tree_of(case),
        live,
        [_demand(workload) for workload in case.incoming],
        ending=frozenset(w.name for w in case.running if w.ending),
        promised=frozenset(w.name for w in case.incoming if w.promised),
    )


def run(case: QuotaCase) -> list[Difference]:
    """What the engine decides otherwise than expected. Raises VmtError where the case can not be set up."""
    decisions = decide(case)
    admits = [decision for decision in decisions if isinstance(decision, Admit)]
    waits = [decision for decision in decisions if isinstance(decision, Wait)]
    expected = case.expected
    wanted = {
        name: {pool: gpus(int(Fraction(amount) * PARTS_PER_GPU)) for pool, amount in by_pool.items()}
        for name, by_pool in expected.borrowed.items()
    }
    resources = {
        name: {
            label: BY_LABEL[label].text(units(BY_LABEL[label], given)) for label, given in by_label.items()
        }
        for name, by_label in expected.borrowed_resources.items()
    }
    borrowed: dict[str, dict[str, str]] = defaultdict(dict)
    borrowed_resources: dict[str, dict[str, str]] = defaultdict(dict)
    for admit in admits:
        for column, more in admit.borrowed.items():
            if isinstance(column, Resource):
                borrowed_resources[admit.demand.key][column.label] = column.text(more)
            else:
                borrowed[admit.demand.key][column] = gpus(more)
    asked = {workload.name: dict(workload.gpus) for workload in case.incoming}
    got = {a.demand.key: dict(a.demand.requests) for a in admits}
    victims = sorted(victim for wait in waits for victim in wait.victims)
    compared: list[tuple[str, object, object]] = [
        ("admitted", sorted(expected.admitted), sorted(admit.demand.key for admit in admits)),
        ("granted", dict(expected.granted), {k: units for k, units in got.items() if units != asked[k]}),
        ("borrowed", wanted, borrowed),
        ("borrowedResources", resources, borrowed_resources),
        ("victims", sorted(expected.victims), victims),
        ("reasons", dict(expected.reasons), {wait.demand.key: wait.reason.value for wait in waits}),
    ]
    return [Difference(field, want, found) for field, want, found in compared if want != found]


def tree_of(case: QuotaCase) -> tree.QuotaTree:
    """The case's rules, with nothing charged."""
    return quota_of(case, [_policy(queue.preemption, fair=case.fair_sharing) for queue in case.queues])


def quota_of(case: QuotaCase, policies: Iterable[PreemptionPolicy]) -> tree.QuotaTree:
    """The case's quota, with nothing charged, and the policies of its queues given."""
    return tree.QuotaTree.build(
        [
            tree.TenantQuota(
                queue.name,
                queue.cohort,
                tuple(map(pool_quota, queue.quota)),
                policy,
                queue.weight,
                resource_quota(queue.resources),
                Fungibility(
                    try_next_to_borrow=queue.flavor_fungibility.when_can_borrow == "TryNextFlavor",
                    try_next_to_preempt=queue.flavor_fungibility.when_can_preempt == "TryNextFlavor",
                ),
            )
            for queue, policy in zip(case.queues, policies, strict=True)
        ],
        [
            tree.CohortQuota(
                cohort.name,
                cohort.parent,
                tuple(map(pool_quota, cohort.quota)),
                cohort.weight,
                resource_quota(cohort.resources),
            )
            for cohort in case.cohorts
        ],
    )


def _policy(preemption: Preemption, *, fair: bool) -> PreemptionPolicy:
    borrow = preemption.borrow_within_cohort
    return PreemptionPolicy(
        Preempts(preemption.within_cluster_queue),
        Preempts(preemption.reclaim_within_cohort),
        None if borrow.policy == "Never" else BorrowWithinCohort(borrow.max_priority_threshold),
        _FAIRLY[preemption.reclaim_within_cohort] if fair else Preempts.NEVER,
    )


def _pools(case: QuotaCase) -> list[str]:
    owners: list[Cohort | Queue] = [*case.cohorts, *case.queues]
    quotas = {quota.pool for owner in owners for quota in owner.quota}
    return sorted(quotas | {c.pool for c in case.classes} | {node.pool for node in case.nodes or ()})


def _offerings(case: QuotaCase) -> list[Offering]:
    whole = {pool: (pool, PARTS_PER_GPU) for pool in _pools(case)}
    own = {c.name: (c.pool, share_parts(c.share) or 0) for c in case.classes}
    return [
        Offering(
            name,
            pool,
            parts,
            {
                Mode.CONTAINER: f"nvidia.com/{name}",
                (Mode.PASSTHROUGH if parts == PARTS_PER_GPU else Mode.VGPU): f"nvidia.com/VM-{name}",
            },
        )
        for name, (pool, parts) in (whole | own).items()
    ]


def _nodes(case: QuotaCase, offerings: Iterable[Offering]) -> Iterator[NodeFacts]:
    if case.nodes is None:
        # One node per pool and mode that has room for everything at once, whatever is stopped.
        enough = sum(count for w in (*case.running, *case.incoming) for count in {**w.max, **w.gpus}.values())
        most = enough + sum(count for w in (*case.running, *case.incoming) for count in w.max.values()) + 1
        described = [(f"{pool}-{mode}", pool, most, mode) for pool in _pools(case) for mode in _MODES]
    else:
        described = [(node.name, node.pool, node.gpus, Mode(node.mode)) for node in case.nodes]
    for name, pool, count, mode in described:
        yield NodeFacts(
            name,
            mode,
            product=pool,
            devices=tuple(DeviceFacts(f"gpu-{i}") for i in range(count)),
            capacity={
                offering.resources[mode]: count * (PARTS_PER_GPU // offering.parts)
                for offering in offerings
                if offering.pool == pool and mode in offering.resources
            },
            cpu=MOST,
            memory=MOST,
        )


def _demand(workload: Workload) -> Demand:
    return Demand(
        workload.name,
        workload.queue,
        _RUNTIMES[workload.runtime],
        tuple(workload.gpus.items()),
        workload.priority,
        float(-workload.age),
        parent=workload.parent,
        maximum=tuple(workload.max.items()),
        group=workload.group or "",
        cpu=workload.cpu.milli,
        memory=workload.memory.bytes,
        storage=0 if isinstance(workload, Running) else workload.storage.bytes,
        alternatives=tuple(workload.alternatives.items()) if isinstance(workload, Incoming) else (),
        minimum=tuple(workload.min.items()) if isinstance(workload, Incoming) else (),
    )


def _placed(case: QuotaCase, fleet: Fleet) -> Iterator[Admit]:
    """What runs, on the nodes that best fit, one after the other."""
    with fleet.what_if():
        for i, workload in enumerate(case.running):
            demand = _demand(workload)
            if workload.storage.bytes:
                yield volumes(workload.name, workload.queue, workload.storage.bytes)
            if workload.stopped:
                continue
            path = f"running[{i}].gpus"
            for name in workload.gpus:
                if name not in fleet.offerings:
                    known = ", ".join(sorted(fleet.offerings))
                    raise VmtError(
                        Problem(Code.UNKNOWN_REFERENCE, path, "no such class", name, f"one of {known}")
                    )
            wanted = tuple((fleet.offerings[name], count) for name, count in workload.gpus.items())
            if demand.runtime is Runtime.HOLD:
                charged: Counter[str] = Counter()
                for offering, count in wanted:
                    charged[offering.pool] += offering.parts * count
                yield Admit(demand, None, dict(charged))
                continue
            where = frozenset({workload.node}) if workload.node else None
            request = Request(demand.runtime, wanted, demand.cpu, demand.memory, where)
            placement = best_fit(fleet, request)
            if isinstance(placement, NoPlacement):
                message = "no node has room for what runs"
                raise VmtError(Problem(Code.NO_CAPACITY, path, message, workload.name, "nodes that hold it"))
            fleet.hold(placement)
            yield Admit(demand, placement, tenure=_tenure(workload))


def _tenure(workload: Running) -> Tenure:
    until = dict.fromkeys(workload.safe, _LATER)
    return Tenure(
        float(-workload.age), float(workload.work), until.get("withinTenant"), until.get("withinCohort")
    )


def _below(prefix: str, problem: Problem) -> Problem:
    path = f"{prefix}.{problem.path}" if prefix and problem.path else prefix or problem.path
    return Problem(problem.code, path, problem.message, problem.found, problem.expected)


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_shown(each)}" for key, each in sorted(value.items())) or "nothing"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nobody"
    return str(value)


def main(arguments: list[str] | None = None) -> int:
    """Run the files; 0: all passed, 1: some failed, 2: a file is bad."""
    parser = argparse.ArgumentParser(prog="python -m vmtenancy.testing.quota_cases", description=main.__doc__)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="YAML or JSON: a case or a list of cases"
    )
    passed = failed = 0
    bad = False
    for path in parser.parse_args(arguments).files:
        try:
            for case in load(path):
                try:
                    differences = run(case)
                except VmtError as error:
                    raise VmtError.of(_below(case.name, problem) for problem in error.problems) from None
                passed, failed = passed + (not differences), failed + bool(differences)
                for difference in differences:
                    print(f"FAILED {path}: {case.name}: {difference}\n       it shows: {case.shows}")
        except VmtError as error:
            bad = True
            for problem in error.problems:
                print(f"{path}: {problem}", file=sys.stderr)
    print(f"{passed} passed, {failed} failed")
    return 2 if bad else int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
