"""Times as quantiles, and a running account of what a benchmark is doing."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def quantiles_ms(times_s: Sequence[float]) -> dict[str, float]:
    """p50, p95 and maximum in milliseconds; p95 is the value that at most one in twenty exceeds."""
    ordered = sorted(times_s)
    p95 = ordered[max(0, -(-len(ordered) * 95 // 100) - 1)]
    return {
        "p50_ms": _ms(statistics.median(ordered)),
        "p95_ms": _ms(p95),
        "max_ms": _ms(ordered[-1]),
        "calls": len(ordered),
    }


def spread_s(times_s: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum in seconds."""
    return {
        "median_s": round(statistics.median(times_s), 3),
        "min_s": round(min(times_s), 3),
        "max_s": round(max(times_s), 3),
    }


class Journal:
    """Says on stderr what is being done, and keeps the machine's load of those moments."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._date = datetime.now(UTC).date().isoformat()
        self._loads: list[float] = []

    def note(self, text: str) -> None:
        """Say what begins now."""
        self._loads.append(os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0)
        print(f"[{time.monotonic() - self._started:5.0f} s, load {self._loads[-1]:.1f}] {text}", file=sys.stderr)

    def machine(self) -> dict[str, Any]:
        """The machine, and how busy it was meanwhile (load averages of a minute; the benchmark's own load is in it)."""
        return {
            "date": self._date,
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "load_first": round(self._loads[0], 1),
            "load_median": round(statistics.median(self._loads), 1),
            "load_max": round(max(self._loads), 1),
            "minutes": round((time.monotonic() - self._started) / 60, 1),
        }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
