"""Handlers of the events of other services: one function per event type.

Each handler runs in the transaction that also records the id of the event, so that a repeated delivery changes nothing.
Events may arrive in any order. The payment service's events are the truth about money: a handler compares them with the
intent and the amount that the check-in waits for. The seat service's events are only hints: a handler sets a timer,
which asks the seat service for the passenger's current seat.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from google.type import money_pb2
from skyhigh.booking.v1 import events_pb2 as booking
from skyhigh.flight.v1 import events_pb2 as flight
from skyhigh.payment.v1 import events_pb2 as payment
from skyhigh.seat.v1 import events_pb2 as seat

from checkin_service import notices, records
from checkin_service.check_ins import fees, timer_names
from checkin_service.manifests import bookings, flights
from checkin_service.records import INFANT_SEAT
from services import timers
from services.db import Conn
from services.errors import InvalidArgument
from services.inbox import Subscription
from services.money import Amount, amount_of

# First part of the reference of a check-in's payment intent. The intents of bookings begin with another one.
REFERENCE: Final = "checkin"
# The seat service's release reason if the passenger confirmed another seat. It publishes that confirmation, too.
MOVED: Final = "MOVED"


async def on_payment_succeeded(conn: Conn, event: payment.PaymentSucceeded) -> None:
    """Marks the fee of a check-in as paid, or refunds a payment that is not due.

    A timer then completes the check-in. A payment is refunded if no check-in waits for it, or if the flight has left;
    the passenger is notified by mail. A payment that was applied before changes nothing.
    """
    checkin_id = _checkin_of(event.reference)
    if checkin_id is None:
        return
    intent_id, amount = UUID(event.intent_id), _amount(event.amount)
    paid = amount is not None and await fees.pay(
        conn, checkin_id, intent_id=intent_id, cents=amount.minor_units, currency=amount.currency
    )
    noted = not paid and await fees.note_late_payment(conn, checkin_id, intent_id=intent_id)
    check_in = await records.find(conn, checkin_id)
    if paid:
        if check_in.fee_returned:
            await notices.payment_refunded(conn, check_in, amount)
        return
    if not noted and check_in.payment_intent_id == intent_id and check_in.fee_pay_time is not None:
        # An earlier event or reconciliation applied this payment. If the check-in was cancelled since then, the
        # cancellation itself refunds the fee.
        return
    await timers.set_timer(conn, timer_names.REFUND, str(intent_id))
    await notices.payment_refunded(conn, check_in, amount)


async def on_payment_failed(conn: Conn, event: payment.PaymentFailed) -> None:
    """Records why the payment failed; the check-in keeps waiting for a payment."""
    checkin_id = _checkin_of(event.reference)
    if checkin_id is not None:
        await fees.fail_payment(conn, checkin_id, intent_id=UUID(event.intent_id), error=event.error)


async def on_payment_refunded(conn: Conn, event: payment.PaymentRefunded) -> None:
    """Records that the fee was refunded."""
    if _checkin_of(event.reference) is not None:
        await fees.note_refund(conn, intent_id=UUID(event.intent_id))


async def on_seat_confirmed(conn: Conn, event: seat.SeatConfirmed) -> None:
    """Sets a timer to re-check the seat of each passenger who confirmed another seat.

    These are the passengers whose live check-in has another hold than the event names.
    """
    await _check_seat_later(
        conn,
        """
        SELECT checkin_id FROM check_ins
        JOIN unnest($2::text[], $3::uuid[]) AS told (passenger_id, hold_id) USING (passenger_id)
        WHERE flight_id = $1 AND state <> 'CANCELLED' AND seat_number IS DISTINCT FROM $4
          AND check_ins.hold_id IS DISTINCT FROM told.hold_id
        """,
        event.flight_id,
        [(each.passenger_id, UUID(each.hold_id)) for each in event.seats],
    )


async def on_seat_released(conn: Conn, event: seat.SeatReleased) -> None:
    """Records the release of a check-in's seat, and sets a timer to re-check the seat.

    If every passenger of the event moved to another seat, the timer is due at once. Else it is due after FIRST_CHECK:
    the event with the cause of the release, such as a cancelled flight or booking, can then arrive first and cancel the
    check-in with its own reason.
    """
    moved = all(each.reason == MOVED for each in event.seats)
    await _check_seat_later(
        conn,
        """
        UPDATE check_ins SET seat_release_time = $5
        FROM unnest($2::text[], $3::uuid[]) AS told (passenger_id, hold_id)
        WHERE flight_id = $1 AND check_ins.passenger_id = told.passenger_id AND check_ins.hold_id = told.hold_id
          AND state IN ('INITIATED', 'BAGGAGE_VALIDATED', 'WAITING_FOR_PAYMENT', 'COMPLETED')
          AND seat_number IS DISTINCT FROM $4
        RETURNING checkin_id
        """,
        event.flight_id,
        # A seat that was blocked before its release has no hold and no passenger.
        [(each.passenger_id, UUID(each.hold_id)) for each in event.seats if each.hold_id],
        event.release_time.ToDatetime(tzinfo=UTC),
        after=timers.NOW if moved else timer_names.FIRST_CHECK,
    )


async def on_booking_confirmed(conn: Conn, event: booking.BookingConfirmed) -> None:
    """Adds the booking's passengers to the manifests; from then on they can log in."""
    await bookings.add_passengers(conn, event)


