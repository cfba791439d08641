"""Our preemption against Kueue's own: random quota cases, judged by the real preemptor of Kueue v0.15.0.

``python -m vmtenancy.testing.kueue_judge [--cases N] [--seed N]`` compares, over cases whose incoming workload does not
already fit, whom Kueue evicts, whom `core.quota.kueue` says that it would, and whom vmtenancy itself stops.
"""

import argparse
import json
import random
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmtenancy.api.gpuclass import PARTS_PER_GPU
from vmtenancy.core.quota import kueue, kueue_fair
from vmtenancy.core.quota.policy import NOBODY
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.core.requests import Wait
from vmtenancy.testing import quota_cases
from vmtenancy.testing.build import resolve
from vmtenancy.testing.quota_case_format import Cohort, Queue, QuotaCase, Workload

_POOLS = ("h100", "a100")


@dataclass(slots=True)
class Report:
    """What was compared: by who decided, in how many cases room was made, by how many `victims` with how many `gpus`;
    `both` and `both_gpus` are the same of cases in which both made room.
    """

    cases: int = 0
    different: list[str] = field(default_factory=list)
    rooms: Counter[str] = field(default_factory=Counter)
    victims: Counter[str] = field(default_factory=Counter)
    gpus: Counter[str] = field(default_factory=Counter)
    both: Counter[str] = field(default_factory=Counter)
    both_gpus: Counter[str] = field(default_factory=Counter)
    only: dict[str, list[str]] = field(default_factory=lambda: {"kueue": [], "vmtenancy": []})
    worse_off: list[str] = field(default_factory=list)


