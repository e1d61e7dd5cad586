"""Grades from 0 to 1 for answers and for sets of memories: by words alone, or by a model at an endpoint.

By words, an answer is compared as SQuAD and HotpotQA do: lower case, no punctuation, no articles; the same or one of
the aliases is 1, else the best token F1. Closed answers (yes, no, unknown) are right or wrong: a sentence that has
such a word in it is not half right.
"""

from __future__ import annotations

import asyncio
import json
import re
import string
import unicodedata
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol, Self

import httpx

from agemem_mcp.domain.text import preview
from agemem_mcp.errors import ProviderError
from agemem_policies.openai_chat import OpenAIChatPolicy, Sampling
from agemem_policies.openai_chat.failures import EndpointError
from agemem_policies.policy import ChatMessage, Prompt
from agemem_policies.prompts import load_prompt
from agemem_training.facts import coverage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from agemem_policies.openai_chat import Endpoint, Patience
    from agemem_training.tasks.task import Task

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CLOSED = frozenset({"yes", "no", "noanswer", "unknown"})
_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)
_SCORE = re.compile(
    r"""\bscore\b["']?\s*(?:[:=]|is)\s*["']?(-?(?:\d+(?:\.\d+)?|\.\d+))(?!\d|\.\d|\s*(?:/(?!\s*1\b)|%|out\ of))""",
    re.IGNORECASE,
)
"""Not of 7/10 or 70 %: which scale a model then means is anyone's guess."""
_TRIES = 3
"""So often a model is asked until its reply can be read."""
_OF_ONE_QUESTION = {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}
"""What an endpoint answers where it takes offence at one text, or finds it too long; others may be graded still."""


class NoScore(ProviderError):  # noqa: N818  the tree's names follow the HTTP vocabulary
    """A model that judges was asked, and what it replied holds no score."""


class AnswerJudge(Protocol):
    """Grades answers."""

    async def grade_answer(self, answer: str, task: Task) -> float:
        """How right an answer is, from 0 to 1.

        Raises:
            NoScore: a model that judges gave no grade.
            ProviderError: it cannot be asked.
        """
        ...


class MemoryJudge(Protocol):
    """Grades sets of memories."""

    async def grade_memories(self, memories: Sequence[str], task: Task) -> float:
        """How well memories serve the task's query, from 0 to 1.

        Raises:
            NoScore: a model that judges gave no grade.
            ProviderError: it cannot be asked.
        """
        ...


