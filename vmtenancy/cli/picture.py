"""The fleet as a picture in the terminal: one row for each node, one cell for each GPU, a bar for each tenant."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmtenancy.cli.common import Context, Kubeconfig, with_client

if TYPE_CHECKING:
    from rich.text import Text

    from vmtenancy.reconcile.view import Allocation, View
    from vmtenancy.reconcile.world import World

_COLOURS: Final = ("cyan", "magenta", "yellow", "green", "blue", "red")
#: How full a GPU is, in eighths; a GPU that is sold in parts fills up.
_LEVELS: Final = "·▁▂▃▄▅▆▇█"
_BAR_MOST: Final = 40


@dataclass(frozen=True, slots=True)
class _Cell:
    """One GPU: parts granted, and the tenants that hold them."""

    parts: int
    tenants: frozenset[str]
    usable: bool


def fleet(kubeconfig: Kubeconfig = None, context: Context = None) -> None:
    """Show every GPU of the fleet, who holds it, and how much of its quota each tenant uses."""
    from rich.console import Console

    from vmtenancy.kube.snapshot import read_world

    world = with_client(read_world, kubeconfig, context)
    Console(highlight=False).print(picture(world, time.time()))


def picture(world: World, now: float) -> Text:
    """The whole picture; plain text is as readable as the coloured one."""
    from rich.text import Text

    from vmtenancy.api.tenant import Tenant
    from vmtenancy.reconcile.view import View

    view = View(world, now)
    tenants = sorted(view.all_of(Tenant))
    colours = {tenant: _COLOURS[index % len(_COLOURS)] for index, tenant in enumerate(tenants)}
    text = Text()
    _nodes(text, view, colours)
    _quotas(text, view, colours)
    return text


def _nodes(text: Text, view: View, colours: dict[str, str]) -> None:
    from vmtenancy.reconcile.supply import node_facts
    from vmtenancy.reconcile.view import by_name

    by_node: dict[str, list[Allocation]] = defaultdict(list)
    for grant in view.live:
        by_node[grant.node].append(grant)
    rows = [facts for node in by_name(view.world.of("Node")) if (facts := node_facts(view, node, {}))]
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        mode = str(row.mode or "mode unknown")
        text.append(f"  {row.name:<{width}}  {mode:<14}  ")
        for device in row.devices:
            cell = _cell(device.id, device.healthy and not device.cordoned, by_node[row.name])
            text.append(_glyph(cell), style=_style(cell, colours))
            text.append(" ")
        holders = [
            f"{grant.owner_kind} {grant.owner_namespace}/{grant.owner_name}" for grant in by_node[row.name]
        ]
        text.append(f" {', '.join(holders)}\n" if holders else "\n")


def _cell(device: str, usable: bool, grants: list[Allocation]) -> _Cell:
    parts, tenants = 0, set()
    for grant in grants:
        for part in grant.grants:
            units = part.devices.count(device)
            if units:
                parts += units * part.parts // part.count
                tenants.add(grant.tenant)
    return _Cell(parts, frozenset(tenants), usable)


def _glyph(cell: _Cell) -> str:
    from vmtenancy.api.gpuclass import PARTS_PER_GPU

    if not cell.usable and not cell.parts:
        return "x"
    return (
        _LEVELS[-(-cell.parts * (len(_LEVELS) - 1) // PARTS_PER_GPU)] if cell.parts <= PARTS_PER_GPU else "!"
    )


def _style(cell: _Cell, colours: dict[str, str]) -> str:
    if len(cell.tenants) != 1:
        return "dim" if not cell.tenants else "white"
    return colours.get(next(iter(cell.tenants)), "white")


def _quotas(text: Text, view: View, colours: dict[str, str]) -> None:
    from vmtenancy.api.gpuclass import PARTS_PER_GPU
    from vmtenancy.api.tenant import Tenant
    from vmtenancy.reconcile.charges import charges, gpus_text

    usage = charges(view)
    for name, tenant in sorted(view.all_of(Tenant).items()):
        for quota in tenant.spec.quota:
            parts = usage.get((name, quota.pool), 0)
            used, nominal = -(-parts // PARTS_PER_GPU), quota.nominal
            text.append(f"  {name} {quota.pool}: ")
            if max(used, nominal) <= _BAR_MOST:
                text.append("█" * min(used, nominal), style=colours[name])
                text.append("▒" * max(0, used - nominal), style=colours[name])
                text.append("·" * max(0, nominal - used) + " ", style="dim")
            text.append(f"{gpus_text(parts)} of {nominal} GPUs")
            borrowed = parts - nominal * PARTS_PER_GPU
            text.append(f", {gpus_text(borrowed)} borrowed\n" if borrowed > 0 else "\n")
