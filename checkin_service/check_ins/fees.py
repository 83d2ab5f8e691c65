"""The fee of a check-in: its payment, its deadline and its refund."""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from uuid import UUID

from checkin_service.check_ins.completion import complete_later
from checkin_service.check_ins.timer_names import PAYMENT_DEADLINE, SETTLE_FEE
from services import timers
from services.db import Conn

# A running payment extends the deadline of its fee for at most this time. Its attempts end within half a minute; the
# rest is for an outcome that the payment service has to ask the provider for.
LONGEST_PAYMENT: Final = timedelta(minutes=2)


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
        await complete_later(conn, checkin_id)
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
