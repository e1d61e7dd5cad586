"""A report as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agemem_training.reporting.comparing import COMPONENTS, VARIANTS, compare, interval_of
from agemem_training.reporting.figures import TOOLS
from agemem_training.reporting.intervals import wilson
from agemem_training.reporting.metrics import PHASES, total_cost
from agemem_training.reporting.results import AFTER
from agemem_training.reporting.tables import LEGEND, MISSING, duration, number, signed, table, with_interval

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agemem_training.reporting.comparing import Difference
    from agemem_training.reporting.metrics import Cost
    from agemem_training.reporting.results import Results, Setting

_BEHAVIOUR = ("success", "total", "tools", *(f"calls/{tool}" for tool in TOOLS), "steps", "prompt_tokens", "ungraded")
_SAID = {
    "success": "task success",
    "total": "reward trained on",
    "tools": "share of calls with an effect",
    "steps": "steps",
    "prompt_tokens": "prompt tokens",
    "ungraded": "grades by words, as the judge gave none",
}


def report_markdown(results: Results) -> str:
    """Everything, as one document."""
    sections = [
        _run(results),
        _gates(results),
        before_after(results),
        _comparisons(results),
        _details(results),
        _kinds(results),
        _cost(results),
        "## Curves\n\n![curves](curves.png)",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def before_after(results: Results) -> str:
    """The result in one table: task success and the strict total, before and after; empty if one is missing."""
    rows = list(_before_after_rows(results))
    if not rows:
        return ""
    header = ["held-out tasks", "n", "success before", "success after", "difference"]
    header += ["strict total before", "strict total after", "difference"]
    return f"## Before and after\n\n{table(header, rows)}\n\n{LEGEND}\n\n{_what_fell(results)}"


def _before_after_rows(results: Results) -> Iterator[list[str]]:
    for setting, before, after in results.pairs():
        differences = compare(before, after)
        success, total = differences["success"], differences["strict/total"]
        yield [
            _heading(setting),
            str(len(after.episodes)),
            with_interval(interval_of(before.episodes)),
            with_interval(interval_of(after.episodes)),
            signed(success),
            number(total.before),
            number(total.after),
            signed(total),
        ]


def _what_fell(results: Results) -> str:
    lines = [
        f"- {_heading(setting)}: " + ", ".join(f"{one.name} ({number(one.difference.estimate)})" for one in fallen)
        for setting, before, after in results.pairs()
        if (fallen := [one for one in compare(before, after).values() if one.verdict == "fell"])
    ]
    return "\n".join(["Fell, outside the interval:", "", *lines]) if lines else "Nothing fell outside its interval."


def _run(results: Results) -> str:
    run = results.run
    origin = "from scratch" if run.base_model is None else f"from {run.base_model}"
    rows = [
        ["seed", str(run.seed)],
        ["policy", f"{run.parameters:,} parameters, {origin}"],
        ["wall time", duration(run.wall_s)],
        ["peak memory", f"{run.peak_memory_gb:.1f} GB"],
        ["iterations", ", ".join(_iterations(results)) or "none"],
        *_ungraded(results),
        ["versions", ", ".join(f"{name} {version}" for name, version in run.versions.items())],
    ]
    return f"# Training report: {run.name}\n\n```sh\n{run.command}\n```\n\n{table(['', run.name], rows)}"


def _ungraded(results: Results) -> Iterator[list[str]]:
    """How often words stood in for a judge while the policy was trained; nothing where there is no judge."""
    rollouts = [one.rollouts for one in results.metrics.iterations if one.rollouts is not None]
    judged = [one for one in rollouts if "ungraded" in one.figures]
    if judged:
        missing = sum(round(one.figures["ungraded"] * one.episodes) for one in judged)
        episodes = sum(one.episodes for one in judged)
        yield [_SAID["ungraded"], f"{missing} in {episodes} episodes"]


def _iterations(results: Results) -> Iterator[str]:
    for phase in PHASES:
        if count := len(results.metrics.of_phase(phase)):
            yield f"{count} {phase}"


def _gates(results: Results) -> str:
    if not results.gates:
        return ""
    rows = [
        [
            gate.skill,
            with_interval(wilson(gate.right, gate.n)) if gate.n else MISSING,
            str(gate.n),
            f"≥ {gate.required:g}",
            "yes" if gate.passed else "**no**" if gate.n >= gate.least else f"**no**, n < {gate.least}",
        ]
        for gate in results.gates
    ]
    header = ["copying skill", "right", "n", "required", "passed"]
    return f"## Skills before GRPO\n\n{table(header, rows)}"


def _comparisons(results: Results) -> str:
    rows = [
        row
        for setting in results.settings()
        for name in results.others()
        for row in _comparison(results, name, setting)
    ]
    if not rows:
        return ""
    header = ["held-out tasks", "policy", "n", "success", "after minus this", "strict total", "after minus this"]
    return f"## Compared with\n\n{table(header, rows)}"


def _comparison(results: Results, name: str, setting: Setting) -> Iterator[list[str]]:
    other, after = results.named(name, setting), results.named(AFTER, setting)
    if other is None:
        return
    differences = None if after is None else compare(other, after)
    yield [
        _heading(setting),
        name,
        str(len(other.episodes)),
        with_interval(interval_of(other.episodes)),
        MISSING if differences is None else signed(differences["success"]),
        with_interval(interval_of(other.episodes, "strict/total")),
        MISSING if differences is None else signed(differences["strict/total"]),
    ]


def _details(results: Results) -> str:
    parts: list[str] = []
    for setting, before, after in results.pairs():
        differences = compare(before, after)
        components = [[name, *_sides([differences[f"{one}/{name}"] for one in VARIANTS])] for name in COMPONENTS]
        behaviour = [[_said(name), *_sides([differences[name]])] for name in _BEHAVIOUR if name in differences]
        parts += [
            f"## {_heading(setting)} (n = {len(after.episodes)})",
            table(["component", *(f"{one}: {what}" for one in VARIANTS for what in _SIDES)], components),
            table(["in an episode", *_SIDES], behaviour),
        ]
    return "\n\n".join(parts)


_SIDES = ("before", "after", "difference")


def _sides(differences: list[Difference]) -> Iterator[str]:
    for one in differences:
        yield from (number(one.before), number(one.after), signed(one))


def _kinds(results: Results) -> str:
    rows = [
        [
            _heading(setting),
            kind,
            str(len(after.episodes.of_kind(kind))),
            *(with_interval(interval_of(one.episodes.of_kind(kind))) for one in (before, after)),
        ]
        for setting, before, after in results.pairs()
        for kind in sorted(set(after.episodes.kinds) - {""})
    ]
    if not rows:
        return ""
    header = ["held-out tasks", "kind", "n", "success before", "success after"]
    return f"## Task success by kind of task\n\n{table(header, rows)}"


def _cost(results: Results) -> str:
    rows = [
        _cost_row(phase, total_cost([one.cost for one in iterations]))
        for phase in PHASES
        if (iterations := results.metrics.of_phase(phase))
    ]
    if not rows:
        return ""
    header = ["phase", "rollout tokens/s", "update tokens/s", "environment's share of rollouts"]
    header += ["rollout", "reward", "update"]
    return f"## Speed\n\n{table(header, rows)}"


def _cost_row(phase: str, cost: Cost) -> list[str]:
    rolled_out = bool(cost.rollout_s)
    return [
        phase,
        number(cost.rollout_tokens_per_s) if rolled_out else MISSING,
        number(cost.update_tokens_per_s),
        f"{cost.environment_share:.0%}" if rolled_out else MISSING,
        *(duration(one) for one in (cost.rollout_s, cost.reward_s, cost.update_s)),
    ]


def _heading(setting: Setting) -> str:
    return f"{setting.level}, {setting.mode}, seed {setting.seed}"


def _said(name: str) -> str:
    return _SAID.get(name) or name.removeprefix("calls/")
