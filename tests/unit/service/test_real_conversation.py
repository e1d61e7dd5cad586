"""Recall on a real conversation, where the data is at hand: ``LOCOMO`` names the official JSON."""

from __future__ import annotations

import json
import os
import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.app import open_service
from agemem_mcp.domain.memory import Scope
from agemem_mcp.domain.operations import AddMemory
from agemem_mcp.service.long_term import Origin

if TYPE_CHECKING:
    from agemem_mcp.settings import Settings

_SHARED = Path(__file__).parents[4] / "shared" / "data" / "locomo" / "locomo_dev5.json"
_SESSIONS = 6
_UNANSWERABLE = 5


@pytest.fixture
def conversation() -> dict[str, Any]:
    """The first LoCoMo conversation."""
    path = Path(os.environ.get("LOCOMO") or _SHARED)
    if not path.is_file():
        pytest.skip(f"LoCoMo is not here: {path} (set LOCOMO to its JSON)")
    return json.loads(path.read_text(encoding="utf-8"))[0]


async def test_evidence_for_questions_about_six_sessions_is_found(
    conversation: dict[str, Any], full_settings: Settings
) -> None:
    ids: dict[str, str] = {}
    async with open_service(full_settings) as service:
        for number in range(1, _SESSIONS + 1):
            for turn in conversation["conversation"][f"session_{number}"]:
                operation = AddMemory(content=f"{turn['speaker']}: {turn['text']}", metadata={"session": number})
                added = await service.long_term.add(Scope(), operation, Origin(writer=f"session {number}"))
                ids[turn["dia_id"]] = added.memory_id
        recalls: list[float] = []
        for question in conversation["qa"]:
            evidence = re.findall(r"D\d+:\d+", " ".join(question["evidence"]))
            if question["category"] == _UNANSWERABLE or not evidence or not ids.keys() >= set(evidence):
                continue
            hits = await service.long_term.search(Scope(), question["question"], top_k=5, metadata_filter={})
            found = {hit.record.memory_id for hit in hits}
            recalls.append(statistics.mean(ids[dia_id] in found for dia_id in evidence))
    assert len(recalls) > 30
    # .80 when this was written, .68 without neighbours
    assert statistics.mean(recalls) > 0.74