async def on_booking_cancelled(conn: Conn, event: booking.BookingCancelled) -> None:
    """Cancels the passengers' check-ins and removes them from the manifests."""
    await bookings.remove_passengers(conn, event)


async def on_flight_cancelled(conn: Conn, event: flight.FlightCancelled) -> None:
    """Closes check-in of the flight; a timer cancels its check-ins."""
    cancel_time = event.cancel_time.ToDatetime(tzinfo=UTC)
    await flights.cancel(conn, event.flight_id, reason=event.reason, cancel_time=cancel_time)


async def _check_seat_later(
    conn: Conn,
    affected: str,
    flight_id: str,
    told: Sequence[tuple[str, UUID]],
    *more: datetime,
    after: timedelta = timers.NOW,
) -> None:
    rows = await conn.fetch(
        affected,
        flight_id,
        [passenger_id for passenger_id, _ in told],
        [hold_id for _, hold_id in told],
        INFANT_SEAT,
        *more,
    )
    for row in rows:
        await timers.set_timer(conn, timer_names.CHECK_SEAT, str(row["checkin_id"]), after=after)


def _checkin_of(reference: str) -> UUID | None:
    """Returns the check-in of a reference `checkin/<check-in>/<declaration>`.

    Returns None if the reference belongs to another service, such as a booking's.
    """
    owner, _, rest = reference.partition("/")
    return UUID(rest.partition("/")[0]) if owner == REFERENCE else None


SUBSCRIPTIONS: Final = (
    Subscription("payment.succeeded.v1", payment.PaymentSucceeded, on_payment_succeeded),
    Subscription("payment.failed.v1", payment.PaymentFailed, on_payment_failed),
    Subscription("payment.refunded.v1", payment.PaymentRefunded, on_payment_refunded),
    Subscription("seat.confirmed.v1", seat.SeatConfirmed, on_seat_confirmed),
    Subscription("seat.released.v1", seat.SeatReleased, on_seat_released),
)
MANIFEST_SUBSCRIPTIONS: Final = (
    Subscription("booking.confirmed.v1", booking.BookingConfirmed, on_booking_confirmed),
    Subscription("booking.cancelled.v1", booking.BookingCancelled, on_booking_cancelled),
    Subscription("flight.cancelled.v1", flight.FlightCancelled, on_flight_cancelled),
)


def _amount(paid: money_pb2.Money) -> Amount | None:
    """Returns the paid amount, or None if it is not a whole number of minor units.

    No fee of a check-in has such an amount.
    """
    try:
        return amount_of(paid)
    except InvalidArgument:
        return None
