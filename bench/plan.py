"""How a measure is taken: its rounds, their length, and the CPU per process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.load import LoadClient, LoadResult
from bench.processes import cpu_seconds
from bench.report import Measure

WARM_UP_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Plan:
    """The rounds of a measure: in each, both sides run for `seconds`.

    The sides are ours and the baseline. A warm-up comes before the rounds.
    """

    rounds: int
    seconds: float

    def turns(self) -> list[float]:
        """Returns the seconds of each turn; the first turn warms up and is not counted."""
        return [min(WARM_UP_SECONDS, self.seconds), *[self.seconds] * self.rounds]


async def metered(
    load: LoadClient,
    measure: Measure | None,
    calls: Path,
    *,
    port: int,
    seconds: float,
    pids: Mapping[str, int],
    cycle: bool = False,
    calls_per_second: float | None = None,
    ours: bool = True,
) -> LoadResult:
    """Runs the load and adds to `measure` the CPU per call of each of `pids`.

    With `ours` it also adds the latency. Without a measure, as in a warm-up, it only runs the load.
    """
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    result = await load.run(calls, port=port, seconds=seconds, cycle=cycle, calls_per_second=calls_per_second)
    if measure is not None:
        for name, pid in pids.items():
            used_us = (cpu_seconds(pid) - before[name]) * 1e6 / max(result.calls, 1)
            measure.cpu_us.setdefault(name, []).append(used_us)
        if ours:
            for quantile, value in result.latency_ms.items():
                measure.latency_ms.setdefault(quantile, []).append(value)
        measure.note(result.failures())
    return result
