"""GPUs as a machine asks for them: of one class, or of others that would do as well, and how few will do."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, ClassVar, Final

from pydantic import Field

from vmtenancy.api.common import ApiModel, Items, ObjectName, Rule, digits_of

#: Alternatives of all entries together: two classes each for four entries are 16 ways to ask, and none has more.
MOST_ALTERNATIVES: Final = 4
_UnitCount = Annotated[int, Field(ge=1, le=16)]


class GpuRequest(ApiModel):
    """GPUs of one class, or of one of others that would do as well."""

    class_: ObjectName = Field(alias="class", description="The GpuClass.")
    count: _UnitCount = Field(default=1, description="How many units of it.")
    alternatives: Annotated[tuple[ObjectName, ...], Items(most=MOST_ALTERNATIVES)] = Field(
        default=(),
        description="Other GpuClasses that would do as well, tried in this order after `class`. At most "
        f"{MOST_ALTERNATIVES} in all entries together.",
    )
    min_count: _UnitCount | None = Field(
        default=None,
        description="Fewer units will do, down to this many, where `count` can not be had; unset: `count`.",
    )
    rules: ClassVar = (
        Rule(
            cel="!has(self.minCount) || self.minCount <= self.count",
            holds=lambda self: self.min_count is None or self.min_count <= self.count,
            expected="at most count",
            field="minCount",
            found=digits_of("self.minCount", 2),
        ),
        Rule(
            cel=(
                "!has(self.alternatives) || self.alternatives.all(a, a != self.class && "
                "self.alternatives.filter(b, b == a).size() == 1)"
            ),
            holds=lambda self: len(set(self.classes)) == len(self.classes),
            expected="each class at most once, and none that is the class itself",
            field="alternatives",
            found="'a class twice'",
        ),
    )

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes that would do, in the order in which they are tried."""
        return (self.class_, *self.alternatives)

    @property
    def fewest(self) -> int:
        """The fewest units that will do."""
        return self.count if self.min_count is None else self.min_count


#: Rules on a spec with `gpus`, a list of `GpuRequest`.
ALTERNATIVES_RULES: Final = (
    Rule(
        cel=(
            "self.gpus.all(g, !has(g.alternatives) || g.alternatives.all(a, !self.gpus.exists(h, "
            "h.class != g.class && (h.class == a || (has(h.alternatives) && a in h.alternatives)))))"
        ),
        holds=lambda self: max(Counter(name for gpu in self.gpus for name in gpu.classes).values()) == 1,
        expected="each class at most once, alternatives included",
        field="gpus",
        found="'a class twice'",
    ),
    Rule(
        cel=(
            f"self.gpus.map(g, has(g.alternatives) ? g.alternatives.size() : 0).sum() <= {MOST_ALTERNATIVES}"
        ),
        holds=lambda self: sum(len(gpu.alternatives) for gpu in self.gpus) <= MOST_ALTERNATIVES,
        expected=f"at most {MOST_ALTERNATIVES} alternatives in all",
        field="gpus",
        found="'more'",
    ),
)


class GrantedGpus(ApiModel):
    """Units of one class as they are granted: of the one asked for, or of an alternative."""

    class_: ObjectName = Field(alias="class", description="The GpuClass.")
    count: _UnitCount = Field(description="How many units of it: as many as asked for, or fewer.")
