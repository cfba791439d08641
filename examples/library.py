"""Place a virtual machine and a pod on a fleet that is only described: no cluster, no credentials."""

from typing import Any

import vmtenancy as vmt

GPUS = tuple(vmt.DeviceFacts(f"0000:{i:02x}:00.0") for i in range(4))
NODE: dict[str, Any] = {"product": "H100", "devices": GPUS, "cpu": 64_000, "memory": 512 << 30}
WAYS = {vmt.Mode.PASSTHROUGH: "nvidia.com/GH100_H100", vmt.Mode.CONTAINER: "nvidia.com/gpu"}

fleet = vmt.Fleet.build(
    nodes=[vmt.NodeFacts(f"node-{mode}", mode, capacity={way: 4}, **NODE) for mode, way in WAYS.items()],
    pools=[vmt.Pool("h100", products=frozenset({"H100"}))],
    offerings=[vmt.Offering("h100-80gb", "h100", parts=vmt.PARTS_PER_GPU, resources=WAYS)],
)
tree = vmt.QuotaTree.build(tenants=[vmt.TenantQuota("vision", quota=(vmt.PoolQuota("h100", nominal=4),))])
demands = [
    vmt.Demand("GpuVM trainer", "vision", vmt.Runtime.VM, (("h100-80gb", 2),), created=1, cpu=16_000),
    vmt.Demand("Pod notebook", "vision", vmt.Runtime.POD, (("h100-80gb", 1),), created=2, cpu=4_000),
    vmt.Demand("GpuVM renderer", "vision", vmt.Runtime.VM, (("h100-80gb", 2),), created=3),
]
for answer in vmt.decide(fleet, tree, [], demands):
    if isinstance(answer, vmt.Admit) and answer.placement:
        print(answer.demand.key, "->", answer.placement.node, *answer.placement.grants[0].devices)
    else:
        print(vmt.explain(fleet, tree, [], demands, answer.demand.key))
