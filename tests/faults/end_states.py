"""What a world comes to, without what differs from run to run, so that two runs can be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from vmtenancy.api.names import ALLOCATION_ANNOTATION, APPLIED_ANNOTATION
from vmtenancy.reconcile import World
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.world import annotations_of, ref_of, uid_of

_UUID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: Names that are made of a uid: a grant's and a launcher pod's.
_NAMES: Final = re.compile(
    rf"(?P<grant>(?:vm|vc|pod)-(?P<owner>{_UUID})-\d+-\d+-[0-9a-f]{{8}})"
    rf"|(?P<uid>{_UUID})|(?<=virt-launcher-)(?P<vm>[-a-z0-9]+)-[0-9a-f]{{6}}\b"
)
_OF_THE_MOMENT: Final = re.compile(
    r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z"
    r"|\b10\.(?:244|96)(?:\.\d+){2}\b|\bkube-api-access-\w{5}\b"
    rf'|(?<="{re.escape(APPLIED_ANNOTATION)}": ")[^"]+'
    r'|(?<="resourceVersion": ")[^"]+'
)

_OBSERVED: Final = re.compile(r'(?<="observedGeneration": )\d+')
_COUNTERS: Final = re.compile(r'(?<="generation": )\d+|(?<="sequence": )\d+|(?<="epoch": )\d+')


def end_state(world: World) -> dict[str, Object]:
    """Every object but the ledger's head, by its name. Times, versions, uids and addresses are left out."""
    objects = [o for kind in world.objects.values() for o in kind.values() if o["kind"] != "GpuLedger"]
    known = {uid_of(obj): str(ref_of(obj)) for obj in objects if obj["kind"] != "GpuAllocation"}

    def named(match: re.Match[str]) -> str:
        if match["vm"]:
            return match["vm"]
        if match["grant"]:
            return f"grant of {known.get(match['owner'], 'what is gone')}"
        return known.get(match["uid"], "what is gone")

    # Names of owners may be made of a uid, too.
    known = {uid: _NAMES.sub(named, name) for uid, name in known.items()}
    state = {}
    for obj in objects:
        generation = obj["metadata"].get("generation", 0)
        text = _COUNTERS.sub("0", _OF_THE_MOMENT.sub("*", json.dumps(obj, sort_keys=True)))
        # What a status is of: 0 is the newest generation, whatever its number is in this run.
        text = _OBSERVED.sub(lambda match, newest=generation: str(int(match[0]) - newest), text)
        text = _NAMES.sub(named, text)
        plain = state[_NAMES.sub(named, str(ref_of(obj)))] = json.loads(text)
        if obj["kind"] == "Pod" and ALLOCATION_ANNOTATION not in annotations_of(obj):
            plain["spec"].pop("nodeName", None)  # where it runs is the scheduler's choice
    return state


def differences(expected: Mapping[str, Object], found: Mapping[str, Object]) -> list[str]:
    """Where two end states differ, in words."""
    return [
        f"{name}{path}: expected {before}, found {now}"
        for name in sorted({*expected, *found})
        for path, before, now in _differing(expected.get(name), found.get(name))
    ]


def _differing(expected: Any, found: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted({*expected, *found}):
            yield from _differing(expected.get(key), found.get(key), f"{path}.{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, (before, now) in enumerate(zip(expected, found, strict=True)):
            yield from _differing(before, now, f"{path}[{index}]")
    elif expected != found:
        yield path, expected, found
