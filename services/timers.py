"""Timers: actions that are due at a time, stored as rows (docs/decisions/0013).

A timer is set in the transaction of the change that needs it, so that a killed process loses none. A process claims a
due timer for the length of a lease. If the process dies, the lease lapses and another process claims the timer. So a
handler may run twice, and its own guarded writes must make the second run harmless. Setting a timer again restarts it.
A fired timer is kept for KEPT_HOURS, so that it can be inspected.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from services import db, tasks, telemetry
from services.batch import Batcher
from services.db import Conn, Pool
from services.errors import Unavailable

NOW: Final = timedelta()
# Usually a commit wakes the task. The poll finds timers that fall due later, and those that a killed process left
# behind.
POLL_SECONDS: Final = 0.25
LOOK_PAUSE_SECONDS: Final = 0.003
RETRY_SECONDS: Final = 0.25
LONGEST_RETRY_SECONDS: Final = 30.0
# After an outage a timer is retried within this time.
OUTAGE_RETRY_SECONDS: Final = 1.0
KEPT_HOURS: Final = 72

_log = telemetry.log("timers")


@dataclass(frozen=True, slots=True)
class Handler:
    """The handler of all timers with one name.

    `fire` gets the subject and runs in no transaction. If it returns, the timer has fired, unless `fire` set it again.
    If it raises, it is retried after a growing pause. An outage of the database or of another service (`db.OUTAGE`)
    does not count as a failed try: the timer is due again after OUTAGE_RETRY_SECONDS, however long the outage lasts.
    `lease_seconds` limits how long `fire` may run.
    """

    fire: Callable[[str], Awaitable[None]]
    lease_seconds: float = 15


@dataclass(frozen=True, slots=True)
class _Taken:
    name: str
    subject: str
    try_time: datetime
    tries: int


@dataclass(frozen=True, slots=True)
class _Settled:
    timer: _Taken
    error: str | None
    pause: timedelta
    tries: int


def pause_after(tries: int) -> float:
    """Returns the pause in seconds after this many failed tries."""
    return min(LONGEST_RETRY_SECONDS, RETRY_SECONDS * 2.0 ** min(tries - 1, 16))


async def set_timer(conn: Conn, name: str, subject: str, *, after: timedelta = NOW) -> None:
    """Sets or restarts a timer in the caller's transaction.

    `after` counts from this statement.
    """
    await set_timers(conn, name, [subject], after=after)


async def set_timers(conn: Conn, name: str, subjects: Sequence[str], *, after: timedelta = NOW) -> None:
    """Sets or restarts a timer for each subject; subjects must be unique."""
    await conn.execute(
        """
        INSERT INTO timers (name, subject, due_time, try_time)
        SELECT $1, subject, statement_timestamp() + $3, statement_timestamp() + $3 FROM unnest($2::text[]) AS subject
        ON CONFLICT (name, subject) DO UPDATE
        SET due_time = excluded.due_time, try_time = excluded.try_time, tries = 0, last_error = NULL, fire_time = NULL
        """,
        name,
        list(subjects),
        after,
    )


async def cancel_timer(conn: Conn, name: str, subject: str) -> bool:
    """Deletes a timer that has not fired, in the caller's transaction.

    Returns False if there is none. A handler without another guard calls it in the transaction of its effect, so that a
    second run has no effect.
    """
    status = await conn.execute(
        "DELETE FROM timers WHERE name = $1 AND subject = $2 AND coalesce(fire_time, 'infinity') = 'infinity'",
        name,
        subject,
    )
    return status == "DELETE 1"


async def forget_old(conn: Conn, *, limit: int) -> int:
    """Deletes up to `limit` of the oldest timers that fired over KEPT_HOURS ago.

    Returns how many it deleted.
    """
    status = await conn.execute(
        """
        WITH old AS MATERIALIZED (
            SELECT name, subject FROM timers WHERE fire_time < now() - make_interval(hours => $1)
            ORDER BY fire_time LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        DELETE FROM timers USING old
        WHERE timers.name = old.name AND timers.subject = old.subject
        """,
        KEPT_HOURS,
        limit,
    )
    return int(status.split()[-1])


class Timers:
    """Fires due timers, at most `at_once` at the same time in this process."""

    def __init__(self, pool: Pool, handlers: Mapping[str, Handler], *, at_once: int = 32) -> None:
        self._pool = pool
        self._handlers = handlers
        self._at_once = at_once
        self._woken = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._settled: Batcher[_Settled, None] = Batcher("timers", self._settle_batch)

    def wake(self) -> None:
        """Wakes the task after a commit with a timer that is due at once."""
        self._woken.set()

    async def run(self) -> None:
        """Fires timers until cancelled; retries while the database is unavailable."""
        try:
            while True:
                self._woken.clear()
                # Timers that are set during this pause are claimed by the same statement.
                await asyncio.sleep(LOOK_PAUSE_SECONDS)
                room = self._at_once - len(self._running)
                try:
                    taken = await self._take(room) if room else []
                except (Unavailable, *db.UNREACHABLE) as error:
                    _log.warning("timers not read; retrying", error=repr(error))
                    await asyncio.sleep(1)
                    continue
                for timer in taken:
                    task = asyncio.create_task(self._fire(timer))
                    self._running.add(task)
                    task.add_done_callback(self._done)
                if not taken or len(taken) < room:
                    # asyncio.wait_for may lose a cancellation that arrives together with the wake-up.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(POLL_SECONDS):
                            await self._woken.wait()
        finally:
            await tasks.end(self._running)

    def _done(self, task: asyncio.Task[None]) -> None:
        full = len(self._running) == self._at_once
        self._running.discard(task)
        if full:
            self.wake()

    async def _take(self, room: int) -> list[_Taken]:
        async with db.session(self._pool) as conn:
            rows = await conn.fetch(
                """
                WITH due AS MATERIALIZED (
                    SELECT name, subject, ($2::interval[])[array_position($1::text[], name)] AS lease FROM timers
                    WHERE fire_time IS NULL AND try_time <= statement_timestamp() AND name || '' = ANY($1::text[])
                    ORDER BY try_time LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED
                )
                UPDATE timers SET try_time = clock_timestamp() + due.lease, tries = timers.tries + 1
                FROM due
                WHERE timers.name = due.name AND timers.subject = due.subject
                  AND coalesce(timers.fire_time, 'infinity') = 'infinity'
                RETURNING timers.name, timers.subject, timers.try_time, timers.tries
                """,
                list(self._handlers),
                [timedelta(seconds=handler.lease_seconds) for handler in self._handlers.values()],
                room,
            )
        return [_Taken(row["name"], row["subject"], row["try_time"], row["tries"]) for row in rows]

    async def _fire(self, timer: _Taken) -> None:
        try:
            handler = self._handlers[timer.name]
            async with asyncio.timeout(handler.lease_seconds):
                await handler.fire(timer.subject)
        except db.OUTAGE as error:
            _log.warning(
                "timer failed, a dependency is unavailable; retrying",
                name=timer.name,
                subject=timer.subject,
                error=repr(error),
            )
            await self._settle(timer, error, pause_seconds=OUTAGE_RETRY_SECONDS, tries=timer.tries - 1)
        except Exception as error:
            _log.warning(
                "timer failed; retrying", name=timer.name, subject=timer.subject, tries=timer.tries, error=repr(error)
            )
            telemetry.TIMERS_FAILED.labels(timer.name).inc()
            await self._settle(timer, error, pause_seconds=pause_after(timer.tries), tries=timer.tries)
        else:
            await self._settle(timer, None, pause_seconds=0, tries=timer.tries)

    async def _settle(self, timer: _Taken, error: Exception | None, *, pause_seconds: float, tries: int) -> None:
        """Marks the timer as fired, or schedules its retry.

        It changes nothing if the timer was set again, or if another process has claimed it since.
        """
        text = None if error is None else f"{type(error).__name__}: {telemetry.without_row(error)}"[:500]
        try:
            await self._settled.submit(_Settled(timer, text, timedelta(seconds=pause_seconds), tries))
        except Exception as unsettled:
            # The lease lapses, the handler runs again, and its guard finds nothing left to do.
            _log.warning(
                "result of a timer not written; the timer runs again",
                name=timer.name,
                subject=timer.subject,
                error=repr(unsettled),
            )

    async def _settle_batch(self, settled: Sequence[_Settled]) -> list[None]:
        async with db.session(self._pool) as conn:
            await conn.execute(
                """
                UPDATE timers
                SET fire_time = CASE WHEN ended.error IS NULL THEN clock_timestamp() END,
                    try_time = CASE WHEN ended.error IS NULL THEN timers.try_time
                                    ELSE clock_timestamp() + ended.pause END,
                    last_error = ended.error, tries = ended.tries
                FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::interval[], $6::int[])
                    AS ended (name, subject, try_time, error, pause, tries)
                WHERE timers.name = ended.name AND timers.subject = ended.subject
                  AND timers.try_time = ended.try_time AND coalesce(timers.fire_time, 'infinity') = 'infinity'
                """,
                [each.timer.name for each in settled],
                [each.timer.subject for each in settled],
                [each.timer.try_time for each in settled],
                [each.error for each in settled],
                [each.pause for each in settled],
                [each.tries for each in settled],
            )
        return [None] * len(settled)
