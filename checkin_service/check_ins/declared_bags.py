"""Transitions of declared bags: → BAGGAGE_VALIDATED or WAITING_FOR_PAYMENT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from checkin_service.check_ins.history import record
from checkin_service.check_ins.timer_names import PAYMENT_DEADLINE
from checkin_service.records import CheckIn
from services import timers
from services.db import Conn


@dataclass(frozen=True, slots=True)
class Bags:
    """The measured bags of a check-in, the allowance, and the fee for the excess."""

    weights_grams: Sequence[int]
    allowance_grams: int
    excess_grams: int
    fee_cents: int
    fee_currency: str


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
    await record(
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
    await record(
        conn, standing.checkin_id, version, standing.state, "BAGGAGE_VALIDATED", actor=actor, reason="BAGGAGE_ACCEPTED"
    )
    await timers.cancel_timer(conn, PAYMENT_DEADLINE, str(standing.checkin_id))
    return True
