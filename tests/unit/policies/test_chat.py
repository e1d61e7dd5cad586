"""A chat's turns, their record, its commands and what they take back, on a real memory in this process."""

from __future__ import annotations

import asyncio
import io
import signal
import threading
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from anyio.from_thread import start_blocking_portal
from rich.console import Console

from agemem_mcp.app import open_archive, service_gate
from agemem_mcp.domain.memory import Actor, Scope
from agemem_mcp.domain.operations import DeleteMemory, UpdateMemory
from agemem_mcp.errors import InvalidOperation, NotFound, ProviderError, StoreError
from agemem_mcp.server.render import record_fields
from agemem_mcp.service.long_term import Origin
from agemem_policies.agent import AgentOptions
from agemem_policies.chat.background import Background
from agemem_policies.chat.conversation import Conversation
from agemem_policies.chat.places import FolderPlace, PassingPlace, ServerPlace, Shown
from agemem_policies.chat.talking import Talk
from agemem_policies.chat.undoing import Undoing, Witness
from agemem_policies.chat.view import View
from agemem_policies.memory import MemoryTools, tools_in_process
from agemem_policies.protocol import Call, Turn
from agemem_policies.scripted import ScriptedPolicy, scripted_policy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.settings import Settings
    from agemem_policies.policy import Completion, OnText, Policy, Prompt

USER = Origin(actor=Actor.USER)


