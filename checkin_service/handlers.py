"""Events of other services, one function per event type, each in one transaction with the note that it was applied.

Neither order nor single delivery is promised. What the payment service says of money is the truth, and is compared with
what the check-in waits for. What the seat service says is a hint to look where the passenger sits now.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, timedelta
from typing import Final
from uuid import UUID

from google.type import money_pb2
from skyhigh.booking.v1 import events_pb2 as booking
from skyhigh.flight.v1 import events_pb2 as flight
from skyhigh.payment.v1 import events_pb2 as payment
from skyhigh.seat.v1 import events_pb2 as seat

from checkin_service import bookings, checkins, flights, notices, records
from checkin_service.records import INFANT_SEAT
from services import timers
from services.db import Conn
from services.errors import InvalidArgument
from services.inbox import Subscription
from services.money import Amount, amount_of

# Others' intents are for other things, such as bookings.
REFERENCE: Final = "checkin"
# The seat service's reason where a passenger has another seat now, which it tells as well.
MOVED: Final = "MOVED"


async def on_payment_succeeded(conn: Conn, event: payment.PaymentSucceeded) -> None:
    """Completes the check-in that waits for this payment; a payment that nothing waits for is given back."""
    checkin_id = _checkin_of(event.reference)
    if checkin_id is None:
        return
    intent_id, amount = UUID(event.intent_id), _amount(event.amount)
    paid = amount is not None and await checkins.pay(
        conn, checkin_id, intent_id=intent_id, cents=amount.minor_units, currency=amount.currency
    )
    noted = not paid and await checkins.note_late_payment(conn, checkin_id, intent_id=intent_id)
    check_in = await records.find(conn, checkin_id)
    if paid:
        if check_in.fee_returned:
            await notices.payment_refunded(conn, check_in, amount)
        return
    if not noted and check_in.payment_intent_id == intent_id and check_in.fee_pay_time is not None:
        # An earlier event or comparison applied this payment. A cancellation since then refunds it by itself.
        return
    await timers.set_timer(conn, checkins.REFUND, str(intent_id))
    await notices.payment_refunded(conn, check_in, amount)


async def on_payment_failed(conn: Conn, event: payment.PaymentFailed) -> None:
    """Shows why the payment failed; the check-in goes on waiting."""
    checkin_id = _checkin_of(event.reference)
    if checkin_id is not None:
        await checkins.fail_payment(conn, checkin_id, intent_id=UUID(event.intent_id), error=event.error)


async def on_payment_refunded(conn: Conn, event: payment.PaymentRefunded) -> None:
    """Notes that the fee was given back."""
    if _checkin_of(event.reference) is not None:
        await checkins.note_refund(conn, intent_id=UUID(event.intent_id))


async def on_seat_confirmed(conn: Conn, event: seat.SeatConfirmed) -> None:
    """Has a look taken where passengers sit who got another seat than their live check-in knows."""
    await _look(
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
    """Has a look taken where passengers sit whose live check-in knows the seat that was freed.

    Where nobody moved, a little later: whoever freed it may tell why, such as a cancelled flight or booking.
    """
    moved = all(each.reason == MOVED for each in event.seats)
    await _look(
        conn,
        """
        SELECT checkin_id FROM check_ins
        JOIN unnest($2::text[], $3::uuid[]) AS told (passenger_id, hold_id) USING (passenger_id)
        WHERE flight_id = $1 AND state <> 'CANCELLED' AND seat_number IS DISTINCT FROM $4
          AND check_ins.hold_id = told.hold_id
        """,
        event.flight_id,
        # A seat that was blocked before had nobody on it.
        [(each.passenger_id, UUID(each.hold_id)) for each in event.seats if each.hold_id],
        after=timers.NOW if moved else checkins.FIRST_LOOK,
    )


async def on_booking_confirmed(conn: Conn, event: booking.BookingConfirmed) -> None:
    """Puts the passengers on the manifests; from now on they can log in."""
    await bookings.put_on(conn, event)


async def on_booking_cancelled(conn: Conn, event: booking.BookingCancelled) -> None:
    """Cancels the passengers' check-ins, and takes them off the manifests."""
    await bookings.take_off(conn, event)


async def on_flight_cancelled(conn: Conn, event: flight.FlightCancelled) -> None:
    """Closes check-in; a timer cancels the check-ins there are."""
    cancel_time = event.cancel_time.ToDatetime(tzinfo=UTC)
    await flights.cancel(conn, event.flight_id, reason=event.reason, cancel_time=cancel_time)


async def _look(
    conn: Conn, affected: str, flight_id: str, told: Sequence[tuple[str, UUID]], *, after: timedelta = timers.NOW
) -> None:
    rows = await conn.fetch(
        affected,
        flight_id,
        [passenger_id for passenger_id, _ in told],
        [hold_id for _, hold_id in told],
        INFANT_SEAT,
    )
    for row in rows:
        await timers.set_timer(conn, checkins.LOOK_AT_SEAT, str(row["checkin_id"]), after=after)


def _checkin_of(reference: str) -> UUID | None:
    """Returns the check-in of a reference `checkin/<check-in>/<declaration>`; None for what is not ours."""
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
    """Returns what was paid; None if it is no whole number of minor units, and so no fee of ours."""
    try:
        return amount_of(paid)
    except InvalidArgument:
        return None
