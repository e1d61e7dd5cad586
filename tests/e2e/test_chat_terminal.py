"""``agemem-mcp chat`` with a person: keys go into a pseudo-terminal, and what is shown comes out of it."""

from __future__ import annotations

import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from typing import Any, Self

import pytest

_DEADLINE_S = 60.0
_REACTION_S = 5.0
_IN_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that its Ctrl-C is this process's
os.execv(sys.executable, [sys.executable, "-m", "agemem_mcp", "chat", *sys.argv[1:]])
"""
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|.)")


class Terminal:
    """A chat in a pseudo-terminal, and what it shows there."""

    def __init__(self, place: Any, *arguments: str, **env: str) -> None:
        environment = place.environment(**{"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", **env})
        environment.pop("NO_COLOR", None)
        self._fd, theirs = os.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _IN_A_TERMINAL, *arguments],
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self._colours = environment["TERM"] != "dumb"
        self.raw = ""
        self._read_to = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(_DEADLINE_S)
        os.close(self._fd)

    def until(self, mark: str) -> str:
        """What is shown up to and with this text, without colours and the like."""
        end = time.monotonic() + _DEADLINE_S
        while mark not in self.raw[self._read_to :]:
            assert time.monotonic() < end, f"waited in vain for {mark!r}: {self.raw[self._read_to :]!r}"
            if select.select([self._fd], [], [], 0.1)[0]:
                self.raw += os.read(self._fd, 65536).decode()
        start, self._read_to = self._read_to, self.raw.index(mark, self._read_to) + len(mark)
        return _ESCAPES.sub("", self.raw[start : self._read_to]).replace("\r", "")

    def prompt(self) -> str:
        """What is shown up to the next prompt, with what belongs to that."""
        shown = self.until("you> ").removesuffix("you> ").strip()
        if self._colours:
            self.until("\x1b[0m")
        return shown

    def types(self, line: str) -> str:
        """Type a line at the prompt; what is shown up to the next one."""
        self.presses(line + "\n")
        return self.prompt().removeprefix(line).strip()

    def presses(self, keys: str) -> None:
        """Press keys."""
        os.write(self._fd, keys.encode())

    def interrupts(self) -> None:
        """Press Ctrl-C until there is a reaction: one in the instant before the library waits for keys is not heard."""
        end = time.monotonic() + _DEADLINE_S
        while time.monotonic() < end:
            self.presses("\x03")
            if select.select([self._fd], [], [], _REACTION_S)[0]:
                return
        pytest.fail("Ctrl-C was pressed in vain")

    def ended(self) -> tuple[int, str]:
        """Wait for the end: the status, and what was shown last."""
        end = time.monotonic() + _DEADLINE_S
        while time.monotonic() < end:
            if select.select([self._fd], [], [], 0.1)[0]:
                try:
                    more = os.read(self._fd, 65536)
                except OSError:  # how Linux says that the other side was closed
                    break
                if not more:
                    break
                self.raw += more.decode()
        return self._process.wait(_DEADLINE_S), _ESCAPES.sub("", self.raw[self._read_to :]).replace("\r", "")


def test_a_person_talks_in_a_terminal(place: Any) -> None:
    with Terminal(place, "--policy", "scripted:echo", "--kit", "rag") as terminal:
        assert terminal.prompt().startswith("You talk with scripted:echo. Its memory: ")
        assert "/memories [QUERY]" in terminal.types("/help")
        shown = terminal.types("I like tea.")
        assert re.search(r'\+ Add_memory "I like tea." → mem_\w+', shown)
        assert " of 8,192 tokens (" in shown
        assert "I like tea." in terminal.types("/memories")
        assert "I like tea." in terminal.types("/memories tea")
        context = terminal.types("/context")
        assert re.search(r"^user +\d+ +I like tea\.$", context, re.MULTILINE)
        assert terminal.types("/undo").endswith("is deleted again: I like tea.")
        assert terminal.types("/memories") == "There are no memories here yet."
        assert terminal.types("/forget").startswith("There is no command /forget.")
        assert terminal.types("/new").startswith("A new conversation.")
        assert terminal.types("/context").startswith("The context is empty")
        terminal.presses("/quit\n")
        assert terminal.ended()[0] == 0
        assert "\x1b[1" in terminal.raw
    history = place.data / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "I like tea.\n" in history.read_text(encoding="utf-8")


def test_lines_typed_in_an_earlier_chat_are_one_key_away(place: Any) -> None:
    with Terminal(place, "--policy", "scripted:echo") as terminal:
        terminal.prompt()
        terminal.types("A line worth saying again.")
        terminal.presses("\x04")
        status, last = terminal.ended()
    assert status == 0
    session = re.search(r"--session (ctx_\w+) goes on with this conversation", last)
    assert session is not None
    with Terminal(place, "--policy", "scripted:echo", "--session", session[1]) as terminal:
        assert " of 8,192 tokens (" in terminal.prompt()
        terminal.presses("\x1b[A\n")
        assert terminal.prompt().count("A line worth saying again.") == 2
        terminal.presses("\x04")
        assert terminal.ended()[0] == 0


def test_ctrl_c_twice_at_the_prompt_ends_a_chat(place: Any) -> None:
    with Terminal(place, "--policy", "scripted:echo") as terminal:
        terminal.prompt()
        terminal.interrupts()
        assert "Ctrl-C once more ends the chat" in terminal.prompt()
        assert terminal.types("hello").startswith("hello")
        terminal.interrupts()
        assert "Ctrl-C once more ends the chat" in terminal.prompt()
        terminal.interrupts()
        assert terminal.ended()[0] == 0


def test_a_dumb_terminal_gets_no_colours(place: Any) -> None:
    with Terminal(place, "--policy", "scripted:echo", TERM="dumb") as terminal:
        terminal.prompt()
        assert terminal.types("hello").startswith("hello")
        terminal.presses("/quit\n")
        assert terminal.ended()[0] == 0
        assert "\x1b[1" not in terminal.raw


def test_a_chat_outlives_the_process_that_serves_its_memory(place: Any) -> None:
    with Terminal(place, "--policy", "scripted:echo", "--kit", "rag") as terminal:
        terminal.prompt()
        terminal.types("I like tea.")
        os.kill(place.owner()["pid"], signal.SIGKILL)
        terminal.until("What it acknowledged is stored.")
        assert "Error: The memory server did not answer" in terminal.types("I like milk.")
        assert 'Add_memory "I like milk."' in terminal.types("I like milk.")
        terminal.presses("/quit\n")
        assert terminal.ended()[0] == 0


def test_a_chat_ends_quietly_after_its_server_did(place: Any) -> None:
    server = place.serve_http().ready()
    with Terminal(place, "--policy", "scripted:echo", "--url", f"{server.url}/mcp") as terminal:
        terminal.prompt()
        assert terminal.types("hello").startswith("hello")
        assert "Memories cannot be listed here" in terminal.types("/memories")
        assert "Changes cannot be taken back here" in terminal.types("/undo")
        server.process.end()
        assert "Error: The memory server did not answer" in terminal.types("hello?")
        assert "Error: No memory server could be used" in terminal.types("hello?")
        terminal.presses("/quit\n")
        status, last = terminal.ended()
    assert (status, "Traceback" in last) == (0, False)


def test_json_without_a_message_is_refused_in_a_terminal(place: Any) -> None:
    with Terminal(place, "--policy", "scripted:echo", "--json") as terminal:
        status, shown = terminal.ended()
    assert status == 1
    assert "Error: --json is for chats without a person" in shown