class HerePlace(FolderPlace):
    """A memory of this process, with what its owner does for commands."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._gate = service_gate(settings)

    @asynccontextmanager
    async def tools(self) -> AsyncGenerator[MemoryTools]:
        async with tools_in_process(self._gate, self._scope) as tools:
            yield tools
        await self._gate.close()

    async def service(self) -> MemoryService:
        return await self._gate.service()

    async def search(self, query: str, limit: int) -> list[Shown]:
        hits = await (await self.service()).long_term.search(self._scope, query, top_k=limit, metadata_filter={})
        return [Shown(hit.record.memory_id, hit.record.content, hit.record.memory_type) for hit in hits]

    async def restore(self, memory_id: str, version: int) -> dict[str, Any]:
        return record_fields(await (await self.service()).long_term.restore(self._scope, memory_id, version, USER))

    async def delete(self, memory_id: str) -> None:
        operation = DeleteMemory(memory_id=memory_id, confirmation=True)
        await (await self.service()).long_term.delete(self._scope, operation, USER)


def add(content: str) -> Turn:
    return Turn("Keep it.", (Call("Add_memory", {"content": content}),))


def update(content: str) -> Callable[[Prompt], Turn]:
    """A turn that changes the memory whose id was stored as the answer of the first call."""
    return lambda prompt: Turn("Change it.", (Call("Update_memory", {"memory_id": _id(prompt), "content": content}),))


def delete(prompt: Prompt) -> Turn:
    """A turn that deletes that memory."""
    return Turn("Drop it.", (Call("Delete_memory", {"memory_id": _id(prompt), "confirmation": True}),))


def _id(prompt: Prompt) -> str:
    said = next(one.content for one in prompt.messages if "Stored as mem_" in one.content)
    return said.split("Stored as ")[1].split(".")[0]


def answer(text: str) -> Turn:
    return Turn("Done.", answer=text)


class Chat:
    """A chat of a test: what is typed goes to :meth:`do`, what is shown is in :attr:`lines`."""

    def __init__(self, place: HerePlace, policy: Policy, background: Background, tools: MemoryTools) -> None:
        self.place = place
        self.background = background
        self.witness = Witness(tools)
        self.conversation = Conversation(policy, self.witness, AgentOptions())
        self.undoing = Undoing(place, self.witness, datetime.now(UTC))
        self._shown = io.StringIO()
        console = Console(file=self._shown, width=100, highlight=False, markup=False, emoji=False)
        self.view = View(console)
        self.connected = 0
        self.talk = Talk(place, self.conversation, self.witness, self.undoing, background, self.view, self._connect)

    def _connect(self) -> MemoryTools:
        self.connected += 1
        return self.witness.tools

    def do(self, line: str) -> list[str]:
        """Type a line; gives what was shown."""
        before = len(self._shown.getvalue())
        self.talk.do(line)
        return self._shown.getvalue()[before:].splitlines()

    def memories(self) -> dict[str, str]:
        """Ids and texts of what is live."""
        return {one.memory_id: one.content for one in self.background.wait_for(lambda: self.place.listed(100))}


@pytest.fixture
def chat_with(lexical_settings: Settings) -> Generator[Callable[[Policy], Chat]]:
    """Makes a chat with a policy."""
    with ExitStack() as stack:

        def make(policy: Policy) -> Chat:
            portal = stack.enter_context(start_blocking_portal())
            place = HerePlace(lexical_settings)
            tools = stack.enter_context(portal.wrap_async_context_manager(place.tools()))
            return Chat(place, policy, Background(portal), tools)

        yield make


class Failing(ScriptedPolicy):
    """Fails at its second turn."""

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        if len(self.seen) == 1:
            msg = "The model cannot be reached."
            raise ProviderError(msg)
        return await super().act(prompt, on_text)


class Hanging(ScriptedPolicy):
    """Takes for ever from its second turn on; presses Ctrl-C when it begins to."""

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        if len(self.seen) == 1:
            thread = threading.main_thread().ident
            assert thread is not None
            signal.pthread_kill(thread, signal.SIGINT)
            await asyncio.Event().wait()
        return await super().act(prompt, on_text)


def test_the_record_of_a_chat_holds_messages_calls_and_what_they_cost(chat_with: Callable[[Policy], Chat]) -> None:
    chat = chat_with(ScriptedPolicy([add("Maya is a nurse."), answer("Noted."), answer("You are welcome.")]))
    chat.do("I am a nurse.")
    chat.do("Thanks.")
    told = chat.conversation.fields()
    assert set(told) == {"session_id", "policy", "turns"}
    assert (told["policy"], told["session_id"][:4]) == ("scripted", "ctx_")
    first, second = told["turns"]
    assert set(first) == {
        "message",
        "answer",
        "stop_reason",
        "calls",
        "prompt_tokens",
        "completion_tokens",
        "context_tokens",
        "seconds",
    }
    assert (first["message"], first["answer"], first["stop_reason"]) == ("I am a nurse.", "Noted.", "answer")
    [call] = first["calls"]
    assert (call["name"], call["arguments"], call["is_error"]) == ("Add_memory", {"content": "Maya is a nurse."}, False)
    assert call["text"].startswith("Stored as mem_")
    assert (second["answer"], second["calls"]) == ("You are welcome.", [])
    assert second["context_tokens"] > first["context_tokens"] > 0


def test_a_model_that_fails_is_shown_and_the_chat_goes_on(chat_with: Callable[[Policy], Chat]) -> None:
    chat = chat_with(Failing([add("Maya is a nurse."), answer("Noted.")]))
    shown = chat.do("I am a nurse.")
    assert shown[0].startswith('  + Add_memory "Maya is a nurse."')
    assert shown[1:] == ["Error: The model cannot be reached."]
    [turn] = chat.conversation.fields()["turns"]
    assert (turn["error"], turn["stop_reason"]) == ("The model cannot be reached.", "provider_error")
    assert chat.connected == 0


def test_ctrl_c_breaks_off_what_is_under_way_and_keeps_what_was_done(chat_with: Callable[[Policy], Chat]) -> None:
    chat = chat_with(Hanging([add("Maya is a nurse."), answer("Noted.")]))
    assert chat.do("I am a nurse.")[-1] == "Cancelled."
    assert list(chat.memories().values()) == ["Maya is a nurse."]
    context = chat.do("/context")
    assert [line.split()[0] for line in context[1:5]] == ["system", "user", "assistant", "tool"]
    assert chat.do("/undo")[0].endswith("is deleted again: Maya is a nurse.")
    assert chat.memories() == {}


def test_a_message_that_cannot_be_stored_is_refused_with_a_sentence(chat_with: Callable[[Policy], Chat]) -> None:
    chat = chat_with(scripted_policy("echo"))
    [shown] = chat.do("a\x00b")
    assert shown.startswith("Error: ")
    assert "NUL character" in shown
    assert chat.do("ab")[0] == "ab"


def test_changes_are_taken_back_one_by_one_the_last_first(chat_with: Callable[[Policy], Chat]) -> None:
    story = [add("Maya is a nurse."), update("Maya was a nurse."), delete, answer("Done.")]
    chat = chat_with(ScriptedPolicy(story))
    chat.do("Three changes.")
    assert chat.memories() == {}
    [memory_id] = chat.witness.changed
    assert chat.do("/undo") == [f"{memory_id} is back: Maya was a nurse."]
    assert chat.memories() == {memory_id: "Maya was a nurse."}
    assert chat.do("/undo") == [f"{memory_id} says again: Maya is a nurse."]
    assert chat.memories() == {memory_id: "Maya is a nurse."}
    assert chat.do("/undo") == [f"{memory_id} is deleted again: Maya is a nurse."]
    assert chat.memories() == {}
    assert chat.do("/undo") == ["There is nothing more to take back."]


def test_changes_of_an_earlier_conversation_of_the_chat_are_taken_back_as_well(
    chat_with: Callable[[Policy], Chat],
) -> None:
    chat = chat_with(ScriptedPolicy([add("One."), answer("1"), add("Two."), answer("2"), add("One."), answer("3")]))
    chat.do("one")
    chat.do("/new")
    chat.do("two")
    chat.do("one again, which is there already")
    assert chat.do("/undo")[0].endswith("is deleted again: Two.")
    assert chat.do("/undo")[0].endswith("is deleted again: One.")
    assert chat.memories() == {}


def test_what_somebody_else_changed_meanwhile_is_left_as_it_is(chat_with: Callable[[Policy], Chat]) -> None:
    chat = chat_with(ScriptedPolicy([add("One."), answer("1"), add("Two."), answer("2")]))
    chat.do("one")
    chat.do("two")
    first, second = chat.witness.changed

    async def meanwhile() -> None:
        service = await chat.place.service()
        await service.long_term.update(
            Scope(), UpdateMemory(memory_id=second, content="Two and a half.", metadata={}), USER
        )

    chat.background.wait_for(meanwhile)
    [shown] = chat.do("/undo")
    assert shown.startswith(f"Error: {second} was changed elsewhere since")
    assert chat.do("/undo") == [f"{first} is deleted again: One."]
    assert chat.memories() == {second: "Two and a half."}


def test_what_was_changed_before_the_chat_began_is_not_taken_back(chat_with: Callable[[Policy], Chat]) -> None:
    chat = chat_with(ScriptedPolicy([add("One."), answer("1"), update("Two."), answer("2")]))
    chat.do("one")
    later = Undoing(chat.place, chat.witness, datetime.now(UTC))
    chat.do("two")
    assert chat.background.wait_for(later.undo).endswith("says again: One.")
    assert chat.background.wait_for(later.undo) == "There is nothing more to take back."


def test_nothing_is_taken_back_where_nothing_was_changed(chat_with: Callable[[Policy], Chat]) -> None:
    chat = chat_with(scripted_policy("echo"))
    chat.do("hello")
    assert chat.do("/undo") == ["There is nothing to take back: no memory was changed in this chat."]


def test_commands_show_memories_and_the_context(chat_with: Callable[[Policy], Chat]) -> None:
    chat = chat_with(ScriptedPolicy([add("Maya is a nurse."), add("Ana likes tea."), answer("Noted.")]))
    assert chat.do("/context") == ["The context is empty: nothing was said in this conversation yet."]
    chat.do("Remember two things.")
    assert [line.split("  ")[-1] for line in chat.do("/memories")] == ["content", "Ana likes tea.", "Maya is a nurse."]
    assert [line.split("  ")[-1] for line in chat.do("/memories tea")][:2] == ["content", "Ana likes tea."]
    context = chat.do("/context")
    assert context[0].split() == ["role", "kind", "tokens", "content"]
    assert "Remember two things." in context[2]
    assert "tokens (" in context[-2]
    assert context[-1] == f"  session {chat.conversation.session_id}"
    chat.do("/new")
    assert chat.do("/context")[0].startswith("The context is empty")
    assert [line.split()[0] for line in chat.do("/help")[:6]] == [
        "/memories",
        "/context",
        "/undo",
        "/new",
        "/help",
        "/quit",
    ]


def test_an_empty_memory_is_said_to_be_empty(chat_with: Callable[[Policy], Chat]) -> None:
    chat = chat_with(scripted_policy("echo"))
    chat.do("hello")
    assert chat.do("/memories") == ["There are no memories here yet."]
    assert chat.do("/memories giraffe") == ["Nothing was found."]


@pytest.mark.parametrize("line", ["/forget", "/", "/home/maya/notes.txt is where it is"])
def test_an_unknown_command_gets_a_sentence_and_is_not_said(chat_with: Callable[[Policy], Chat], line: str) -> None:
    chat = chat_with(scripted_policy("echo"))
    [shown] = chat.do(line)
    assert shown == f"There is no command {line.split(maxsplit=1)[0]}. /help lists them; begin with a space to say it."
    assert chat.do(" /forget")[0] == "/forget"
    assert len(chat.conversation.exchanges) == 1


class Lost(MemoryTools):
    """A connection that is gone."""

    def __init__(self) -> None:
        """There is no client any more."""

    async def call(
        self, name: str, arguments: dict[str, Any], *, session_id: str | None, actor: Actor = Actor.POLICY
    ) -> Any:
        msg = "The memory server did not answer."
        raise StoreError(msg)


def test_after_a_lost_connection_the_next_message_connects_anew(chat_with: Callable[[Policy], Chat]) -> None:
    chat = chat_with(scripted_policy("echo"))
    there = chat.witness.tools
    chat.witness.tools = Lost()
    assert chat.do("one") == ["Error: The memory server did not answer."]
    chat.witness.tools = there
    assert chat.do("two")[0] == "two"
    assert chat.connected == 1
    assert [turn["stop_reason"] for turn in chat.conversation.fields()["turns"]] == ["memory_error", "answer"]


async def _refusals(place: Any) -> list[str]:
    said: list[str] = []
    for work in (place.listed(1), place.search("x", 1), place.history_of(["mem_1"]), place.restore("mem_1", 1)):
        with pytest.raises(InvalidOperation) as caught:
            await work
        said.append(str(caught.value))
    with pytest.raises(InvalidOperation) as caught:
        await place.delete("mem_1")
    return [*said, str(caught.value)]


async def test_where_a_chat_reaches_no_owner_it_says_what_to_use_instead(lexical_settings: Settings) -> None:
    server = await _refusals(ServerPlace(lexical_settings, "http://127.0.0.1:1/mcp"))
    assert all("`agemem-mcp memories` lists them and restores" in text for text in server)
    assert server[0].startswith("Memories cannot be listed here")
    assert server[2].startswith("Changes cannot be taken back here")
    passing = await _refusals(PassingPlace(lexical_settings))
    assert all("Name a --data-dir to keep one." in text for text in passing)


async def test_a_passing_memory_leaves_nothing_behind(lexical_settings: Settings) -> None:
    place = PassingPlace(lexical_settings)
    async with place.tools() as tools:
        added = await tools.require("Add_memory", {"content": "One."}, session_id=None, actor=Actor.USER)
        assert added["memory_id"].startswith("mem_")
    assert not lexical_settings.data_dir.exists()


async def test_the_history_of_a_folder_leaves_out_what_it_never_held(lexical_settings: Settings) -> None:
    place = HerePlace(lexical_settings)
    async with place.tools() as tools:
        added = await tools.require("Add_memory", {"content": "One."}, session_id=None, actor=Actor.USER)
        histories = await place.history_of([added["memory_id"], "mem_none"])
        assert [[event.record.content for event in one] for one in histories] == [["One."]]
        async with open_archive(lexical_settings) as archive:
            with pytest.raises(NotFound):
                await archive.memories.history(Scope(), "mem_none")
