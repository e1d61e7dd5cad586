"""Tasks from HotpotQA (Yang et al., 2018): supporting paragraphs are the story, the others distract (AgeMem, 3.3).

Reads, by path, the official JSON (a list of questions) and the hub's columns as a JSON list, as JSON lines, or as
parquet. Both are the distractor setting, in which a question's paragraphs hold its supporting facts.

A paragraph is one message, "Title: text". A question's gold facts are its supporting sentences, each "Title: sentence".
A supporting sentence that its paragraph does not have, of which the official files hold a few, is passed over, and a
question that has no other is too.
"""

from __future__ import annotations

import importlib
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from agemem_mcp.domain.text import check_text, preview
from agemem_mcp.errors import ConfigurationError, InvalidOperation
from agemem_training.tasks.key_items import key_items
from agemem_training.tasks.source import in_order, split_of
from agemem_training.tasks.task import Fact, Task

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agemem_training.tasks.source import Split

_PARQUET = b"PAR1"
_UTF8_MARK = b"\xef\xbb\xbf"

_Numbered: TypeAlias = "Iterator[tuple[str, object]]"
"""Records, each with the words that say where it is."""


class HotpotQATasks:
    """A file's questions as a :class:`~agemem_training.tasks.source.TaskSource`.

    The whole file is read at once, so that what is wrong with it is told before anything is trained. The official
    training file's 90,447 questions take about 1 GB, and 3 GB while they are read from a JSON list.
    """

    def __init__(self, path: Path, *, limit: int | None = None) -> None:
        """Read the file.

        Args:
            path: as for :func:`read_hotpotqa`.
            limit: take only the first questions.

        Raises:
            ConfigurationError: see :func:`read_hotpotqa`.
        """
        self._path = path
        self._tasks = list(read_hotpotqa(path, limit=limit))

    def tasks(self, split: Split, *, seed: int) -> Iterator[Task]:
        """See :meth:`agemem_training.tasks.source.TaskSource.tasks`; divided by the questions' ids."""
        chosen = [task for task in self._tasks if split_of(task.task_id) == split]
        return in_order(chosen, split, seed=seed, where=str(self._path))


def read_hotpotqa(path: Path, *, limit: int | None = None) -> Iterator[Task]:
    """Read questions one after the other, in the file's order. JSON lines are read no further than is asked for.

    Args:
        path: a file in one of the layouts above; which one is told by what is in it, not by its name.
        limit: end after this many.

    Raises:
        ConfigurationError: there is no such file, or it does not hold what it should: names file, record and field.
    """
    tasks = (_task(_Record(where, record)) for where, record in _records(path))
    yield from itertools.islice((task for task in tasks if task is not None), limit)


def _records(path: Path) -> _Numbered:
    try:
        with path.open("rb") as file:
            begins = file.read(1024)
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror}). Name HotpotQA's file, such as hotpot_train_v1.1.json."
        raise ConfigurationError(msg) from error
    if begins.startswith(_PARQUET):
        return _parquet_rows(path)
    return _json_lines(path) if begins.removeprefix(_UTF8_MARK).lstrip().startswith(b"{") else _json_list(path)


def _json_lines(path: Path) -> _Numbered:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, _json(line, where, "one JSON object a line")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def _json_list(path: Path) -> _Numbered:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error
    expected = "a JSON list of questions, or one JSON object a line"
    records = _json(text, str(path), expected)
    if not isinstance(records, list):
        msg = f"{path} holds {_shown(records)}; expected {expected}."
        raise ConfigurationError(msg)
    for number, record in enumerate(cast("list[object]", records), 1):
        yield f"{path}, record {number}", record


def _parquet_rows(path: Path) -> _Numbered:
    try:
        # an extra of nobody's; read by name, so that nothing else wants it
        arrow, parquet = (cast("Any", importlib.import_module(name)) for name in ("pyarrow", "pyarrow.parquet"))
    except ImportError as error:
        msg = f"{path} is parquet, and pyarrow is not installed: `pip install pyarrow`, or name the same file as JSON."
        raise ConfigurationError(msg) from error
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", record
    except (OSError, arrow.ArrowException) as error:
        msg = f"{path} cannot be read as parquet after row {number} ({preview(str(error), 200)}). Download it again."
        raise ConfigurationError(msg) from error


