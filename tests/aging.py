"""Moves the times of rows into the past, so that a test need not wait for them.

Each function moves all times of a row that must agree, by the same duration. The sweeper, a timer or the next caller
then finds the row as if the time had passed. The statements name the schema, so that each function works on any
connection whose role may write to that schema; the owner's role may write to all schemas.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

import asyncpg
from skyhigh.seat.v1 import seat_service_pb2 as pb

if TYPE_CHECKING:
    from services.db import Conn

    Connection: TypeAlias = Conn
else:
    Connection = asyncpg.Connection

# The new time of a row lies this long before the statement that moves it, so that no later statement runs at exactly
# that time.
_AGO: Final = timedelta(milliseconds=1)


async def age_holds(database: Connection, *holds: pb.Hold, by: timedelta) -> None:
    """Moves all times of seat holds back; their durations and order stay the same."""
    moved = await database.execute(
        """
        UPDATE seat.holds
        SET create_time = create_time - $2::interval, expire_time = expire_time - $2::interval,
            confirm_time = confirm_time - $2::interval, end_time = end_time - $2::interval
        WHERE hold_id = ANY($1)
        """,
        [hold.hold_id for hold in holds],
        by,
    )
    assert moved == f"UPDATE {len(holds)}", "a hold is missing"


async def lapse_holds(database: Connection, *holds: pb.Hold, left: timedelta = -_AGO) -> None:
    """Moves all times of HELD holds back until each expires now, or `left` from now."""
    moved = await database.execute(
        """
        UPDATE seat.holds
        SET create_time = holds.create_time - move.duration, expire_time = holds.expire_time - move.duration
        FROM (
            SELECT hold_id, expire_time - clock_timestamp() - $2::interval AS duration
            FROM seat.holds WHERE hold_id = ANY($1)
        ) AS move
        WHERE holds.hold_id = move.hold_id AND holds.state = 'HELD'
        """,
        [hold.hold_id for hold in holds],
        left,
    )
    assert moved == f"UPDATE {len(holds)}", "a hold is missing or no longer HELD"


async def lapse_offers(database: Connection, flight_id: str, *seat_numbers: str) -> None:
    """Moves the end of the waitlist's window for these seats to now.

    The sweeper then makes the seats AVAILABLE.
    """
    moved = await database.execute(
        """
        UPDATE seat.offers SET expire_time = clock_timestamp() - $3::interval
        WHERE flight_id = $1 AND seat_number = ANY($2)
        """,
        flight_id,
        list(seat_numbers),
        _AGO,
    )
    assert moved == f"UPDATE {len(seat_numbers)}", "a seat is not offered"


async def make_timer_due(database: Connection, schema: str, name: str, subject: str) -> None:
    """Makes a service's timer due now. The timer must not have fired."""
    moved = await database.execute(
        f"""
        UPDATE {schema}.timers
        SET due_time = least(due_time, clock_timestamp() - $3::interval), try_time = clock_timestamp() - $3::interval
        WHERE name = $1 AND subject = $2 AND fire_time IS NULL
        """,
        name,
        subject,
        _AGO,
    )
    assert moved == "UPDATE 1", "there is no such timer, or it has fired"
