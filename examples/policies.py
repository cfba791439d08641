"""Replace what the engine decides by: who goes first, whom a request may stop, and what it costs to be stopped."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import vmtenancy as vmt

WAYS = {vmt.Mode.PASSTHROUGH: "nvidia.com/GH100_H100"}
GPUS = tuple(vmt.DeviceFacts(f"0000:{i:02x}:00.0") for i in range(4))
NODE: dict[str, Any] = {"product": "H100", "devices": GPUS, "capacity": {WAYS[vmt.Mode.PASSTHROUGH]: 4}}

fleet = vmt.Fleet.build(
    nodes=[vmt.NodeFacts("node", vmt.Mode.PASSTHROUGH, **NODE)],
    pools=[vmt.Pool("h100", products=frozenset({"H100"}))],
    offerings=[vmt.Offering("h100-80gb", "h100", parts=vmt.PARTS_PER_GPU, resources=WAYS)],
)
lower = vmt.PreemptionPolicy(within_tenant=vmt.Preempts.LOWER_PRIORITY)
tree = vmt.QuotaTree.build([vmt.TenantQuota("vision", None, (vmt.PoolQuota("h100", nominal=4),), lower)])


def ask(key: str, count: int, **more: Any) -> vmt.Demand:
    """A machine of tenant vision."""
    return vmt.Demand(key, "vision", vmt.Runtime.VM, (("h100-80gb", count),), **more)


class ByName:
    """Requests of a production system first; no turns by fair share."""

    fair_share = False

    def rank(self, demand: vmt.Demand) -> tuple[int, float]:
        """See `vmtenancy.Ordering`."""
        return (0 if "prod" in demand.key else 1, demand.created)


class NeverAtNight:
    """Nobody stops a workload that runs at night; all else as tenants say."""

    def allows(
        self, way: vmt.Way, policy: vmt.PreemptionPolicy, demands: Sequence[vmt.Demand], victim: vmt.Demand
    ) -> bool:
        """See `vmtenancy.VictimPolicy`."""
        return "night" not in victim.key and vmt.Policies().victims.allows(way, policy, demands, victim)


class Licences:
    """A simulation has a licence that takes long to get again: a thousand times as dear as its work."""

    def of(self, victim: vmt.Admit, *, moves: bool) -> float:
        """See `vmtenancy.EvictionCost`."""
        return vmt.WorkLost().of(victim, moves=moves) * (1000 if "sim" in victim.demand.key else 1)


running = [ask("sim", 1, created=3), ask("train", 1, created=2), ask("night", 2, created=4)]
live = [
    replace(answer, tenure=vmt.Tenure(work=3600 if answer.demand.key == "train" else 60))
    for answer in vmt.decide(fleet, tree, [], running)
    if isinstance(answer, vmt.Admit)
]
urgent = [ask("test", 2, priority=5, created=5), ask("prod", 1, priority=4, created=6)]
mine = vmt.Policies(ordering=ByName(), victims=NeverAtNight(), cost=Licences())
for policies in (vmt.Policies(), mine):
    for answer in vmt.decide(fleet, tree, live, urgent, policies=policies):
        victims = answer.victims if isinstance(answer, vmt.Wait) else ()
        print(answer.demand.key, "stops", ", ".join(victims) or "nobody")
