"""Random operations against a dictionary: the store must never disagree with it, reopened or not."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from agemem_mcp.adapters.system import RandomIds, SteppingClock
from agemem_mcp.app import open_service
from agemem_mcp.domain.memory import Actor, Scope
from agemem_mcp.domain.operations import parse_operation
from agemem_mcp.domain.text import digest
from agemem_mcp.errors import InvalidOperation
from agemem_mcp.service.long_term import Origin
from agemem_mcp.settings import load_settings

SCOPES = [Scope(), Scope(namespace="other")]
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath"]
CONTENTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)


class OnDisk(RuleBasedStateMachine):
    """A service on real stores, which can be closed and opened again between any two operations."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="agemem-model-")
        self._runner = asyncio.Runner()
        self._clock = SteppingClock()
        self._ids = RandomIds(seed=11)
        self._settings = load_settings(
            data_dir=Path(self._folder.name) / "data",
            assets_dir=Path(self._folder.name) / "assets",
            embedding="none",
            context={"tokenizer": "estimate"},
        )
        self._stack = AsyncExitStack()
        self._runner.run(self._open())

    def teardown(self) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()
        self._folder.cleanup()

    async def _open(self) -> None:
        # Left by the same task that entered it: the runner's tasks differ, but nothing in it is bound to one.
        opened = open_service(self._settings, clock=self._clock, ids=self._ids)
        self.service = await self._stack.enter_async_context(opened)

    def do(self, scope: Scope, tool: str, **arguments: Any) -> Any:
        return self._runner.run(self.service.apply(scope, parse_operation(tool, arguments)))

    def reopen(self) -> None:
        self._runner.run(self._stack.aclose())
        self._stack = AsyncExitStack()
        self._runner.run(self._open())


class MemoryMachine(OnDisk):
    """Long-term memory against ``{scope: {memory_id: content}}``."""

    memories = Bundle("memories")
    deleted = Bundle("deleted")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[Scope, dict[str, str]] = {scope: {} for scope in SCOPES}
        self.versions: dict[tuple[Scope, str], list[str]] = {}

    @rule(target=memories, scope=st.sampled_from(SCOPES), content=CONTENTS)
    def add(self, scope: Scope, content: str) -> Any:
        live = {digest(text): memory_id for memory_id, text in self.model[scope].items()}
        result = self.do(scope, "Add_memory", content=content)
        if digest(content) in live:
            assert result.duplicate
            assert self.model[scope][result.memory_id] == content
            return multiple()
        assert not result.duplicate
        assert (scope, result.memory_id) not in self.versions
        self.model[scope][result.memory_id] = content
        self.versions[scope, result.memory_id] = [content]
        return scope, result.memory_id

    @rule(memory=memories, content=CONTENTS)
    def update(self, memory: tuple[Scope, str], content: str) -> None:
        scope, memory_id = memory
        if memory_id not in self.model[scope]:
            return
        if self._has_twin(memory, content):
            with pytest.raises(InvalidOperation, match="has this text already"):
                self.do(scope, "Update_memory", memory_id=memory_id, content=content)
            return
        result = self.do(scope, "Update_memory", memory_id=memory_id, content=content)
        assert result.previous_content == self.model[scope][memory_id]
        if content != result.previous_content:
            self.versions[memory].append(content)
        self.model[scope][memory_id] = content

    @rule(target=deleted, memory=consumes(memories))
    def delete(self, memory: tuple[Scope, str]) -> Any:
        scope, memory_id = memory
        assert self.do(scope, "Delete_memory", memory_id=memory_id, confirmation=True).deleted
        del self.model[scope][memory_id]
        return memory

    @rule(target=memories, memory=consumes(deleted))
    def restore(self, memory: tuple[Scope, str]) -> Any:
        scope, memory_id = memory
        if self._has_twin(memory, self.versions[memory][-1]):
            with pytest.raises(InvalidOperation, match="has this text already"):
                self._runner.run(self.service.long_term.restore(scope, memory_id, None, Origin()))
            return multiple()
        record = self._runner.run(self.service.long_term.restore(scope, memory_id, None, Origin()))
        assert record.content == self.versions[memory][-1]
        self.model[scope][memory_id] = record.content
        return memory

    @rule(memory=memories)
    def restore_the_first_version(self, memory: tuple[Scope, str]) -> None:
        scope, memory_id = memory
        if self._has_twin(memory, self.versions[memory][0]):
            with pytest.raises(InvalidOperation, match="has this text already"):
                self._runner.run(self.service.long_term.restore(scope, memory_id, 1, Origin()))
            return
        record = self._runner.run(self.service.long_term.restore(scope, memory_id, 1, Origin()))
        assert record.content == self.versions[memory][0]
        self.versions[memory].append(record.content)
        self.model[scope][memory_id] = record.content

    def _has_twin(self, memory: tuple[Scope, str], content: str) -> bool:
        """Whether another live memory has this text."""
        scope, memory_id = memory
        return any(text == content for other, text in self.model[scope].items() if other != memory_id)

    @rule(scope=st.sampled_from(SCOPES), word=st.sampled_from(WORDS))
    def retrieve(self, scope: Scope, word: str) -> None:
        found = self.do(scope, "Retrieve_memory", query=word, top_k=100)
        expected = {memory_id: text for memory_id, text in self.model[scope].items() if word in text.split()}
        assert {hit.memory_id: hit.content for hit in found.memories} == expected

    @rule()
    def close_and_open(self) -> None:
        self.reopen()

    @invariant()
    def everything_is_found_by_all_words(self) -> None:
        for scope in SCOPES:
            found = self.do(scope, "Retrieve_memory", query=" ".join(WORDS), top_k=100)
            assert {hit.memory_id: hit.content for hit in found.memories} == self.model[scope]
            sizes = [len(text.encode()) + len("{}") for text in self.model[scope].values()]
            used = self._runner.run(self.service.long_term._ledger.usage(scope))
            assert used == (len(sizes), sum(sizes))


