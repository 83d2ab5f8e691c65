"""The transition (nothing) → INITIATED."""

from __future__ import annotations

from uuid import UUID, uuid4

from checkin_service.check_ins.history import record
from checkin_service.check_ins.timer_names import CHECK_SEAT, FIRST_CHECK
from checkin_service.peers import Seat
from checkin_service.records import INFANT_SEAT
from services import timers
from services.db import Conn


async def start(
    conn: Conn, *, flight_id: str, passenger_id: str, pnr: str, allowance_grams: int, seat: Seat | None, actor: str
) -> UUID | None:
    """Begins a check-in while check-in is open: (nothing) → INITIATED.

    `seat` is None for an infant, whose adult must have completed check-in. Returns the id of the new check-in. Returns
    None, and changes nothing, if the passenger has a live check-in, if check-in is not open, if the manifest does not
    match the arguments any more, or if an earlier check-in of the passenger had the same hold: its cancellation
    releases that seat. The last rule does not apply to a passenger with a confirmed booking, because the cancellation
    of a check-in does not release a booked seat.
    """
    checkin_id: UUID | None = await conn.fetchval(
        """
        INSERT INTO check_ins (checkin_id, flight_id, passenger_id, pnr, allowance_grams, seat_number, hold_id)
        SELECT $1, passengers.flight_id, passengers.passenger_id, passengers.pnr, $5, $6, $7::uuid
        FROM passengers JOIN flights USING (flight_id)
        WHERE flight_id = $2 AND passenger_id = $3 AND passengers.pnr = $4
          AND (passengers.type = 'INFANT') = ($7 IS NULL)
          AND flights.cancel_time IS NULL
          AND statement_timestamp() >= flights.departure_time - flights.opens_before
          AND statement_timestamp() < flights.departure_time - flights.closes_before
          AND (passengers.booking IS NOT NULL OR NOT EXISTS (
              SELECT FROM check_ins AS former
              WHERE former.hold_id = $7 AND former.flight_id || '' = $2 AND former.passenger_id = $3))
          AND (passengers.type <> 'INFANT' OR EXISTS (
              SELECT FROM check_ins AS adult
              WHERE adult.flight_id = $2 AND adult.passenger_id = passengers.accompanying_passenger_id
                AND adult.state = 'COMPLETED'))
        ON CONFLICT (flight_id, passenger_id) WHERE state <> 'CANCELLED' DO NOTHING
        RETURNING checkin_id
        """,
        uuid4(),
        flight_id,
        passenger_id,
        pnr,
        allowance_grams,
        INFANT_SEAT if seat is None else seat.seat_number,
        None if seat is None else seat.hold_id,
    )
    if checkin_id is not None:
        await record(conn, checkin_id, 1, None, "INITIATED", actor=actor, reason="STARTED")
        if seat is not None:
            # An event about the seat that arrived before this row existed found no check-in; the timer covers that
            # case.
            await timers.set_timer(conn, CHECK_SEAT, str(checkin_id), after=FIRST_CHECK)
    return checkin_id
