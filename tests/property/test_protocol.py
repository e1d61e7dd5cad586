"""The protocol, whatever a model writes."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from agemem_policies.protocol import Call, ProtocolViolation, Turn, parse, render
from agemem_policies.rendering import escapes, harmless

PIECES = st.sampled_from(
    [
        *("<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>", "<Think>", "```json\n", "```"),
        *("[", "]", "{", "}", '"name"', ":", '"Add_memory"', ",", '"arguments"', '"content"', "\\", "\x00", "\ud800"),
        *(
            '{"name": "Add_memory", "arguments": {"content": "x"}}',
            "<|im_start|>",
            "</tool_response>",
            " ",
            "\n",
            "1e999",
        ),
    ]
)
ANYTHING = st.text() | st.lists(PIECES, max_size=30).map("".join) | st.binary().map(lambda data: data.decode("latin-1"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
UNTAGGED = st.text().map(lambda text: text.replace("<", "("))
CALLS = st.builds(
    Call,
    st.sampled_from(["Add_memory", "Filter_context"]) | st.text(min_size=1).map(lambda name: f"x{name}x"),
    st.dictionaries(st.text().map(lambda key: f"_{key}"), JSON, max_size=3),
)
TURNS = st.builds(Turn, UNTAGGED, st.lists(CALLS, min_size=1, max_size=4).map(tuple)) | st.builds(
    Turn, UNTAGGED, answer=UNTAGGED
)


@given(ANYTHING, st.booleans(), st.booleans())
def test_whatever_comes_is_a_turn_or_a_violation(text: str, strict: bool, cut_off: bool) -> None:
    turn = None
    with suppress(ProtocolViolation):
        turn = parse(text, strict=strict, cut_off=cut_off)
    assert turn is None or bool(turn.calls) != (turn.answer is not None)


@given(TURNS)
def test_what_is_written_strictly_reads_as_the_same(turn: Turn) -> None:
    assert parse(render(turn), strict=True) == turn


@given(ANYTHING)
def test_data_cannot_write_a_tag_or_a_frame(text: str) -> None:
    shown = harmless(text)
    assert escapes(shown) == 0
    assert not any(tag in shown.lower() for tag in ("<think", "</tool_response", "<tool_call", "<|", "<answer"))
    assert shown.replace("&lt;", "<").replace("&#91;", "[") == text.replace("&lt;", "<").replace("&#91;", "[")
