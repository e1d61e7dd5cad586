"""Policies whose turns are written beforehand: for tests, demonstrations and measuring everything but the model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from agemem_mcp.errors import ConfigurationError
from agemem_policies.policy import Completion
from agemem_policies.protocol import Call, Turn, render

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agemem_policies.policy import OnText, Prompt

Line: TypeAlias = "str | Turn | Callable[[Prompt], str | Turn]"
"""One turn of a script: as text, as a turn, or made from what the policy is shown."""

_PIECE = re.compile(r"\s*\S+\s*|\s+")
_MEMORY_ID = re.compile(r"\[(mem_\w+)\]")


class ScriptedPolicy:
    """Takes its turns from a script, in order; afterwards it only says that the script has ended."""

    native = False

    def __init__(self, lines: Sequence[Line], *, name: str = "scripted") -> None:
        """Begin at the first line."""
        self.name = name
        self._lines = list(lines)
        self._next = 0
        self.seen: list[Prompt] = []
        """The prompts so far."""

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        """The next turn; see :class:`~agemem_policies.policy.Policy`."""
        self.seen.append(prompt)
        line: Line = Turn("There is no line left.", answer="The script has ended.")
        if self._next < len(self._lines):
            line = self._lines[self._next]
            self._next += 1
        if callable(line):
            line = line(prompt)
        text = line if isinstance(line, str) else render(line)
        if on_text is not None:
            for piece in _PIECE.findall(text):
                on_text(piece)
        words = sum(len(message.content.split()) for message in prompt.messages)
        return Completion(text, prompt_tokens=words, completion_tokens=len(text.split()))

    async def close(self) -> None:
        """Nothing to release."""


def scripted_policy(name: str) -> ScriptedPolicy:
    """A script by name.

    Raises:
        ConfigurationError: there is none of that name.
    """
    scripts: dict[str, Callable[[], Sequence[Line]]] = {"tour": tour_lines, "echo": echo_lines}
    if name not in scripts:
        msg = f"There is no script {name!r}. There are {', '.join(scripts)}."
        raise ConfigurationError(msg)
    return ScriptedPolicy(scripts[name](), name=f"scripted:{name}")


def echo_lines() -> list[Line]:
    """Each message is answered with itself; a thousand times."""

    def echoed(prompt: Prompt) -> Turn:
        said = next((one.content for one in reversed(prompt.messages) if one.role == "user"), "")
        return Turn("Say it again.", answer=re.sub(r"[<>]", "", said))

    return [echoed] * 1000


TOUR = (
    "Hi, I'm Maya. I moved to Lisbon in March, and I work as a nurse.",
    "My flight to Porto leaves on 3 May at 07:40.",
    "The airline moved it: 4 May, 09:15.",
    "How do I descale a coffee machine?",
    "Thanks, done. You can put that out of your mind.",
    "I gave up nursing, by the way. Forget about that.",
    "We talked about a lot. Keep only what matters of it.",
    "/new",
    "Good morning! When do I fly, and where do I live?",
)
"""What a person says in ``scripted:tour``, in order; a line that begins with a slash is a command of the chat."""


def tour_lines() -> list[Line]:
    """The turns that belong to :data:`TOUR`."""
    found = "Retrieve_memory"
    return [
        Turn("Two facts that will matter later.", (_add("Maya moved to Lisbon in March."), _add("Maya is a nurse."))),
        Turn("Both are stored.", answer="Nice to meet you, Maya. I'll remember that."),
        Turn("A plan with a time: worth keeping.", (_add("Maya's flight to Porto leaves on 3 May at 07:40."),)),
        Turn("Stored.", answer="Noted: Porto, 3 May, 07:40."),
        Turn("That changes a memory; find it first.", (Call(found, {"query": "Maya's flight to Porto"}),)),
        lambda prompt: Turn(
            "Replace it, so that the old time is not found any more.",
            (
                Call(
                    "Update_memory",
                    {"memory_id": _first_hit(prompt), "content": "Maya's flight to Porto leaves on 4 May at 09:15."},
                ),
            ),
        ),
        Turn("Done.", answer="Updated: Porto, 4 May, 09:15."),
        Turn(
            "General knowledge; nothing here to remember.",
            answer="Run it once with water and citric acid, wait ten minutes, then twice with clear water.",
        ),
        Turn("The coffee machine only takes up room now.", (Call("Filter_context", {"criteria": "coffee machine"}),)),
        Turn("It is out of the context.", answer="Gone."),
        Turn("A memory became wrong; find it.", (Call(found, {"query": "Maya works as a nurse"}),)),
        lambda prompt: Turn(
            "Delete it. Its history keeps it.",
            (Call("Delete_memory", {"memory_id": _first_hit(prompt), "confirmation": True}),),
        ),
        Turn("Deleted.", answer="Forgotten."),
        Turn(
            "Condense the conversation myself, with everything that still counts.",
            (
                Call(
                    "Summary_context",
                    {
                        "span": "all",
                        "summary": "Maya lives in Lisbon and flies to Porto on 4 May at 09:15. She asked to keep only "
                        "what matters of this conversation.",
                    },
                ),
            ),
        ),
        Turn("The context is short again.", answer="Kept: you live in Lisbon and fly to Porto on 4 May at 09:15."),
        Turn(
            "A new conversation: look it up.", (Call(found, {"query": "When does Maya fly, and where does she live?"}),)
        ),
        Turn("Both are there.", answer="You fly to Porto on 4 May at 09:15, and you live in Lisbon."),
    ]


def _add(content: str) -> Call:
    return Call("Add_memory", {"content": content, "memory_type": "fact"})


def _first_hit(prompt: Prompt) -> str:
    """The id of the best hit of the last retrieval."""
    shown = next((one.content for one in reversed(prompt.messages) if "<retrieved_memories>" in one.content), "")
    found = _MEMORY_ID.search(shown)
    return "mem_none" if found is None else found[1]
