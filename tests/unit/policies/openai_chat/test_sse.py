"""Events from bytes, whatever way they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_policies.openai_chat.sse import EventReader


def read(*chunks: bytes) -> list[str]:
    """The events in a whole stream."""
    reader = EventReader()
    return [event for chunk in chunks for event in reader.feed(chunk)] + reader.end()


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: one\n\ndata: two\n\n", ["one", "two"]),
        (b"data:one\n\ndata:  two\n\n", ["one", " two"]),
        (b"data: one\r\n\r\ndata: two\r\n\r\n", ["one", "two"]),
        (b"data: one\r\rdata: two\r\r", ["one", "two"]),
        (b": ping\n\ndata: one\n: ping\n\n:\n\n", ["one"]),
        (b"data: one\ndata: two\n\n", ["one\ntwo"]),
        (b"event: message\nid: 7\nretry: 10\ndata: one\n\n", ["one"]),
        (b"data\n\ndata:\n\ndata: \n\ndata: one\n\n", ["one"]),
        (b"\n\n\ndata: one\n\n\n\n", ["one"]),
        (b"data: one", ["one"]),
        (b"data: one\n", ["one"]),
        (b"\xef\xbb\xbfdata: one\n\n", ["one"]),
        ("data: Øl 😀\n\n".encode(), ["Øl 😀"]),
        (b"data: \xff\n\n", ["\ufffd"]),
        (b"dat: one\n\nxdata: two\n\n", []),
        (b"", []),
    ],
)
def test_the_data_of_each_event_is_read(stream: bytes, events: list[str]) -> None:
    assert read(stream) == events


def test_an_event_is_given_as_soon_as_it_is_whole() -> None:
    reader = EventReader()
    assert reader.feed(b"data: o") == []
    assert reader.feed(b"ne\n") == []
    assert reader.feed(b"\ndata: two\n\nda") == ["one", "two"]
    assert reader.feed(b"ta: three") == []
    assert reader.end() == ["three"]


LINES = st.sampled_from([b"data: \xc3\x98l", b"data:2", b": ping", b"", b"event: x", b"\xf0\x9f", b"\x98\x80"])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(LINES, ENDS)), st.data())
def test_the_events_are_the_same_however_the_bytes_are_cut(
    lines: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(line + end for line, end in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(*pieces) == read(stream)


@given(st.lists(st.binary()))
def test_no_bytes_are_too_odd(chunks: list[bytes]) -> None:
    assert all(event.strip() for event in read(*chunks))
