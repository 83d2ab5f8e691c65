"""`python -m tests.system.soak`: plays a seed for half an hour without faults, and checks that nothing grows.

Every few seconds it reads the memory of each process, the dead rows of Postgres, the work that waits in outboxes,
timers and queues, and the sizes of the chassis' tables. At the end it compares the last quarter with the second: the
first still fills caches. The latency compares the last quarter with the first. Then come all checks of a run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncpg

from deploy.local import environment
from tests.system import report, rest
from tests.system.faults.stack import RunningStack, StackError
from tests.system.history import STREAMS, Operation
from tests.system.run import Plan, run
from tests.waiting import pause

MINUTES: Final = 30.0
SAMPLE_SECONDS: Final = 10.0
# Clients have no flights yet, and the processes no connections.
WARM_UP_SECONDS: Final = 60.0
QUARTERS: Final = 4
STORED: Final = ("outbox", "inbox", "timers")
"""The chassis' tables, whose rows are kept for hours."""
MEGABYTE: Final = 1024 * 1024
MOST_LATENCY_RATIO: Final = 1.2


@dataclass(frozen=True, slots=True)
class Kind:
    """How much a quantity may grow between the second and the last quarter and still be called flat."""

    ratio: float
    slack: float
    """Added to the allowance, because a small number varies by more than a ratio."""


