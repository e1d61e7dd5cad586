"""Shows a policy how synthetic stories are dealt with, from what the policy itself is shown.

It knows the task, so it knows which message tells what; ids, hits and how full the context is it reads from the
prompt. Its habits say how often it does the right thing: with all of them at 1 it is an expert, and a warm start on
less leaves something to reinforcement learning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agemem_policies.policy import Completion
from agemem_policies.protocol import Call, Turn, render
from agemem_training.tasks.synthetic.language import RELATIONS, TOPICS, TWO_HOPS, UNKNOWN, about_tokens

if TYPE_CHECKING:
    import random

    from agemem_policies.policy import OnText, Prompt
    from agemem_training.tasks.synthetic.language import Relation
    from agemem_training.tasks.task import Fact, Task

_LINE = re.compile(r"^\[(mem_\w+)\] \([^)]*\) (.*)$", re.MULTILINE)
OK = Turn("nothing new", answer="ok")
DONE = Turn("done", answer="ok")
SUMMARY = Turn("too much", (Call("Summary_context", {"span": "all", "summary": "small talk"}),))
_DENIALS = (" no longer ", " is not ")


@dataclass(frozen=True, slots=True)
class Habits:
    """How often the demonstrator does what is right, 0 to 1."""

    adds: float = 1.0
    """A new fact is stored."""
    updates: float = 1.0
    """A fact that changed is updated; else it is added anew, or nothing is done."""
    deletes: float = 1.0
    clears: float = 1.0
    """A context that is more than :attr:`full` is cleared of what does not matter."""
    full: float = 0.5
    """Of the budget, while what is said is small talk."""
    too_full: float = 0.75
    """Of the budget, while facts are told: clearing them away has its price as well."""
    retrieves: float = 1.0
    """The answer is looked up; else it is guessed to be unknown."""
    second: float = 1.0
    """The second of two hops is looked up as well."""
    summarises: float = 0.3
    """Of the times a context is cleared: by a summary rather than a filter."""
    junk: float = 0.0
    """Small talk is stored as well."""


EXPERT = Habits()
NOISY = Habits(adds=0.85, deletes=0.75, clears=0.6, full=0.5, retrieves=0.8, second=0.7, junk=0.1)


class Demonstrator:
    """Implements ``Policy`` for one episode of one synthetic task."""

    native = False
    name = "demonstrator"

    def __init__(self, task: Task, habits: Habits, rng: random.Random, *, budget_tokens: int) -> None:
        """Set it up.

        Args:
            task: of the episode.
            habits: what it is like.
            rng: decides when it follows them.
            budget_tokens: T_max of the context.
        """
        self._task = task
        self._habits = habits
        self._rng = rng
        self._budget_tokens = budget_tokens
        texts = [*task.facts, *(one.stale for one in task.changes), *(one.new for one in task.changes if one.new)]
        self._facts = {fact.text.lower(): fact for fact in texts}

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        """See :meth:`agemem_policies.policy.Policy.act`."""
        text = render(self._turn(prompt))
        if on_text is not None:
            on_text(text)
        return Completion(text)

    async def close(self) -> None:
        """Nothing to release."""

    def _turn(self, prompt: Prompt) -> Turn:
        said = [place for place, one in enumerate(prompt.messages) if one.role == "user" and one.content[:1] != "<"]
        if not said:
            # The message that is being worked on was cleared away with the others.
            return DONE
        now = said[-1]
        message = prompt.messages[now].content
        after = prompt.messages[now + 1 :]
        acted = sum(one.role == "assistant" for one in after)
        if message == self._task.query:
            return self._reason(prompt, acted)
        if message in self._task.distractors:
            return self._clear(prompt) or OK if not acted else DONE
        if not acted:
            return self._note(message, "\n".join(one.content for one in after))
        return (self._make_room(prompt) if acted == 1 else None) or DONE

    def _often(self, chance: float) -> bool:
        return self._rng.random() < chance

    def _note(self, message: str, hits: str) -> Turn:
        """Stage 1: what a message is worth."""
        lowered = message.lower()
        fact = next((fact for text, fact in self._facts.items() if lowered.endswith(text)), None)
        if any(denial in message for denial in _DENIALS):
            return self._take_back(message, hits)
        if fact is None:
            if self._often(self._habits.junk):
                return Turn("new fact", (_add(message),))
            return OK
        change = next((one for one in self._task.changes if one.new == fact), None)
        if change is not None:
            found = _id_of(change.stale, hits)
            if found is not None and self._often(self._habits.updates):
                arguments = {"memory_id": found, "content": fact.text}
                return Turn(f"{_bare(change.stale.text)} {found}", (Call("Update_memory", arguments),))
        return Turn("new fact", (_add(fact.text),)) if self._often(self._habits.adds) else OK

    def _take_back(self, message: str, hits: str) -> Turn:
        for change in self._task.changes:
            if change.new is None and all(key in message for key in (change.stale.keys[0], change.stale.keys[2])):
                found = _id_of(change.stale, hits)
                if found is not None and self._often(self._habits.deletes):
                    arguments = {"memory_id": found, "confirmation": True}
                    return Turn(f"{_bare(change.stale.text)} {found}", (Call("Delete_memory", arguments),))
        return OK

    def _make_room(self, prompt: Prompt) -> Turn | None:
        """Stage 1: clear what was dealt with, before the next message may be too much."""
        if self._used(prompt) < self._habits.too_full or not self._often(self._habits.clears):
            return None
        return SUMMARY

    def _used(self, prompt: Prompt) -> float:
        """How full the context is, about."""
        return about_tokens(one.content for one in prompt.messages) / self._budget_tokens

    def _clear(self, prompt: Prompt) -> Turn | None:
        """Stage 2: make room, once there is much of it."""
        if self._used(prompt) < self._habits.full or not self._often(self._habits.clears):
            return None
        if self._often(self._habits.summarises):
            return SUMMARY
        latest = next(one.content for one in reversed(prompt.messages) if one.content in self._task.distractors)
        return Turn("too much", (Call("Filter_context", {"criteria": _topic(latest)}),))

    def _reason(self, prompt: Prompt, acted: int) -> Turn:
        """Stage 3: look up, perhaps twice, and answer."""
        relation, second, subject = _asked(self._task.query)
        if not acted:
            if not self._often(self._habits.retrieves):
                # In other words than after a look-up, so that to learn not to do this is not to unlearn that.
                return Turn("no idea", answer=UNKNOWN)
            return Turn("look up", (Call("Retrieve_memory", {"query": relation.lookup.format(s=subject)}),))
        lines = [text for one in prompt.messages for _, text in _LINE.findall(one.content)]
        value = _value(lines, relation, subject)
        if value is None or second is None:
            return _answer(relation, subject, value)
        final = _value(lines, second, value)
        if final is None and acted == 1 and self._often(self._habits.second):
            thought = _bare(relation.state(subject, value))
            return Turn(thought, (Call("Retrieve_memory", {"query": second.lookup.format(s=value)}),))
        return _answer(second, value, final)


def _asked(query: str) -> tuple[Relation, Relation | None, str]:
    """What a question wants: the first relation, perhaps a second one, and about whom."""
    for hops in TWO_HOPS:
        for form in (one for forms in hops.questions.values() for one in forms):
            if (subject := _subject(form, query)) is not None:
                return RELATIONS[hops.first], RELATIONS[hops.second], subject
    for relation in RELATIONS.values():
        for form in (one for forms in relation.questions.values() for one in forms):
            if (subject := _subject(form, query)) is not None:
                return relation, None, subject
    msg = f"no question of the stories: {query!r}"
    raise ValueError(msg)


def _subject(form: str, query: str) -> str | None:
    before, _, after = form.partition("{s}")
    found = re.fullmatch(re.escape(before) + r"(\w+)" + re.escape(after), query)
    return None if found is None else found[1]


def _value(lines: list[str], relation: Relation, subject: str) -> str | None:
    """What the newest line that states the relation says."""
    before, _, after = relation.sentence.format(s=subject, v="\0").partition("\0")
    found = [line for line in lines if line.startswith(before) and line.endswith(after)]
    return found[-1][len(before) : len(found[-1]) - len(after)] if found else None


def _answer(relation: Relation, subject: str, value: str | None) -> Turn:
    if value is None:
        return Turn("not there", answer=UNKNOWN)
    return Turn(_bare(relation.state(subject, value)), answer=value)


def _topic(distractor: str) -> str:
    for criteria, texts in TOPICS.values():
        for form in (one for forms in texts.values() for one in forms):
            opening = max(re.split(r"\{\w\}", form), key=len)
            if opening in distractor:
                return criteria
    msg = f"no distractor of the stories: {distractor!r}"
    raise ValueError(msg)


def _id_of(fact: Fact, hits: str) -> str | None:
    return next((found for found, text in _LINE.findall(hits) if text == fact.text), None)


def _bare(sentence: str) -> str:
    return sentence.removesuffix(".")


def _add(content: str) -> Call:
    return Call("Add_memory", {"content": content, "memory_type": "fact"})
