"""The transition → COMPLETED, from BAGGAGE_VALIDATED or WAITING_FOR_PAYMENT."""

from __future__ import annotations

from typing import Final
from uuid import UUID, uuid4

from skyhigh.checkin.v1 import events_pb2

from checkin_service.check_ins.history import record
from checkin_service.check_ins.timer_names import CHECK_SEAT
from checkin_service.records import CheckIn
from services import outbox, timers
from services.db import Conn
from services.outbox import Event
from services.proto import timestamp

# SQL: an uncompleted check-in with a seat, accepted bags and a paid fee if one is due, before its flight leaves.
_READY: Final = """
    seat_number IS NOT NULL
    AND (check_ins.state = 'BAGGAGE_VALIDATED'
         OR check_ins.state = 'WAITING_FOR_PAYMENT' AND fee_pay_time IS NOT NULL AND fee_refund_time IS NULL
            AND NOT fee_returned)
    AND EXISTS (SELECT FROM flights
                WHERE flights.flight_id = check_ins.flight_id AND statement_timestamp() < departure_time)
"""


async def complete(conn: Conn, checkin_id: UUID, *, actor: str) -> bool:
    """Completes a check-in and numbers it in boarding sequence: → COMPLETED.

    From BAGGAGE_VALIDATED, or from WAITING_FOR_PAYMENT with the fee paid; with a seat, and before departure.

    Returns False, and changes nothing, if one of these is missing. It also returns False while another completed
    check-in has the seat, and while the seat service has not acknowledged the passenger's newest manifest entry: the
    seat may then belong to another passenger. Seating.correct_conflicts finds out.
    """
    row = await conn.fetchrow(
        f"""
        WITH standing AS (
            SELECT checkin_id, flight_id, state FROM check_ins
            WHERE checkin_id = $1 AND {_READY}
              AND NOT EXISTS (
                  SELECT FROM entitlements AS changed
                  WHERE changed.flight_id = check_ins.flight_id AND changed.passenger_id = check_ins.passenger_id
                    AND changed.known_revision < changed.revision)
              AND NOT EXISTS (
                  SELECT FROM check_ins AS other
                  WHERE other.flight_id = check_ins.flight_id AND other.seat_number = check_ins.seat_number
                    AND other.state = 'COMPLETED' AND other.seat_number <> 'INF' AND NOT other.seat_disputed)
            FOR NO KEY UPDATE
        ), numbered AS (
            INSERT INTO sequence_numbers (flight_id, last_number) SELECT flight_id, 1 FROM standing
            ON CONFLICT (flight_id) DO UPDATE SET last_number = sequence_numbers.last_number + 1
            RETURNING last_number
        )
        UPDATE check_ins
        SET state = 'COMPLETED', version = version + 1, sequence_number = numbered.last_number,
            update_time = statement_timestamp(), complete_time = statement_timestamp()
        FROM standing, numbered
        WHERE check_ins.checkin_id = standing.checkin_id
          AND check_ins.state IN ('BAGGAGE_VALIDATED', 'WAITING_FOR_PAYMENT') AND {_READY}
        RETURNING version, standing.state::text AS from_state, check_ins.flight_id, passenger_id, seat_number,
                  sequence_number, complete_time
        """,  # noqa: S608
        checkin_id,
    )
    if row is None:
        return False
    await record(conn, checkin_id, row["version"], row["from_state"], "COMPLETED", actor=actor, reason="COMPLETED")
    event = events_pb2.CheckInCompleted(
        checkin_id=str(checkin_id),
        flight_id=row["flight_id"],
        passenger_id=row["passenger_id"],
        seat_number=row["seat_number"],
        sequence_number=row["sequence_number"],
        complete_time=timestamp(row["complete_time"]),
    )
    await outbox.enqueue(conn, [Event(uuid4(), "checkin.completed.v1", event)])
    return True


def completion_actor(standing: CheckIn) -> str:
    """Returns the actor to record for a completion that no caller requested.

    This is the payment if the fee is paid, else the seat.
    """
    return "seat" if standing.fee_pay_time is None else "payment"


async def can_complete(conn: Conn, checkin_id: UUID) -> bool:
    """Returns whether an uncompleted check-in meets the conditions to complete.

    It has a seat, accepted bags and a paid fee if one is due, and its flight has not left.
    """
    found: bool = await conn.fetchval(
        f"SELECT EXISTS (SELECT FROM check_ins WHERE checkin_id = $1 AND {_READY})",  # noqa: S608
        checkin_id,
    )
    return found


async def complete_later(conn: Conn, checkin_id: UUID) -> None:
    """Sets the timer that re-checks the seat and then completes the check-in.

    Does nothing if the check-in lacks anything else.
    """
    if await can_complete(conn, checkin_id):
        await timers.set_timer(conn, CHECK_SEAT, str(checkin_id))
