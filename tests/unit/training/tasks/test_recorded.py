"""Tasks made from a ledger: real memories, written by a real service, read beside it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, get_args

import pytest

from agemem_mcp.domain.memory import Actor, Scope
from agemem_mcp.domain.operations import AddMemory, DeleteMemory, UpdateMemory
from agemem_mcp.errors import ConfigurationError
from agemem_mcp.service.long_term import Origin
from agemem_training.tasks.cloze import fact_of
from agemem_training.tasks.recorded import DISTRACTORS, LONGEST, RecordedTasks, make_tasks, read_recording, survey
from agemem_training.tasks.source import Split, split_of
from agemem_training.tasks.task import Change

if TYPE_CHECKING:
    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.settings import Settings
    from agemem_training.tasks.recorded import Recording
    from agemem_training.tasks.task import Task

SPLITS: tuple[Split, ...] = get_args(Split)


class Writer:
    """Writes to a service's memory as a session, the user or the environment would."""

    def __init__(self, service: MemoryService) -> None:
        self.service = service

    async def add(
        self, text: str, session: str | None, *, actor: Actor = Actor.POLICY, namespace: str = "default"
    ) -> str:
        """Add a memory; returns its id."""
        origin = Origin(actor=actor, session_id=session)
        added = await self.service.long_term.add(
            Scope(namespace=namespace), AddMemory(content=text, metadata={}), origin
        )
        return added.memory_id

    async def update(self, memory_id: str, text: str, session: str, **metadata: str) -> None:
        """Update a memory."""
        operation = UpdateMemory(memory_id=memory_id, content=text, metadata=dict(metadata))
        await self.service.long_term.update(Scope(), operation, Origin(session_id=session))

    async def delete(self, memory_id: str, session: str | None, *, actor: Actor = Actor.POLICY) -> None:
        """Delete a memory."""
        operation = DeleteMemory(memory_id=memory_id, confirmation=True)
        await self.service.long_term.delete(Scope(), operation, Origin(actor=actor, session_id=session))

    async def restore(self, memory_id: str, session: str) -> None:
        """Bring a memory back."""
        await self.service.long_term.restore(Scope(), memory_id, None, Origin(session_id=session))


@pytest.fixture
def writer(lexical_service: MemoryService) -> Writer:
    """Of a service that stays open while its ledger is read."""
    return Writer(lexical_service)


def all_tasks(recording: Recording) -> dict[str, Task]:
    """The tasks of all splits by session."""
    tasks = [task for split in SPLITS for task in make_tasks(recording, split)]
    return {task.task_id.removeprefix("recorded-"): task for task in tasks}


async def read(settings: Settings) -> dict[str, Task]:
    return all_tasks(await read_recording(settings.data_dir))


async def test_what_a_session_stored_is_told_again_and_its_last_text_asked(
    writer: Writer, lexical_settings: Settings
) -> None:
    await writer.add("Maya lives in Oslo.", "s1")
    await writer.add("Maya's dog is called Rex.", "s1", actor=Actor.USER)
    await writer.add("Likes it quiet", "s1")
    tasks = await read(lexical_settings)
    assert list(tasks) == ["s1"]
    task = tasks["s1"]
    assert task.messages == ("Maya lives in Oslo.", "Maya's dog is called Rex.", "Likes it quiet")
    assert (task.query, task.answer) == ("Complete: Maya's dog is called ____.", "Rex")
    assert task.gold == (fact_of("Maya's dog is called Rex."),)
    assert task.facts == tuple(map(fact_of, task.messages))
    assert (task.changes, task.background, task.distractors) == ((), (), ())
    assert (task.key_items, task.labels) == (("Maya",), {"source": "recorded"})


async def test_a_text_that_was_replaced_or_deleted_is_a_change(writer: Writer, lexical_settings: Settings) -> None:
    home = await writer.add("Maya lives in Oslo.", "s1")
    pet = await writer.add("Maya's dog is called Rex.", "s1")
    await writer.update(home, "Maya lives in Rome.", "s1")
    await writer.update(home, "Maya lives in Lima.", "s1")
    await writer.delete(pet, "s1")
    task = (await read(lexical_settings))["s1"]
    assert task.messages[2:] == (
        "Maya lives in Rome.",
        "Maya lives in Lima.",
        "This is no longer true: Maya's dog is called Rex.",
    )
    lima = fact_of("Maya lives in Lima.")
    assert task.facts == task.gold == (lima,)
    assert task.changes == (
        Change(fact_of("Maya lives in Oslo."), lima),
        Change(fact_of("Maya's dog is called Rex.")),
        Change(fact_of("Maya lives in Rome."), lima),
    )


