"""Laying specs over one another."""

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vmtenancy.render.merge import merge

scalar = st.one_of(st.booleans(), st.integers(-3, 3), st.text("ab", max_size=2))
keys = st.sampled_from(["a", "b", "name", "items"])
tree: st.SearchStrategy[Any] = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)
mapping = st.dictionaries(keys, tree, max_size=3)
patch: st.SearchStrategy[Any] = st.dictionaries(
    keys,
    st.recursive(
        scalar | st.none(),
        lambda inner: st.dictionaries(keys, inner, max_size=3) | st.lists(inner, max_size=2),
    ),
    max_size=3,
)
named = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from("xyz")}, optional={"a": scalar, "b": scalar}),
    min_size=1,
    max_size=3,
    unique_by=lambda item: item["name"],
)


def has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(item is None or has_null(item) for item in value.values())
    return isinstance(value, list) and any(has_null(item) for item in value)


@given(mapping, patch)
def test_neither_is_changed_and_doing_it_again_changes_nothing(base: Any, overlay: Any) -> None:
    before = copy.deepcopy((base, overlay))
    once = merge(base, overlay)
    assert (base, overlay) == before
    assert merge(once, overlay) == once


@given(mapping)
def test_nothing_over_it_and_it_over_nothing(base: Any) -> None:
    assert merge(base, {}) == base
    assert merge({}, base) == base


@given(mapping, patch)
def test_nulls_remove_and_never_stay(base: Any, overlay: Any) -> None:
    merged = merge(base, overlay)
    assert not has_null(merged)
    assert not {key for key, value in overlay.items() if value is None} & merged.keys()


@given(named, named)
def test_named_lists_keep_order_and_lose_nothing(base: list[Any], overlay: list[Any]) -> None:
    merged = merge(base, overlay)
    names = [item["name"] for item in base]
    assert [item["name"] for item in merged] == names + [i["name"] for i in overlay if i["name"] not in names]
    for item in overlay:
        assert item.items() <= next(m for m in merged if m["name"] == item["name"]).items()


def test_lists_without_names_and_empty_ones_replace() -> None:
    assert merge({"l": [1, 2]}, {"l": [3]}) == {"l": [3]}
    assert merge({"l": [{"name": "a"}]}, {"l": [{"key": "b"}]}) == {"l": [{"key": "b"}]}
    assert merge({"l": [{"name": "a"}]}, {"l": []}) == {"l": []}


def test_items_named_by_their_metadata() -> None:
    base = [{"metadata": {"name": "root"}, "spec": {"size": 1, "class": "slow"}}]
    over = [{"metadata": {"name": "root"}, "spec": {"class": "fast"}}]
    assert merge(base, over) == [{"metadata": {"name": "root"}, "spec": {"size": 1, "class": "fast"}}]
