"""What is limited beside GPUs: cpu, memory and storage, as columns of the quota tree."""

from __future__ import annotations

from enum import StrEnum

from vmtenancy.api.quantity import cpu_text, memory_text


class Resource(StrEnum):
    """A column of the quota tree, by a name that no pool can have. Cpu is in millicores, the others in bytes."""

    CPU = "resource/cpu"
    MEMORY = "resource/memory"
    STORAGE = "resource/storage"

    @property
    def label(self) -> str:
        """Its name for people, as in `Tenant.spec.resources`."""
        return self.value.partition("/")[2]

    def text(self, amount: int) -> str:
        """An amount as a Kubernetes quantity, exact: `"2"`, `"250m"`, `"6Gi"`."""
        return cpu_text(amount) if self is Resource.CPU else memory_text(amount)


BY_LABEL = {resource.label: resource for resource in Resource}
"""Resources by their names in the API."""
