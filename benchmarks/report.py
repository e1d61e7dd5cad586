"""The figures of `compare.py` as tables (Markdown that also reads well in a terminal), with targets and verdicts.

python benchmarks/report.py FIGURES.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OURS = "agemem-mcp"
RIVAL = "mcp-server-qdrant"
"""The peer that searches by meaning: ratios are to it."""
START_MARK, END_MARK = "<!-- figures -->", "<!-- end of figures -->"
_EMBEDDING = "embedding alone"
_REFUSED = "a refused call"


@dataclass(frozen=True)
class Goal:
    """What a figure should reach: as it is, or as its ratio to another one."""

    limit: float
    at_least: bool = False
    of: str | None = None
    """None for the figure itself, otherwise the name of what it is divided by."""

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.limit:g}" + (" of it" if self.of else "")

    def met(self, value: float) -> bool:
        """Whether a value (or ratio) reaches it."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure of ours, the peers' of the same run, and a goal."""

    label: str
    ours: float | None
    others: dict[str, Any] = field(default_factory=dict)
    goal: Goal | None = None
    base: float | None = None
    """What the goal's ratio divides by, where that is no peer's figure."""

    @property
    def ratio(self) -> float | None:
        """Ours divided by the rival's figure, or by ``base``."""
        base = self.others.get(RIVAL) if self.base is None else self.base
        if self.ours is None or not isinstance(base, int | float) or not base:
            return None
        return self.ours / base

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or ``not measured``; empty where nothing is aimed at."""
        if self.goal is None:
            return ""
        value = self.ratio if self.goal.of else self.ours
        if value is None:
            return "not measured"
        return "met" if self.goal.met(value) else "**missed**"


def rows(figures: dict[str, Any]) -> list[Row]:
    """All lines, in order; what was not measured in a run is left out."""
    found = list(_start_rows(figures.get("start", {})))
    sizes: dict[str, dict[str, Any]] = figures.get("sizes", {})
    for size, at_size in sizes.items():
        if "in_turn" in at_size:
            found += _compared_rows(int(size), at_size)
        else:
            found += _alone_rows(int(size), at_size)
    for name, label in (
        ("served", "8 processes, one folder: served"),
        ("kept", "… acknowledged writes that were kept"),
    ):
        eight: dict[str, Any] = figures.get("eight_processes", {})
        if OURS in eight:
            others = {peer: _kept(value, name) for peer, value in eight.items() if peer != OURS}
            own = eight[OURS]
            goal = Goal(own["clients"] if name == "served" else own["of"], at_least=True)
            found.append(Row(label, own[name], others, goal))
    return found


def _start_rows(start: dict[str, Any]) -> Iterator[Row]:
    if not start:
        return
    others = {name: cases["from nothing"]["median_s"] for name, cases in start.items() if name not in (OURS, "Python")}
    for case, limit in (("with the daemon running", 0.1), ("from nothing", 1.2)):
        yield Row(f"start → tools listed, {case}, s", start[OURS][case]["median_s"], others, Goal(limit))


def _compared_rows(size: int, at_size: dict[str, Any]) -> Iterator[Row]:
    turn: dict[str, Any] = at_size["in_turn"]
    others = [name for name in turn if name not in (OURS, _EMBEDDING, _REFUSED)]
    at = f"@{size:,}"
    limits = {"store": 0.4, "search": 0.5 if size < 10_000 else 0.1}
    for kind, limit in limits.items():
        for quantile in ("p50", "p95"):
            values = {name: turn[name][kind][f"{quantile}_ms"] for name in (OURS, *others)}
            goal = Goal(limit, of=RIVAL) if quantile == "p50" else None
            yield Row(f"{kind} {quantile} {at}, ms", values.pop(OURS), values, goal)
    for kind, limit in (("search", 3.0), ("store", 6.0)):
        yield Row(f"our own part of a {kind} {at}, ms", overhead_ms(turn, kind), goal=Goal(limit))
    hits = {name: turn[name]["hit@10"] for name in (OURS, *others)}
    yield Row(f"hit@10 {at}", hits.pop(OURS), hits, Goal(0.97, at_least=True) if size >= 10_000 else None)
    for name in ("searches", "stores"):
        values = {server: taken[f"{name}_per_s"] for server, taken in at_size["in_flight"].items()}
        goal = Goal(3.0, at_least=True, of=RIVAL)
        yield Row(f"8 in flight: {name}/s {at}", values.pop(OURS), values, goal)
    taken = at_size["memory"]
    for kind in ("pss", "rss"):
        values = {server: value.get(f"{kind}_mb") for server, value in taken.items()}
        own, clients = values.pop(OURS), taken[OURS]["clients"]
        goal = Goal(500) if size >= 10_000 else None
        yield Row(f"memory {at}, {kind.upper()} MB (ours: {clients} clients, others 1)", own, values, goal)


def overhead_ms(turn: dict[str, Any], kind: str) -> float:
    """p50 of our calls, less the embedding of the same texts, less a call that does nothing."""
    embedding = turn[_EMBEDDING][kind]["p50_ms"]
    return round(turn[OURS][kind]["p50_ms"] - embedding - turn[_REFUSED]["store"]["p50_ms"], 2)


def _alone_rows(size: int, at_size: dict[str, Any]) -> Iterator[Row]:
    ours = at_size["ours"]
    meanwhile = ours.get("search_smallest_meanwhile")
    base = None if meanwhile is None else meanwhile["p95_ms"]
    label = f"search p95 @{size:,}, ms (ratio: to our own with the fewest facts)"
    yield Row(label, ours["search"]["p95_ms"], {}, Goal(3.0, of=OURS), base)


def _kept(value: dict[str, Any], name: str) -> str:
    return f"{value['served']} of {value['clients']}" if name == "served" else f"{value['kept']} of {value['of']}"


def scale_table(figures: dict[str, Any]) -> list[list[str]]:
    """Our own figures by size."""
    heads = ["facts", "stores/s, 8 in flight", "search p50, ms", "p95, ms", "hit@10", "RSS, MB", "PSS, MB"]
    table = [[*heads, "restart → tools, s", "→ first search, s", "index, MB", "folder, MB"]]
    for size, at_size in figures.get("sizes", {}).items():
        ours = at_size["ours"]
        values: list[float | None] = [at_size["fill_per_s"], ours["search"]["p50_ms"], ours["search"]["p95_ms"]]
        values += [ours["hit@10"], ours.get("rss_mb"), ours.get("pss_mb"), ours["restart_listed_s"]]
        values += [ours["restart_first_search_s"], ours["index_mb"], ours["folder_mb"]]
        table.append([f"{int(size):,}", *(_shown(value) for value in values)])
    return table


def as_text(figures: dict[str, Any]) -> str:
    """Both tables, with what they were measured on."""
    machine, missing = figures["machine"], figures["missing"]
    peers = [name for name in (RIVAL, "server-memory") if name in figures["peers"]]
    table = [["", "ours", *peers, "ratio", "target", ""]]
    for row in rows(figures):
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        others = [_shown(row.others.get(name)) for name in peers]
        goal = "" if row.goal is None else str(row.goal)
        table.append([row.label, _shown(row.ours), *others, ratio, goal, row.verdict])
    lines = [
        f"{machine['date']}, {machine['cores']} cores ({machine['cpu']}), {machine['minutes']:.0f} minutes.",
        f"Load {machine['load_first']} at the start, {machine['load_median']} median, {machine['load_max']} at most.",
        *(f"{name} {peer['version']}: {peer['note']}." for name, peer in figures["peers"].items()),
        *(f"{name} is not in the table: {why}." for name, why in missing.items()),
        "",
        *markdown(table),
    ]
    if figures.get("sizes"):
        lines += ["", "Ours as it grows:", "", *markdown(scale_table(figures))]
    return "\n".join(lines)


def markdown(table: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, its columns padded."""
    widths = [max(3, *(len(row[column]) for row in table)) for column in range(len(table[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def put_into(page: str, tables: str) -> str:
    """Replace what stands between the two marks of a page.

    Raises:
        ValueError: the page has no such marks.
    """
    head, start, rest = page.partition(START_MARK)
    _, end, tail = rest.partition(END_MARK)
    if not start or not end:
        msg = f"The page has no place for the tables: {START_MARK} … {END_MARK}"
        raise ValueError(msg)
    return f"{head}{START_MARK}\n\n{tables}\n\n{END_MARK}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="what compare.py wrote with --json")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="put the tables between the marks of this page")
    arguments = parser.parse_args()
    tables = as_text(json.loads(arguments.figures.read_text(encoding="utf-8")))
    if arguments.into is None:
        print(tables)
    else:
        page = put_into(arguments.into.read_text(encoding="utf-8"), tables)
        arguments.into.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
