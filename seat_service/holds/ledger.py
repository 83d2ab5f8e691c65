"""Reads of the ledger of a seat (SEAT-15)."""

from __future__ import annotations

import asyncpg
from skyhigh.seat.v1 import seat_service_pb2 as pb

from services.db import Conn
from services.proto import timestamp


async def events_of_seat(
    conn: Conn, flight_id: str, seat_number: str, *, after_version: int, limit: int
) -> list[pb.SeatEvent]:
    """Returns `limit` transitions of a seat after `after_version`, oldest first."""
    rows = await conn.fetch(
        """
        SELECT seat_number, version, from_state::text, to_state::text, hold_id, actor, reason, request_id, event_time
        FROM seat_events
        WHERE flight_id = $1 AND seat_number = $2 AND version > $3 ORDER BY version LIMIT $4
        """,
        flight_id,
        seat_number,
        after_version,
        limit,
    )
    return [_event(row) for row in rows]


def _event(row: asyncpg.Record) -> pb.SeatEvent:
    return pb.SeatEvent(
        seat_number=row["seat_number"],
        version=row["version"],
        from_state=pb.Seat.State.Value(row["from_state"]),
        to_state=pb.Seat.State.Value(row["to_state"]),
        hold_id=str(row["hold_id"] or ""),
        actor=row["actor"],
        reason=row["reason"],
        request_id=str(row["request_id"] or ""),
        time=timestamp(row["event_time"]),
    )
