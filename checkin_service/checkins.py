"""The state machine of check-ins: one guarded write per transition.

    INITIATED → BAGGAGE_VALIDATED → COMPLETED        INITIATED → WAITING_FOR_PAYMENT → COMPLETED        any → CANCELLED

Each function runs in the caller's transaction. A transition writes its row of the history in that transaction, its
events into the outbox, and timers for the steps that need other services (steps.py). If the guard of a write does not
match, the function changes nothing and returns False, and the caller finds the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

from skyhigh.checkin.v1 import events_pb2

from checkin_service import records, refusals
from checkin_service.peers import Seat
from checkin_service.records import INFANT_SEAT, CheckIn
from services import outbox, timers
from services.db import Conn
from services.outbox import Event
from services.proto import timestamp

# Names of timers. The subject is a check-in, for REFUND a payment intent, for the last two a flight.
PAYMENT_DEADLINE: Final = "payment-deadline"
RELEASE_SEAT: Final = "release-seat"
SETTLE_FEE: Final = "settle-fee"
REFUND: Final = "refund"
CHECK_SEAT: Final = "look-at-seat"
CANCEL_CHECK_INS: Final = "cancel-check-ins"
# A trigger of the table `flights` sets this timer.
DEPARTURE: Final = "departure"

PAYMENT_TIMEOUT: Final = "PAYMENT_TIMEOUT"
SEAT_RELEASED: Final = "SEAT_RELEASED"
SEAT_NO_LONGER_FITS: Final = "SEAT_NO_LONGER_FITS"
BOOKING_CANCELLED: Final = "BOOKING_CANCELLED"
FLIGHT_CANCELLED: Final = "FLIGHT_CANCELLED"
FLIGHT_DEPARTED: Final = "FLIGHT_DEPARTED"
# Delay of the first re-check of a seat: longer than the events of its confirmation and release normally take.
FIRST_CHECK: Final = timedelta(seconds=1)
# A running payment extends the deadline of its fee for at most this time. Its attempts end within half a minute; the
# rest is for an outcome that the payment service has to ask the provider for.
LONGEST_PAYMENT: Final = timedelta(minutes=2)

# SQL: an uncompleted check-in with a seat, accepted bags and a paid fee if one is due, before its flight leaves.
_READY: Final = """
    seat_number IS NOT NULL
    AND (check_ins.state = 'BAGGAGE_VALIDATED'
         OR check_ins.state = 'WAITING_FOR_PAYMENT' AND fee_pay_time IS NOT NULL AND fee_refund_time IS NULL
            AND NOT fee_returned)
    AND EXISTS (SELECT FROM flights
                WHERE flights.flight_id = check_ins.flight_id AND statement_timestamp() < departure_time)
