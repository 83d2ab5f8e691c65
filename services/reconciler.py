"""Reconcilers: rows that wait for another service's fact are compared with their owner, and repaired (DESIGN 7.1).

An event makes a change fast. It may be lost: a broker can lose its disk. So every few seconds a bounded batch of the
rows that wait is looked at, their owner is asked, and what its event would have done is done by the same function.
Rounds go over all rows that wait, in the order of a key. The processes of a service share them, and a row that fails
delays no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from services import db, telemetry
from services.db import Pool
from services.time_limits import FACTOR

BATCH: Final = 100
# One look of one comparison takes no more batches; the next look goes on from there.
LONGEST_LOOK: Final = 10
AT_ONCE: Final = 8
# Longer than any repair takes that is not stuck.
REPAIR_SECONDS: Final = 10.0 * FACTOR

_log = telemetry.log("reconciler")


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to compare, and where the next batch begins; an empty `after` ends the round."""

    subjects: Sequence[Any]
    after: str


Find = Callable[[str, int], Awaitable[Batch]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What waits for one fact of another service, and what makes it agree.

    `find` gets the `after` of the last batch and a limit. `repair` gets one subject, in no transaction. It asks the
    owner, does what the owner's event does, and returns whether that changed anything. It may run twice.
    """

    name: str
    find: Find
    repair: Callable[[Any], Awaitable[bool]]


def waiting(pool: Pool, statement: str) -> Find:
    """Returns a `find` that reads the rows that wait.

    The statement returns a subject and the text of the key that its row is ordered by, greater than $1 unless that is
    empty, in the order of the key, at most $2 rows. An index keeps it from reading rows that do not wait.
    """

    async def find(after: str, limit: int) -> Batch:
        async with db.session(pool) as conn:
            rows = await conn.fetch(statement, after, limit)
        return Batch([row[0] for row in rows], rows[-1][1] if len(rows) == limit else "")

    return find


def by_update_time(table: str, key: str, *, what: str, since: str = "'-infinity'::timestamptz") -> str:
    """Returns a statement for `waiting`: the rows with `what`, in the order of their last change, from `since` on.

    `key` is the column of the table's UUID. All arguments are SQL of ours.
    """
    return f"""
        SELECT {key}::text, update_time || '|' || {key} FROM {table}
        WHERE {what}
          AND (update_time, {key}) > (
              coalesce(nullif(split_part($1, '|', 1), '')::timestamptz, {since}),
              coalesce(nullif(split_part($1, '|', 2), ''), '00000000-0000-0000-0000-000000000000')::uuid)
        ORDER BY update_time, {key} LIMIT $2
        """  # noqa: S608


class Reconciler:
    """Looks every `interval` for what waits. `tell` wakes whoever looks for what a repair left to be done."""

    def __init__(
        self, pool: Pool, comparisons: Sequence[Comparison], *, interval: timedelta, tell: Callable[[], None]
    ) -> None:
        self._pool = pool
        self._comparisons = comparisons
        self._interval = interval
        self._tell = tell

    async def run(self) -> None:
        """Looks until cancelled. A database or an owner that does not respond is asked again at the next look."""
        while True:
            await asyncio.gather(*(self.look(comparison) for comparison in self._comparisons))
            await asyncio.sleep(self._interval.total_seconds())

    async def look(self, comparison: Comparison) -> None:
        """Takes one look, unless a process has looked within the interval. Raises nothing but a cancellation."""
        try:
            after = await self._claim(comparison.name)
            for _ in range(LONGEST_LOOK):
                if after is None:
                    break
                batch = await comparison.find(after, BATCH)
                # Before the repairs: a batch whose owner does not respond must not keep the next one from its turn.
                after = batch.after
                await self._go_on(comparison.name, after)
                if not await self._repair(comparison, batch.subjects) or not after:
                    break
        except db.AWAY as error:
            _log.warning("reconciler waits", comparison=comparison.name, error=repr(error))
        except Exception as error:
            telemetry.RECONCILED.labels(comparison.name, "failed").inc()
            _log.error("reconciler failed", comparison=comparison.name, error=repr(error), exc_info=error)

    async def _repair(self, comparison: Comparison, subjects: Sequence[Any]) -> bool:
        """Compares the rows of a batch. Returns False where the owner does not respond."""
        room = asyncio.Semaphore(AT_ONCE)

        async def one(subject: Any) -> bool:
            async with room:
                return await self._compare(comparison, subject)

        answered = await asyncio.gather(*(one(subject) for subject in subjects))
        return not answered or any(answered)

    async def _compare(self, comparison: Comparison, subject: Any) -> bool:
        outcome, answered = "agreed", True
        try:
            async with asyncio.timeout(REPAIR_SECONDS):
                if await comparison.repair(subject):
                    outcome = "repaired"
                    _log.warning("repaired", comparison=comparison.name, subject=_short(subject))
                    self._tell()
        except db.AWAY as error:
            outcome, answered = "waits", False
            _log.warning("comparison waits", comparison=comparison.name, subject=_short(subject), error=repr(error))
        except Exception as error:
            outcome = "failed"
            _log.error(
                "comparison failed",
                comparison=comparison.name,
                subject=_short(subject),
                error=repr(error),
                exc_info=error,
            )
        telemetry.RECONCILED.labels(comparison.name, outcome).inc()
        return answered

    async def _claim(self, name: str) -> str | None:
        """Returns where this look begins; None where another process has looked within the interval."""
        async with db.session(self._pool) as conn:
            after: str | None = await conn.fetchval(
                """
                INSERT INTO reconciliations AS known (name, look_time) VALUES ($1, statement_timestamp())
                ON CONFLICT (name) DO UPDATE SET look_time = excluded.look_time
                WHERE known.look_time <= excluded.look_time - $2::interval
                RETURNING after
                """,
                name,
                # Two processes whose clocks begin a little apart take turns, and no look is skipped by milliseconds.
                self._interval * 0.9,
            )
            return after

    async def _go_on(self, name: str, after: str) -> None:
        async with db.session(self._pool) as conn:
            await conn.execute("UPDATE reconciliations SET after = $2 WHERE name = $1", name, after)


def _short(subject: object) -> str:
    """Names a subject in a log line: its id, and no more of a message than its first words."""
    return " ".join(str(getattr(subject, "flight_id", subject)).split())[:80]
