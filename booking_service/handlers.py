"""Handlers of other services' events.

Each runs in one transaction with the inbox row of its event. Events may arrive twice and in any order. An event of the
payment service decides about the money. An event of the seat service only causes a look-up of the passengers' present
seats.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, timedelta
from typing import Final
from uuid import UUID

from skyhigh.flight.v1 import events_pb2 as flight
from skyhigh.payment.v1 import events_pb2 as payment
from skyhigh.seat.v1 import events_pb2 as seat

from booking_service import bookings, notices, records
from services import timers
from services.db import Conn
from services.inbox import Subscription
from services.money import amount_of

# Intents with another prefix pay for other things, such as excess baggage.
REFERENCE: Final = "booking/"
# The delay of the look-up. By then the service that released the seat has published the reason.
FREED_LOOK: Final = timedelta(seconds=5)


async def on_payment_succeeded(conn: Conn, event: payment.PaymentSucceeded) -> None:
    """Records the payment, which confirms the booking if it can get its seats.

    A booking that is FAILED or EXPIRED can be confirmed too.
    """
    if (booking_id := _booking_of(event.reference)) is not None:
        await bookings.receive_money(
            conn,
            booking_id,
            intent_id=UUID(event.intent_id),
            amount=amount_of(event.amount),
            attempts=event.attempts,
        )


async def on_payment_failed(conn: Conn, event: payment.PaymentFailed) -> None:
    """Ends the booking as FAILED and releases its seats."""
    if (booking_id := _booking_of(event.reference)) is not None:
        await bookings.fail_payment(
            conn, booking_id, intent_id=UUID(event.intent_id), attempts=event.attempts, error=event.error
        )


async def on_payment_refunded(conn: Conn, event: payment.PaymentRefunded) -> None:
    """Records a refund.

    If the whole payment was refunded without the booking's decision, the booking ends.
    """
    booking_id = _booking_of(event.reference)
    if booking_id is None:
        return
    intent_id = UUID(event.intent_id)
    total = amount_of(event.total_refunded if event.HasField("total_refunded") else event.amount)
    await records.lock(conn, booking_id)
    if await bookings.note_refund(conn, booking_id, intent_id=intent_id, total=total):
        return
    if not await bookings.was_refunded_elsewhere(conn, booking_id, intent_id=intent_id, total=total):
        return
    standing = await records.find(conn, booking_id)
    if await bookings.decide_refund(conn, standing, reason=bookings.PAYMENT_REFUNDED):
        await notices.refunded(conn, standing, reason=bookings.PAYMENT_REFUNDED)
    else:
        done = await bookings.cancel(
            conn, booking_id, owner=None, actor=bookings.ITSELF, reason=bookings.PAYMENT_REFUNDED
        )
        if done is not None:
            await notices.cancelled(conn, done)
    await bookings.note_refund(conn, booking_id, intent_id=intent_id, total=total)


async def on_seat_confirmed(conn: Conn, event: seat.SeatConfirmed) -> None:
    """Schedules a look-up for confirmed bookings that show another seat."""
    await _follow(conn, event.flight_id, {each.passenger_id: each.seat_number for each in event.seats})


async def on_seat_released(conn: Conn, event: seat.SeatReleased) -> None:
    """Schedules a look-up for the confirmed bookings of the released passengers.

    The look-up runs after FREED_LOOK. By then a cancelled flight or booking is recorded as such, and a passenger who
    moved has a new seat.
    """
    freed = {each.passenger_id: "" for each in event.seats if each.passenger_id}
    await _follow(conn, event.flight_id, freed, after=FREED_LOOK)


async def on_flight_cancelled(conn: Conn, event: flight.FlightCancelled) -> None:
    """Stores the cancelled flight, and schedules the cancellation of its bookings."""
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


async def _follow(conn: Conn, flight_id: str, seats: Mapping[str, str], *, after: timedelta = timers.NOW) -> None:
    rows = await conn.fetch(
        """
        SELECT DISTINCT booking_id
        FROM unnest($2::text[], $3::text[]) AS told (passenger_id, seat_number)
        JOIN booking_passengers USING (passenger_id) JOIN bookings USING (booking_id)
        JOIN booking_flights USING (booking_id)
        LEFT JOIN booking_seats USING (booking_id, flight_id, passenger_id)
        WHERE flight_id = $1 AND live AND state = 'CONFIRMED'
          AND booking_seats.seat_number IS DISTINCT FROM told.seat_number
        """,
        flight_id,
        list(seats),
        list(seats.values()),
    )
    for row in rows:
        await timers.set_timer(conn, bookings.FOLLOW_SEATS, str(row["booking_id"]), after=after)


def _booking_of(reference: str) -> UUID | None:
    """Returns the booking id of a reference `booking/<booking>`, else None."""
    return UUID(reference.removeprefix(REFERENCE)) if reference.startswith(REFERENCE) else None


SUBSCRIPTIONS: Final = (
    Subscription("payment.succeeded.v1", payment.PaymentSucceeded, on_payment_succeeded),
    Subscription("payment.failed.v1", payment.PaymentFailed, on_payment_failed),
    Subscription("payment.refunded.v1", payment.PaymentRefunded, on_payment_refunded),
    Subscription("seat.confirmed.v1", seat.SeatConfirmed, on_seat_confirmed),
    Subscription("seat.released.v1", seat.SeatReleased, on_seat_released),
    Subscription("flight.cancelled.v1", flight.FlightCancelled, on_flight_cancelled),
)
