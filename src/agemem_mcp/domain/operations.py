"""The action space: six operations and two helpers, each with its arguments and its result.

One definition serves the MCP tools (names, descriptions and JSON schemas are generated from the
classes here), the policies and the trainer. Names and arguments follow AgeMem, section 3.2 and
appendix A.1. Arguments are read tolerantly where their meaning is clear, because models write them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from agemem_mcp.domain import arguments
from agemem_mcp.domain.context import SessionLives, in_words
from agemem_mcp.domain.results import (
    AddResult,
    AppendResult,
    DeleteResult,
    FilterResult,
    RetrieveResult,
    ShowResult,
    SummaryResult,
    UpdateResult,
)
from agemem_mcp.domain.text import preview
from agemem_mcp.errors import InvalidOperation

if TYPE_CHECKING:
    from collections.abc import Collection

_MAX_CRITERIA_BYTES = 4096
"""Comparing criteria with messages takes time in proportion to their length."""


class Operation(BaseModel):
    """Base of all operations. ``name`` tells them apart; the other fields are the arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: ClassVar[str]
    """What a model is told."""
    about_sessions: ClassVar[str] = ""
    """What one is told besides that has to name its session itself; `describe` fills in what depends on settings."""
    title: ClassVar[str]
    """What a person is shown."""
    read_only: ClassVar[bool] = False
    destructive: ClassVar[bool] = False
    """Whether it changes or removes what was there (all of it can be restored)."""
    idempotent: ClassVar[bool] = False

    @classmethod
    def describe(cls, lives: SessionLives) -> str:
        """The description for a server whose sessions expire after these times."""
        text = f"{cls.description} {cls.about_sessions}".strip().replace("{used}", in_words(lives.used))
        return text.replace("{unnamed}", in_words(lives.unnamed))


class AddMemory(Operation):
    """Store a new long-term memory."""

    name: Literal["Add_memory"] = "Add_memory"
    title = "Add memory"
    idempotent = True
    description = (
        "Store one self-contained fact, preference, decision or event in long-term memory, kept across sessions. "
        "Close existing memories come back in `similar`: use Update_memory instead of storing a changed fact twice."
    )

    content: Annotated[str, arguments.text("content"), Field(description="The text to remember.")]
    metadata: Annotated[
        dict[str, Any],
        arguments.json_object("metadata"),
        Field(
            default_factory=dict,
            description="Any JSON: title, source, tags, … `expires_at` (ISO time) ends the memory's life.",
        ),
    ]
    memory_type: Annotated[
        str | None, BeforeValidator(arguments.word), Field(description="Such as fact or preference.")
    ] = None


class UpdateMemory(Operation):
    """Replace the text of a long-term memory."""

    name: Literal["Update_memory"] = "Update_memory"
    title = "Update memory"
    destructive = True
    description = (
        "Replace the text of a long-term memory that is outdated or incomplete. Earlier versions stay in its history."
    )

    memory_id: arguments.MemoryId
    content: Annotated[str, arguments.text("content"), Field(description="The new text, complete.")]
    metadata: Annotated[
        dict[str, Any],
        arguments.json_object("metadata"),
        Field(default_factory=dict, description="Merged into the present one; null removes a key."),
    ]


class DeleteMemory(Operation):
    """Remove a long-term memory."""

    name: Literal["Delete_memory"] = "Delete_memory"
    title = "Delete memory"
    destructive = True
    idempotent = True
    description = "Remove a long-term memory that is wrong or no longer wanted."

    memory_id: arguments.MemoryId
    confirmation: Annotated[bool, BeforeValidator(arguments.flag), Field(description="Must be true.")]


class RetrieveMemory(Operation):
    """Search long-term memory and put the hits into a session's context."""

    name: Literal["Retrieve_memory"] = "Retrieve_memory"
    title = "Retrieve memory"
    description = (
        "Search long-term memory by meaning and words. The hits are returned and enter the session's context as one "
        "message."
    )
    about_sessions = (
        "Without session_id a new session is opened and its id returned. Pass that id on: a session never named again "
        "expires after {unnamed}, any other after {used} without use."
    )

    query: Annotated[str, arguments.text("query"), Field(description="What to look for, in plain words.")]
    top_k: Annotated[
        int, Field(ge=1, le=arguments.MAX_TOP_K, description="How many hits."), BeforeValidator(arguments.top_k)
    ] = 3
    metadata_filter: Annotated[
        dict[str, Any],
        arguments.json_object("metadata_filter"),
        Field(
            default_factory=dict,
            description="{key: value}, {key: [a, b]} or {key: {gt|gte|lt|lte|after|before: bound}} on metadata keys, "
            "memory_type, created_at and updated_at.",
        ),
    ]
    session_id: arguments.SessionId = None


