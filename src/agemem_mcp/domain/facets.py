"""Metadata as exact-match facets and comparable numbers, the same for every index.

Any JSON value can be stored as metadata, under any key. An index however wants flat, path-safe
fields. So each scalar becomes one *facet* string, ``["key.path","value"]``, matched as a whole,
and each number or ISO time also becomes a float under a path-safe *number key*.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from agemem_mcp.domain.memory import AnyOf, Condition, Range
from agemem_mcp.domain.text import preview
from agemem_mcp.errors import InvalidOperation

if TYPE_CHECKING:
    from agemem_mcp.domain.memory import MemoryRecord

_COMPARISONS = {"gt": "gt", "gte": "gte", "lt": "lt", "lte": "lte", "after": "gt", "before": "lt"}
_RECORD_KEYS = ("memory_type", "created_at", "updated_at")


def facet(key: str, value: object) -> str:
    """One exact-match facet. Numbers and booleans match their usual spelling as text."""
    return json.dumps([key, _spelling(value)], ensure_ascii=False)


def number_key(key: str) -> str:
    """A payload key without dots, quotes or brackets for a metadata key with any of them."""
    return hashlib.sha1(key.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:16]


def facets_of(record: MemoryRecord) -> list[str]:
    """All facets of an entry: its metadata, nested keys joined by dots, and its memory type."""
    facets = [facet(key, value) for key, value in _scalars(record.metadata)]
    if record.memory_type is not None:
        facets.append(facet("memory_type", record.memory_type))
    return sorted(set(facets))


def numbers_of(record: MemoryRecord) -> dict[str, float]:
    """Comparable values of an entry by number key; times are seconds since 1970."""
    numbers: dict[str, float] = {}
    for key, value in _scalars(record.metadata):
        number = _comparable(value)
        if number is not None:
            numbers[number_key(key)] = number
    numbers[number_key("created_at")] = record.created_at.timestamp()
    numbers[number_key("updated_at")] = record.updated_at.timestamp()
    return numbers


def conditions_from(metadata_filter: Mapping[str, Any]) -> tuple[Condition, ...]:
    """Compile the ``metadata_filter`` argument of ``Retrieve_memory``.

    ``{key: value}`` is equality, ``{key: [a, b]}`` any of them, ``{key: {gt|gte|lt|lte|after|before:
    bound}}`` a comparison of numbers or ISO times, ``{key: {other: …}}`` equality below that key.

    Raises:
        InvalidOperation: an empty list, or a bound that is neither number nor time.
    """
    return tuple(_compile("", metadata_filter))


def satisfies(record: MemoryRecord, conditions: tuple[Condition, ...]) -> bool:
    """Whether an entry meets all conditions, as an index would say."""
    if not conditions:
        return True
    facets, numbers = set(facets_of(record)), numbers_of(record)
    return all(
        not facets.isdisjoint(one.facets) if isinstance(one, AnyOf) else _within(numbers.get(one.key), one)
        for one in conditions
    )


def _within(number: float | None, bounds: Range) -> bool:
    return number is not None and all(
        (
            bounds.gt is None or number > bounds.gt,
            bounds.gte is None or number >= bounds.gte,
            bounds.lt is None or number < bounds.lt,
            bounds.lte is None or number <= bounds.lte,
        )
    )


def _compile(prefix: str, node: Mapping[str, Any]) -> Iterator[Condition]:
    for name, wanted in node.items():
        key = f"{prefix}{name}"
        if isinstance(wanted, Mapping):
            wanted = cast("Mapping[str, Any]", wanted)
            if wanted and all(comparison in _COMPARISONS for comparison in wanted):
                yield _range(key, wanted)
            elif key in _RECORD_KEYS or not wanted:
                msg = (
                    f"metadata_filter: {key!r} takes a value, a list of values, or a comparison such as "
                    f'{{"after": "2026-01-31"}} (gt, gte, lt, lte, after, before).'
                )
                raise InvalidOperation(msg)
            else:
                yield from _compile(f"{key}.", wanted)
        elif isinstance(wanted, list | tuple):
            values = cast("list[Any]", wanted)
            if not values or any(isinstance(value, Mapping | list | tuple) for value in values):
                msg = f"metadata_filter: the list for {key!r} must hold one or more plain values."
                raise InvalidOperation(msg)
            yield AnyOf(tuple(dict.fromkeys(facet(key, value) for value in values)))
        elif key in ("created_at", "updated_at"):
            msg = f'metadata_filter: compare {key!r} with a bound, such as {{"{key}": {{"after": "2026-01-31"}}}}.'
            raise InvalidOperation(msg)
        else:
            yield AnyOf((facet(key, wanted),))


def _range(key: str, bounds: Mapping[str, Any]) -> Range:
    parsed: dict[str, float] = {}
    for comparison, bound in bounds.items():
        number = _comparable(bound)
        if number is None:
            shown = preview(str(bound), 60)
            msg = f"metadata_filter: {key!r} {comparison} {shown!r} needs a number or an ISO time such as 2026-01-31."
            raise InvalidOperation(msg)
        parsed[_COMPARISONS[comparison]] = number
    return Range(number_key(key), **parsed)


def _scalars(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping):
        for name, value in cast("Mapping[str, Any]", node).items():
            yield from _scalars(value, f"{prefix}.{name}" if prefix else name)
    elif isinstance(node, list | tuple):
        for value in cast("list[Any]", node):
            yield from _scalars(value, prefix)
    else:
        yield prefix, node


def _spelling(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _comparable(value: object) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return _seconds(text)
    return number if math.isfinite(number) else None


def _seconds(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
