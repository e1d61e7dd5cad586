"""Filters on metadata, numbers, times and expiry, whichever backend applies them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from .entries import NOW, entry, matching

if TYPE_CHECKING:
    from agemem_mcp.domain.ports import MemoryIndex


ODD_METADATA: dict[str, dict[str, Any]] = {
    "dots": {"a.b.c": "v1"},
    "quotes": {'say "hi"': 'it\'s "fine"'},
    "spaces": {"  two  words ": " padded "},
    "unicode": {"größe 大小 🍵": "naïve 値"},
    "brackets": {"list[0].x[]": "[v]"},
    "empty key": {"": "empty"},
    "backslash": {"c:\\temp\\": "\\n"},
    "separator": {"a\x1fb": "\x00\x1e"},
    "lone surrogate": {"k\ud800": "v\udfff"},
    "very long": {"k" * 400: "v" * 100_000},
    "number": {"count": 7},
    "float": {"ratio": 0.25},
    "negative": {"offset": -3},
    "true": {"flag": True},
    "false": {"flag": False},
    "null": {"nothing": None},
    "nested": {"outer": {"inner": {"deep": "v"}}},
}


@pytest.mark.parametrize("name", ODD_METADATA)
async def test_any_metadata_can_be_matched_exactly(index: MemoryIndex, name: str) -> None:
    await index.apply([entry(other, "note", metadata=metadata) for other, metadata in ODD_METADATA.items()], [])
    assert await matching(index, ODD_METADATA[name]) == {name}


async def test_a_list_of_values_matches_any_and_a_stored_list_matches_each(index: MemoryIndex) -> None:
    stored = {"m1": ["red", "blue"], "m2": ["green"], "m3": list[str]()}
    await index.apply([entry(name, "note", metadata={"tags": tags}) for name, tags in stored.items()], [])
    assert await matching(index, {"tags": "blue"}) == {"m1"}
    assert await matching(index, {"tags": ["blue", "green"]}) == {"m1", "m2"}
    assert await matching(index, {"tags": "yellow"}) == set()


async def test_several_conditions_must_all_hold(index: MemoryIndex) -> None:
    await index.apply(
        [
            entry("m1", "note", memory_type="fact", metadata={"n": 1, "project": {"name": "x"}}),
            entry("m2", "note", memory_type="fact", metadata={"n": 5, "project": {"name": "x"}}),
            entry("m3", "note", memory_type="event", metadata={"n": 1, "project": {"name": "x"}}),
        ],
        [],
    )
    wanted = {"memory_type": "fact", "n": {"lt": 3}, "project": {"name": "x"}}
    assert await matching(index, wanted) == {"m1"}


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"gt": 2}, {"m3", "m2.5"}),
        ({"gte": 2}, {"m2", "m2.5", "m3"}),
        ({"lt": 2}, {"m1", "m-1"}),
        ({"lte": 2, "gt": -1}, {"m1", "m2"}),
        ({"gt": 100}, set[str]()),
    ],
)
async def test_numbers_compare(index: MemoryIndex, bounds: dict[str, Any], expected: set[str]) -> None:
    numbers = [1, 2, 2.5, 3, -1]
    entries = [entry(f"m{number}", "note", metadata={"a.b [x]": number}) for number in numbers]
    await index.apply([*entries, entry("text", "note", metadata={"a.b [x]": "high"}), entry("none", "note")], [])
    assert await matching(index, {"a.b [x]": bounds}) == expected


async def test_times_compare_whether_of_the_record_or_in_its_metadata(index: MemoryIndex) -> None:
    days = {f"m{day}": datetime(2026, 3, day, 9, tzinfo=UTC) for day in (1, 2, 3)}
    entries = [
        entry(name, "note", created_at=day, updated_at=day + timedelta(days=30), metadata={"due": day.isoformat()})
        for name, day in days.items()
    ]
    await index.apply(entries, [])
    assert await matching(index, {"created_at": {"after": "2026-03-02"}}) == {"m2", "m3"}
    assert await matching(index, {"created_at": {"after": "2026-03-02T10:00:00Z"}}) == {"m3"}
    assert await matching(index, {"updated_at": {"before": "2026-04-01"}}) == {"m1"}
    assert await matching(index, {"due": {"gte": "2026-03-02T09:00:00+00:00"}}) == {"m2", "m3"}
    assert await matching(index, {"due": {"before": "2026-03-02T10:00:00+02:00"}}) == {"m1"}


async def test_an_entry_is_found_until_the_moment_it_expires(index: MemoryIndex) -> None:
    moments = {"past": -1, "now": 0, "soon": 0.001, "later": 3600}
    entries = [entry(name, "note", expires_at=NOW + timedelta(seconds=delay)) for name, delay in moments.items()]
    await index.apply([*entries, entry("never", "note")], [])
    assert await matching(index, {}) == {"soon", "later", "never"}
