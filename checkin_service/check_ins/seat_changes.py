"""The seat of a check-in follows the seat service: recorded, disputed, lost."""

from __future__ import annotations

from checkin_service.check_ins.completion import complete, complete_later, completion_actor
from checkin_service.check_ins.timer_names import CHECK_SEAT
from checkin_service.peers import Seat
from checkin_service.records import CheckIn
from services import timers
from services.db import Conn


async def record_seat(conn: Conn, standing: CheckIn, seat: Seat) -> bool:
    """Records the current seat of a live check-in's passenger.

    Then completes the check-in if nothing else is missing, at once or by a timer. If the check-in is COMPLETED, every
    other completed check-in with this seat is marked as disputed, until the seat service has been asked for its
    passenger's seat. Returns False if the check-in no longer has the version of `standing`; the caller must then roll
    back.
    """
    if standing.state == "COMPLETED":
        await _dispute_others(conn, standing, seat)
    moved = await conn.fetchval(
        """
        UPDATE check_ins
        SET seat_number = $3, hold_id = $4, seat_disputed = false, seat_release_time = NULL, version = version + 1,
            update_time = statement_timestamp()
        WHERE checkin_id = $1 AND version = $2
          AND state IN ('INITIATED', 'BAGGAGE_VALIDATED', 'WAITING_FOR_PAYMENT', 'COMPLETED')
        RETURNING checkin_id
        """,
        standing.checkin_id,
        standing.version,
        seat.seat_number,
        seat.hold_id,
    )
    if moved is None:
        return False
    if standing.state != "COMPLETED" and not await complete(
        conn, standing.checkin_id, actor=completion_actor(standing)
    ):
        await complete_later(conn, standing.checkin_id)
    return True


async def _dispute_others(conn: Conn, standing: CheckIn, seat: Seat) -> None:
    """Marks the other completed check-ins with this seat as disputed.

    The seat service has said that the seat is the passenger's of `standing`. A timer asks it for the current seat of
    each marked check-in. The mark takes the row out of the unique index of completed seats (decision 38).
    """
    rows = await conn.fetch(
        """
        UPDATE check_ins SET seat_disputed = true, version = version + 1, update_time = statement_timestamp()
        WHERE flight_id = $1 AND seat_number = $2 AND checkin_id <> $3
          AND state = 'COMPLETED' AND seat_number <> 'INF' AND NOT seat_disputed
        RETURNING checkin_id
        """,
        standing.flight_id,
        seat.seat_number,
        standing.checkin_id,
    )
    for row in rows:
        await timers.set_timer(conn, CHECK_SEAT, str(row["checkin_id"]))


async def remove_seat(conn: Conn, standing: CheckIn) -> bool:
    """Records that the passenger of an uncompleted check-in has no seat any more.

    Returns False, and changes nothing, if the check-in no longer has the version of `standing`.
    """
    lost = await conn.fetchval(
        """
        UPDATE check_ins
        SET seat_number = NULL, hold_id = NULL, version = version + 1, update_time = statement_timestamp()
        WHERE checkin_id = $1 AND version = $2 AND state IN ('INITIATED', 'BAGGAGE_VALIDATED', 'WAITING_FOR_PAYMENT')
        RETURNING checkin_id
        """,
        standing.checkin_id,
        standing.version,
    )
    return lost is not None
