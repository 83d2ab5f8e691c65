"""Cancelled flights: their waitlists are closed and all entries end."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from services import timers
from services.db import Conn
from waitlist_service import entries

FLIGHT_CANCELLED: Final = "FLIGHT_CANCELLED"
KNOWN: Final = "SELECT flight_id FROM flights WHERE flight_id = ANY($1::text[]) AND cancel_time IS NOT NULL"
ACTOR: Final = "flight"


async def cancel_flight(conn: Conn, flight_id: str, *, reason: str, cancel_time: datetime) -> None:
    """Closes a flight's waitlist for ever, and ends all of its entries.

    A repeat changes nothing. Joining locks the row of the flight, which is written here. If a join commits first, its
    entry is ended here; if it comes later, it is refused with FLIGHT_CANCELLED.
    """
    closed = await conn.fetchval(
        """
        INSERT INTO flights (flight_id, cancel_time, cancel_reason) VALUES ($1, $2, $3)
        ON CONFLICT (flight_id) DO UPDATE
        SET cancel_time = excluded.cancel_time, cancel_reason = excluded.cancel_reason,
            open = false, revision = flights.revision + flights.open::int
        WHERE flights.cancel_time IS NULL
        RETURNING flight_id
        """,
        flight_id,
        cancel_time,
        reason,
    )
    if closed is None:
        return
    await timers.cancel_timer(conn, entries.CLOSE, flight_id)
    await entries.end_all(conn, flight_id, actor=ACTOR, reason=FLIGHT_CANCELLED)
    # The flight's last sweep closes the waitlist at the seat service.
    await timers.set_timer(conn, entries.SWEEP, flight_id)
