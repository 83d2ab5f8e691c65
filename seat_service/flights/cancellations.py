"""Cancelled flights: how a flight is closed, and its holds are cancelled.

One transaction closes the flight; then a timer cancels the holds in batches. Decision 19 says why.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from seat_service.holds.cancel import cancel
from seat_service.holds.locks import lock_flight
from seat_service.holds.releases import release_passenger
from seat_service.inventory import Inventory
from seat_service.requests import Effects, OnHold, OnPassenger
from services import db, timers
from services.db import Conn, Pool

# The timer that cancels the holds of a flight.
CANCEL_HOLDS: Final = "cancel-holds"
KNOWN: Final = "SELECT flight_id FROM cancelled_flights WHERE flight_id = ANY($1::text[])"
FLIGHT_CANCELLED: Final = "FLIGHT_CANCELLED"
ACTOR: Final = "flight"
# Holds in one transaction: up to 3,600 seats, 0.2 s. Callers that need one of these seats on another flight wait that
# long for its lock.
HOLDS_AT_ONCE: Final = 100


async def close(conn: Conn, flight_id: str, *, reason: str, cancel_time: datetime) -> None:
    """Closes a flight: from now on its seats cannot be held or confirmed.

    Holds with a seat of it cannot be extended or changed, either. A repeat changes nothing. This transaction locks all
    seats of the flight, and every transaction that changes a seat locks that seat. If the other one was first, its hold
    exists when the timer cancels the holds; if it comes later, it reads the row that is written here. A flight without
    seats is closed as well, because it may get seats later.
    """
    await lock_flight(conn, flight_id)
    closed = await conn.fetchval(
        """
        INSERT INTO cancelled_flights (flight_id, reason, cancel_time) VALUES ($1, $2, $3)
        ON CONFLICT (flight_id) DO NOTHING RETURNING flight_id
        """,
        flight_id,
        reason,
        cancel_time,
    )
    if closed is not None:
        await timers.set_timer(conn, CANCEL_HOLDS, flight_id)


class Emptying:
    """Cancels the holds of closed flights."""

    def __init__(self, pool: Pool, inventory: Inventory) -> None:
        self._pool = pool
        self._inventory = inventory

    async def cancel_holds(self, flight_id: str) -> None:
        """Cancels each hold with a seat of the flight: HELD or CONFIRMED → CANCELLED.

        The hold loses its seats on all of its flights. A confirmed, managed hold loses only the seats of this flight:
        its passengers may have flown the other legs. The service that manages the hold knows that, and releases the
        seats that were not flown (BKG-8).
        """
        while await self._cancel_some(flight_id):
            pass

    async def _cancel_some(self, flight_id: str) -> bool:
        effects = Effects()
        async with db.transaction(self._pool) as conn:
            # Lapsed holds are left out: the sweeper expires them.
            rows = await conn.fetch(
                """
                SELECT DISTINCT seats.hold_id, hold.state = 'CONFIRMED' AND hold.managed AS in_part
                FROM seats
                CROSS JOIN LATERAL (
                    SELECT holds.state, holds.expire_time, holds.managed FROM holds
                    WHERE holds.hold_id = seats.hold_id LIMIT 1
                ) AS hold
                WHERE seats.flight_id = $1 AND seats.hold_id IS NOT NULL
                  AND (hold.state = 'CONFIRMED' OR hold.state = 'HELD' AND hold.expire_time > statement_timestamp())
                LIMIT $2
                """,
                flight_id,
                HOLDS_AT_ONCE,
            )
            live = [
                OnHold(row["hold_id"], None, ACTOR, reason=FLIGHT_CANCELLED, manages=True, after_departure=True)
                for row in rows
                if not row["in_part"]
            ]
            if live:
                await cancel(conn, live, effects=effects)
            parts = [
                OnPassenger(
                    row["hold_id"],
                    None,
                    ACTOR,
                    reason=FLIGHT_CANCELLED,
                    manages=True,
                    after_departure=True,
                    flight_id=flight_id,
                    passenger_id=row["passenger_id"],
                )
                for row in await conn.fetch(
                    """
                    SELECT hold_id, passenger_id FROM hold_seats
                    WHERE hold_id = ANY($1::uuid[]) AND flight_id = $2 AND state = 'CONFIRMED'
                    """,
                    [row["hold_id"] for row in rows if row["in_part"]],
                    flight_id,
                )
            ]
            # Only one of the two calls in a transaction: each locks its holds before its seats, so that the second call
            # would lock holds after the seats of the first, against the order of locks. The next batch has the rest.
            if parts and not live:
                await release_passenger(conn, parts, effects=effects)
        self._inventory.tell(effects)
        return bool(live or parts)