def normalised_answer(text: str) -> str:
    """An answer as SQuAD compares it: lower case, without punctuation, articles and needless space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(one for one in folded if one not in string.punctuation and unicodedata.category(one)[0] != "P")
    # An answer that is nothing but an article or a sign, such as the grade A, is compared as it is.
    return " ".join(_ARTICLES.sub(" ", plain).split()) or " ".join(folded.split())


def success(answer: str | None, task: Task) -> bool:
    """Whether an answer is, after normalisation, the right one or one of its aliases."""
    if answer is None or not answer.strip():
        return False
    return normalised_answer(answer) in {normalised_answer(right) for right in (task.answer, *task.aliases)}


def answer_score(answer: str, task: Task) -> float:
    """1 for a right answer, else the best token F1 with the right one or an alias."""
    if success(answer, task):
        return 1.0
    return max(_token_f1(answer, right) for right in (task.answer, *task.aliases))


def _token_f1(answer: str, right: str) -> float:
    given, wanted = normalised_answer(answer), normalised_answer(right)
    if given in _CLOSED or wanted in _CLOSED:
        return float(given == wanted)
    given_words, wanted_words = given.split(), wanted.split()
    shared = (Counter(given_words) & Counter(wanted_words)).total()
    return 2 * shared / max(1, len(given_words) + len(wanted_words))


class WordJudge:
    """Judges by words: the same grade for the same answer, on any machine, at once."""

    async def grade_answer(self, answer: str, task: Task) -> float:
        """See :func:`answer_score`."""
        return answer_score(answer, task)

    async def grade_memories(self, memories: Sequence[str], task: Task) -> float:
        """Share of the gold facts that the memories tell."""
        return coverage(task.gold, memories)


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """Which model grades; it is opened where it is used, as connections belong to one event loop."""

    endpoint: Endpoint
    memories: bool = True
    """Whether it grades memories beside answers."""


class LLMJudge:
    """Asks a model at any OpenAI-compatible endpoint, by its most probable words; by others where those hold no score.

    Args:
        endpoint: where the model is.
        concurrent: so many questions are asked at once.
        prompts: folder with ``judge_answer.txt`` or ``judge_memory.txt`` in place of those shipped.
        patience: how long and how often the endpoint is asked.
        client: connections to use; they stay open when the judge is closed.

    Raises:
        ConfigurationError: a prompt cannot be read.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        concurrent: int = 8,
        prompts: Path | None = None,
        patience: Patience | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self._client = client or httpx.AsyncClient()
        self._owned = client is None
        # Asked again in the same way it would reply the same.
        self._models = [
            OpenAIChatPolicy(endpoint, sampling=Sampling(temperature), patience=patience, client=self._client)
            for temperature in (0.0, 1.0)
        ]
        self._free = asyncio.Semaphore(concurrent)
        self._of_answers = load_prompt("judge_answer", prompts)
        self._of_memories = load_prompt("judge_memory", prompts)

    async def grade_answer(self, answer: str, task: Task) -> float:
        """See :class:`AnswerJudge`."""
        rights = "\nor: ".join((task.answer, *task.aliases))
        return await self._ask(self._of_answers, question=task.query, reference=rights, answer=answer)

    async def grade_memories(self, memories: Sequence[str], task: Task) -> float:
        """See :class:`MemoryJudge`; no memories are worth 0, and no model is asked."""
        if not memories:
            return 0.0
        return await self._ask(
            self._of_memories,
            question=task.query,
            answer=task.answer,
            facts=_listed([fact.text for fact in task.gold]),
            memories=_listed(memories),
        )

    async def close(self) -> None:
        """Release the connections, unless they were given."""
        if self._owned:
            await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, template: str, **values: str) -> float:
        prompt = Prompt((ChatMessage("user", _filled(template, values)),))
        first, again = self._models
        for model in (first, *[again] * (_TRIES - 2)):
            with suppress(NoScore):
                return read_score(await self._said(model, prompt))
        return read_score(await self._said(again, prompt))

    async def _said(self, model: OpenAIChatPolicy, prompt: Prompt) -> str:
        try:
            async with self._free:
                return (await model.act(prompt)).text
        except EndpointError as error:
            if error.status not in _OF_ONE_QUESTION:
                raise
            raise NoScore(str(error)) from error


def read_score(reply: str) -> float:
    """The score in a judge's reply: of its JSON, or of what it wrote in its place.

    Raises:
        NoScore: there is none from 0 to 1.
    """
    text = _THOUGHT.sub("", reply)
    found = _json_score(text)
    if found is None and (matches := _SCORE.findall(text)):
        found = float(matches[-1])
    if found is None or not 0 <= found <= 1:
        msg = (
            f'The judge gave no score from 0 to 1: {preview(reply, 200)!r}. It must reply {{"score": …}}; '
            "use a model that follows the prompt."
        )
        raise NoScore(msg)
    return found


def _json_score(text: str) -> float | None:
    """The score of the last JSON object that has one; fences and prose may stand around it."""
    found: float | None = None
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, start)
            found = float(value["score"])
        except (KeyError, TypeError, ValueError, RecursionError):
            continue
    return found


def _filled(template: str, values: dict[str, Any]) -> str:
    """The template with its fields filled in; braces in JSON, or in what is filled in, stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda field: values.get(field[1], field[0]), template)


def _listed(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts) or "(none)"
