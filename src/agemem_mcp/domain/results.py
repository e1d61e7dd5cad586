"""What each operation returns: the structured part of a tool's answer, complete."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from agemem_mcp.domain.context import MessageKind
from agemem_mcp.domain.memory import FoundBy


class ContextInfo(BaseModel):
    """How full a session's context is."""

    model_config = ConfigDict(frozen=True)

    message_count: int
    tokens: int
    budget_tokens: int
    tokenizer: str
    approximate: bool
    warning: str | None = Field(default=None, exclude_if=lambda value: value is None)


class SimilarMemory(BaseModel):
    """An existing memory close to one just added."""

    model_config = ConfigDict(frozen=True)

    memory_id: str
    content: str
    score: float


class AddResult(BaseModel):
    """What ``Add_memory`` did."""

    model_config = ConfigDict(frozen=True)

    memory_id: str
    content: str
    created_at: datetime
    duplicate: bool
    similar: list[SimilarMemory]


class UpdateResult(BaseModel):
    """What ``Update_memory`` did."""

    model_config = ConfigDict(frozen=True)

    memory_id: str
    version: int
    previous_content: str
    updated_at: datetime


class DeleteResult(BaseModel):
    """What ``Delete_memory`` did."""

    model_config = ConfigDict(frozen=True)

    memory_id: str
    deleted: bool


class RetrievedMemory(BaseModel):
    """One hit of a retrieval."""

    model_config = ConfigDict(frozen=True)

    memory_id: str
    content: str
    memory_type: str | None
    metadata: dict[str, Any]
    score: float
    """0 to 1. Near 0: nothing here is about the query."""
    found_by: list[FoundBy]
    """Why it is here, none or more of:

    * ``dense``: its meaning is closer to the query's than that of unrelated texts (cosine above 0.2).
    * ``lexical``: it shares a word with the query, after stemming, common words aside.
    * ``neighbour``: it was stored just before or after a hit that scores better than it does by itself, by the
      same writer, and is carried by that.
    * ``link``: its title is named in the text of such a hit.
    """
    created_at: datetime
    updated_at: datetime


class RetrieveResult(BaseModel):
    """What ``Retrieve_memory`` found."""

    model_config = ConfigDict(frozen=True)

    session_id: str
    message_id: str | None
    """Of the message that the memories became in the context; None if none was found."""
    memories: list[RetrievedMemory]
    search: Literal["hybrid", "lexical"]
    """How it was searched: ``lexical`` where no embedding model is configured."""
    context: ContextInfo


class SummaryResult(BaseModel):
    """What ``Summary_context`` did."""

    model_config = ConfigDict(frozen=True)

    session_id: str
    message_id: str
    """Of the message that holds the summary."""
    summary: str
    method: str
    replaced: list[str]
    """Ids of the messages the summary stands for."""
    context: ContextInfo


class RemovedMessage(BaseModel):
    """A message that ``Filter_context`` took out."""

    model_config = ConfigDict(frozen=True)

    message_id: str
    role: str
    preview: str
    similarity: float


class FilterResult(BaseModel):
    """What ``Filter_context`` did."""

    model_config = ConfigDict(frozen=True)

    session_id: str
    removed: list[RemovedMessage]
    mode: str
    """``hybrid``, ``paper`` or ``lexical``."""
    context: ContextInfo


class AppendResult(BaseModel):
    """What ``Append_context`` did."""

    model_config = ConfigDict(frozen=True)

    session_id: str
    message_ids: list[str]
    tokens: list[int]
    """Of each message."""
    context: ContextInfo


class ShownMessage(BaseModel):
    """A message of a context."""

    model_config = ConfigDict(frozen=True)

    message_id: str
    role: str
    kind: MessageKind
    """Said or done in the conversation, found in long-term memory, or standing for messages that left."""
    content: str
    tokens: int
    created_at: datetime


class ShowResult(BaseModel):
    """What ``Show_context`` shows."""

    model_config = ConfigDict(frozen=True)

    session_id: str
    messages: list[ShownMessage]
    context: ContextInfo


OperationResult: TypeAlias = (
    AddResult | UpdateResult | DeleteResult | RetrieveResult | SummaryResult | FilterResult | AppendResult | ShowResult
)
