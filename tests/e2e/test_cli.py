"""Every command as a person or a script runs it: a process of its own."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp._version import __version__

if TYPE_CHECKING:
    from pathlib import Path

MEMORY_FIELDS = {
    "memory_id",
    "content",
    "memory_type",
    "metadata",
    "version",
    "created_at",
    "updated_at",
    "expires_at",
    "deleted",
}


class Told:
    """A folder with a small story in it, and the ids of what it holds."""

    def __init__(self, place: Any, ids: dict[str, str]) -> None:
        self.place = place
        self.ids = ids

    def json(self, *arguments: str) -> Any:
        return self.place.run(*arguments, "--json").json()


async def _tell(place: Any, tools_of: Any) -> dict[str, str]:
    async with place.stdio() as client:
        call = tools_of(client)
        ids: dict[str, str] = {}
        for name, content in (
            ("key", "The key is in the drawer."),
            ("cat", "The cat is called Miso."),
            ("old", "Gone."),
        ):
            added = await call("Add_memory", content=content, memory_type="fact", metadata={"about": name})
            ids[name] = added["memory_id"]
        await call("Update_memory", memory_id=ids["key"], content="The key hangs by the door.")
        await call("Delete_memory", memory_id=ids["old"], confirmation=True)
        opened = await call(
            "Append_context", messages=["How is a coffee machine descaled?", "When does the train leave?"]
        )
        ids["session"] = opened["session_id"]
        await call("Filter_context", criteria="coffee machine", session_id=ids["session"])
        return ids


@pytest.fixture(scope="module")
def story(new_place: Any, tools_of: Any) -> Told:
    """The story, to be looked at."""
    place = new_place()
    return Told(place, asyncio.run(_tell(place, tools_of)))


@pytest.fixture
def own_story(place: Any, tools_of: Any) -> Told:
    """The story, to be changed."""
    return Told(place, asyncio.run(_tell(place, tools_of)))


def test_memories_list_shows_what_is_live_last_changed_first(story: Told) -> None:
    listed = story.json("memories", "list")
    assert [one["memory_id"] for one in listed] == [story.ids["key"], story.ids["cat"]]
    assert all(set(one) == MEMORY_FIELDS for one in listed)
    assert listed[0]["content"] == "The key hangs by the door."
    assert listed[0]["version"] == 2
    assert listed[0]["metadata"] == {"about": "key"}
    assert listed[0]["created_at"].endswith("Z")
    assert [one["memory_id"] for one in story.json("memories", "list", "--limit", "1")] == [story.ids["key"]]
    everything = story.json("memories", "list", "--all")
    assert {one["memory_id"]: one["deleted"] for one in everything}[story.ids["old"]] is True
    assert story.json("memories", "list", "--namespace", "other") == []


def test_memories_list_is_a_table_for_people(story: Told) -> None:
    shown = story.place.run("memories", "list")
    assert shown.status == 0
    lines = shown.out.splitlines()
    assert lines[0].split() == ["id", "changed", "type", "content"]
    assert any(story.ids["cat"] in line and "The cat is called Miso." in line for line in lines)
    assert "No memories here yet." in story.place.run("memories", "list", "--namespace", "other").out


def test_memories_search_ranks_and_scores(story: Told) -> None:
    found = story.json("memories", "search", "what is the cat called")
    assert found[0]["memory_id"] == story.ids["cat"]
    assert all(set(one) == MEMORY_FIELDS | {"score"} for one in found)
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert len(story.json("memories", "search", "the", "--limit", "1")) <= 1


def test_memories_show_and_history_tell_who_did_what(story: Told) -> None:
    shown = story.json("memories", "show", story.ids["old"])
    assert set(shown) == MEMORY_FIELDS
    assert shown["deleted"] is True
    history = story.json("memories", "history", story.ids["key"])
    assert [(one["kind"], one["version"], one["content"]) for one in history] == [
        ("add", 1, "The key is in the drawer."),
        ("update", 2, "The key hangs by the door."),
    ]
    assert all(set(one) == MEMORY_FIELDS | {"kind", "actor", "session_id", "at"} for one in history)
    assert {one["actor"] for one in history} == {"policy"}
    assert "There is no memory 'mem_none' here" in story.place.run("memories", "show", "mem_none").error()
    assert "There is no memory" in story.place.run("memories", "history", story.ids["key"], "--namespace", "b").error()


def test_memories_duplicates_lists_what_may_be_cleaned_up_beside_a_server(place: Any, tools_of: Any) -> None:
    async def told() -> dict[str, str]:
        async with place.stdio() as client:
            call = tools_of(client)
            texts = {
                "one": ("The key is in the kitchen drawer.", "fact"),
                "two": ("The key is in the kitchen drawer!", "fact"),
                "old": ("The office is in Oslo, on the third floor of the tower.", "place"),
                "new": ("The office is in Bergen, on the third floor of the tower.", "place"),
                "end": ("Parcel comes.", None),
            }
            ids: dict[str, str] = {}
            for name, (content, memory_type) in texts.items():
                metadata = {"expires_at": (datetime.now(UTC) + timedelta(days=2)).isoformat()} if name == "end" else {}
                added = await call("Add_memory", content=content, memory_type=memory_type, metadata=metadata)
                ids[name] = added["memory_id"]
            for form in (["--json"], []):
                done = await asyncio.to_thread(place.run, "memories", "duplicates", "--threshold", "0.97", *form)
                outputs.append(done)
            return ids

    outputs: list[Any] = []
    ids = asyncio.run(told())
    found = outputs[0].json()
    assert (found["compared"], found["by"], found["threshold"]) == (5, "words", 0.97)
    assert [[one["memory_id"] for one in group["memories"]] for group in found["duplicates"]] == [
        [ids["one"], ids["two"]]
    ]
    assert set(found["duplicates"][0]["memories"][0]) == MEMORY_FIELDS
    assert [(one["older"]["memory_id"], one["newer"]["memory_id"]) for one in found["replaced"]] == [
        (ids["old"], ids["new"])
    ]
    assert [one["memory_id"] for one in found["expiring"]] == [ids["end"]]
    assert found["expired"] == found["unchanged"] == []
    shown = outputs[1].out
    for said in (
        "5 memories compared (share of words). Nothing was changed.",
        "Near-duplicates",
        "Expire within a week",
        *ids.values(),
    ):
        assert said in shown
    assert "Not changed for" not in shown
    assert place.run("memories", "duplicates", "--threshold", "2").status == 2


def test_memories_are_deleted_and_restored(own_story: Told) -> None:
    key, run = own_story.ids["key"], own_story.place.run
    assert "--yes" in run("memories", "delete", key, "--json").error()
    refused = run("memories", "delete", key, text="n\n")
    assert refused.status == 1
    assert "Traceback" not in refused.err
    assert own_story.json("memories", "delete", key, "--yes") == {"memory_id": key, "deleted": True}
    assert key not in {one["memory_id"] for one in own_story.json("memories", "list")}
    restored = own_story.json("memories", "restore", key)
    assert (restored["content"], restored["deleted"]) == ("The key hangs by the door.", False)
    assert own_story.json("memories", "restore", key, "--version", "1")["content"] == "The key is in the drawer."
    assert "has no version 99" in run("memories", "restore", key, "--version", "99").error()
    history = own_story.json("memories", "history", key)
    assert [(one["kind"], one["actor"]) for one in history[2:]] == [
        ("delete", "user"),
        ("restore", "user"),
        ("restore", "user"),
    ]


def test_sessions_are_listed_and_shown(story: Told) -> None:
    listed = story.json("sessions", "list")
    assert [one["session_id"] for one in listed] == [story.ids["session"]]
    assert set(listed[0]) == {"session_id", "created_at", "used_at", "expires_at"}
    active = story.json("sessions", "show", story.ids["session"])
    assert [one["content"] for one in active] == ["When does the train leave?"]
    assert set(active[0]) == {"message_id", "role", "content", "created_at", "state", "tokens"}
    everything = story.json("sessions", "show", story.ids["session"], "--all")
    assert [one["state"] for one in everything] == ["filtered", "active"]
    assert "When does the train leave?" in story.place.run("sessions", "show", story.ids["session"]).out
    assert "There is no session 'ctx_none'" in story.place.run("sessions", "show", "ctx_none").error()


def test_filtered_messages_are_restored_to_their_session(own_story: Told) -> None:
    session = own_story.ids["session"]
    restored = own_story.json("sessions", "restore", session)
    assert restored == {"session_id": session, "restored": ["msg_1"]}
    assert [one["content"] for one in own_story.json("sessions", "show", session)] == [
        "How is a coffee machine descaled?",
        "When does the train leave?",
    ]
    assert own_story.json("sessions", "restore", session)["restored"] == []
    assert "has no message msg_99" in own_story.place.run("sessions", "restore", session, "msg_99").error()


def test_doctor_finds_nothing_wrong_with_a_sound_folder(story: Told) -> None:
    findings = {one["what"]: one for one in story.json("doctor", "--deep")}
    assert findings.pop("in use")["state"] == "note"
    assert {one["state"] for one in findings.values()} == {"ok"}
    assert findings["index and ledger"]["found"] == "agree on 2 memories of all namespaces"
    assert all(set(one) == {"what", "state", "found", "todo"} for one in findings.values())
    assert findings["ledger"]["found"] == "2 memories, 5 operations"
    assert "whole" in findings["integrity"]["found"]


def test_doctor_says_which_files_are_missing_and_what_to_do(place: Any) -> None:
    found = place.run("doctor", AGEMEM_EMBEDDING="", AGEMEM_CONTEXT__TOKENIZER="")
    assert found.status == 1
    assert "all-MiniLM-L6-v2, o200k_base" in found.out
    assert "→ files: run `agemem-mcp assets pull`" in found.out


@pytest.mark.parametrize("name", ["ledger.db", "sessions.db"])
def test_doctor_finds_a_damaged_database(own_story: Told, name: str) -> None:
    own_story.place.end_daemon()
    path = own_story.place.data / name
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 8000)
    found = own_story.place.run("doctor", "--deep")
    assert found.status == 1
    assert "Traceback" not in found.err
    words = " ".join(found.out.split())
    assert "damaged" in words or "malformed" in words
    assert name in words


def test_doctor_names_the_process_that_has_the_folder_open(place: Any) -> None:
    server = place.serve_http().ready()
    findings = {one["what"]: one for one in place.run("doctor", "--json").json()}
    assert findings["in use"]["state"] == "note"
    assert str(server.process.pid) in findings["in use"]["found"]


def test_the_demo_tells_its_story_in_this_process_and_leaves_nothing_behind(place: Any) -> None:
    shown = place.run("demo")
    assert shown.status == 0, shown.err
    assert "Filter_context(criteria='descaling the coffee machine'" in shown.out
    assert "Removed 1 message" in shown.out
    assert not place.data.exists()


def test_the_demo_drives_a_running_server_in_a_namespace_of_its_own(place: Any) -> None:
    server = place.serve_http(AGEMEM_TOKEN="a-token")
    steps = place.run("demo", "--url", f"{server.url}/mcp", "--json", AGEMEM_TOKEN="a-token").json()
    assert [set(step) for step in steps] == [{"tool", "arguments", "text", "result"}] * len(steps)
    assert len({step["tool"] for step in steps}) == 8
    assert place.run("memories", "list", "--json").json() == []
    kept = place.run("memories", "list", "--namespace", "demo", "--json").json()
    assert {one["memory_id"] for one in kept} == {
        steps[0]["result"]["memory_id"],
        steps[2]["result"]["memory_id"],
    }
    said = place.run("demo", "--url", f"{server.url}/mcp").error()
    assert "AGEMEM_TOKEN" in said


def test_the_demo_says_when_no_server_answers(place: Any, free_port: int) -> None:
    said = place.run("demo", "--url", f"http://127.0.0.1:{free_port}/mcp").error()
    assert f"http://127.0.0.1:{free_port}/mcp" in said
    assert "agemem-mcp serve --transport http" in said


def test_all_commands_work_beside_a_server_and_are_carried_out_by_it(own_story: Told) -> None:
    place, ids = own_story.place, own_story.ids
    place.end_daemon()
    server = place.serve_http().ready()
    assert len(own_story.json("memories", "list")) == 2
    assert own_story.json("memories", "show", ids["key"])["version"] == 2
    assert len(own_story.json("memories", "history", ids["key"])) == 2
    assert len(own_story.json("sessions", "list")) == 1
    assert len(own_story.json("sessions", "show", ids["session"])) == 1
    assert [hit["memory_id"] for hit in own_story.json("memories", "search", "spare key")][:1] == [ids["key"]]
    assert own_story.json("memories", "delete", ids["key"], "--yes")["deleted"] is True
    assert own_story.json("memories", "restore", ids["key"])["deleted"] is False
    assert own_story.json("sessions", "restore", ids["session"])["restored"]
    assert place.holder() == server.process.pid


def test_files_are_pulled_from_a_folder(place: Any, assets_dir: Path) -> None:
    pulled = place.run("assets", "pull", "--from", str(assets_dir), "--json").json()
    assert {one["what"]: one["state"] for one in pulled} == {"all-MiniLM-L6-v2": "installed", "o200k_base": "installed"}
    assert all(set(one) == {"what", "state", "from", "error"} for one in pulled)
    findings = {
        one["what"]: one
        for one in place.run("doctor", "--deep", "--json", AGEMEM_EMBEDDING="", AGEMEM_CONTEXT__TOKENIZER="").json()
    }
    assert findings["files"]["state"] == "ok"


def test_pulling_from_a_folder_without_the_files_says_so(place: Any) -> None:
    empty = place.root / "empty"
    empty.mkdir()
    assert str(empty) in place.run("assets", "pull", "--from", str(empty)).error()


def test_the_version_is_told_without_loading_the_program(place: Any) -> None:
    entry = "import sys; from agemem_mcp._entry import main; sys.argv = ['agemem-mcp', '--version']; main()"
    before = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "pass"],
        env=place.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    after = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", entry],
        env=place.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert after.stdout.strip() == f"agemem-mcp {__version__}"
    loaded = _imported(after.stderr) - _imported(before.stderr)
    assert {"agemem_mcp", "agemem_mcp._entry", "agemem_mcp._version"} <= loaded
    foreign = {name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"agemem_mcp", "agemem_mcp._entry", "agemem_mcp._version"}


def _imported(importtime: str) -> set[str]:
    lines = [line.rsplit("|", 1) for line in importtime.splitlines() if line.startswith("import time:")]
    return {line[1].strip() for line in lines[1:]}


def test_an_unknown_setting_is_refused_with_what_was_probably_meant(place: Any) -> None:
    said = place.run("doctor", AGEMEM_DATADIR="/tmp/x").error()
    assert said == "AGEMEM_DATADIR is not a setting. Did you mean AGEMEM_DATA_DIR?"
    assert "AGEMEM_PORT" in place.run("serve", AGEMEM_PORT="many").error()
    assert "AGEMEM_FILTER__THETA" in place.run("memories", "list", AGEMEM_FILTER__THETA="7").error()


def test_another_distribution_adds_a_command(place: Any) -> None:
    site = place.root / "site"
    info = site / "weather-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: weather\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[agemem_mcp.commands]\nweather = weather:app\n", encoding="utf-8")
    (site / "weather.py").write_text(
        "import typer\n\napp = typer.Typer(help='Tell the weather.')\n\n\n"
        "@app.command()\ndef today(place: str) -> None:\n    typer.echo(f'Rain in {place}.')\n\n\n"
        "@app.command()\ndef broken() -> None:\n    from agemem_mcp.errors import StoreError\n"
        "    raise StoreError('The barometer fell.')\n",
        encoding="utf-8",
    )
    path = {"PYTHONPATH": ":".join([str(site), *filter(None, [place.environment().get("PYTHONPATH")])])}
    assert place.run("weather", "today", "Porto", **path).out == "Rain in Porto.\n"
    assert place.run("weather", "broken", **path).error() == "The barometer fell."
    assert "Tell the weather." in place.run("--help", **path).out
    assert place.run("weather", "today", "Porto").status == 2


def test_commands_on_a_folder_without_memory_say_so(place: Any) -> None:
    said = place.run("memories", "list").error()
    assert f"There is no memory in {place.data} yet" in said
    assert not place.data.exists()
