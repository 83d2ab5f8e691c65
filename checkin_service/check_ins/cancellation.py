"""The transition from any other state → CANCELLED, and what follows from it."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID, uuid4

from skyhigh.checkin.v1 import events_pb2

from checkin_service import records, refusals
from checkin_service.check_ins.cancel_reasons import PAYMENT_TIMEOUT
from checkin_service.check_ins.history import record
from checkin_service.check_ins.timer_names import PAYMENT_DEADLINE, RELEASE_SEAT, SETTLE_FEE
from checkin_service.records import INFANT_SEAT, CheckIn
from services import outbox, timers
from services.db import Conn
from services.outbox import Event
from services.proto import timestamp


async def cancel(conn: Conn, checkin_id: UUID, *, reason: str, actor: str, cause_time: datetime | None = None) -> bool:
    """Cancels a check-in for a cause before departure: any other state → CANCELLED.

    Timers release the seat, and cancel or refund the fee. Returns False, and changes nothing, if the check-in was
    cancelled before or the flight had left. `cause_time` is the time of what another service decided, whose event may
    arrive after the departure; without it the cause is this call. A cancelled flight never leaves.
    """
    row = await conn.fetchrow(
        """
        UPDATE check_ins
        SET state = 'CANCELLED', cancel_time = statement_timestamp(), cancel_reason = $2, cancel_cause_time = $3,
            version = check_ins.version + 1, update_time = statement_timestamp()
        FROM (SELECT checkin_id, state FROM check_ins WHERE checkin_id = $1 FOR NO KEY UPDATE) AS standing, flights
        WHERE check_ins.checkin_id = standing.checkin_id
          AND check_ins.state IN ('INITIATED', 'BAGGAGE_VALIDATED', 'WAITING_FOR_PAYMENT', 'COMPLETED')
          AND flights.flight_id = check_ins.flight_id
          AND (flights.cancel_time IS NOT NULL
               OR coalesce($3::timestamptz, statement_timestamp()) < flights.departure_time)
        RETURNING standing.state::text AS from_state
        """,
        checkin_id,
        reason,
        cause_time,
    )
    if row is None:
        return False
    await timers.cancel_timer(conn, PAYMENT_DEADLINE, str(checkin_id))
    await _after_cancellation(conn, checkin_id, row["from_state"], actor=actor, cause_time=cause_time)
    return True


async def cancel_for(conn: Conn, checkin_id: UUID, *, pnr: str | None, reason: str, actor: str) -> CheckIn:
    """Cancels a check-in for a caller; a repeat returns the cancelled check-in.

    With `pnr`, only a check-in of that locator is found. Raises CHECK_IN_NOT_FOUND or FLIGHT_DEPARTED.
    """
    standing = await records.find(conn, checkin_id, pnr=pnr)
    done = await cancel(conn, standing.checkin_id, reason=reason, actor=actor)
    standing = await records.find(conn, checkin_id, pnr=pnr)
    if not done and standing.state != "CANCELLED":
        departure_time = await conn.fetchval(
            "SELECT departure_time FROM flights WHERE flight_id = $1", standing.flight_id
        )
        raise refusals.flight_departed(standing.flight_id, departure_time)
    return standing


async def time_out(conn: Conn, checkin_id: UUID, *, intent_id: UUID) -> bool:
    """Cancels an unpaid check-in after its deadline: WAITING_FOR_PAYMENT → CANCELLED.

    Returns False, and changes nothing, unless the passed deadline is that of this intent.
    """
    cancelled = await conn.fetchval(
        """
        UPDATE check_ins
        SET state = 'CANCELLED', cancel_time = statement_timestamp(), cancel_reason = $3, version = version + 1,
            update_time = statement_timestamp()
        WHERE checkin_id = $1 AND state = 'WAITING_FOR_PAYMENT' AND payment_intent_id = $2
          AND fee_pay_time IS NULL AND payment_deadline <= statement_timestamp()
        RETURNING checkin_id
        """,
        checkin_id,
        intent_id,
        PAYMENT_TIMEOUT,
    )
    if cancelled is None:
        return False
    await _after_cancellation(conn, checkin_id, "WAITING_FOR_PAYMENT", actor="deadline")
    return True


async def cancel_without_seat(conn: Conn, standing: CheckIn, *, reason: str) -> bool:
    """Cancels a check-in whose passenger has no seat any more: COMPLETED → CANCELLED.

    Returns False, and changes nothing, if the check-in no longer has the version of `standing`, or if the flight had
    left when the seat was released.
    """
    cancelled = await conn.fetchrow(
        """
        UPDATE check_ins
        SET state = 'CANCELLED', cancel_time = statement_timestamp(), cancel_reason = $3,
            cancel_cause_time = seat_release_time, version = version + 1, update_time = statement_timestamp()
        FROM flights
        WHERE checkin_id = $1 AND version = $2 AND state = 'COMPLETED' AND flights.flight_id = check_ins.flight_id
          AND (flights.cancel_time IS NOT NULL
               OR coalesce(seat_release_time, statement_timestamp()) < flights.departure_time)
        RETURNING seat_release_time
        """,
        standing.checkin_id,
        standing.version,
        reason,
    )
    if cancelled is None:
        return False
    await _after_cancellation(
        conn, standing.checkin_id, "COMPLETED", actor="seat", cause_time=cancelled["seat_release_time"]
    )
    return True


async def flew_on_seat(conn: Conn, checkin_id: UUID) -> bool:
    """Returns whether the flight had left when the seat of a check-in was released.

    Such a check-in stays COMPLETED. The release time comes with the event; without it the seat counts as released now.
    """
    left: bool | None = await conn.fetchval(
        """
        SELECT flights.cancel_time IS NULL AND departure_time <= coalesce(seat_release_time, statement_timestamp())
        FROM check_ins JOIN flights USING (flight_id) WHERE checkin_id = $1
        """,
        checkin_id,
    )
    return bool(left)


async def departed(conn: Conn, flight_id: str) -> bool:
    """Returns whether a flight has left; a cancelled flight never leaves."""
    left: bool | None = await conn.fetchval(
        """
        SELECT cancel_time IS NULL AND statement_timestamp() >= departure_time FROM flights WHERE flight_id = $1
        """,
        flight_id,
    )
    return bool(left)


async def keeps_seat(conn: Conn, cancelled: CheckIn) -> bool:
    """Returns whether the passenger of a cancelled check-in keeps the seat.

    This is so if a confirmed booking includes the seat, or if the flight has left. A confirmed booking marks its
    manifest entries; a cancelled booking deletes them.
    """
    booked: bool | None = await conn.fetchval(
        "SELECT booking IS NOT NULL FROM passengers WHERE flight_id = $1 AND passenger_id = $2",
        cancelled.flight_id,
        cancelled.passenger_id,
    )
    return bool(booked) or await departed(conn, cancelled.flight_id)


async def _after_cancellation(
    conn: Conn, checkin_id: UUID, from_state: str, *, actor: str, cause_time: datetime | None = None
) -> None:
    """Writes the history, the event and the timers that follow a cancellation.

    Also cancels the check-in of the infant on the passenger's lap.
    """
    cancelled = await records.find(conn, checkin_id)
    assert cancelled.cancel_reason is not None
    assert cancelled.cancel_time is not None
    await record(
        conn, checkin_id, cancelled.version, from_state, "CANCELLED", actor=actor, reason=cancelled.cancel_reason
    )
    if cancelled.seat_number != INFANT_SEAT:
        await timers.set_timer(conn, RELEASE_SEAT, str(checkin_id))
    if cancelled.payment_intent_id is not None:
        await timers.set_timer(conn, SETTLE_FEE, str(checkin_id))
    event = events_pb2.CheckInCancelled(
        checkin_id=str(checkin_id),
        flight_id=cancelled.flight_id,
        passenger_id=cancelled.passenger_id,
        reason=cancelled.cancel_reason,
        cancel_time=timestamp(cancelled.cancel_time),
    )
    await outbox.enqueue(conn, [Event(uuid4(), "checkin.cancelled.v1", event)])
    infant = await conn.fetchval(
        """
        SELECT check_ins.checkin_id FROM passengers JOIN check_ins USING (flight_id, passenger_id)
        WHERE flight_id = $1 AND passengers.accompanying_passenger_id = $2 AND check_ins.state <> 'CANCELLED'
        """,
        cancelled.flight_id,
        cancelled.passenger_id,
    )
    if infant is not None:
        await cancel(conn, infant, reason=cancelled.cancel_reason, actor=actor, cause_time=cause_time)
