"""The kinds of `vmtenancy.io/v1alpha1` as models, and `parse` from raw objects to them.

Names are loaded on first use: a program that only asks for labels and names does not pay for pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmtenancy.api.cohort import Cohort
    from vmtenancy.api.common import Condition, Kind, ObjectMeta
    from vmtenancy.api.gpuallocation import GpuAllocation
    from vmtenancy.api.gpuclass import PARTS_PER_GPU, GpuClass
    from vmtenancy.api.gpugroup import GpuGroup
    from vmtenancy.api.gpuledger import GpuLedger
    from vmtenancy.api.gpunode import GpuNode
    from vmtenancy.api.gpupool import GpuPool
    from vmtenancy.api.gpureservation import GpuReservation
    from vmtenancy.api.gpuvm import GpuVM
    from vmtenancy.api.parsing import KINDS, parse
    from vmtenancy.api.quantity import Quantity
    from vmtenancy.api.tenant import Tenant
    from vmtenancy.api.virtualcluster import VirtualCluster

_MODULES = {
    "KINDS": "parsing",
    "PARTS_PER_GPU": "gpuclass",
    "Cohort": "cohort",
    "Condition": "common",
    "GpuAllocation": "gpuallocation",
    "GpuClass": "gpuclass",
    "GpuGroup": "gpugroup",
    "GpuLedger": "gpuledger",
    "GpuNode": "gpunode",
    "GpuPool": "gpupool",
    "GpuReservation": "gpureservation",
    "GpuVM": "gpuvm",
    "Kind": "common",
    "ObjectMeta": "common",
    "Quantity": "quantity",
    "Tenant": "tenant",
    "VirtualCluster": "virtualcluster",
    "parse": "parsing",
}

__all__ = [
    "KINDS",
    "PARTS_PER_GPU",
    "Cohort",
    "Condition",
    "GpuAllocation",
    "GpuClass",
    "GpuGroup",
    "GpuLedger",
    "GpuNode",
    "GpuPool",
    "GpuReservation",
    "GpuVM",
    "Kind",
    "ObjectMeta",
    "Quantity",
    "Tenant",
    "VirtualCluster",
    "parse",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
