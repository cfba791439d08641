"""What a GpuVM with alternatives was granted: in words, and found again from what runs where the grant was lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vmtenancy.api.gpuclass import GpuClass
from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.core.fleet.model import MODES, Offering
from vmtenancy.core.options import units_text, ways
from vmtenancy.core.requests import Demand
from vmtenancy.reconcile.view import Allocation, View


def granted_text(view: View, vm: GpuVM, grant: Allocation) -> str:
    """`2 x a100 on node n, instead of 4 x h100`; and which alternatives do not exist."""
    text = f"{units_text(tuple(grant.wanted.items()))} on node {grant.node}"
    if grant.wanted != dict(vm.spec.first_choice):
        text += f", instead of {units_text(vm.spec.first_choice)}"
    known = view.all_of(GpuClass)
    for i, gpu in enumerate(vm.spec.gpus):
        for j, name in enumerate(gpu.alternatives):
            if name not in known:
                text += f"; spec.gpus[{i}].alternatives[{j}]: class {name} does not exist"
    return text


def as_running(
    demand: Demand,
    told: Mapping[str, int],
    running: Mapping[str, int],
    offerings: Mapping[str, Offering],
) -> list[Demand]:
    """The ways to serve a demand that have the extended resources `running`, the likeliest first.

    `told` are the units by class that the owner's status says it has: of two classes that are delivered as the same
    resource, nothing else says which one was granted.
    """
    fewest = dict(demand.minimum)
    found = []
    for (way,) in ways((demand,)):
        least = [fewest.get(name, count) for name, count in demand.requests]
        for mode in MODES[demand.runtime]:
            resources = [offerings[name].resources.get(mode) for name, _ in way.requests if name in offerings]
            counts = _shared_out([count for _, count in way.requests], least, resources, running)
            if counts is not None:
                requests = tuple((name, count) for (name, _), count in zip(way.requests, counts, strict=True))
                found.append(replace(way, requests=requests))
    return sorted(found, key=lambda way: dict(way.requests) != told)


def _shared_out(
    most: Sequence[int],
    least: Sequence[int],
    resources: Sequence[str | None],
    running: Mapping[str, int],
) -> list[int] | None:
    """Counts, each between its least and its most, that use up exactly what is running; None where none do."""
    if len(resources) < len(most):
        return None
    left = Counter(running)
    counts = list(least)
    for resource, count in zip(resources, counts, strict=True):
        left[resource or ""] -= count
    for i, resource in enumerate(resources):
        more = min(most[i] - counts[i], max(0, left[resource or ""]))
        counts[i] += more
        left[resource or ""] -= more
    return None if any(left.values()) else counts