class SummaryContext(Operation):
    """Replace messages of a session's context by a summary."""

    name: Literal["Summary_context"] = "Summary_context"
    title = "Summarise context"
    destructive = True
    description = (
        "Shorten the session's context: the chosen messages are replaced by one summary. "
        "Best is to write the summary yourself, keeping every fact, decision and open question."
    )

    span: Annotated[
        str,
        BeforeValidator(arguments.span),
        Field(description='"all", or "N" for the last N rounds (a user message and what followed).'),
    ]
    summary: Annotated[
        str | None, arguments.text("summary"), Field(description="Your summary. If omitted, the server writes one.")
    ] = None
    session_id: arguments.NamedSessionId = None


class FilterContext(Operation):
    """Remove messages from a session's context by what they are about."""

    name: Literal["Filter_context"] = "Filter_context"
    title = "Filter context"
    destructive = True
    description = "Remove from the session's context the messages that are about the criteria."

    criteria: Annotated[
        str,
        arguments.text("criteria", max_bytes=_MAX_CRITERIA_BYTES),
        Field(description="What to REMOVE: topics, names or a description."),
    ]
    session_id: arguments.NamedSessionId = None


class NewMessage(BaseModel):
    """A message to append."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # A host may append system messages, a model may not and is not told of them (`ShortTermMemory.append`).
    role: Annotated[
        Literal["user", "assistant", "tool", "system"],
        BeforeValidator(lambda value: value.strip().lower() if isinstance(value, str) else value),
        Field(json_schema_extra={"enum": ["user", "assistant", "tool"]}),
    ]
    content: Annotated[str, arguments.text("content")]


class AppendContext(Operation):
    """Append messages to a session's context."""

    name: Literal["Append_context"] = "Append_context"
    title = "Append to context"
    description = (
        "Append messages to the session's context. Without session_id a new session is opened and its id returned; "
        "it expires after {unnamed}, or once named again after {used} without use."
    )

    messages: Annotated[list[NewMessage], BeforeValidator(arguments.message_list), Field(min_length=1, max_length=1000)]
    session_id: arguments.SessionId = None


class ShowContext(Operation):
    """Show a session's context."""

    name: Literal["Show_context"] = "Show_context"
    title = "Show context"
    read_only = True
    idempotent = True
    description = "Show the messages now in the session's context and how full it is."

    session_id: Annotated[str, arguments.text("session_id"), AfterValidator(str.strip)]


MemoryOperation: TypeAlias = Annotated[
    AddMemory | UpdateMemory | DeleteMemory | RetrieveMemory | SummaryContext | FilterContext,
    Field(discriminator="name"),
]
"""The six operations of AgeMem: the action space of policies and training."""

AnyOperation: TypeAlias = Annotated[
    AddMemory
    | UpdateMemory
    | DeleteMemory
    | RetrieveMemory
    | SummaryContext
    | FilterContext
    | AppendContext
    | ShowContext,
    Field(discriminator="name"),
]
"""The six and the two helpers that feed and show a context."""

SIX: tuple[type[Operation], ...] = (
    AddMemory,
    UpdateMemory,
    DeleteMemory,
    RetrieveMemory,
    SummaryContext,
    FilterContext,
)
HELPERS: tuple[type[Operation], ...] = (AppendContext, ShowContext)


def tool_name(operation: type[Operation]) -> str:
    """The wire name, such as ``Add_memory``."""
    return cast("str", operation.model_fields["name"].default)


def parse_operation(name: str, given: dict[str, Any] | None, *, allowed: Collection[str] | None = None) -> AnyOperation:
    """Read a tool call.

    Args:
        name: the tool's wire name.
        given: its arguments as a model wrote them.
        allowed: the names offered, where these are not all.

    Raises:
        InvalidOperation: unknown tool, or arguments that cannot be read; the text says which and why.
    """
    offered = [known for known in _BY_NAME if allowed is None or known in allowed]
    if name not in offered:
        msg = f"There is no tool {preview(name, 60)!r}. The tools are {', '.join(offered)}."
        raise InvalidOperation(msg)
    operation = _BY_NAME[name]
    given = dict(given or {})
    if "name" in given:
        msg = f"{name} has no argument 'name'. Its arguments are {', '.join(_argument_names(operation))}."
        raise InvalidOperation(msg)
    try:
        return cast("AnyOperation", operation.model_validate(given))
    except ValidationError as error:
        raise InvalidOperation(_explain(operation, error)) from error


