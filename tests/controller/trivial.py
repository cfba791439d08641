"""A controller with a trivial planner.

Every namespace labelled `test=1` gets a ConfigMap, written in a chain.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from vmtenancy.controller.operator import Controller, Options
from vmtenancy.reconcile.steps import Apply, Chain, Object, Plan
from vmtenancy.reconcile.world import World, is_deleting, labels_of


def config_map(namespace: str, name: str) -> Object:
    labels = {"app.kubernetes.io/managed-by": "vmtenancy"}
    meta = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"a": "b"}}


def planner(world: World, now: float) -> Plan:
    return Plan(
        tuple(
            Chain(f"fill {name}", tuple(Apply(config_map(name, f"cm-{n}")) for n in range(3)))
            for (_, name), obj in sorted(world.objects["Namespace"].items())
            if labels_of(obj).get("test") == "1" and not is_deleting(obj)
            if not world.get("ConfigMap", name, "cm-2")
        )
    )


if __name__ == "__main__":
    kubeconfig, namespace, health, metrics, as_account = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    options = Options(
        kubeconfig=Path(kubeconfig),
        namespace=namespace,
        act_as_account=as_account == "yes",
        lease_duration_s=6.0,
        health_port=int(health),
        metrics_port=int(metrics),
    )
    asyncio.run(Controller(options, planner).run())