def judge(cases: Sequence[QuotaCase]) -> list[set[str]]:
    """Whom Kueue's preemptor evicts for the one incoming workload of each case. Raises BuildError."""
    judged = subprocess.run(
        [resolve("kueue-judge")],
        input=json.dumps([case.model_dump(by_alias=True, exclude_unset=True) for case in cases]),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = json.loads(judged.stdout)
    fits = [answer["name"] for answer in answers if answer["fits"]]
    if fits:
        raise ValueError(f"fits into the quota without preemption, by Kueue: {', '.join(fits)}")
    return [set(answer["victims"]) for answer in answers]


def compatible(case: QuotaCase) -> set[str]:
    """Whom `core.quota.kueue` says that Kueue would evict for the one incoming workload."""
    return {workload.key for workload in _evict(case).victims}


def _evict(case: QuotaCase) -> kueue_fair.Eviction:
    (asked,) = case.incoming
    quota, incoming = charged(case), _workload(asked)
    policy = next(queue.preemption for queue in case.queues if queue.name == asked.queue)
    borrow = policy.borrow_within_cohort
    rules = kueue.Preemption(
        kueue.Policy(policy.within_cluster_queue),
        kueue.Policy(policy.reclaim_within_cohort),
        borrow.policy != "Never",
        borrow.max_priority_threshold,
    )
    running = [_workload(w, ending=w.ending) for w in case.running]
    if not case.fair_sharing:
        return kueue_fair.Eviction(kueue.victims(quota, running, incoming, rules))
    above = {cohort.name: cohort for cohort in case.cohorts}
    weights: dict[int, int] = {}
    for queue in case.queues:
        node: Queue | Cohort = queue
        for number in quota.nodes(queue.name):
            weights[number] = node.weight
            parent = node.cohort if isinstance(node, Queue) else node.parent
            if parent in above:
                node = above[parent]
    return kueue_fair.evict(quota, running, incoming, rules, weights)


def charged(case: QuotaCase) -> QuotaTree:
    """The case's quota with all that runs charged to it."""
    quota = quota_cases.quota_of(case, [NOBODY] * len(case.queues))
    for workload in case.running:
        for pool, parts in _workload(workload).parts.items():
            quota.charge(workload.queue, pool, parts, workload.name)
    return quota


def _workload(workload: Workload, *, ending: bool = False) -> kueue.Workload:
    parts = {pool: count * PARTS_PER_GPU for pool, count in workload.gpus.items()}
    return kueue.Workload(
        workload.name, workload.queue, parts, workload.priority, float(-workload.age), ending
    )


def random_cases(seed: int, count: int, *, ours: bool = False, fair: bool = False) -> list[QuotaCase]:
    """Cases that arise from admissions within quota, with an incoming workload that does not fit as things stand,
    but would on an empty fleet.

    `ours`: only policies that vmtenancy has. `fair`: with fair sharing and weights; cases in which Kueue's answer
    is arbitrary are left out.
    """
    source = random.Random(seed)  # noqa: S311 - reproducible cases, no secrets
    found: list[QuotaCase] = []
    while len(found) < count:
        if case := _random_case(source, f"case-{seed}-{len(found)}", ours=ours, fair=fair):
            found.append(case)
    return found


def _random_case(source: random.Random, name: str, *, ours: bool, fair: bool) -> QuotaCase | None:
    pools = _POOLS[: source.choice((1, 1, 2))]
    cohorts = [{"name": "c0", "quota": _quota(source, pools, own=False, root=True)}]
    for i in range(1, source.randint(1, 6)):
        parent = source.choice(cohorts)["name"]
        cohorts.append({"name": f"c{i}", "parent": parent, "quota": _quota(source, pools, own=False)})
    queues: list[dict[str, Any]] = []
    for i in range(source.randint(2, 6)):
        queue: dict[str, Any] = {"name": f"q{i}", "quota": _quota(source, pools, own=True)}
        if source.random() < 0.95:
            queue["cohort"] = source.choice(cohorts)["name"]
        queues.append(queue | {"preemption": _preemption(source, fair=fair)})
    if fair:
        for node in (*cohorts, *queues):
            # Halves are exact in Kueue's floating-point shares, so equal shares are equal.
            node["weight"] = source.choice((1, 1, 2, 4))
    pressing = {"sizes": (1, 2, 3, 4, 5), "priorities": (0, 1, 2, 3, 4)}
    incoming = _random_workload(source, "new", pools, queues, several=not ours, **pressing)
    content: dict[str, Any] = {
        "name": name,
        "shows": "What Kueue's preemptor decides in a random case.",
        "cohorts": cohorts,
        "queues": queues,
        "incoming": [incoming],
        "expected": {},
        "fairSharing": fair,
    }
    (case,) = quota_cases.parse(content)
    if fair and "cohort" not in next(queue for queue in queues if queue["name"] == incoming["queue"]):
        return None  # Kueue v0.15.0 panics where a queue without a cohort has no more candidates
    quota = charged(case)
    running: list[dict[str, Any]] = []
    for i in range(source.randint(4, 24)):
        workload = _random_workload(source, f"w{i}", pools, queues, several=not ours)
        wanted = {pool: count * PARTS_PER_GPU for pool, count in workload["gpus"].items()}
        if all(quota.fits(workload["queue"], pool, parts) for pool, parts in wanted.items()):
            for pool, parts in wanted.items():
                quota.charge(workload["queue"], pool, parts, workload["name"])
            running.append(workload)
            if source.random() < 0.05 and not ours:
                workload["ending"] = True
    (asked,) = map(_workload, case.incoming)
    needs = [
        quota.shortage(asked.queue, pool, parts)
        for pool, parts in asked.parts.items()
        if not quota.fits(asked.queue, pool, parts)
    ]
    if not needs or any(need.requested > need.total for need in needs):
        return None
    (case,) = quota_cases.parse(content | {"running": running})
    return None if _evict(case).arbitrary else case


def _quota(
    source: random.Random, pools: Sequence[str], *, own: bool, root: bool = False
) -> list[dict[str, Any]]:
    quotas = []
    for pool in pools:
        if not own and source.random() < 0.5:
            continue
        nominal = source.randint(0, 6 if own else 3)
        quota: dict[str, Any] = {"pool": pool, "nominal": nominal}
        if not root and source.random() < 0.3:
            quota["borrowingLimit"] = source.randint(0, 4)
        if not root and source.random() < 0.3:
            quota["lendingLimit"] = source.randint(0, nominal if own else 4)
        quotas.append(quota)
    return quotas


def _preemption(source: random.Random, *, fair: bool) -> dict[str, Any]:
    within = ["Never", "LowerPriority", "LowerPriority", "LowerOrNewerEqualPriority"]
    reclaim = source.choice(("Never", "LowerPriority", "Any", "Any"))
    policy: dict[str, Any] = {
        "withinClusterQueue": source.choice(within),
        "reclaimWithinCohort": reclaim,
    }
    # Kueue refuses it with reclaim Never, and with fair sharing.
    if not fair and reclaim != "Never" and source.random() < 0.5:
        policy["borrowWithinCohort"] = {"policy": "LowerPriority"}
        if source.random() < 0.5:
            policy["borrowWithinCohort"]["maxPriorityThreshold"] = source.randint(-1, 2)
    return policy


def _random_workload(
    source: random.Random,
    name: str,
    pools: Sequence[str],
    queues: Sequence[Mapping[str, Any]],
    *,
    several: bool,
    sizes: Sequence[int] = (1, 1, 1, 2, 2, 3),
    priorities: Sequence[int] = (-1, 0, 0, 1, 2, 3),
) -> dict[str, Any]:
    wanted = pools if several and source.random() < 0.3 else [source.choice(pools)]
    return {
        "name": name,
        "queue": source.choice(queues)["name"],
        "gpus": {pool: source.choice(sizes) for pool in wanted},
        "priority": source.choice(priorities),
        "age": source.randint(0, 20),
    }


def compare(cases: Sequence[QuotaCase], *, ours: bool) -> Report:
    """Judge every case, and compare. `ours`: with what vmtenancy itself decides, too."""
    report = Report(len(cases))
    for case, evicted in zip(cases, judge(cases), strict=True):
        compat = compatible(case)
        if compat != evicted:
            report.different.append(
                f"{case.name}: Kueue {sorted(evicted)}, core.quota.kueue {sorted(compat)}"
            )
        stopped = (
            {key for wait in quota_cases.decide(case) if isinstance(wait, Wait) for key in wait.victims}
            if ours
            else set[str]()
        )
        held = {workload.name: sum(workload.gpus.values()) for workload in case.running}
        for who, victims in (("kueue", evicted), ("vmtenancy", stopped)):
            report.rooms[who] += bool(victims)
            report.victims[who] += len(victims)
            report.gpus[who] += sum(held[victim] for victim in victims)
            if evicted and stopped:
                report.both[who] += len(victims)
                report.both_gpus[who] += sum(held[victim] for victim in victims)
            elif victims:
                report.only[who].append(case.name)
        if ours:
            report.worse_off += _worse_off(case, evicted, stopped)
    return report


def _worse_off(case: QuotaCase, evicted: set[str], stopped: set[str]) -> Iterator[str]:
    """Queues within their nominal quota that Kueue serves, or spares, and vmtenancy does not."""
    quota = charged(case)
    (incoming,) = (_workload(workload) for workload in case.incoming)

    def within(queue: str, parts: Mapping[str, int]) -> bool:
        return all(
            quota.usage(queue, pool) + more <= quota.nominal(queue, pool) for pool, more in parts.items()
        )

    if evicted and not stopped and within(incoming.queue, incoming.parts):
        yield f"{case.name}: {incoming.queue} gets nothing, and would with it be within nominal"
    for workload in map(_workload, case.running):
        foreign = workload.key in stopped - evicted and workload.queue != incoming.queue
        if foreign and within(workload.queue, dict.fromkeys(workload.parts, 0)):
            yield f"{case.name}: {workload.key} of {workload.queue}, within nominal, is stopped"


SUITES: dict[str, dict[str, bool]] = {
    "all-policies": {},
    "fair-sharing": {"fair": True},
    "policies-of-both": {"ours": True},
    "fair-sharing-of-both": {"ours": True, "fair": True},
}
"""The arguments of `random_cases` by suite; in those with `ours` vmtenancy itself is compared, too."""


def main(arguments: list[str] | None = None) -> int:
    """Compare all suites, and print the counts; 1 where something is not as it has to be."""
    parser = argparse.ArgumentParser(prog="python -m vmtenancy.testing.kueue_judge", description=main.__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="cases per suite")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    bad = False
    for title, suite in SUITES.items():
        ours = suite.get("ours", False)
        report = compare(random_cases(options.seed, options.cases, **suite), ours=ours)
        same = report.cases - len(report.different)
        print(
            f"{title}: {same} of {report.cases} cases with identical victims "
            f"({report.rooms['kueue']} in which Kueue makes room, {report.victims['kueue']} victims)"
        )
        for text in report.different[:20]:
            print(f"  {text}")
        bad |= bool(report.different)
        if ours:
            bad |= _is_worse(report)
    return int(bad)


def _is_worse(report: Report) -> bool:
    """Print what vmtenancy itself does beside Kueue. Whether it does worse anywhere."""
    for who in ("kueue", "vmtenancy"):
        print(
            f"  {who}: makes room in {report.rooms[who]} cases with {report.victims[who]} victims that hold "
            f"{report.gpus[who]} GPUs; where both do, with {report.both[who]} victims and "
            f"{report.both_gpus[who]} GPUs; alone in {len(report.only[who])}"
        )
    for text in report.worse_off[:20]:
        print(f"  worse off: {text}")
    print(f"  {len(report.worse_off)} cases in which a queue within nominal is worse off than with Kueue")
    counts = (report.victims, report.gpus, report.both, report.both_gpus)
    return bool(report.worse_off) or any(count["vmtenancy"] > count["kueue"] for count in counts)


if __name__ == "__main__":
    raise SystemExit(main())