def input_schema(operation: type[Operation]) -> dict[str, Any]:
    """The JSON schema of an operation's arguments, as short as it can be without losing meaning."""
    schema = cast("dict[str, Any]", _prune(operation.model_json_schema(ref_template="{model}")))
    definitions = cast("dict[str, Any]", schema.pop("$defs", {}))
    properties = cast("dict[str, Any]", schema["properties"])
    del properties["name"]
    schema = cast("dict[str, Any]", _inline(schema, definitions))
    schema.pop("description", None)
    return schema


def output_schema(result: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a result, one level deep: what is nested is told by the names of its fields.

    Clients check every answer against it. The SDK's takes 0.8 ms for ten hits whose fields all have a type of
    their own, a tenth of a search, and 0.06 ms for these.
    """
    schema = cast("dict[str, Any]", _without_prose(result.model_json_schema(mode="serialization")))
    definitions = cast("dict[str, Any]", schema.pop("$defs", {}))
    return cast("dict[str, Any]", _by_field_names(schema, definitions))


def _by_field_names(node: object, definitions: dict[str, Any]) -> object:
    if isinstance(node, list):
        return [_by_field_names(item, definitions) for item in cast("list[object]", node)]
    if not isinstance(node, dict):
        return node
    fields = cast("dict[str, Any]", node)
    if "$ref" in fields:
        nested = definitions[str(fields["$ref"]).rpartition("/")[2]]
        return {"type": "object", "required": nested["required"]}
    return {key: _by_field_names(value, definitions) for key, value in fields.items()}


def _without_prose(node: object, *, names: bool = False) -> object:
    """Drop titles and descriptions, which no client needs to check a result."""
    if isinstance(node, list):
        return [_without_prose(item) for item in cast("list[object]", node)]
    if not isinstance(node, dict):
        return node
    return {
        key: _without_prose(value, names=not names and key in ("properties", "$defs"))
        for key, value in cast("dict[str, object]", node).items()
        if names or key not in ("title", "description")
    }


def _inline(node: object, definitions: dict[str, Any]) -> object:
    if isinstance(node, dict):
        fields = cast("dict[str, Any]", node)
        if "$ref" in fields:
            return _inline(definitions[fields["$ref"]], definitions)
        return {key: _inline(value, definitions) for key, value in fields.items()}
    if isinstance(node, list):
        return [_inline(value, definitions) for value in cast("list[Any]", node)]
    return node


def _prune(node: object, *, names: bool = False) -> object:
    """Drop what a model does not need: titles, null alternatives and null defaults."""
    if isinstance(node, list):
        return [_prune(item) for item in cast("list[object]", node)]
    if not isinstance(node, dict):
        return node
    fields = dict(cast("dict[str, Any]", node))
    if names:
        return {key: _prune(value) for key, value in fields.items()}
    fields.pop("title", None)
    if fields.get("default", ...) is None:
        del fields["default"]
    if fields.get("additionalProperties") is True:
        del fields["additionalProperties"]
    alternatives = [item for item in cast("list[Any]", fields.pop("anyOf", [])) if item != {"type": "null"}]
    if len(alternatives) == 1:
        fields.update(alternatives[0])
    elif alternatives:
        fields["anyOf"] = alternatives
    return {key: _prune(value, names=key in ("properties", "$defs")) for key, value in fields.items()}


def _argument_names(operation: type[Operation]) -> list[str]:
    return [field for field in operation.model_fields if field != "name"]


def _explain(operation: type[Operation], error: ValidationError) -> str:
    """One sentence per problem, for the model to correct its call."""
    problems: list[str] = []
    for problem in error.errors(include_url=False)[:5]:
        where = ".".join(str(part) for part in problem["loc"]) or "arguments"
        if problem["type"] == "missing":
            hint = " (Retrieve_memory returns one)" if where == "session_id" else ""
            problems.append(f"{where} is missing{hint}")
        elif problem["type"] == "extra_forbidden":
            problems.append(f"there is no argument {where} (there are {', '.join(_argument_names(operation))})")
        else:
            problems.append(f"{where}: {problem['msg'][:1].lower()}{problem['msg'][1:]}")
    return f"{tool_name(operation)}: {'; '.join(problems)}."


_BY_NAME: dict[str, type[Operation]] = {tool_name(operation): operation for operation in (*SIX, *HELPERS)}


RESULT_TYPES: dict[str, type[BaseModel]] = {
    "Add_memory": AddResult,
    "Update_memory": UpdateResult,
    "Delete_memory": DeleteResult,
    "Retrieve_memory": RetrieveResult,
    "Summary_context": SummaryResult,
    "Filter_context": FilterResult,
    "Append_context": AppendResult,
    "Show_context": ShowResult,
}
