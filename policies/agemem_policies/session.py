"""A session's context as an agent works with it: the server's, with a copy at hand.

The server holds the context. The agent knows what it put there and what tools made of it, so it need not ask for
all of it before each turn; it asks when someone else changed it meanwhile (the number of messages tells).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agemem_mcp.domain.context import MessageKind, Role
from agemem_mcp.domain.memory import Actor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_policies.memory import MemoryTools, Observation

_MOST_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class ContextMessage:
    """A message now in the context."""

    message_id: str
    role: Role
    content: str
    kind: MessageKind = MessageKind.MESSAGE
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to be appended."""

    role: Role
    content: str


class SessionContext:
    """The messages of one session."""

    def __init__(self, tools: MemoryTools) -> None:
        """Of a session that is opened by the first :meth:`append`; or use :meth:`resume`."""
        self._tools = tools
        self._session_id: str | None = None
        self.messages: list[ContextMessage] = []
        self.tokens = 0
        """All messages, as the server counts."""
        self.budget_tokens = 0

    @classmethod
    async def resume(cls, tools: MemoryTools, session_id: str) -> SessionContext:
        """Take up a session.

        Raises:
            InvalidOperation: there is none of that name in this scope.
            StoreError: the server cannot be reached.
        """
        context = cls(tools)
        context._session_id = session_id
        await context.refresh()
        return context

    @property
    def session_id(self) -> str:
        """The session's handle; it has one once something was appended."""
        if self._session_id is None:
            msg = "nothing was appended yet"
            raise RuntimeError(msg)
        return self._session_id

    @property
    def opened(self) -> bool:
        """Whether the session has a handle yet."""
        return self._session_id is not None

    async def append(self, new: Sequence[NewMessage], actor: Actor) -> None:
        """Append messages.

        Raises:
            InvalidOperation: the server refused them.
            StoreError: the server cannot be reached.
        """
        for start in range(0, len(new), _MOST_AT_ONCE):
            await self._append(new[start : start + _MOST_AT_ONCE], actor)

    async def _append(self, new: Sequence[NewMessage], actor: Actor) -> None:
        arguments: dict[str, Any] = {"messages": [{"role": one.role.value, "content": one.content} for one in new]}
        if self._session_id is not None:
            arguments["session_id"] = self._session_id
        result = await self._tools.require("Append_context", arguments, session_id=self._session_id, actor=actor)
        self._session_id = str(result["session_id"])
        self.messages += [
            ContextMessage(message_id, one.role, one.content, tokens=tokens)
            for message_id, one, tokens in zip(result["message_ids"], new, result["tokens"], strict=True)
        ]
        await self._noted(result["context"])

    async def retrieved(self, observation: Observation, text: str) -> None:
        """The server put what a retrieval found into the context, as one message.

        Args:
            observation: the answer of ``Retrieve_memory``.
            text: the message it became.
        """
        info = observation.structured["context"]
        tokens = int(info["tokens"]) - self.tokens
        message_id = str(observation.structured["message_id"])
        self.messages.append(ContextMessage(message_id, Role.TOOL, text, MessageKind.RETRIEVED, tokens))
        await self._noted(info)

    async def filtered(self, observation: Observation) -> None:
        """Messages were removed, by the answer of ``Filter_context``."""
        gone = {one["message_id"] for one in observation.structured["removed"]}
        self.messages = [message for message in self.messages if message.message_id not in gone]
        await self._noted(observation.structured["context"])

    async def summarised(self, observation: Observation) -> None:
        """A summary took the place of messages, by the answer of ``Summary_context``."""
        result = observation.structured
        replaced = set(result["replaced"])
        kept = [message for message in self.messages if message.message_id not in replaced]
        first = next((n for n, message in enumerate(self.messages) if message.message_id in replaced), len(kept))
        tokens = int(result["context"]["tokens"]) - sum(message.tokens for message in kept)
        summary = ContextMessage(result["message_id"], Role.TOOL, result["summary"], MessageKind.SUMMARY, tokens)
        # Nothing before the first of them left, so that it stands at the same place.
        self.messages = [*kept[:first], summary, *kept[first:]]
        await self._noted(result["context"])

    async def refresh(self) -> None:
        """Ask the server for the whole context.

        Raises:
            InvalidOperation: the session has expired.
            StoreError: the server cannot be reached.
        """
        arguments = {"session_id": self.session_id}
        shown = await self._tools.require(
            "Show_context", arguments, session_id=self._session_id, actor=Actor.ENVIRONMENT
        )
        self.messages = [
            ContextMessage(
                one["message_id"], Role(one["role"]), one["content"], MessageKind(one["kind"]), int(one["tokens"])
            )
            for one in shown["messages"]
        ]
        self._count(shown["context"])

    async def _noted(self, info: dict[str, Any]) -> None:
        if int(info["message_count"]) != len(self.messages):
            await self.refresh()
        else:
            self._count(info)

    def _count(self, info: dict[str, Any]) -> None:
        self.tokens = int(info["tokens"])
        self.budget_tokens = int(info["budget_tokens"])
