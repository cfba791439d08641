"""What both runtimes do: a grant and a spec become objects, and observed objects become an observation.

Everything here is pure. What a runtime needs from outside (a chart already rendered, ssh keys read from Secrets, the
template catalog) is handed in as its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from vmtenancy.api.gpuallocation import Grant

Object: TypeAlias = dict[str, Any]
"""A Kubernetes object as JSON; never changed in place by who receives it."""

Children: TypeAlias = Mapping[str, Sequence[Object]]
"""The observed children of one owner, by kind: `{"Pod": [...], "VirtualMachine": [...]}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the children of a GpuVM or VirtualCluster say about it.

    `message` is for people and empty when nothing is wrong or waited for. `failed` says that the runtime itself
    reports an error that does not go away by waiting (a refused device, an image that can not be pulled).
    """

    phase: str
    ready: bool
    message: str = ""
    failed: bool = False
    holding: bool = False
    """Something that may hold devices still exists (I4): do not release the grant."""


OwnerT_contra = TypeVar("OwnerT_contra", contravariant=True)
InputsT_contra = TypeVar("InputsT_contra", contravariant=True)
ObservationT_co = TypeVar("ObservationT_co", bound=Observation, covariant=True)


class Runtime(Protocol[OwnerT_contra, InputsT_contra, ObservationT_co]):
    """The modules `vmtenancy.runtimes.kubevirt` and `vmtenancy.runtimes.vcluster` implement it."""

    def objects(
        self, owner: OwnerT_contra, grants: Sequence[Grant], inputs: InputsT_contra, /
    ) -> list[Object]:
        """Return what should exist for `owner`, in the order in which to apply it. Raises `VmtError`."""

    def observe(self, owner: OwnerT_contra, children: Children, /) -> ObservationT_co:
        """Say what the children that exist mean."""
