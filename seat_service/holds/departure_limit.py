"""The end of a hold is the first departure of its flights at the latest."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.holds.locks import lock_holds
from services.db import Conn
from services.proto import timestamp

# A hold ends at the first departure of its flights at the latest: no seat of a departed flight can be held.
FIRST_DEPARTURE: Final = """(SELECT min(departures.departure_time) FROM hold_seats
    CROSS JOIN LATERAL (
        SELECT departures.departure_time FROM departures WHERE departures.flight_id = hold_seats.flight_id LIMIT 1
    ) AS departures
    WHERE hold_seats.hold_id = holds.hold_id)"""


async def limit_by_departure(conn: Conn, hold_id: UUID, hold: pb.Hold) -> None:
    """Limits the end of a changed hold to the first departure of its flights.

    Writes the new end to the row and to `hold`.
    """
    expire_time = await conn.fetchval(
        f"""
        UPDATE holds SET expire_time = least(statement_timestamp() + ttl, {FIRST_DEPARTURE})
        WHERE hold_id = $1 AND state || '' = 'HELD' RETURNING expire_time
        """,  # noqa: S608
        hold_id,
    )
    hold.expire_time.CopyFrom(timestamp(expire_time))


async def end_holds_at_departure(conn: Conn, flight_id: str, *, limit: int) -> bool:
    """Moves the end of `limit` HELD holds of a flight to its departure; returns False if there were none."""
    rows = await conn.fetch(
        """
        SELECT DISTINCT hold.hold_id
        FROM departures
        CROSS JOIN LATERAL (
            SELECT seats.hold_id FROM seats
            WHERE seats.flight_id = departures.flight_id AND seats.state = 'HELD' OFFSET 0
        ) AS held
        CROSS JOIN LATERAL (
            SELECT holds.hold_id, holds.create_time, holds.expire_time FROM holds
            WHERE holds.hold_id = held.hold_id LIMIT 1
        ) AS hold
        WHERE departures.flight_id = $1
          AND hold.expire_time > greatest(departures.departure_time,
                                      hold.create_time + interval '1 microsecond')
        LIMIT $2
        """,
        flight_id,
        limit,
    )
    hold_ids = [row["hold_id"] for row in rows]
    if hold_ids:
        await lock_holds(conn, hold_ids)
        await conn.execute(
            """
            UPDATE holds
            SET expire_time = greatest(departures.departure_time, holds.create_time + interval '1 microsecond')
            FROM departures
            WHERE departures.flight_id = $1 AND holds.hold_id = ANY($2::uuid[]) AND holds.state || '' = 'HELD'
              AND holds.expire_time > departures.departure_time
            """,
            flight_id,
            hold_ids,
        )
    return bool(hold_ids)