"""


@dataclass(frozen=True, slots=True)
class Bags:
    """The measured bags of a check-in, the allowance, and the fee for the excess."""

    weights_grams: Sequence[int]
    allowance_grams: int
    excess_grams: int
    fee_cents: int
    fee_currency: str


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
        await _record(conn, checkin_id, 1, None, "INITIATED", actor=actor, reason="STARTED")
        if seat is not None:
            # An event about the seat that arrived before this row existed found no check-in; the timer covers that
            # case.
            await timers.set_timer(conn, CHECK_SEAT, str(checkin_id), after=FIRST_CHECK)
    return checkin_id


async def wait_for_payment(
    conn: Conn, standing: CheckIn, bags: Bags, *, intent_id: UUID, patience: timedelta, actor: str
) -> bool:
    """Records bags beyond the allowance and their fee: → WAITING_FOR_PAYMENT.

    From INITIATED or WAITING_FOR_PAYMENT. The fee is due after `patience`, at the latest at departure. Returns False,
    and changes nothing, unless the check-in still has the version of `standing`, has a seat and no paid fee, and
    check-in is open. A concurrent payment, cancellation or declaration thus either comes first and changes the version,
    or finds the new intent.
    """
    row = await conn.fetchrow(
        """
        UPDATE check_ins
        SET state = 'WAITING_FOR_PAYMENT', version = check_ins.version + 1, update_time = statement_timestamp(),
            bags_grams = $3, allowance_grams = $4, excess_grams = $5, fee_cents = $6, fee_currency = $7,
            payment_intent_id = $8, payment_error = '', fee_refund_time = NULL, payment_wait_end = NULL,
            payment_deadline = least(statement_timestamp() + $9::interval, flights.departure_time)
        FROM flights
        WHERE check_ins.checkin_id = $1 AND check_ins.version = $2
          AND check_ins.state IN ('INITIATED', 'WAITING_FOR_PAYMENT')
          AND check_ins.seat_number IS NOT NULL AND check_ins.fee_pay_time IS NULL
          AND flights.flight_id = check_ins.flight_id
          AND statement_timestamp() < flights.departure_time - flights.closes_before
        RETURNING check_ins.version, payment_deadline - statement_timestamp() AS patience
        """,
        standing.checkin_id,
        standing.version,
        list(bags.weights_grams),
        bags.allowance_grams,
        bags.excess_grams,
        bags.fee_cents,
        bags.fee_currency,
        intent_id,
        patience,
    )
    if row is None:
        return False
    await _record(
        conn,
        standing.checkin_id,
        row["version"],
        standing.state,
        "WAITING_FOR_PAYMENT",
        actor=actor,
        reason="FEE_DUE",
    )
    await timers.set_timer(conn, PAYMENT_DEADLINE, str(standing.checkin_id), after=row["patience"])
    return True


async def validate_baggage(conn: Conn, standing: CheckIn, bags: Bags, *, actor: str) -> bool:
    """Records bags within the allowance: → BAGGAGE_VALIDATED.

    From INITIATED or WAITING_FOR_PAYMENT, with the same guard as `wait_for_payment`. Removes the unpaid fee of an
    earlier declaration, and its deadline.
    """
    version = await conn.fetchval(
        """
        UPDATE check_ins
        SET state = 'BAGGAGE_VALIDATED', version = check_ins.version + 1, update_time = statement_timestamp(),
            bags_grams = $3, allowance_grams = $4, excess_grams = 0, fee_cents = 0, fee_currency = '',
            payment_intent_id = NULL, payment_error = '', payment_deadline = NULL, fee_refund_time = NULL,
            payment_wait_end = NULL
        FROM flights
        WHERE check_ins.checkin_id = $1 AND check_ins.version = $2
          AND check_ins.state IN ('INITIATED', 'WAITING_FOR_PAYMENT')
          AND check_ins.seat_number IS NOT NULL AND check_ins.fee_pay_time IS NULL
          AND flights.flight_id = check_ins.flight_id
          AND statement_timestamp() < flights.departure_time - flights.closes_before
        RETURNING check_ins.version
        """,
        standing.checkin_id,
        standing.version,
        list(bags.weights_grams),
        bags.allowance_grams,
    )
    if version is None:
        return False
    await _record(
        conn, standing.checkin_id, version, standing.state, "BAGGAGE_VALIDATED", actor=actor, reason="BAGGAGE_ACCEPTED"
    )
    await timers.cancel_timer(conn, PAYMENT_DEADLINE, str(standing.checkin_id))
    return True


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
    await _record(conn, checkin_id, row["version"], row["from_state"], "COMPLETED", actor=actor, reason="COMPLETED")
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


async def pay(conn: Conn, checkin_id: UUID, *, intent_id: UUID, cents: int, currency: str) -> bool:
    """Marks the fee of a WAITING_FOR_PAYMENT check-in as paid; the state stays.

    Returns False, and changes nothing, unless the intent and the amount are those of the current, unpaid fee. A timer
    completes the check-in after the seat service has said whose seat it is. A check-in without a seat stays paid and
    waits for one. If the flight has left, the fee is refunded (`return_fee`).
    """
    paid = await conn.fetchval(
        """
        UPDATE check_ins
        SET fee_pay_time = statement_timestamp(), payment_error = '', version = version + 1,
            update_time = statement_timestamp()
        WHERE checkin_id = $1 AND state = 'WAITING_FOR_PAYMENT' AND payment_intent_id = $2
          AND fee_cents = $3 AND fee_currency = $4 AND fee_pay_time IS NULL AND fee_refund_time IS NULL
        RETURNING checkin_id
        """,
        checkin_id,
        intent_id,
        cents,
        currency,
    )
    if paid is None:
        return False
    await timers.cancel_timer(conn, PAYMENT_DEADLINE, str(checkin_id))
    if not await return_fee(conn, checkin_id):
        await _complete_later(conn, checkin_id)
    return True


async def return_fee(conn: Conn, checkin_id: UUID) -> bool:
    """Starts the refund of a paid fee whose check-in did not complete by departure.

    The check-in keeps its state: after departure only an unpaid fee cancels a check-in. Returns False, and changes
    nothing, for any other check-in and for a repeat.
    """
    returned = await conn.fetchval(
        """
        UPDATE check_ins SET fee_returned = true, version = version + 1, update_time = statement_timestamp()
        FROM flights
        WHERE checkin_id = $1 AND state = 'WAITING_FOR_PAYMENT' AND fee_pay_time IS NOT NULL AND NOT fee_returned
          AND flights.flight_id = check_ins.flight_id AND statement_timestamp() >= departure_time
        RETURNING checkin_id
        """,
        checkin_id,
    )
    if returned is None:
        return False
    await timers.set_timer(conn, SETTLE_FEE, str(checkin_id))
    return True


async def end_at_departure(conn: Conn, flight_id: str, *, limit: int) -> list[UUID]:
    """Ends the wait for payment of up to `limit` check-ins on a departed flight.

    Starts the refund of a paid fee. Moves the deadline of an unpaid fee to now, so that its timer cancels the check-in.
    Returns the check-ins that it changed.
    """
    rows = await conn.fetch(
        """
        SELECT checkin_id, fee_pay_time IS NOT NULL AS paid
        FROM check_ins JOIN flights USING (flight_id)
        WHERE flight_id = $1 AND state = 'WAITING_FOR_PAYMENT' AND NOT fee_returned
          AND (fee_pay_time IS NOT NULL OR payment_deadline > statement_timestamp())
          AND statement_timestamp() >= departure_time
        ORDER BY checkin_id LIMIT $2 FOR NO KEY UPDATE OF check_ins
        """,
        flight_id,
        limit,
    )
    for row in rows:
        if row["paid"]:
            await return_fee(conn, row["checkin_id"])
            continue
        await conn.execute(
            """
            UPDATE check_ins SET payment_deadline = statement_timestamp(), version = version + 1,
                                 update_time = statement_timestamp()
            WHERE checkin_id = $1 AND state = 'WAITING_FOR_PAYMENT'
            """,
            row["checkin_id"],
        )
        await timers.set_timer(conn, PAYMENT_DEADLINE, str(row["checkin_id"]))
    return [row["checkin_id"] for row in rows]


async def extend_deadline(conn: Conn, checkin_id: UUID, *, intent_id: UUID, by: timedelta, paid: bool) -> bool:
    """Moves the passed deadline of a running payment to `by` from now.

    A running payment extends the deadline for at most LONGEST_PAYMENT in total, and not beyond departure. A payment
    that succeeded (`paid`) extends it until its event arrives. Returns False, and changes nothing, if the deadline
    cannot be extended any more or the check-in does not wait for this intent.
    """
    extended = await conn.fetchval(
        """
        UPDATE check_ins
        SET payment_wait_end = coalesce(payment_wait_end, payment_deadline + $3),
            payment_deadline = statement_timestamp() + $4, version = version + 1, update_time = statement_timestamp()
        FROM flights
        WHERE checkin_id = $1 AND state = 'WAITING_FOR_PAYMENT' AND payment_intent_id = $2
          AND fee_pay_time IS NULL AND payment_deadline <= statement_timestamp()
          AND flights.flight_id = check_ins.flight_id
          AND ($5 OR statement_timestamp() < least(coalesce(payment_wait_end, payment_deadline + $3), departure_time))
        RETURNING checkin_id
        """,
        checkin_id,
        intent_id,
        LONGEST_PAYMENT,
        by,
        paid,
    )
    if extended is None:
        return False
    await timers.set_timer(conn, PAYMENT_DEADLINE, str(checkin_id), after=by)
    return True


async def fail_payment(conn: Conn, checkin_id: UUID, *, intent_id: UUID, error: str) -> None:
    """Records why the last payment failed; the state stays WAITING_FOR_PAYMENT.

    Does nothing if the check-in does not wait for this intent any more.
    """
    await conn.execute(
        """
        UPDATE check_ins SET payment_error = $3, version = version + 1, update_time = statement_timestamp()
        WHERE checkin_id = $1 AND state = 'WAITING_FOR_PAYMENT' AND payment_intent_id = $2 AND fee_pay_time IS NULL
        """,
        checkin_id,
        intent_id,
        error,
    )


async def note_late_payment(conn: Conn, checkin_id: UUID, *, intent_id: UUID) -> bool:
    """Records that the fee of a CANCELLED check-in was paid after all.

    The refund that follows then has a recorded payment. Returns False if the check-in is in another state, has another
    intent, or has the payment recorded already.
    """
    noted = await conn.fetchval(
        """
        UPDATE check_ins SET fee_pay_time = statement_timestamp(), version = version + 1,
                             update_time = statement_timestamp()
        WHERE checkin_id = $1 AND state = 'CANCELLED' AND payment_intent_id = $2 AND fee_pay_time IS NULL
        RETURNING true
        """,
        checkin_id,
        intent_id,
    )
    return noted is not None


async def note_refund(conn: Conn, *, intent_id: UUID) -> None:
    """Records the refund of the current fee, in any state that has a fee.

    This is no transition: the state stays.
    """
    await conn.execute(
        """
        UPDATE check_ins SET fee_refund_time = statement_timestamp(), version = version + 1,
                             update_time = statement_timestamp()
        WHERE payment_intent_id = $1 AND state IN ('WAITING_FOR_PAYMENT', 'COMPLETED', 'CANCELLED')
          AND fee_refund_time IS NULL
        """,
        intent_id,
    )


def completion_actor(standing: CheckIn) -> str:
    """Returns the actor to record for a completion that no caller requested.

    This is the payment if the fee is paid, else the seat.
    """
    return "seat" if standing.fee_pay_time is None else "payment"


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
        SET seat_number = $3, hold_id = $4, seat_disputed = false, version = version + 1,
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
        await _complete_later(conn, standing.checkin_id)
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


async def can_complete(conn: Conn, checkin_id: UUID) -> bool:
    """Returns whether an uncompleted check-in meets the conditions to complete.

    It has a seat, accepted bags and a paid fee if one is due, and its flight has not left.
    """
    found: bool = await conn.fetchval(
        f"SELECT EXISTS (SELECT FROM check_ins WHERE checkin_id = $1 AND {_READY})",  # noqa: S608
        checkin_id,
    )
    return found


async def _complete_later(conn: Conn, checkin_id: UUID) -> None:
    """Sets the timer that re-checks the seat and then completes the check-in.

    Does nothing if the check-in lacks anything else.
    """
    if await can_complete(conn, checkin_id):
        await timers.set_timer(conn, CHECK_SEAT, str(checkin_id))


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


async def cancel(conn: Conn, checkin_id: UUID, *, reason: str, actor: str, departed_too: bool = False) -> bool:
    """Cancels a check-in before departure: any other state → CANCELLED.

    Timers release the seat, and cancel or refund the fee. Returns False, and changes nothing, if the check-in was
    cancelled before or the flight has left. `departed_too` lifts the limit of the departure time for a cancelled
    flight, because the news of its cancellation may arrive after that time.
    """
    row = await conn.fetchrow(
        """
        UPDATE check_ins
        SET state = 'CANCELLED', cancel_time = statement_timestamp(), cancel_reason = $2,
            version = check_ins.version + 1, update_time = statement_timestamp()
        FROM (SELECT checkin_id, state FROM check_ins WHERE checkin_id = $1 FOR NO KEY UPDATE) AS standing, flights
        WHERE check_ins.checkin_id = standing.checkin_id
          AND check_ins.state IN ('INITIATED', 'BAGGAGE_VALIDATED', 'WAITING_FOR_PAYMENT', 'COMPLETED')
          AND flights.flight_id = check_ins.flight_id
          AND ($3 AND flights.cancel_time IS NOT NULL OR statement_timestamp() < flights.departure_time)
        RETURNING standing.state::text AS from_state
        """,
        checkin_id,
        reason,
        departed_too,
    )
    if row is None:
        return False
    await timers.cancel_timer(conn, PAYMENT_DEADLINE, str(checkin_id))
    await _after_cancellation(conn, checkin_id, row["from_state"], actor=actor, departed_too=departed_too)
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

    Returns False, and changes nothing, if the check-in no longer has the version of `standing` or the flight has left.
    """
    cancelled = await conn.fetchval(
        """
        UPDATE check_ins
        SET state = 'CANCELLED', cancel_time = statement_timestamp(), cancel_reason = $3, version = version + 1,
            update_time = statement_timestamp()
        FROM flights
        WHERE checkin_id = $1 AND version = $2 AND state = 'COMPLETED'
          AND flights.flight_id = check_ins.flight_id AND statement_timestamp() < departure_time
        RETURNING checkin_id
        """,
        standing.checkin_id,
        standing.version,
        reason,
    )
    if cancelled is None:
        return False
    await _after_cancellation(conn, standing.checkin_id, "COMPLETED", actor="seat")
    return True


async def departed(conn: Conn, flight_id: str) -> bool:
    """Returns whether a flight has left; a cancelled flight never leaves.

    After departure only an unpaid fee cancels a check-in.
    """
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
    conn: Conn, checkin_id: UUID, from_state: str, *, actor: str, departed_too: bool = False
) -> None:
    """Writes the history, the event and the timers that follow a cancellation.

    Also cancels the check-in of the infant on the passenger's lap.
    """
    cancelled = await records.find(conn, checkin_id)
    assert cancelled.cancel_reason is not None
    assert cancelled.cancel_time is not None
    await _record(
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
        await cancel(conn, infant, reason=cancelled.cancel_reason, actor=actor, departed_too=departed_too)


async def _record(
    conn: Conn, checkin_id: UUID, version: int, from_state: str | None, to_state: str, *, actor: str, reason: str
) -> None:
    await conn.execute(
        """
        INSERT INTO check_in_events (checkin_id, version, from_state, to_state, actor, reason)
        VALUES ($1, $2, $3::text::check_in_state, $4::text::check_in_state, $5, $6)
        """,
        checkin_id,
        version,
        from_state,
        to_state,
        actor,
        reason,
    )
