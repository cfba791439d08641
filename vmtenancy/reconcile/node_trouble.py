"""Where a node reports otherwise than a grant says (I5). It evicts nobody (I6): the grant stays, its owner is told."""

from __future__ import annotations

from typing import Final

from vmtenancy.api.gpunode import GpuNode, ObservedGpu
from vmtenancy.api.quantity import to_bytes
from vmtenancy.errors import VmtError
from vmtenancy.reconcile.status import condition, is_true
from vmtenancy.reconcile.view import Allocation, View

NODE_GONE: Final = "NodeGone"
NODE_NOT_READY: Final = "NodeNotReady"
DEVICE_UNHEALTHY: Final = "DeviceUnhealthy"
DEVICES_MISSING: Final = "DevicesMissing"
#: Every reason of a `Degraded` condition that comes from a node.
NODE_REASONS: Final = frozenset({NODE_GONE, NODE_NOT_READY, DEVICE_UNHEALTHY, DEVICES_MISSING})


def trouble_of(view: View, grant: Allocation) -> tuple[str, str] | None:
    """Reason and message of the first disagreement between a grant and its node, or None."""
    if not grant.node:
        return None
    node = view.world.get("Node", "", grant.node)
    if node is None:
        return NODE_GONE, f"node {grant.node} does not exist any more"
    if not is_true(node, "Ready"):
        said = condition(node, "Ready") or {}
        why = said.get("message") or said.get("reason") or "it has reported nothing"
        return NODE_NOT_READY, f"node {grant.node} is not ready: {why}"
    return _sick(view, grant) or _missing(view, grant, (node.get("status") or {}).get("allocatable") or {})


def _sick(view: View, grant: Allocation) -> tuple[str, str] | None:
    """What its agent says of the devices."""
    seen = view.world.get("GpuNode", "", grant.node)
    agent = view.parsed(seen, GpuNode) if seen else None
    if agent is None or isinstance(agent, VmtError):
        return None
    held = {device for part in grant.grants for device in part.devices}
    sick = {gpu.pci_address: gpu for gpu in agent.status.gpus if gpu.pci_address in held and not gpu.healthy}
    if sick:
        said = ", ".join(_said(sick[address]) for address in sorted(sick))
        return DEVICE_UNHEALTHY, f"node {grant.node} calls {said} unhealthy"
    return None


def _said(gpu: ObservedGpu) -> str:
    reasons = ", ".join(reason.reason for reason in gpu.reasons)
    return f"{gpu.pci_address} ({reasons})" if reasons else gpu.pci_address


def _missing(view: View, grant: Allocation, allocatable: dict[str, str]) -> tuple[str, str] | None:
    """Fewer devices than are granted on the node; which of them are missing can not be told."""
    for resource in grant.resources:
        there, granted = to_bytes(allocatable.get(resource, "0")), view.granted_units[grant.node, resource]
        if there < granted:
            message = f"node {grant.node} reports {there} x {resource}, {granted} are granted"
            return DEVICES_MISSING, message
    return None
