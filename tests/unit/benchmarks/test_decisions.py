"""Decisions in drills: what was due is told from what was written, whatever either copies."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="training needs torch: `pip install 'agemem-mcp[train]'`")

from tests.unit.training.always import Always

from agemem_policies.protocol import Call, Turn, render
from decisions import decisions

DUE = {"Add_memory", "Update_memory", "Delete_memory", "answer", "unknown"}


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
