"""``agemem-mcp chat`` as a person or a script runs it: a process of its own, and a terminal where it matters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from anyio.from_thread import start_blocking_portal

from agemem_mcp.settings import load_settings
from agemem_policies.agent import AgentOptions
from agemem_policies.chat.background import Background
from agemem_policies.chat.conversation import Conversation
from agemem_policies.chat.places import FolderPlace
from agemem_policies.chat.undoing import Undoing, Witness
from agemem_policies.protocol import Call, Turn
from agemem_policies.scripted import TOUR, ScriptedPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_policies.policy import Prompt

_DEADLINE_S = 60.0
ECHO = ("chat", "--policy", "scripted:echo")
TURN_FIELDS = {
    "message",
    "answer",
    "stop_reason",
    "calls",
    "prompt_tokens",
    "completion_tokens",
    "context_tokens",
    "seconds",
}


def test_the_tour_tells_its_story_without_a_terminal_and_leaves_nothing_behind(place: Any) -> None:
    shown = place.run("chat", "--policy", "scripted:tour", text="")
    assert shown.status == 0, shown.err
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert [line.removeprefix("you> ") for line in lines if line.startswith("you> ")] == list(TOUR)
    operations = [line.split()[1] for line in lines if re.match(r"  [-+~?*/] [A-Z]", line)]
    assert operations == [
        "Add_memory",
        "Add_memory",
        "Add_memory",
        "Retrieve_memory",
        "Update_memory",
        "Filter_context",
        "Retrieve_memory",
        "Delete_memory",
        "Summary_context",
        "Retrieve_memory",
    ]
    assert "Nice to meet you, Maya. I'll remember that." in lines
    assert lines[-2] == "You fly to Porto on 4 May at 09:15, and you live in Lisbon."
    assert sum(" of 8,192 tokens (" in line for line in lines) == len(TOUR) - 1
    assert "\x1b" not in shown.out
    assert not place.data.exists()


def test_the_tour_as_json_is_one_object_and_nothing_else(place: Any) -> None:
    told = place.run("chat", "--policy", "scripted:tour", "--json", text="").json()
    assert set(told) == {"session_id", "policy", "turns"}
    assert told["policy"] == "scripted:tour"
    assert all(set(turn) == TURN_FIELDS for turn in told["turns"])
    assert [turn["message"] for turn in told["turns"]] == [line for line in TOUR if line != "/new"]
    assert {turn["stop_reason"] for turn in told["turns"]} == {"answer"}
    calls = [call for turn in told["turns"] for call in turn["calls"]]
    assert len(calls) == 10
    assert all(set(call) == {"name", "arguments", "text", "is_error"} and not call["is_error"] for call in calls)
    assert told["turns"][-1]["answer"] == "You fly to Porto on 4 May at 09:15, and you live in Lisbon."
    # Another conversation: its context is as short as it was at first.
    assert told["turns"][-1]["context_tokens"] < told["turns"][-3]["context_tokens"]


def test_the_tour_in_a_folder_of_ones_own_stays_there(place: Any) -> None:
    assert place.run("chat", "--policy", "scripted:tour", "--data-dir", str(place.data)).status == 0
    kept = [one["content"] for one in place.run("memories", "list", "--json").json()]
    assert sorted(kept) == ["Maya moved to Lisbon in March.", "Maya's flight to Porto leaves on 4 May at 09:15."]


def test_messages_are_said_one_after_the_other_in_one_session(place: Any) -> None:
    told = place.run(*ECHO, "--message", "One.", "--message", "/new", "--json").json()
    assert [(turn["message"], turn["answer"]) for turn in told["turns"]] == [("One.", "One."), ("/new", "/new")]
    context = place.run("sessions", "show", told["session_id"], "--json").json()
    assert [one["role"] for one in context] == ["system", "user", "assistant", "user", "assistant"]


def test_stdin_that_is_no_terminal_is_one_message(place: Any) -> None:
    told = place.run(*ECHO, "--json", text="First line.\nSecond line.\n").json()
    assert [turn["answer"] for turn in told["turns"]] == ["First line.\nSecond line."]
    shown = place.run(*ECHO, text="First line.\nSecond line.\n")
    assert shown.out.splitlines()[:2] == ["First line.", "Second line."]
    assert "stdin is empty" in place.run(*ECHO, text=" \n").error()


def test_a_session_is_gone_on_with(place: Any) -> None:
    first = place.run(*ECHO, "--message", "One.", "--json").json()
    again = place.run(*ECHO, "--session", first["session_id"], "--message", "Two.", "--json").json()
    assert again["session_id"] == first["session_id"]
    assert again["turns"][0]["context_tokens"] > first["turns"][0]["context_tokens"]
    shown = place.run(*ECHO, "--session", first["session_id"], "--message", "Three.").out
    assert shown.splitlines()[-1] == f"--session {first['session_id']} goes on with this conversation."


def test_what_a_chat_remembers_is_seen_by_other_commands(place: Any) -> None:
    told = place.run(*ECHO, "--kit", "rag", "--namespace", "tea", "--message", "I like tea.", "--json").json()
    assert [call["name"] for call in told["turns"][0]["calls"]] == ["Add_memory", "Retrieve_memory"]
    [kept] = place.run("memories", "list", "--namespace", "tea", "--json").json()
    assert kept["content"] == "I like tea."
    assert place.run("memories", "list", "--json").json() == []


def test_a_chat_has_all_tools_whatever_clients_are_offered(place: Any) -> None:
    assert place.run(*ECHO, "--message", "One.", "--json", AGEMEM_TOOLS="six").json()["turns"][0]["answer"] == "One."


def test_a_chat_uses_the_memory_of_a_running_server(place: Any, free_port: int) -> None:
    server = place.serve_http(AGEMEM_TOKEN="a-token").ready()
    url = ("--url", f"{server.url}/mcp")
    told = place.run(*ECHO, *url, "--kit", "rag", "--message", "I like tea.", "--json", AGEMEM_TOKEN="a-token").json()
    assert told["turns"][0]["stop_reason"] == "answer"
    assert [one["content"] for one in place.run("memories", "list", "--json").json()] == ["I like tea."]
    assert "AGEMEM_TOKEN" in place.run(*ECHO, *url, "--message", "One.").error()
    nowhere = f"http://127.0.0.1:{free_port}/mcp"
    assert nowhere in place.run(*ECHO, "--url", nowhere, "--message", "One.").error()


def test_bytes_that_are_no_text_do_not_end_a_chat(place: Any) -> None:
    odd = os.fsdecode(b"tea \xff caf\xc3\xa9")
    assert place.run(*ECHO, "--message", odd, "--json").json()["turns"][0]["answer"] == "tea \ufffd café"
    refused = place.run(*ECHO, "--session", odd, "--message", "One.")
    assert "There is no session" in refused.error()
    fed = subprocess.run(
        [sys.executable, "-m", "agemem_mcp", *ECHO, "--json"],
        env=place.environment(),
        input=b"tea \xff",
        capture_output=True,
        check=True,
        timeout=_DEADLINE_S,
    )
    assert json.loads(fed.stdout)["turns"][0]["answer"] == "tea \ufffd"


def test_a_terminal_that_lacks_characters_shows_the_others(place: Any) -> None:
    shown = place.run(*ECHO, "--message", "日本 tea", PYTHONIOENCODING="ascii")
    assert shown.status == 0, shown.err
    assert shown.out.splitlines()[0] == "?? tea"


def test_a_reader_that_leaves_early_is_no_error(place: Any) -> None:
    process = place.start("chat", "--policy", "scripted:tour", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    process.stdout.close()
    assert process.wait() == 0
    assert process.log == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--policy", "parrot"), "parrot"),
        (("--policy", "scripted:parrot"), "There is no script 'parrot'."),
        ((), "openai:MODEL@URL"),
        ((), "AGEMEM_POLICY__NAME"),
        (("--policy", "scripted:echo", "--kit", "all"), "There is no kit 'all'. There are agemem,"),
        (("--policy", "scripted:echo", "--session", "ctx_none"), "`agemem-mcp sessions list` shows those alive"),
        (("--policy", "scripted:echo", "--namespace", "a b"), "AGEMEM_NAMESPACE"),
        (("--policy", "scripted:echo", "--data-dir", "/dev/null/memory"), "/dev/null/memory"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(place: Any, arguments: Sequence[str], said: str) -> None:
    for form in ((), ("--json",)):
        refused = place.run("chat", *arguments, *form, "--message", "One.")
        assert said in refused.error()
        assert refused.out == ""


def test_the_policy_may_come_from_the_settings(place: Any) -> None:
    told = place.run("chat", "--message", "One.", "--json", AGEMEM_POLICY__NAME="scripted:echo").json()
    assert told["policy"] == "scripted:echo"


def test_an_endpoint_that_is_down_ends_a_chat_with_status_1_and_its_record(place: Any, free_port: int) -> None:
    policy = ("chat", "--policy", f"openai:small@http://127.0.0.1:{free_port}/v1")
    failed = place.run(*policy, "--message", "One.", "--message", "Two.", "--json")
    assert str(free_port) in failed.error()
    [turn] = json.loads(failed.out)["turns"]
    assert set(turn) == {*TURN_FIELDS, "error"}
    assert (turn["stop_reason"], turn["answer"]) == ("provider_error", None)
    assert place.run(*policy, "--message", "One.").error() == turn["error"]


def _first_id(prompt: Prompt) -> str:
    said = next(one.content for one in prompt.messages if "Stored as mem_" in one.content)
    return said.split("Stored as ")[1].split(".", maxsplit=1)[0]


def test_changes_are_taken_back_by_the_owner_of_the_folder(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in place.environment().items():
        monkeypatch.setenv(name, value)
    policy = ScriptedPolicy(
        [
            Turn("Keep it.", (Call("Add_memory", {"content": "Maya is a nurse."}),)),
            lambda prompt: Turn(
                "Change it.",
                (Call("Update_memory", {"memory_id": _first_id(prompt), "content": "Maya was a nurse."}),),
            ),
            lambda prompt: Turn(
                "Drop it.", (Call("Delete_memory", {"memory_id": _first_id(prompt), "confirmation": True}),)
            ),
            Turn("Done.", answer="Done."),
        ]
    )
    folder = FolderPlace(load_settings())
    began = datetime.now(UTC)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(folder.tools()) as tools:
        background = Background(portal)
        witness = Witness(tools)
        conversation = Conversation(policy, witness, AgentOptions())
        background.wait_for(lambda: conversation.say("Three changes.", lambda _: None))
        undoing = Undoing(folder, witness, began)
        said = [background.wait_for(undoing.undo) for _ in range(4)]
    [memory_id] = witness.changed
    assert said == [
        f"{memory_id} is back: Maya was a nurse.",
        f"{memory_id} says again: Maya is a nurse.",
        f"{memory_id} is deleted again: Maya is a nurse.",
        "There is nothing more to take back.",
    ]
    history = place.run("memories", "history", memory_id, "--json").json()
    assert [(one["kind"], one["actor"]) for one in history] == [
        ("add", "policy"),
        ("update", "policy"),
        ("delete", "policy"),
        ("restore", "user"),
        ("restore", "user"),
        ("delete", "user"),
    ]
