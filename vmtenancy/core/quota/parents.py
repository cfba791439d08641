"""Which cohort is below which: links that contradict each other are cut, each for itself."""

from __future__ import annotations

from collections.abc import Mapping

from vmtenancy.errors import Code, Problem


def sound_parents(given: Mapping[str, str | None]) -> tuple[dict[str, str | None], dict[str, Problem]]:
    """Parent by cohort with every contradictory link cut, and what was contradictory."""
    parents = dict(given)
    problems: dict[str, Problem] = {}
    for name, parent in parents.items():
        if parent is not None and parent not in parents:
            problems[name] = Problem(
                Code.UNKNOWN_REFERENCE, "spec.parent", "the cohort does not exist; this one is a root", parent
            )
    for name in parents:
        chain = [name]
        while (above := parents.get(chain[-1])) is not None and above not in chain:
            chain.append(above)
        if above == name:
            cycle = " → ".join([*chain, name])
            problems[name] = Problem(
                Code.COHORT_CYCLE, "spec.parent", "cohorts form a cycle; each is a root", cycle
            )
    return {name: None if name in problems else parent for name, parent in parents.items()}, problems


def chain_of(name: str, parents: Mapping[str, str | None]) -> list[str]:
    """From a cohort to its root, itself first."""
    chain = [name]
    while (parent := parents[chain[-1]]) is not None:
        chain.append(parent)
    return chain