class ContextMachine(OnDisk):
    """One session's context against a list of what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.contents: list[str] = []
        self.appended: list[str] = []
        self.session = ""
        self.ids: set[str] = set()

    @initialize()
    def begin(self) -> None:
        self.session = self.do(Scope(), "Append_context", messages="amber at the beginning of it all").session_id
        self.contents = ["amber at the beginning of it all"]
        self.appended = list(self.contents)
        self.ids = {one.message_id for one in self.shown().messages}

    def shown(self) -> Any:
        return self.do(Scope(), "Show_context", session_id=self.session)

    @rule(
        messages=st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), CONTENTS), min_size=1, max_size=3)
    )
    def append(self, messages: list[tuple[str, str]]) -> None:
        sent = [{"role": role, "content": content} for role, content in messages]
        result = self.do(Scope(), "Append_context", session_id=self.session, messages=sent)
        assert len(result.message_ids) == len(sent)
        assert not self.ids & set(result.message_ids)
        self.ids |= set(result.message_ids)
        self.contents += [content for _, content in messages]
        self.appended += [content for _, content in messages]

    @rule(word=st.sampled_from(WORDS))
    def filter(self, word: str) -> None:
        before = self.shown()
        result = self.do(Scope(), "Filter_context", session_id=self.session, criteria=word)
        after = self.shown()
        assert after.context.tokens <= before.context.tokens
        gone = {one.message_id for one in result.removed}
        assert [one for one in before.messages if one.message_id not in gone] == after.messages
        assert all(word in one.content.split() for one in before.messages if one.message_id in gone)
        self.contents = [one.content for one in after.messages]

    @rule(span=st.sampled_from(["all", "1", "2", "9"]))
    def summarise(self, span: str) -> None:
        before = self.shown()
        result, refusal = None, ""
        try:
            result = self.do(Scope(), "Summary_context", session_id=self.session, span=span, summary="s")
        except InvalidOperation as error:
            refusal = str(error)
        if result is None:
            # Refused alone where there is nothing to shorten, and then nothing has changed.
            assert "is not shorter than what it would replace" in refusal or "The context is empty" in refusal
            assert self.shown() == before
            return
        after = self.shown()
        assert after.context.tokens < before.context.tokens
        gone = set(result.replaced)
        assert [one.content for one in after.messages if one.message_id not in self.ids] == ["s"]
        assert [one for one in before.messages if one.message_id not in gone] == [
            one for one in after.messages if one.message_id in self.ids
        ]
        self.ids |= {one.message_id for one in after.messages}
        self.contents = [one.content for one in after.messages]

    @rule()
    def restore_everything(self) -> None:
        before = {one.message_id for one in self.shown().messages}
        back = self._runner.run(self.service.short_term.restore(Scope(), self.session, None, Actor.USER))
        assert not before & set(back)
        self.contents = list(self.appended)

    @rule()
    def close_and_open(self) -> None:
        self.reopen()

    @invariant()
    def what_is_shown_is_what_is_expected(self) -> None:
        if self.session:
            shown = self.shown()
            assert [one.content for one in shown.messages] == self.contents
            assert shown.context.message_count == len(self.contents)


# Shrinking a run on real stores takes minutes; the steps of the run that failed are printed as they are.
QUICK = settings(max_examples=5, stateful_step_count=15, phases=[Phase.explicit, Phase.reuse, Phase.generate])

TestMemories = MemoryMachine.TestCase
TestMemories.settings = QUICK
TestContexts = ContextMachine.TestCase
TestContexts.settings = QUICK