async def test_a_long_session_makes_several_tasks_of_one_split(writer: Writer, lexical_settings: Settings) -> None:
    ids = [await writer.add(f"The code of locker {number} is {number}77.", "s1") for number in range(LONGEST + 3)]
    await writer.update(ids[0], "The code of locker 0 is 4242.", "s1")
    recording = await read_recording(lexical_settings.data_dir)
    tasks = all_tasks(recording)
    assert [len(one.messages) for one in tasks.values()] == [LONGEST, 4]
    assert list(tasks) == ["s1", "s1.2"]
    # What the first part stored is there before the second begins.
    assert tasks["s1.2"].background == ("The code of locker 0 is 077.",)
    assert tasks["s1.2"].changes == (
        Change(fact_of("The code of locker 0 is 077."), fact_of("The code of locker 0 is 4242.")),
    )
    assert sum(bool(make_tasks(recording, split)) for split in SPLITS) == 1
    assert survey(recording).sessions == 1


async def test_what_was_brought_back_is_no_change(writer: Writer, lexical_settings: Settings) -> None:
    home = await writer.add("Maya lives in Oslo.", "s1")
    await writer.delete(home, "s1")
    await writer.restore(home, "s1")
    task = (await read(lexical_settings))["s1"]
    assert task.messages[2] == "Maya lives in Oslo."
    assert task.changes == ()


async def test_an_older_memory_that_a_session_changed_is_there_before_it(
    writer: Writer, lexical_settings: Settings
) -> None:
    home = await writer.add("Maya lives in Oslo.", "s1")
    await writer.add("Maya plays chess on Mondays.", "s1")
    await writer.update(home, "Maya lives in Lima.", "s2")
    task = (await read(lexical_settings))["s2"]
    assert (task.background, task.messages) == (("Maya lives in Oslo.",), ("Maya lives in Lima.",))
    assert task.changes == (Change(fact_of("Maya lives in Oslo."), fact_of("Maya lives in Lima.")),)


async def test_a_change_of_metadata_alone_is_no_message(writer: Writer, lexical_settings: Settings) -> None:
    home = await writer.add("Maya lives in Oslo.", "s1")
    await writer.update(home, "Maya lives in Oslo.", "s1", tag="home")
    await writer.update(home, "Maya lives in Oslo.", "s2", tag="city")
    tasks = await read(lexical_settings)
    assert list(tasks) == ["s1"]
    assert tasks["s1"].messages == ("Maya lives in Oslo.",)
    assert tasks["s1"].changes == ()


async def test_what_the_environment_stored_is_told_by_nobody(writer: Writer, lexical_settings: Settings) -> None:
    home = await writer.add("Maya lives in Oslo.", "s1", actor=Actor.ENVIRONMENT)
    await writer.update(home, "Maya lives in Lima.", "s1")
    task = (await read(lexical_settings))["s1"]
    assert (task.background, task.messages) == (("Maya lives in Oslo.",), ("Maya lives in Lima.",))


async def test_rows_without_a_session_count_as_one_a_day(writer: Writer, lexical_settings: Settings) -> None:
    await writer.add("Maya lives in Oslo.", None)
    await writer.add("Maya's dog is called Rex.", None)
    (task,) = (await read(lexical_settings)).values()
    assert task.messages == ("Maya lives in Oslo.", "Maya's dog is called Rex.")


async def test_memories_of_other_sessions_on_the_topic_distract(writer: Writer, lexical_settings: Settings) -> None:
    same = [name for name in map(str, range(60)) if split_of(name) == "train"]
    other = next(name for name in map(str, range(60)) if split_of(name) != "train")
    await writer.add("Maya's brother Finn lives in Rome.", same[0])
    await writer.add("Bob lives in Paris.", same[1])
    await writer.add("Finn's brother Juan lives in Quito.", same[2])
    await writer.add("The moon is made of Camembert.", same[2])
    await writer.add("Maya's brother met Lima.", same[3])
    await writer.add("Maya's brother lives in Bonn.", other)
    await writer.add("Maya's brother lives in Lima.", same[4])
    task = (await read(lexical_settings))[same[4]]
    assert task.answer == "Lima"
    assert task.distractors == (
        "Maya's brother Finn lives in Rome.",
        "Finn's brother Juan lives in Quito.",
        "Bob lives in Paris.",
    )


async def test_distractors_are_few(writer: Writer, lexical_settings: Settings) -> None:
    names = [name for name in map(str, range(60)) if split_of(name) == "train"][:9]
    for number, name in enumerate(names):
        await writer.add(f"Maya's flat has the number {number}.", name)
    tasks = await read(lexical_settings)
    assert {len(task.distractors) for task in tasks.values()} == {DISTRACTORS}


async def test_nothing_is_taken_from_another_namespace(writer: Writer, lexical_settings: Settings) -> None:
    await writer.add("Maya lives in Oslo.", "s1")
    await writer.add("Bob lives in Paris.", "s1", namespace="bob")
    await writer.add("Bob lives in Rome.", "s2", namespace="bob")
    assert [task.messages for task in (await read(lexical_settings)).values()] == [("Maya lives in Oslo.",)]
    of_bob = await read_recording(lexical_settings.data_dir, namespace="bob")
    assert {text for task in all_tasks(of_bob).values() for text in task.messages} == {
        "Bob lives in Paris.",
        "Bob lives in Rome.",
    }


