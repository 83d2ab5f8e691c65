"""Events of other services, one function per event type, each in one transaction with the note that it was applied.

Neither order nor single delivery is promised. What the payment service says of money is the truth.
"""

from __future__ import annotations

from datetime import UTC
from typing import Final
from uuid import UUID

from skyhigh.flight.v1 import events_pb2 as flight
from skyhigh.payment.v1 import events_pb2 as payment

from booking_service import bookings
from services import timers
from services.db import Conn
from services.inbox import Subscription
from services.money import amount_of

# Others' intents are for other things, such as heavy bags.
REFERENCE: Final = "booking/"


async def on_payment_succeeded(conn: Conn, event: payment.PaymentSucceeded) -> None:
    """Has the booking confirmed, also one that FAILED or EXPIRED before, if its seats can still be had."""
    if (booking_id := _booking_of(event.reference)) is not None:
        await bookings.receive_money(
            conn,
            booking_id,
            intent_id=UUID(event.intent_id),
            amount=amount_of(event.amount),
            attempts=event.attempts,
        )


async def on_payment_failed(conn: Conn, event: payment.PaymentFailed) -> None:
    """Ends the booking, and frees its seats."""
    if (booking_id := _booking_of(event.reference)) is not None:
        await bookings.fail_payment(
            conn, booking_id, intent_id=UUID(event.intent_id), attempts=event.attempts, error=event.error
        )


async def on_payment_refunded(conn: Conn, event: payment.PaymentRefunded) -> None:
    """Notes that what was paid has been given back."""
    if (booking_id := _booking_of(event.reference)) is not None:
        await bookings.note_refund(conn, booking_id, intent_id=UUID(event.intent_id))


async def on_flight_cancelled(conn: Conn, event: flight.FlightCancelled) -> None:
    """Remembers the flight, and has its bookings cancelled."""
    remembered = await conn.fetchval(
        """
        INSERT INTO cancelled_flights (flight_id, reason, cancel_time) VALUES ($1, $2, $3)
        ON CONFLICT (flight_id) DO NOTHING RETURNING true
        """,
        event.flight_id,
        event.reason,
        event.cancel_time.ToDatetime(UTC),
    )
    if remembered:
        await timers.set_timer(conn, bookings.CANCEL_FLIGHT, event.flight_id)


def _booking_of(reference: str) -> UUID | None:
    """Returns the booking of a reference `booking/<booking>`; None for what is not ours."""
    return UUID(reference.removeprefix(REFERENCE)) if reference.startswith(REFERENCE) else None


SUBSCRIPTIONS: Final = (
    Subscription("payment.succeeded.v1", payment.PaymentSucceeded, on_payment_succeeded),
    Subscription("payment.failed.v1", payment.PaymentFailed, on_payment_failed),
    Subscription("payment.refunded.v1", payment.PaymentRefunded, on_payment_refunded),
    Subscription("flight.cancelled.v1", flight.FlightCancelled, on_flight_cancelled),
)
