"""Metadata as facets and numbers, and the filters compiled from what a model writes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_mcp.domain.facets import conditions_from, facet, facets_of, number_key, numbers_of
from agemem_mcp.domain.memory import AnyOf, MemoryRecord, Range, Scope
from agemem_mcp.errors import InvalidOperation

CREATED = datetime(2026, 3, 1, tzinfo=UTC)
UPDATED = datetime(2026, 3, 2, tzinfo=UTC)


def record(memory_type: str | None = None, **metadata: Any) -> MemoryRecord:
    """An entry with this metadata."""
    return MemoryRecord(Scope(), "mem_1", 1, "text", memory_type, metadata, CREATED, UPDATED)


def matches(metadata_filter: dict[str, Any], entry: MemoryRecord) -> bool:
    """Whether an index that does as the conditions say would find the entry."""
    facets, numbers = set(facets_of(entry)), numbers_of(entry)
    for condition in conditions_from(metadata_filter):
        if isinstance(condition, AnyOf):
            if not facets & set(condition.facets):
                return False
            continue
        value = numbers.get(condition.key)
        if value is None or not within(condition, value):
            return False
    return True


def within(bounds: Range, value: float) -> bool:
    """Whether a number lies within the bounds."""
    return (
        (bounds.gt is None or value > bounds.gt)
        and (bounds.gte is None or value >= bounds.gte)
        and (bounds.lt is None or value < bounds.lt)
        and (bounds.lte is None or value <= bounds.lte)
    )


@pytest.mark.parametrize(
    ("metadata_filter", "metadata"),
    [
        ({"topic": "tea"}, {"topic": "tea"}),
        ({"tags": "a"}, {"tags": ["a", "b"]}),
        ({"topic": ["tea", "milk"]}, {"topic": "milk"}),
        ({"n": "7"}, {"n": 7}),
        ({"n": 7.0}, {"n": 7}),
        ({"done": "true"}, {"done": True}),
        ({"author": {"name": "Ana"}}, {"author": {"name": "Ana", "age": 3}}),
        ({"author.name": "Ana"}, {"author": {"name": "Ana"}}),
        ({"people": {"name": "Ana"}}, {"people": [{"name": "Bo"}, {"name": "Ana"}]}),
        ({"price": {"gte": 5, "lt": "10"}}, {"price": 5}),
        ({"price": {"gt": 5}}, {"price": "5.5"}),
        ({"due": {"after": "2026-01-31"}}, {"due": "2026-02-01"}),
        ({"due": {"before": "2026-01-31T12:00:00+02:00"}}, {"due": "2026-01-31T09:59:00Z"}),
        ({'odd."key"]': "x"}, {'odd."key"]': "x"}),
        ({"created_at": {"after": "2026-02-28"}}, {}),
        ({"updated_at": {"gte": "2026-03-02", "lte": "2026-03-02"}}, {}),
        ({}, {}),
    ],
    ids=str,
)
def test_a_filter_finds_what_it_describes(metadata_filter: dict[str, Any], metadata: dict[str, Any]) -> None:
    assert matches(metadata_filter, record(**metadata))


@pytest.mark.parametrize(
    ("metadata_filter", "metadata"),
    [
        ({"topic": "tea"}, {"topic": "milk"}),
        ({"topic": "tea"}, {"other": "tea"}),
        ({"topic": "te"}, {"topic": "tea"}),
        ({"topic": "tea", "n": 1}, {"topic": "tea", "n": 2}),
        ({"n": 1}, {"n": True}),
        ({"n": {"gt": 5}}, {"n": 5}),
        ({"n": {"lt": 5}}, {"n": 5}),
        ({"n": {"gt": 5}}, {"n": "many"}),
        ({"n": {"gt": 0}}, {"n": True}),
        ({"n": {"gt": 0}}, {}),
        ({"created_at": {"before": "2026-03-01"}}, {}),
        ({"created_at": {"after": "2026-03-01"}}, {"created_at": "2027-01-01"}),
    ],
    ids=str,
)
def test_a_filter_leaves_everything_else(metadata_filter: dict[str, Any], metadata: dict[str, Any]) -> None:
    assert not matches(metadata_filter, record(**metadata))


def test_the_memory_type_is_filtered_like_metadata() -> None:
    assert matches({"memory_type": "fact"}, record("fact"))
    assert matches({"memory_type": ["fact", "event"]}, record("event"))
    assert not matches({"memory_type": "fact"}, record("event"))
    assert not matches({"memory_type": "fact"}, record())


@pytest.mark.parametrize(
    ("metadata_filter", "said"),
    [
        ({"topic": []}, "one or more plain values"),
        ({"topic": [["a"]]}, "one or more plain values"),
        ({"topic": [{"a": 1}]}, "one or more plain values"),
        ({"topic": {}}, "takes a value"),
        ({"memory_type": {"is": "fact"}}, "takes a value"),
        ({"created_at": {"on": "2026-01-01"}}, "takes a value"),
        ({"created_at": "2026-01-01"}, "compare 'created_at' with a bound"),
        ({"n": {"gt": "soon"}}, "needs a number or an ISO time"),
        ({"n": {"gt": True}}, "needs a number or an ISO time"),
        ({"n": {"gt": None}}, "needs a number or an ISO time"),
    ],
    ids=str,
)
def test_a_filter_that_means_nothing_is_refused(metadata_filter: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidOperation) as caught:
        conditions_from(metadata_filter)
    assert said in str(caught.value)
    assert str(caught.value).startswith("metadata_filter: ")


def test_a_key_and_its_value_cannot_be_taken_for_another_pair() -> None:
    assert facet("a", 'b","c') != facet('a","b', "c")


@given(st.text(max_size=30))
def test_a_number_key_is_safe_in_any_payload_path(key: str) -> None:
    assert number_key(key).isalnum()


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=5), max_size=4))
def test_every_entry_is_found_by_each_of_its_own_values(metadata: dict[str, str]) -> None:
    entry = record(**{f"k{key}": value for key, value in metadata.items()})
    for key, value in metadata.items():
        assert matches({f"k{key}": value}, entry)
