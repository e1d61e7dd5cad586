"""How tool calls are read, and what models are told of the tools."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from agemem_mcp.domain.operations import (
    HELPERS,
    RESULT_TYPES,
    SIX,
    AddMemory,
    AppendContext,
    DeleteMemory,
    FilterContext,
    Operation,
    RetrieveMemory,
    ShowContext,
    SummaryContext,
    UpdateMemory,
    input_schema,
    output_schema,
    parse_operation,
    tool_name,
)
from agemem_mcp.domain.text import MAX_TEXT_BYTES
from agemem_mcp.errors import InvalidOperation

ALL = (*SIX, *HELPERS)
VALID: dict[str, dict[str, Any]] = {
    "Add_memory": {"content": "Ana likes tea."},
    "Update_memory": {"memory_id": "mem_1", "content": "Ana likes coffee."},
    "Delete_memory": {"memory_id": "mem_1", "confirmation": True},
    "Retrieve_memory": {"query": "tea"},
    "Summary_context": {"span": "all"},
    "Filter_context": {"criteria": "weather"},
    "Append_context": {"messages": [{"role": "user", "content": "Hello"}]},
    "Show_context": {"session_id": "ctx_1"},
}


def read(name: str, **arguments: Any) -> Any:
    """The operation, as read from a tool call with valid arguments but for those given."""
    return parse_operation(name, {**VALID[name], **arguments})


def refusal(name: str, arguments: dict[str, Any] | None) -> str:
    """The text with which a call is refused."""
    with pytest.raises(InvalidOperation) as caught:
        parse_operation(name, arguments)
    return str(caught.value)


def test_the_six_are_agemems_and_the_helpers_come_after_them() -> None:
    assert [tool_name(one) for one in ALL] == list(VALID) == list(RESULT_TYPES)


def test_names_descriptions_and_input_schemas_of_all_tools_fit_in_six_kilobytes() -> None:
    tools = [{"name": tool_name(one), "description": one.description, "inputSchema": input_schema(one)} for one in ALL]
    assert len(json.dumps(tools, separators=(",", ":"), ensure_ascii=False).encode()) <= 6 * 1024


@pytest.mark.parametrize("operation", ALL, ids=tool_name)
def test_an_input_schema_is_valid_without_references_and_accepts_a_valid_call(operation: type[Operation]) -> None:
    schema = input_schema(operation)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert "$ref" not in json.dumps(schema)
    assert "name" not in schema["properties"]
    assert schema["additionalProperties"] is False
    jsonschema.validate(VALID[tool_name(operation)], schema)


@pytest.mark.parametrize("operation", ALL, ids=tool_name)
def test_an_input_schema_requires_what_the_parser_requires(operation: type[Operation]) -> None:
    name = tool_name(operation)
    for argument in VALID[name]:
        left = {key: value for key, value in VALID[name].items() if key != argument}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(left, input_schema(operation))
        assert f"{argument} is missing" in refusal(name, left)


@pytest.mark.parametrize("name", VALID)
def test_output_schemas_are_valid_and_without_prose(name: str) -> None:
    schema = output_schema(RESULT_TYPES[name])
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["type"] == "object"
    assert '"description"' not in json.dumps(schema)


def test_a_field_named_title_or_description_stays_in_an_output_schema() -> None:
    from pydantic import BaseModel  # noqa: PLC0415  only this test makes a model

    class Book(BaseModel):
        title: str
        description: str

    assert set(output_schema(Book)["properties"]) == {"title", "description"}


@pytest.mark.parametrize("name", VALID)
def test_an_operation_survives_the_way_through_json(name: str) -> None:
    operation = read(name)
    assert type(operation).model_validate_json(operation.model_dump_json()) == operation


def test_defaults_are_those_of_the_paper() -> None:
    assert read("Add_memory") == AddMemory(content="Ana likes tea.", metadata={}, memory_type=None)
    assert read("Retrieve_memory") == RetrieveMemory(query="tea", top_k=3, metadata_filter={}, session_id=None)
    assert read("Summary_context") == SummaryContext(span="all", summary=None, session_id=None)


def test_an_unknown_tool_is_refused_with_the_names_offered() -> None:
    text = refusal("Forget_everything", {})
    assert "no tool 'Forget_everything'" in text
    assert all(name in text for name in VALID)


def test_a_tool_that_is_not_offered_is_unknown() -> None:
    with pytest.raises(InvalidOperation, match="no tool 'Show_context'") as caught:
        parse_operation("Show_context", VALID["Show_context"], allowed={tool_name(one) for one in SIX})
    assert "Append_context" not in str(caught.value)


@pytest.mark.parametrize("arguments", [None, {}])
def test_missing_arguments_are_named(arguments: dict[str, Any] | None) -> None:
    assert refusal("Update_memory", arguments) == "Update_memory: memory_id is missing; content is missing."


def test_a_missing_session_is_refused_with_the_way_to_get_one() -> None:
    assert "Retrieve_memory returns one" in refusal("Show_context", {})


def test_an_unknown_argument_is_refused_with_those_there_are() -> None:
    text = refusal("Retrieve_memory", {"query": "tea", "limit": 4})
    assert "no argument limit" in text
    assert "query, top_k, metadata_filter, session_id" in text
    assert "no argument 'name'" in refusal("Add_memory", {"content": "x", "name": "Delete_memory"})


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize(
    "junk", [{"a": object()}, [[]], float("nan"), b"bytes", True], ids=["object", "list", "nan", "bytes", "bool"]
)
def test_no_argument_of_any_tool_brings_the_parser_down(name: str, junk: object) -> None:
    for argument in input_schema(type(read(name)))["properties"]:
        try:
            read(name, **{argument: junk})
        except InvalidOperation as error:
            text = str(error)
            assert text.endswith((".", "…"))
            assert "\n" not in text
            assert "pydantic" not in text


@pytest.mark.parametrize(("given", "kept"), [(42, "42"), (1.5, "1.5"), (["tea", "milk"], "tea\nmilk"), (" é ", " é ")])
def test_a_text_may_come_as_a_number_or_a_list_of_lines(given: object, kept: str) -> None:
    assert read("Add_memory", content=given).content == kept
    assert read("Filter_context", criteria=given).criteria == kept


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "must not be empty or blank"),
        (" \n\t", "must not be empty or blank"),
        ("a\x00b", "NUL"),
        ("a\ud800b", "lone surrogate"),
        ("x" * (MAX_TEXT_BYTES + 1), "at most 65,536"),
        ("é" * (MAX_TEXT_BYTES // 2 + 1), "at most 65,536"),
        ([], "valid string"),
        (["a", 1], "valid string"),
        (None, "valid string"),
        (True, "valid string"),
    ],
)
def test_a_text_that_cannot_be_stored_is_refused(content: object, complaint: str) -> None:
    assert complaint in refusal("Add_memory", {"content": content})
    assert complaint in refusal("Append_context", {"messages": [{"role": "user", "content": content}]})


def test_a_text_of_just_64_kilobytes_is_accepted() -> None:
    assert len(read("Add_memory", content="x" * MAX_TEXT_BYTES).content) == MAX_TEXT_BYTES


@pytest.mark.parametrize("given", [{"a": 1}, '{"a": 1}', ' {"a": 1} '])
def test_an_object_may_come_as_json_text(given: object) -> None:
    assert read("Add_memory", metadata=given).metadata == {"a": 1}
    assert read("Retrieve_memory", metadata_filter=given).metadata_filter == {"a": 1}


@pytest.mark.parametrize("given", [None, "", "  ", "null", {}])
def test_no_object_is_an_empty_one(given: object) -> None:
    assert read("Add_memory", metadata=given).metadata == {}


def nested(depth: int) -> dict[str, Any]:
    """An object nested ``depth`` levels deep."""
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "given",
    [
        "travel",
        "[1]",
        ["a"],
        7,
        nested(40),
        "[" * 100_000,
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": 2**70},
        {"a": "\x00"},
        {"\ud800": 1},
        {"": 1},
        {1: 1},
        {"a": b"bytes"},
        {"a": "x" * 20_000},
        {"a": ["x"] * 20_000},
        {"a": [[]] * 20_000},
        {"a": [{}] * 20_000},
        {"a": "€" * 8_000},
    ],
    ids=lambda value: repr(value)[:30],
)
def test_metadata_that_is_no_storable_json_is_refused(given: object) -> None:
    assert "metadata" in refusal("Add_memory", {"content": "x", "metadata": given})


@pytest.mark.parametrize(("given", "kept"), [(5, 5), ("5", 5), (5.0, 5), ("5.0", 5), (None, 3), (1, 1), (100, 100)])
def test_top_k_may_come_as_text(given: object, kept: int) -> None:
    assert read("Retrieve_memory", top_k=given).top_k == kept


@pytest.mark.parametrize(
    "given", [0, -1, 101, 2.5, "many", "", [3], "1e400", 10**400, float("nan")], ids=lambda v: str(v)[:9]
)
def test_top_k_out_of_range_is_refused(given: object) -> None:
    assert refusal("Retrieve_memory", {"query": "x", "top_k": given}) == "top_k must be a whole number from 1 to 100."


@pytest.mark.parametrize(
    ("given", "kept"),
    [("all", "all"), ("full", "all"), (" ALL ", "all"), ("3", "3"), (3, "3"), (3.0, "3"), ("03", "3")],
)
def test_a_span_is_all_or_a_number_of_rounds(given: object, kept: str) -> None:
    assert read("Summary_context", span=given).span == kept


@pytest.mark.parametrize("given", [0, "0", -1, "-1", "abc", "", 1.5, "٣", "9" * 20, 1e300, None, ["1"], True])
def test_any_other_span_is_refused(given: object) -> None:
    assert refusal("Summary_context", {"span": given}).startswith('span must be "all" or the number of last rounds')


@pytest.mark.parametrize("given", [True, "true", "True", "yes", 1, "1"])
def test_a_confirmation_may_come_as_a_word(given: object) -> None:
    assert read("Delete_memory", confirmation=given).confirmation is True


@pytest.mark.parametrize("given", [False, "false", "no", 0, "0", ""])
def test_a_word_of_refusal_is_no_confirmation(given: object) -> None:
    assert read("Delete_memory", confirmation=given).confirmation is False


@pytest.mark.parametrize("given", ["perhaps", None, [True], 2])
def test_a_confirmation_that_is_neither_is_refused(given: object) -> None:
    assert "confirmation: " in refusal("Delete_memory", {"memory_id": "mem_1", "confirmation": given})


@pytest.mark.parametrize("given", ["mem_1", " mem_1\n"])
def test_white_space_around_an_id_is_dropped(given: str) -> None:
    assert isinstance(operation := read("Update_memory", memory_id=given), UpdateMemory)
    assert operation.memory_id == "mem_1"
    assert isinstance(shown := read("Show_context", session_id=given), ShowContext)
    assert shown.session_id == "mem_1"


@pytest.mark.parametrize("given", [None, "", "  "])
def test_a_blank_session_id_is_none(given: str | None) -> None:
    for name in ("Retrieve_memory", "Summary_context", "Filter_context", "Append_context"):
        assert read(name, session_id=given).session_id is None


def test_a_memory_type_may_be_a_number_and_may_not_hold_what_no_store_keeps() -> None:
    assert read("Add_memory", memory_type=3).memory_type == "3"
    assert "NUL" in refusal("Add_memory", {"content": "x", "memory_type": "a\x00"})


@pytest.mark.parametrize(
    "given",
    [
        "Hello",
        ["Hello"],
        {"role": "user", "content": "Hello"},
        [{"role": " User ", "content": "Hello"}],
        '[{"role": "user", "content": "Hello"}]',
        '{"role": "user", "content": "Hello"}',
    ],
)
def test_a_message_may_come_alone_or_as_text(given: object) -> None:
    operation = read("Append_context", messages=given)
    assert isinstance(operation, AppendContext)
    assert [(one.role, one.content) for one in operation.messages] == [("user", "Hello")]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ([], "at least 1 item"),
        ([{"role": "developer", "content": "Obey."}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content is missing"),
        ([{"role": "user", "content": "x", "tokens": 1}], "no argument messages.0.tokens"),
        ("5", "valid list"),
        ([{"role": "user", "content": "x"}] * 1001, "at most 1000 items"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_messages_that_cannot_be_read_are_refused_by_position(given: object, complaint: str) -> None:
    assert complaint in refusal("Append_context", {"messages": given})


def test_at_most_five_problems_are_told() -> None:
    assert refusal("Append_context", {"messages": [{"role": "x", "content": "y"}] * 50}).count("messages.") == 5


def test_operations_cannot_be_changed_after_they_were_read() -> None:
    operation = read("Filter_context")
    assert isinstance(operation, FilterContext)
    with pytest.raises(ValueError, match="frozen"):
        operation.criteria = "other"  # type: ignore[misc]


def test_only_showing_is_marked_read_only_and_only_what_takes_away_as_destructive() -> None:
    assert [one for one in ALL if one.read_only] == [ShowContext]
    assert {one for one in ALL if one.destructive} == {UpdateMemory, DeleteMemory, SummaryContext, FilterContext}
