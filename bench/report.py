"""The results, as a table on the terminal and as a section of docs/performance.md."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

BEGIN: Final = "<!-- bench:begin -->"
END: Final = "<!-- bench:end -->"
FIGURES: Final = ("id", "measure", "ours", "baseline", "ratio", "bar", "goal", "date")
DETAILS: Final = ("id", "what else was seen")


@dataclass(slots=True)
class Measure:
    """A row of the report: the figure and the baseline of each round.

    Without a baseline, the figures themselves are compared with bar and goal.
    """

    id: str
    title: str
    unit: str
    bar: float
    goal: float
    smaller_is_better: bool = False
    ours: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    """CPU per call in µs, by process."""
    latency_ms: dict[str, list[float]] = field(default_factory=dict)
    """The latency of our side in milliseconds, by quantile."""

    @property
    def ratios(self) -> list[float]:
        """Ours ÷ baseline, for each round."""
        return [ours / other for ours, other in zip(self.ours, self.baseline, strict=False) if other]

    @property
    def judged(self) -> list[float]:
        """The values that are compared with bar and goal."""
        return self.ratios if self.baseline else self.ours

    def verdict(self) -> str:
        """Returns, in words, whether the median reaches the goal or the bar."""
        if not self.judged:
            return "not measured"
        median = statistics.median(self.judged)
        for name, limit in (("goal", self.goal), ("bar", self.bar)):
            if median <= limit if self.smaller_is_better else median >= limit:
                return f"{name} reached"
        return "below the bar" if not self.smaller_is_better else "above the bar"

    def note(self, detail: str) -> None:
        """Adds a detail, unless it is empty or already there."""
        if detail and detail not in self.details:
            self.details.append(detail)

    def remarks(self) -> list[str]:
        """Returns the details, and the medians of CPU and latency."""
        remarks = list(self.details)
        for what, figures, unit in (("CPU per call", self.cpu_us, "µs"), ("latency of ours", self.latency_ms, "ms")):
            if figures:
                medians = (f"{name} {_short(statistics.median(values))} {unit}" for name, values in figures.items())
                remarks.append(f"{what}: {', '.join(medians)}")
        return remarks

    def row(self) -> tuple[str, ...]:
        """Returns the cells of FIGURES, without the date."""
        unit = "" if self.baseline else f" {self.unit}"
        sign = "≤" if self.smaller_is_better else "≥"
        return (
            self.id,
            f"{self.title}, {self.unit}",
            spread(self.ours),
            spread(self.baseline),
            spread(self.ratios),
            f"{sign} {self.bar:g}{unit}",
            f"{sign} {self.goal:g}{unit}",
        )


def spread(values: Sequence[float]) -> str:
    """Returns the median, the smallest and the largest value as text."""
    if not values:
        return "none"
    median = statistics.median(values)
    return f"{_short(median)} ({_short(min(values))} to {_short(max(values))})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(measures: Sequence[Measure], console: Console) -> None:
    """Prints the table and the details."""
    table = Table(title="SkyHigh beside its baselines: median (smallest to largest) of the rounds")
    for name in (*FIGURES[:-1], "verdict"):
        table.add_column(name, overflow="fold")
    for measure in measures:
        table.add_row(*measure.row(), measure.verdict())
    console.print(table)
    for measure in measures:
        for remark in measure.remarks():
            console.print(f"{measure.id}: {remark}", highlight=False)


def write(measures: Sequence[Measure], file: Path, command: str) -> None:
    """Writes the figures between the markers of the document.

    Rows of measures that were not taken stay as they are. Raises SystemExit if the document lacks the markers.
    """
    before, found, rest = file.read_text().partition(BEGIN)
    old, closed, after = rest.partition(END)
    if not found or not closed:
        raise SystemExit(f"bench: {file} lacks the markers {BEGIN} and {END}")
    today = datetime.now(UTC).date().isoformat()
    figures, details = _rows(old, len(FIGURES)), _rows(old, len(DETAILS))
    figures |= {measure.id: (*measure.row(), today) for measure in measures}
    details |= {measure.id: (measure.id, "; ".join(measure.remarks())) for measure in measures}
    parts = [
        f"Last run: {today}, `{command}`, on {machine()}.",
        _markdown(FIGURES, figures),
        _markdown(DETAILS, details),
    ]
    file.write_text(before + BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + END + after)


def _rows(markdown: str, width: int) -> dict[str, tuple[str, ...]]:
    """Returns the rows of an earlier table with this many columns, by their first cell."""
    rows = (tuple(cell.strip() for cell in line.strip("| ").split(" | ")) for line in markdown.splitlines())
    return {row[0]: row for row in rows if len(row) == width and re.fullmatch(r"P\d+.*", row[0])}


def _markdown(head: Sequence[str], rows: dict[str, tuple[str, ...]]) -> str:
    ordered = sorted(rows.values(), key=lambda row: (int(re.findall(r"\d+", row[0])[0]), row[0]))
    lines = [head, ["---"] * len(head), *ordered]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """Describes the machine and the versions of the main software."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    parts = [
        f"{os.cpu_count()} cores ({cpu})",
        f"{memory_gib:.0f} GiB",
        f"Linux {platform.release().split('-')[0]}",
        f"Python {platform.python_version()}",
        f"grpcio {version('grpcio')}",
        f"asyncpg {version('asyncpg')}",
    ]
    for name, command in (("Postgres", ["psql", "--version"]), ("Redis", ["redis-server", "--version"])):
        try:
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            continue
        if number := re.search(r"\d+\.[\d.]*\d", output):
            parts.append(f"{name} {number[0]}")
    return ", ".join(parts)
