"""Reconcilers: compare waiting rows with the service that owns the fact.

A row waits for a fact of another service, such as a payment. Usually an event brings the fact quickly, but a broker can
lose its disk and the event with it. So every few seconds a bounded batch of the waiting rows is compared with their
owner, and a difference is repaired by the function that handles the owner's event (DESIGN 7.1, decision 34). A round
goes over all waiting rows in the order of a key. The processes of a service share the rounds, and a row that fails
delays no other row.
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
# The most batches of one run of a comparison. The next run continues after them.
LONGEST_LOOK: Final = 10
AT_ONCE: Final = 8
# Longer than any repair takes, unless it is stuck.
REPAIR_SECONDS: Final = 10.0 * FACTOR

_log = telemetry.log("reconciler")


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to compare, and the position of the next batch.

    An empty `after` ends the round.
    """

    subjects: Sequence[Any]
    after: str


Find = Callable[[str, int], Awaitable[Batch]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rows that wait for one fact of another service, and how to repair them.

    `find` gets the `after` of the last batch and a limit. `repair` gets one subject and runs in no transaction. It asks
    the owner, does what the handler of the owner's event does, and returns whether that changed anything. It must be
    idempotent.
    """

    name: str
    find: Find
    repair: Callable[[Any], Awaitable[bool]]


def waiting(pool: Pool, statement: str) -> Find:
    """Returns a `find` that reads the waiting rows with an SQL statement.

    The statement returns a subject and the text of the row's key, for at most $2 rows whose key is greater than $1,
    ordered by the key; an empty $1 means from the beginning. It needs an index, so that it reads no rows that do not
    wait.
    """

    async def find(after: str, limit: int) -> Batch:
        async with db.session(pool) as conn:
            rows = await conn.fetch(statement, after, limit)
        return Batch([row[0] for row in rows], rows[-1][1] if len(rows) == limit else "")

    return find


def by_update_time(table: str, key: str, *, what: str, since: str = "'-infinity'::timestamptz") -> str:
    """Returns a statement for `waiting` that orders the rows by their last change.

    `what` is the condition of a waiting row, `key` the table's UUID column. Rows that changed before `since` are left
    out. All arguments are inserted as SQL and must never contain input.
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
    """Runs comparisons every `interval`.

    `tell` is called after each repair; it wakes the tasks that do the follow-up work.
    """

    def __init__(
        self, pool: Pool, comparisons: Sequence[Comparison], *, interval: timedelta, tell: Callable[[], None]
    ) -> None:
        self._pool = pool
        self._comparisons = comparisons
        self._interval = interval
        self._tell = tell

    async def run(self) -> None:
        """Runs all comparisons until cancelled.

        A database or an owner that does not respond is asked again in the next interval.
        """
        while True:
            await asyncio.gather(*(self.look(comparison) for comparison in self._comparisons))
            await asyncio.sleep(self._interval.total_seconds())

    async def look(self, comparison: Comparison) -> None:
        """Runs one comparison, unless a process has run it within the interval.

        Raises nothing but a cancellation.
        """
        try:
            after = await self._claim(comparison.name)
            for _ in range(LONGEST_LOOK):
                if after is None:
                    break
                batch = await comparison.find(after, BATCH)
                # Stored before the repairs, so that a batch whose owner does not respond does not block the batches
                # after it.
                after = batch.after
                await self._go_on(comparison.name, after)
                if not await self._repair(comparison, batch.subjects) or not after:
                    break
        except db.UNREACHABLE as error:
            _log.warning(
                "reconciler failed, a dependency is unavailable; retrying",
                comparison=comparison.name,
                error=repr(error),
            )
        except Exception as error:
            telemetry.RECONCILED.labels(comparison.name, "failed").inc()
            _log.error("reconciler failed; retrying", comparison=comparison.name, error=repr(error), exc_info=error)

    async def _repair(self, comparison: Comparison, subjects: Sequence[Any]) -> bool:
        """Compares the rows of a batch. Returns False if the owner does not respond."""
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
        except db.UNREACHABLE as error:
            outcome, answered = "waits", False
            _log.warning(
                "repair failed, a dependency is unavailable; retrying",
                comparison=comparison.name,
                subject=_short(subject),
                error=repr(error),
            )
        except Exception as error:
            outcome = "failed"
            _log.error(
                "repair failed; retrying",
                comparison=comparison.name,
                subject=_short(subject),
                error=repr(error),
                exc_info=error,
            )
        telemetry.RECONCILED.labels(comparison.name, outcome).inc()
        return answered

    async def _claim(self, name: str) -> str | None:
        """Returns the position from which to go on.

        Returns None if another process has run the comparison within the interval.
        """
        async with db.session(self._pool) as conn:
            after: str | None = await conn.fetchval(
                """
                INSERT INTO reconciliations AS known (name, look_time) VALUES ($1, statement_timestamp())
                ON CONFLICT (name) DO UPDATE SET look_time = excluded.look_time
                WHERE known.look_time <= excluded.look_time - $2::interval
                RETURNING after
                """,
                name,
                # The margin of 10 % keeps a process whose timer fires a few milliseconds early from skipping a run.
                self._interval * 0.9,
            )
            return after

    async def _go_on(self, name: str, after: str) -> None:
        async with db.session(self._pool) as conn:
            await conn.execute("UPDATE reconciliations SET after = $2 WHERE name = $1", name, after)


def _short(subject: object) -> str:
    """Returns a short name of a subject for log lines: its flight id, or its text.

    The name has at most 80 characters.
    """
    return " ".join(str(getattr(subject, "flight_id", subject)).split())[:80]
