"""Plays scenarios with and without kills.

Once without, to learn their I/Os, then once for each point at which the process can end.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from tests.system.kill_points.lane import Lane, lane
from tests.system.kill_points.process import Worker
from tests.system.kill_points.scenarios import SCENARIOS, Scenario, Stage
from tests.system.kill_points.steps import Io, Nth, Orders, Point, points_of, recorded
from tests.waiting import pause

LOOK_SECONDS: Final = 0.02
# A process without I/O for so long has finished its work for the callers.
SILENCE_SECONDS: Final = 0.3
LONGEST_WORK_SECONDS: Final = 5.0
# `skyhigh verify` checks everything that ever happened in a lane, which takes longer than a run.
RUNS_PER_LOOK: Final = 10
# The wait before the last check of a lane, after which no work may be in progress: longer than each grace period of
# `skyhigh verify`.
LAST_LOOK_SECONDS: Final = 31.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run."""

    scenario: str
    point: Point | Nth | None
    """None for a run without a kill."""
    died: bool
    """Whether the process reached its point. Concurrent work may do its I/Os in another order each time."""
    seconds: float
    violations: Sequence[str]

    def __str__(self) -> str:
        passed = "" if self.died or self.point is None else " (did not come to it)"
        return f"{self.scenario}: {self.point or 'calm'}{passed}" + "".join(f"\n    {text}" for text in self.violations)


async def calm_run(on: Lane, scenario: Scenario) -> tuple[Outcome, list[Io]]:
    """Plays a scenario without a kill; returns the result and the I/Os in order."""
    return await _run(on, scenario, None)


async def killed_run(on: Lane, scenario: Scenario, point: Point | Nth) -> Outcome:
    """Plays a scenario in which the process ends at this point and is started again."""
    return (await _run(on, scenario, point))[0]


async def _run(on: Lane, scenario: Scenario, point: Point | Nth | None) -> tuple[Outcome, list[Io]]:
    began = time.monotonic()
    worker = on.workers[scenario.service]
    stage = Stage(on)
    died, ios = False, list[Io]()
    acting: asyncio.Future[None] | None = None
    try:
        play = scenario.play(stage)
        await anext(play)
        orders = worker.orders
        # A file for each run, so that it contains no I/O of the run before.
        record = orders.with_name(f"{orders.name}-{uuid4().hex}")
        Orders(
            scenario.origins,
            str(record),
            polls=scenario.from_start,
            point=point if isinstance(point, Point) else None,
            nth=point if isinstance(point, Nth) else None,
        ).give(orders)
        if not worker.runs:
            await on.restart(worker.name)
        acting = asyncio.ensure_future(anext(play))
        died = await _watch(on, worker, acting, record)
        ios = recorded(record)
        orders.unlink()
        await stage.repeat()
        await anext(play, None)
    except Exception as error:
        # Whatever the error is, the other runs go on.
        stage.wrong.append(f"{''.join(traceback.format_exception(error)[-3:])}; left: {await on.left()}")
        if acting is not None:
            acting.cancel()
        await on.start_over(worker)
    return Outcome(scenario.name, point, died, time.monotonic() - began, stage.wrong), ios


async def _watch(on: Lane, worker: Worker, acting: asyncio.Future[None], record: Path) -> bool:
    """Restarts the process as soon as it has ended.

    Ends when the callers have their responses and the process does no more. Returns whether it ended at its point.
    """
    while not acting.done() and not worker.was_killed:
        await asyncio.wait([acting], timeout=LOOK_SECONDS)
    if not worker.was_killed:
        await _falls_silent(worker, record)
    died = worker.was_killed
    if died:
        await on.restart(worker.name)
    await acting
    return died


async def _falls_silent(worker: Worker, record: Path) -> None:
    """Waits until the process has done no I/O for a while, or has ended."""
    size, since = -1, time.monotonic()
    end = since + LONGEST_WORK_SECONDS
    while not worker.was_killed and (now := time.monotonic()) < min(end, since + SILENCE_SECONDS):
        if (new_size := len(recorded(record))) != size:
            size, since = new_size, now
        await pause(LOOK_SECONDS)


class Results:
    """The results of all runs; each one is reported as it comes."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.ios: dict[str, list[Io]] = {}
        self.outcomes: list[Outcome] = []
        self.violations: list[str] = []
        """The findings of `skyhigh verify`, each with the runs since the last clean check."""

    def add(self, outcome: Outcome) -> None:
        """Stores and reports the result of a run."""
        self.outcomes.append(outcome)
        self._tell(f"{'ok ' if not outcome.violations else 'BAD'} {outcome.seconds:5.1f} s  {outcome}")

    @property
    def wrong(self) -> list[str]:
        """Returns all violations, each with its run."""
        return [str(outcome) for outcome in self.outcomes if outcome.violations] + self.violations

    def table(self) -> str:
        """Returns a table with a line for each scenario."""
        runs = defaultdict[str, list[Outcome]](list)
        for outcome in self.outcomes:
            runs[outcome.scenario].append(outcome)
        heading = ("scenario", "process", "I/Os", "points", "died", "violations", "seconds")
        lines: list[tuple[str, ...]] = [heading]
        for name, ios in self.ios.items():
            killed = [outcome for outcome in runs[name] if outcome.point is not None]
            lines.append(
                (
                    name,
                    SCENARIOS[name].service,
                    str(len(ios)),
                    str(len(killed)),
                    str(sum(outcome.died for outcome in killed)),
                    str(sum(len(outcome.violations) for outcome in runs[name])),
                    f"{sum(outcome.seconds for outcome in runs[name]):.0f}",
                )
            )
        numbers = [[int(line[column]) for line in lines[1:]] for column in range(2, len(heading))]
        lines.append(("all", "", *(str(sum(column)) for column in numbers)))
        widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
        return "\n".join(
            "  ".join(
                text.ljust(width) if column < 2 else text.rjust(width)
                for column, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


async def play(
    folder: Path,
    names: Iterable[str],
    *,
    lanes: int,
    choose: Callable[[Scenario, Sequence[Point]], Sequence[Point]],
    tell: Callable[[str], None],
    last_look: bool = True,
) -> Results:
    """Plays these scenarios side by side in several lanes.

    Ends the process at the chosen points of each.
    """
    results = Results(tell)
    calm = list(names)
    killed: list[tuple[Scenario, Point]] = []

    async def look(on: Lane, since: list[str]) -> None:
        results.violations += [f"{text}\n    since {since}" for text in await on.violations()]
        since.clear()

    async def work(number: int) -> None:
        since: list[str] = []
        async with lane(folder / f"lane-{number}") as on:
            while calm or killed:
                if calm:
                    scenario = SCENARIOS[calm.pop(0)]
                    outcome, ios = await calm_run(on, scenario)
                    results.add(outcome)
                    results.ios[scenario.name] = ios
                    killed.extend((scenario, point) for point in choose(scenario, points_of(ios)))
                    # Sorted by side: an end after an I/O mostly equals an end before the next one, so the first half
                    # finds nearly all violations.
                    killed.sort(key=lambda each: each[1].side)
                else:
                    results.add(await killed_run(on, *killed.pop(0)))
                since.append(str(results.outcomes[-1]))
                if len(since) == RUNS_PER_LOOK:
                    await look(on, since)
            await look(on, since)
            if last_look:
                # Shows what a grace period has hidden.
                await pause(LAST_LOOK_SECONDS)
                await look(on, since)

    async with asyncio.TaskGroup() as group:
        working = [group.create_task(work(number)) for number in range(lanes)]
    assert not any(task.cancelled() for task in working), "a lane ended before its work was done"
    return results
