"""Decisions in drills: what was due is told from what was written, whatever either copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch", reason="training needs torch: `pip install 'agemem-mcp[train]'`")

from agemem_policies.policy import Completion
from agemem_policies.protocol import Call, Turn, render
from decisions import decisions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_training.sampling import Asked

DUE = {"Add_memory", "Update_memory", "Delete_memory", "answer", "unknown"}


class Always:
    """A sampler that writes the same turn, whatever is asked."""

    def __init__(self, text: str) -> None:
        self._text = text

    def sample(self, asked: Sequence[Asked]) -> list[Completion]:
        return [Completion(self._text) for _ in asked]

    def forget(self) -> None:
        """Nothing is kept."""


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (
            render(Turn("Tom works", (Call("Add_memory", {"content": "Tom works.", "memory_type": "fact"}),))),
            "Add_memory",
        ),
        (render(Turn("not there", answer="unknown")), "unknown"),
        (render(Turn("Tom likes tea", answer="tea")), "answer"),
        (render(Turn("done", answer="ok")), "ok"),
        ("<think>new", "unreadable"),
    ],
)
def test_every_decision_that_was_due_is_counted_under_what_was_written_instead(text: str, written: str) -> None:
    counted = decisions(Always(text), "You manage memory.", "test", 10)  # pyright: ignore[reportArgumentType]  as much of one as is used
    assert {due for due, _ in counted} == DUE
    assert {made for _, made in counted} == {written}
    assert counted["Update_memory", written] >= 10
    assert counted["unknown", written] == 10
