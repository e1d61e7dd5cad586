"""Retention by type and quotas, as they are written and as they are checked."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_mcp.domain.limits import Quota, Retention
from agemem_mcp.domain.memory import Usage
from agemem_mcp.errors import InvalidOperation, QuotaExceeded


def test_a_retention_gives_each_type_its_life() -> None:
    retention = Retention.parse(" event = 30d, note=12h,a=b=90M ,*=2y,")
    assert retention.of("event") == timedelta(days=30)
    assert retention.of(" EVENT ") == timedelta(days=30)
    assert retention.of("note") == timedelta(hours=12)
    assert retention.of("a=b") == timedelta(minutes=90)
    assert retention.of("fact") == retention.of(None) == timedelta(days=730)


def test_without_a_life_for_the_rest_other_types_are_kept_for_ever() -> None:
    assert Retention.parse("event=1w").of("fact") is None
    assert Retention.parse("event=1w").of(None) is None
    assert Retention.parse("").of("event") is None
    assert Retention.parse(" , ").lives == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("event", "'event' is no retention. Write such as event=30d"),
        ("event=30", "'event=30' is no retention"),
        ("event=d", "is no retention"),
        ("=30d", "is no retention"),
        ("event=-1d", "is no retention"),
        ("note=1h, event=1.5d", "'event=1.5d' is no retention"),
        ("event=0d", "'event=0d' must be more than nothing"),
        ("event=101y", "at most 100 years"),
        ("event=1d,Event=2d", "'Event' is given twice"),
    ],
)
def test_a_retention_that_cannot_be_read_is_refused_naming_the_part(text: str, said: str) -> None:
    with pytest.raises(InvalidOperation) as caught:
        Retention.parse(text)
    assert said in str(caught.value)


def test_a_full_scope_is_told_how_much_it_holds_and_what_to_do() -> None:
    with pytest.raises(QuotaExceeded) as caught:
        Quota(entries=1000).check("home", Usage(1000, 5), entries=1, bytes_=5)
    said = str(caught.value)
    assert "'home' holds 1,000 of at most 1,000 memories, and this needs 1 more" in said
    assert "memories duplicates" in said
    assert "AGEMEM_QUOTA__ENTRIES" in said
    with pytest.raises(QuotaExceeded, match=r"holds 95 of at most 100 bytes, and this needs 6 more.*QUOTA__BYTES"):
        Quota(bytes=100).check("home", Usage(1, 95), entries=0, bytes_=6)


@given(limit=st.integers(1, 50), held=st.integers(0, 80), growth=st.integers(-50, 50), other=st.integers(-5, 5))
def test_growth_within_the_limit_and_shrinking_are_always_allowed(
    limit: int, held: int, growth: int, other: int
) -> None:
    allowed = growth <= 0 or held + growth <= limit
    for quota, used, grown in (
        (Quota(entries=limit), Usage(held, 99), {"entries": growth, "bytes_": other}),
        (Quota(bytes=limit), Usage(99, held), {"entries": other, "bytes_": growth}),
    ):
        if allowed:
            quota.check("home", used, **grown)
        else:
            with pytest.raises(QuotaExceeded):
                quota.check("home", used, **grown)
    assert not Quota().limits
    assert Quota(entries=limit).limits
