"""Rolls the schedule forward: creates the flights of the coming days.

The nearest days come first. A process fills a day under a lease; if it dies, the lease lapses and another process
continues. A flight is provisioned with seats first and inserted afterwards, and both steps are idempotent. So no flight
is lost or created twice, whichever process dies. Existing flights stay unchanged, cancelled ones too.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import islice
from typing import Final

from flight_service import flights, schedule
from flight_service.flights import NewFlight
from flight_service.peers import Peers
from services import db, telemetry
from services.db import Conn, Pool
from services.errors import AlreadyExists, Unavailable

# The flights that are provisioned concurrently and then inserted in one transaction.
AT_ONCE: Final = 8
# Longer than one such group ever takes.
LEASE: Final = timedelta(seconds=15)
# Tomorrow's flights are sold today. Later days wait, so that customers' calls get the processor first.
URGENT_DAYS: Final = 1
# After each group of a later day the process pauses for this many times the group's duration.
PAUSE_RATIO: Final = 3
LONGEST_PAUSE_SECONDS: Final = 5.0
# How soon the loop finds a new day, or a lease that has lapsed.
LOOK_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 1.0

_log = telemetry.log("rolling")


@dataclass(frozen=True, slots=True)
class _Lease:
    """A day that this process fills.

    `end` distinguishes this lease from the next holder's lease.
    """

    day: date
    urgent: bool
    end: datetime


class Rolling:
    """Keeps flights in the schedule for `horizon_days` days, today included.

    Today means today in any time zone.
    """

    def __init__(self, pool: Pool, peers: Peers, *, horizon_days: int) -> None:
        self._pool = pool
        self._peers = peers
        self._horizon_days = horizon_days

    async def run(self) -> None:
        """Rolls until cancelled.

        Retries while the seat service or the database is unavailable.
        """
        while True:
            try:
                while lease := await self._take():
                    await self._fill(lease)
            except (Unavailable, *db.UNREACHABLE) as error:
                _log.warning("rolling of days failed; retrying", error=repr(error))
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await asyncio.sleep(LOOK_SECONDS)

    async def _take(self) -> _Lease | None:
        """Takes a lease on the nearest day that lacks flights and has no lease."""
        async with db.transaction(self._pool) as conn:
            # Yesterday in UTC may still be today in Honolulu, and tomorrow in UTC already be today in Auckland.
            await conn.execute(
                """
                INSERT INTO schedule_rolls (day, edition)
                SELECT (statement_timestamp() AT TIME ZONE 'UTC')::date + n, $1 FROM generate_series(-1, $2) AS n
                ON CONFLICT DO NOTHING
                """,
                schedule.edition(),
                self._horizon_days,
            )
            row = await conn.fetchrow(
                """
                WITH free AS MATERIALIZED (
                    SELECT day FROM schedule_rolls
                    WHERE edition = $1 AND complete_time IS NULL AND lease_end <= statement_timestamp()
                      AND day >= (statement_timestamp() AT TIME ZONE 'UTC')::date - 1
                    ORDER BY day LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
                )
                UPDATE schedule_rolls AS rolls SET lease_end = clock_timestamp() + $2
                FROM free
                WHERE rolls.edition = $1 AND rolls.day = free.day AND rolls.complete_time IS NULL
                  AND rolls.lease_end <= statement_timestamp()
                RETURNING rolls.day, rolls.lease_end,
                    rolls.day - (statement_timestamp() AT TIME ZONE 'UTC')::date <= $3 AS urgent
                """,
                schedule.edition(),
                LEASE,
                URGENT_DAYS,
            )
        return _Lease(row["day"], row["urgent"], row["lease_end"]) if row else None

    async def _fill(self, lease: _Lease) -> None:
        """Creates the missing flights of a day.

        Ends the lease if that fails.
        """
        held: _Lease | None = lease
        try:
            missing = iter(await self._missing(schedule.departures(lease.day)))
            while held and (group := list(islice(missing, AT_ONCE))):
                began = time.monotonic()
                held = await self._add(held, group)
                if not lease.urgent:
                    await asyncio.sleep(min(PAUSE_RATIO * (time.monotonic() - began), LONGEST_PAUSE_SECONDS))
            if held and await self._complete(held):
                held = None
                _log.info("day rolled", day=str(lease.day))
        finally:
            if held:
                await self._end_lease(held)

    async def _missing(self, planned: Sequence[NewFlight]) -> list[NewFlight]:
        """Returns the planned flights that do not exist and have not departed."""
        async with db.session(self._pool) as conn:
            rows = await conn.fetch(
                """
                SELECT planned.flight_id
                FROM unnest($1::text[], $2::timestamptz[]) AS planned (flight_id, departure_time)
                WHERE planned.departure_time > statement_timestamp()
                  AND NOT EXISTS (SELECT FROM flights WHERE flights.flight_id = planned.flight_id)
                """,
                [flight.flight_id for flight in planned],
                [flight.departure_time for flight in planned],
            )
        missing = {row["flight_id"] for row in rows}
        return [flight for flight in planned if flight.flight_id in missing]

    async def _add(self, lease: _Lease, group: Sequence[NewFlight]) -> _Lease | None:
        """Provisions and inserts flights, and extends the lease.

        Returns the extended lease, or None if another process has taken the day.
        """
        have_seats = await asyncio.gather(*(self._provision(flight) for flight in group))
        async with db.transaction(self._pool) as conn:
            await flights.insert(conn, [flight for flight, has in zip(group, have_seats, strict=True) if has])
            end = await _move(conn, lease, by=LEASE)
        return replace(lease, end=end) if end else None

    async def _provision(self, flight: NewFlight) -> bool:
        """Provisions the seats of a flight; returns False if it has other seats."""
        try:
            await self._peers.provision(flight.flight_id, flight.layout_id, flight.departure_time)
        except AlreadyExists as refusal:
            # The flight id already has seats of another layout, which may be sold already. An operator has to decide.
            _log.error("flight not scheduled", flight_id=flight.flight_id, error=str(refusal))
            return False
        return True

    async def _complete(self, lease: _Lease) -> bool:
        async with db.session(self._pool) as conn:
            return bool(
                await conn.fetchval(
                    """
                    UPDATE schedule_rolls SET complete_time = statement_timestamp()
                    WHERE edition = $1 AND day = $2 AND lease_end = $3 AND complete_time IS NULL RETURNING true
                    """,
                    schedule.edition(),
                    lease.day,
                    lease.end,
                )
            )

    async def _end_lease(self, lease: _Lease) -> None:
        """Ends the lease, so that another process can continue before it lapses."""
        with contextlib.suppress(Unavailable, *db.UNREACHABLE):
            async with db.session(self._pool) as conn:
                await _move(conn, lease, by=timedelta())


async def _move(conn: Conn, lease: _Lease, *, by: timedelta) -> datetime | None:
    """Sets the end of a lease to `by` from now, and returns it.

    Returns None if another process has taken the day.
    """
    end: datetime | None = await conn.fetchval(
        """
        UPDATE schedule_rolls SET lease_end = clock_timestamp() + $4
        WHERE edition = $1 AND day = $2 AND lease_end = $3 AND complete_time IS NULL RETURNING lease_end
        """,
        schedule.edition(),
        lease.day,
        lease.end,
        by,
    )
    return end