async def test_what_the_user_deleted_or_what_expired_is_left_out(writer: Writer, lexical_settings: Settings) -> None:
    await writer.add("Maya lives in Oslo.", "s1")
    secret = await writer.add("Maya's PIN is 4711.", "s1")
    await writer.delete(secret, None, actor=Actor.USER)
    gone = datetime.now(UTC) + timedelta(milliseconds=1)
    operation = AddMemory(content="Maya's parcel comes at 9:30.", metadata={"expires_at": gone.isoformat()})
    await writer.service.long_term.add(Scope(), operation, Origin(session_id="s1"))
    recording = await read_recording(lexical_settings.data_dir)
    taken = survey(recording)
    assert all_tasks(recording)["s1"].messages == ("Maya lives in Oslo.",)
    assert (taken.withheld, taken.memories, taken.previews) == (2, 1, ("Maya lives in Oslo.",))


async def test_a_survey_tells_what_would_be_taken(writer: Writer, lexical_settings: Settings) -> None:
    home = await writer.add("Maya lives in Oslo.", "s1")
    await writer.update(home, "Maya lives in Lima.", "s1")
    await writer.add("Likes it quiet", "s2")
    await writer.add("Rain " * 60, "s3")
    recording = await read_recording(lexical_settings.data_dir)
    taken = survey(recording)
    assert (taken.sessions, taken.memories, taken.changes, taken.withheld) == (3, 3, 1, 0)
    assert taken.tasks == {split: int(split == split_of("s1")) for split in SPLITS}
    assert taken.first_at is not None
    assert taken.last_at is not None
    assert taken.first_at < taken.last_at
    assert taken.previews[1:] == ("Likes it quiet", "Maya lives in Lima.", "Maya lives in Oslo.")
    assert len(taken.previews[0]) <= 80
    shown = str(taken)
    assert str(lexical_settings.data_dir) in shown
    assert "3 memories of 3 sessions, 20" in shown
    assert "They make 1 tasks" in shown
    assert "\n  Maya lives in Lima.\n" in shown


async def test_a_survey_of_nothing_says_so(writer: Writer, lexical_settings: Settings) -> None:
    recording = await read_recording(lexical_settings.data_dir)
    assert "0 memories of 0 sessions." in str(survey(recording))
    with pytest.raises(ConfigurationError, match=r"None of the tasks in .*namespace default falls into the test split"):
        RecordedTasks(recording).tasks("test", seed=0)


async def test_sessions_bound_by_a_memory_are_in_one_split(writer: Writer, lexical_settings: Settings) -> None:
    memory_ids = [await writer.add(f"Maya's flat has the number {number}.", f"s{number}") for number in range(20)]
    for number, memory_id in enumerate(memory_ids[:-1]):
        await writer.update(memory_id, f"Maya's house has the number {number}.", f"s{number + 1}")
    taken = survey(await read_recording(lexical_settings.data_dir))
    assert taken.tasks == {split: 20 * (split == split_of("s0")) for split in SPLITS}


async def test_held_out_tasks_share_no_text_with_those_trained_on(writer: Writer, lexical_settings: Settings) -> None:
    for number in range(60):
        await writer.add(f"Maya's flat has the number {number}.", f"s{number}")
    recording = await read_recording(lexical_settings.data_dir)
    texts = {
        split: {text for task in make_tasks(recording, split) for text in (*task.messages, *task.distractors)}
        for split in SPLITS
    }
    assert all(texts.values())
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    source = RecordedTasks(recording)
    held_out = [task.task_id for task in source.tasks("test", seed=3)]
    assert sorted(held_out) == sorted(task.task_id for task in make_tasks(recording, "test"))
    assert next(source.tasks("train", seed=3)) in make_tasks(recording, "train")


async def test_reading_changes_no_file(writer: Writer, lexical_settings: Settings) -> None:
    await writer.add("Maya lives in Oslo.", "s1")
    ledger = [path for path in lexical_settings.data_dir.rglob("*") if path.is_file() and "ledger" in path.name]
    before = {path: path.read_bytes() for path in ledger if path.suffix != ".db-shm"}
    await read_recording(lexical_settings.data_dir)
    assert before
    assert {path: path.read_bytes() for path in before} == before


async def test_the_environments_settings_have_no_say(
    writer: Writer, lexical_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writer.add("Maya lives in Oslo.", "s1")
    monkeypatch.setenv("AGEMEM_NAMESPACE", "bob")
    monkeypatch.setenv("AGEMEM_DATA_DIR", "/nowhere")
    recording = await read_recording(lexical_settings.data_dir)
    assert list(all_tasks(recording)) == ["s1"]
    assert replace(recording, histories={}).where == f"{lexical_settings.data_dir}, namespace default"


async def test_a_folder_without_a_memory_is_told_and_left_alone(lexical_settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="There is no memory in"):
        await read_recording(lexical_settings.data_dir)
    assert not lexical_settings.data_dir.exists()
