from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from report import OURS, RIVAL, Goal, Row, as_text, markdown, overhead_ms, put_into, rows
from timing import quantiles_ms, spread_s


def quantiles(p50: float, p95: float) -> dict[str, float]:
    return {"p50_ms": p50, "p95_ms": p95, "max_ms": p95, "calls": 20}


@pytest.fixture
def figures() -> dict[str, Any]:
    turn = {
        OURS: {"store": quantiles(8, 20), "search": quantiles(7, 30), "hit@10": 0.98},
        RIVAL: {"store": quantiles(20, 50), "search": quantiles(140, 200), "hit@10": 0.9},
        "embedding alone": {"store": quantiles(3, 4), "search": quantiles(2.5, 4)},
        "a refused call": {"store": quantiles(1, 2)},
    }
    ours = {
        "search": quantiles(6, 12),
        "hit@10": 0.99,
        "restart_listed_s": 0.8,
        "restart_first_search_s": 1.4,
        "index_mb": 31.0,
        "folder_mb": 40.0,
    }
    return {
        "machine": {
            "date": "2026-01-01",
            "cores": 2,
            "cpu": "a processor",
            "minutes": 3.0,
            "load_first": 0.1,
            "load_median": 1.0,
            "load_max": 2.0,
        },
        "peers": {RIVAL: {"version": "1", "note": "a note"}},
        "missing": {"server-memory": "Node is missing"},
        "start": {
            OURS: {"with the daemon running": {"median_s": 0.09}, "from nothing": {"median_s": 1.3}},
            RIVAL: {"from nothing": {"median_s": 3.5}},
            "Python": {"interpreter alone": {"median_s": 0.02}},
        },
        "sizes": {
            "10000": {
                "fill_per_s": 240.0,
                "ours": ours,
                "in_turn": turn,
                "in_flight": {
                    OURS: {"searches_per_s": 300.0, "stores_per_s": 150.0},
                    RIVAL: {"searches_per_s": 100.0, "stores_per_s": 60.0},
                },
                "memory": {
                    OURS: {"clients": 8, "served": 8, "rss_mb": 700.0, "pss_mb": 450.0},
                    RIVAL: {"clients": 1, "served": 1, "rss_mb": 718.0, "pss_mb": 710.0},
                },
            },
            "100000": {"fill_per_s": 200.0, "ours": {**ours, "search_smallest_meanwhile": quantiles(3, 5)}},
        },
        "eight_processes": {
            OURS: {"clients": 8, "served": 8, "of": 200, "acknowledged": 200, "kept": 200},
            RIVAL: {"clients": 8, "served": 1, "of": 200, "acknowledged": 25, "kept": 25},
        },
    }


def by_label(figures: dict[str, Any]) -> dict[str, Row]:
    return {row.label: row for row in rows(figures)}


def test_quantiles_are_those_of_the_calls() -> None:
    taken = quantiles_ms([number / 1000 for number in range(1, 101)])
    assert taken == {"p50_ms": 50.5, "p95_ms": 95.0, "max_ms": 100.0, "calls": 100}
    assert quantiles_ms([0.002])["p95_ms"] == 2.0
    assert spread_s([3.0, 1.0, 2.0]) == {"median_s": 2.0, "min_s": 1.0, "max_s": 3.0}


def test_a_ratio_goal_compares_with_the_peer_that_searches_by_meaning(figures: dict[str, Any]) -> None:
    found = by_label(figures)
    store, search = found["store p50 @10,000, ms"], found["search p50 @10,000, ms"]
    assert (store.ratio, store.verdict) == (0.4, "met")
    assert (search.ratio, search.verdict) == (0.05, "met")
    assert found["8 in flight: searches/s @10,000"].verdict == "met"
    assert found["8 in flight: stores/s @10,000"].verdict == "**missed**"


def test_a_plain_goal_is_compared_with_the_figure_itself(figures: dict[str, Any]) -> None:
    found = by_label(figures)
    assert found["start → tools listed, with the daemon running, s"].verdict == "met"
    assert found["start → tools listed, from nothing, s"].verdict == "**missed**"
    assert found["hit@10 @10,000"].verdict == "met"
    assert found["8 processes, one folder: served"].verdict == "met"


def test_our_own_part_is_what_embedding_and_the_empty_call_leave(figures: dict[str, Any]) -> None:
    turn = figures["sizes"]["10000"]["in_turn"]
    assert overhead_ms(turn, "store") == 4.0
    assert overhead_ms(turn, "search") == 3.5


def test_the_largest_memory_is_compared_with_our_own_smallest_of_the_same_minutes(figures: dict[str, Any]) -> None:
    row = by_label(figures)["search p95 @100,000, ms (ratio: to our own with the fewest facts)"]
    assert (row.ratio, row.verdict) == (2.4, "met")


def test_what_was_not_measured_is_not_called_met(figures: dict[str, Any]) -> None:
    del figures["sizes"]["10000"]["memory"][OURS]["pss_mb"]
    figures["sizes"]["10000"]["in_flight"].pop(RIVAL)
    found = by_label(figures)
    assert found["memory @10,000, PSS MB (ours: 8 clients, others 1)"].verdict == "not measured"
    assert found["8 in flight: stores/s @10,000"].verdict == "not measured"
    assert Row("", 1.0, goal=Goal(0.5, of=RIVAL)).verdict == "not measured"


def test_the_text_says_what_is_missing_and_why(figures: dict[str, Any]) -> None:
    text = as_text(figures)
    assert "server-memory is not in the table: Node is missing." in text
    assert "| 1 of 8 " in text
    assert "| 100,000 " in text


def test_a_run_of_one_part_has_the_rows_of_that_part(figures: dict[str, Any]) -> None:
    del figures["sizes"], figures["start"]
    assert [row.label[:11] for row in rows(figures)] == ["8 processes", "… acknowled"]


def test_tables_are_padded() -> None:
    assert markdown([["", "a"], ["long label", "1"]]) == [
        "|            | a   |",
        "|------------|-----|",
        "| long label | 1   |",
    ]


def test_the_page_shows_the_figures_of_the_kept_run() -> None:
    folder = Path(__file__).parents[3] / "benchmarks"
    kept = as_text(json.loads((folder / "results" / "reference.json").read_text(encoding="utf-8")))
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert put_into(page, kept) == page


def test_a_page_without_marks_is_left_alone() -> None:
    with pytest.raises(ValueError, match="no place"):
        put_into("nothing here", "a table")
