"""`GpuLedger`: the head of the ledger. One compare-and-swap of it makes a batch of grants live."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from vmtenancy.api.common import AGE, ApiModel, DnsSubdomain, Items, Kind, PrinterColumn

#: Bound of the head's logs, so that the object stays far below the API server's limit.
LOG_LENGTH: Final = 4096


class Committed(ApiModel):
    """One grant that the head has made live."""

    name: DnsSubdomain = Field(description="The GpuAllocation; its name is never used again.")
    sequence: Annotated[int, Field(ge=1)] = Field(description="The commit that did.")


class GpuLedgerSpec(ApiModel):
    """The head."""

    epoch: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Raised by every new leader before anything else."
    )
    holder: Annotated[str, Field(max_length=253)] = Field(default="", description="The leader of this epoch.")
    sequence: Annotated[int, Field(ge=0)] = Field(default=0, description="Number of the last commit.")
    committed: Annotated[tuple[Committed, ...], Items(most=LOG_LENGTH, keys=("name",))] = Field(
        default=(), description="Grants made live that their allocations do not say yet."
    )
    released: Annotated[tuple[DnsSubdomain, ...], Items(most=LOG_LENGTH, unique=True)] = Field(
        default=(), description="Grants given back whose allocations are not deleted yet."
    )


class GpuLedger(Kind):
    """The head of the ledger of one shard of the fleet; written by the controller alone."""

    plural: ClassVar = "gpuledgers"
    short_name: ClassVar = "gledger"
    has_status: ClassVar = False
    columns: ClassVar = (
        PrinterColumn(name="Epoch", json_path=".spec.epoch", type="integer"),
        PrinterColumn(name="Sequence", json_path=".spec.sequence", type="integer"),
        PrinterColumn(name="Holder", json_path=".spec.holder"),
        AGE,
    )

    kind: Literal["GpuLedger"] = "GpuLedger"
    spec: GpuLedgerSpec = GpuLedgerSpec()