def _json(text: str, where: str, expected: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, character {error.colno}" if "\n" in text.strip() else f"character {error.colno}"
        msg = f"{where} is no valid JSON ({error.msg} at {at}); expected {expected}."
        raise ConfigurationError(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"{where} is no JSON that can be read ({preview(str(error), 100)}); expected {expected}."
        raise ConfigurationError(msg) from error


def _not_utf8(path: Path, error: UnicodeDecodeError) -> ConfigurationError:
    return ConfigurationError(f"{path} is no text in UTF-8 ({error.reason}). Name HotpotQA's JSON, unpacked.")


@dataclass(frozen=True, slots=True)
class _Paragraph:
    title: str
    sentences: tuple[str, ...]

    @property
    def message(self) -> str:
        return f"{self.title}: {' '.join(filter(None, self.sentences))}"


class _Record:
    """One question's fields, checked as they are asked for.

    Args:
        where: file and number, for messages.
        record: any JSON value.
    """

    def __init__(self, where: str, record: object) -> None:
        self.where = where
        if not isinstance(record, dict):
            msg = f"{where} is {_shown(record)}; expected a question as a JSON object."
            raise ConfigurationError(msg)
        self._record = cast("dict[str, object]", record)

    def text(self, *names: str) -> str:
        """The first of these fields that is there."""
        name = next((one for one in names if one in self._record), names[0])
        value = self._record.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(value, name, "text")
        return self._storable(value.strip(), name)

    def optional_text(self, name: str) -> str | None:
        """A field that may be missing."""
        return None if self._record.get(name) is None else self.text(name)

    def paragraphs(self) -> list[_Paragraph]:
        """All of the question's, in order; those without text left out."""
        expected = "[[title, [sentence, …]], …] or {title: […], sentences: [[…], …]}"
        paragraphs: list[_Paragraph] = []
        for title, sentences in self._pairs("context", "title", "sentences", expected):
            if not isinstance(title, str) or not isinstance(sentences, list):
                raise self.wrong([title, sentences], "context", expected)
            listed = cast("list[object]", sentences)
            if not all(isinstance(one, str) for one in listed):
                raise self.wrong([title, listed], "context", expected)
            paragraphs.append(_Paragraph(title.strip(), tuple(one.strip() for one in cast("list[str]", listed))))
        told = [one for one in paragraphs if any(one.sentences)]
        for one in told:
            self._storable(one.message, "context")
        return told

    def supporting(self) -> list[tuple[str, int]]:
        """Title and sentence of every supporting fact."""
        expected = "[[title, sentence number], …] or {title: […], sent_id: […]}"
        facts: list[tuple[str, int]] = []
        for title, number in self._pairs("supporting_facts", "title", "sent_id", expected):
            if not isinstance(title, str) or type(number) is not int or number < 0:
                raise self.wrong([title, number], "supporting_facts", expected)
            facts.append((title.strip(), number))
        if not facts:
            raise self.wrong([], "supporting_facts", "at least one fact")
        return facts

    def _storable(self, text: str, name: str) -> str:
        """A text that the server takes: else an episode would fail in the middle of a run."""
        try:
            return check_text(text, "a text")
        except InvalidOperation as error:
            msg = f"{self.where}: the field {name!r} cannot be told to the server: {error}"
            raise ConfigurationError(msg) from error

    def wrong(self, value: object, name: str, expected: str) -> ConfigurationError:
        """What to say of a field that is not what it should be."""
        found = f"holds {_shown(value)}" if name in self._record else "is missing"
        return ConfigurationError(f"{self.where}: the field {name!r} {found}; expected {expected}.")

    def _pairs(self, name: str, first: str, second: str, expected: str) -> list[tuple[object, object]]:
        """A field's pairs, from the official layout or from the hub's two columns."""
        value = self._record.get(name)
        if isinstance(value, dict):
            columns = cast("dict[str, object]", value)
            firsts, seconds = columns.get(first), columns.get(second)
            if not isinstance(firsts, list) or not isinstance(seconds, list):
                raise self.wrong(columns, name, expected)
            pair = cast("list[object]", firsts), cast("list[object]", seconds)
            if len(pair[0]) != len(pair[1]):
                raise self.wrong(columns, name, f"{expected}, with as many of each")
            return list(zip(*pair, strict=True))
        pairs = cast("list[object]", value) if isinstance(value, list) else None
        if pairs is None or not all(isinstance(one, list) and len(cast("list[object]", one)) == 2 for one in pairs):  # noqa: PLR2004  a pair
            raise self.wrong(cast("object", value), name, expected)
        return [cast("tuple[object, object]", tuple(cast("list[object]", one))) for one in pairs]


def _task(record: _Record) -> Task | None:
    """A question as a task; None where no supporting sentence is there."""
    paragraphs, supporting = record.paragraphs(), record.supporting()
    titles = {one.title for one in paragraphs}
    for title, _ in supporting:
        if title not in titles:
            expected = f"only titles of its context (the distractor setting); {preview(title)!r} is none"
            raise record.wrong([[title]], "supporting_facts", expected)
    wanted = set(supporting)
    gold = tuple(
        Fact(f"{one.title}: {sentence}")
        for one in paragraphs
        for number, sentence in enumerate(one.sentences)
        if sentence and (one.title, number) in wanted
    )
    if not gold:
        return None
    question, kind = record.text("question"), record.optional_text("type")
    supports = {title for title, _ in supporting}
    return Task(
        task_id=f"hotpotqa-{record.text('_id', 'id')}",
        query=question,
        answer=record.text("answer"),
        messages=tuple(one.message for one in paragraphs if one.title in supports),
        distractors=tuple(one.message for one in paragraphs if one.title not in supports),
        gold=gold,
        facts=gold,
        key_items=key_items(question),
        labels={"source": "hotpotqa"} | ({} if kind is None else {"type": kind}),
    )


def _shown(value: object) -> str:
    """A value in a message."""
    return preview(json.dumps(value, ensure_ascii=False, default=str), 80)