# Allocators return memory in steps, and Postgres vacuums a table once a fifth of it is dead.
KINDS: Final[Mapping[str, Kind]] = {
    "MB of": Kind(1.15, 8),
    "% of rows are dead": Kind(1.5, 5),
    "waiting": Kind(1.5, 20),
    "rows per operation": Kind(1.25, 0.05),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """What was read at one moment of the monotonic clock."""

    at: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Growth:
    """A quantity in the second and in the last quarter of a soak."""

    name: str
    before: float
    after: float
    most: float

    @property
    def flat(self) -> bool:
        """Whether the quantity did not grow beyond its allowance."""
        return self.after <= self.most

    def __str__(self) -> str:
        return f"{self.name:44} {self.before:12.2f} {self.after:12.2f}{'' if self.flat else '   GROWS'}"


@dataclass(slots=True)
class Sampler:
    """Reads a running stack every SAMPLE_SECONDS until it is cancelled."""

    samples: list[Sample] = field(default_factory=list)

    async def __call__(self, stack: RunningStack) -> None:
        """Reads until cancelled. A reading that fails ends the soak, because no fault is played."""
        connection = await asyncpg.connect(stack.superuser_database_url)
        try:
            while True:
                values = dict(memory(stack)) | await _rows(connection) | await _waiting(stack)
                self.samples.append(Sample(time.monotonic(), values))
                await pause(SAMPLE_SECONDS)
        finally:
            await connection.close()


def memory(stack: RunningStack) -> Iterator[tuple[str, float]]:
    """Yields the megabytes of each process of the stack with its descendants.

    A page that processes share counts in proportion (Pss), so that Postgres' buffers count once.
    """
    for name in stack.processes():
        yield f"MB of {name}", sum(_megabytes(pid) for pid in stack.members(name))


def _megabytes(pid: int) -> float:
    # A process that has ended meanwhile has no memory.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / MEGABYTE
    return 0.0


async def _rows(connection: asyncpg.Connection) -> dict[str, float]:
    """Returns the share of dead rows of each schema, and the rows of the chassis' tables.

    Postgres vacuums a table when a share of its rows is dead, so that their number grows with the table.
    """
    dead = await connection.fetch(
        """
        SELECT schemaname, 100 * sum(n_dead_tup)::float8 / greatest(sum(n_dead_tup + n_live_tup), 1) AS share
        FROM pg_stat_user_tables GROUP BY schemaname
        """
    )
    stored = {
        table: await connection.fetchval(
            "SELECT " + " + ".join(f"(SELECT count(*) FROM {each}.{table})" for each in rest.SERVICES)
        )
        for table in STORED
    }
    return {f"% of rows are dead in {row['schemaname']}": row["share"] for row in dead} | {
        f"rows of {table}": float(count) for table, count in stored.items()
    }


async def _waiting(stack: RunningStack) -> dict[str, float]:
    """Returns how many items wait: held seats, unpublished events, due timers, queued messages and the like."""
    left = await rest.left(stack.environment)
    return {f"waiting: {name}": float(count) for name, count in left.items()}


def growths(samples: Sequence[Sample], operations: Sequence[Operation]) -> list[Growth]:
    """Compares the means of the second and the last quarter of a soak."""
    began, ended = samples[0].at, samples[-1].at
    quarter = (ended - began) / QUARTERS

    def within(number: int) -> list[Sample]:
        first = began + number * quarter
        return [sample for sample in samples if first <= sample.at <= first + quarter]

    found = []
    for name in sorted({name for sample in samples for name in sample.values}):
        if name.startswith("rows of"):
            continue
        before, after = (
            statistics.fmean(sample.values.get(name, 0.0) for sample in within(each)) for each in (1, QUARTERS - 1)
        )
        found.append(_growth(name, before, after))
    for table in STORED:
        before, after = (_per_operation(f"rows of {table}", within(each), operations) for each in (1, QUARTERS - 1))
        found.append(_growth(f"rows per operation: {table}", before, after))
    return found


def _growth(name: str, before: float, after: float) -> Growth:
    (kind,) = [kind for start, kind in KINDS.items() if name.startswith(start)]
    return Growth(name, before, after, before * kind.ratio + kind.slack)


def _per_operation(name: str, samples: Sequence[Sample], operations: Sequence[Operation]) -> float:
    """Returns how many rows each operation added between the first and the last sample.

    Stored rows stay for hours by design, so that their number itself cannot be flat in a soak.
    """
    first, last = samples[0], samples[-1]
    count = sum(first.at <= operation.invoked < last.at for operation in operations)
    return (last.values.get(name, 0.0) - first.values.get(name, 0.0)) / max(count, 1)


def latencies(operations: Sequence[Operation], began: float, ended: float) -> list[float]:
    """Returns the p99 of each quarter in seconds, of the calls that were answered."""
    quarters: list[list[float]] = [[] for _ in range(QUARTERS)]
    for operation in operations:
        if operation.returned is None or operation.outcome == "unknown" or operation.call in STREAMS:
            continue
        if began <= operation.invoked < ended:
            number = int((operation.invoked - began) / (ended - began) * QUARTERS)
            quarters[number].append(operation.returned - operation.invoked)
    return [p99(each) for each in quarters]


def p99(seconds: Sequence[float]) -> float:
    """Returns the value that 99 % do not exceed."""
    return sorted(seconds)[math.ceil(0.99 * len(seconds)) - 1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 if something grows or a check finds a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.soak", description=__doc__.partition("\n")[2])
    parser.add_argument("--seed", type=int, help="which run; a random one where left out")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="how long the clients play")
    parser.add_argument("--folder", type=Path, help="where the stack's data and logs and the history are")
    given = parser.parse_args(arguments)
    environment.clean()
    seed = given.seed if given.seed is not None else secrets.randbelow(1_000_000)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="skyhigh-soak-", dir="/var/tmp"))
    sampler = Sampler()
    try:
        outcome = asyncio.run(run(Plan(seed=seed, seconds=given.minutes * 60, folder=folder, beside=sampler)))
    except StackError as error:
        _say(f"soak: {error}")
        return 1
    for line in report.lines(outcome):
        _say(line)
    samples = [sample for sample in sampler.samples if sample.at >= sampler.samples[0].at + WARM_UP_SECONDS]
    found = growths(samples, outcome.history.operations)
    _say(f"\n{'':44} {'2nd quarter':>12} {'last quarter':>12}")
    for growth in found:
        _say(str(growth))
    quarters = latencies(outcome.history.operations, samples[0].at, samples[-1].at)
    ratio = quarters[-1] / quarters[0]
    _say(f"p99 by quarter: {', '.join(f'{each * 1000:.1f} ms' for each in quarters)}; last ÷ first {ratio:.2f}")
    return 0 if outcome.good and all(each.flat for each in found) and ratio <= MOST_LATENCY_RATIO else 1


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
