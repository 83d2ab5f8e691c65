"""Mails to customers, each in the transaction of the change that it reports."""

from __future__ import annotations

from typing import Final

from booking_service.bookings import FLIGHT_CANCELLED, PAYMENT_REFUNDED, SALE_CLOSED, Cancellation
from booking_service.records import Booking, Leg
from services import airports, outbox
from services.db import Conn
from services.mail import mail
from services.money import text_of

SERVICE: Final = "booking"
_REASONS: Final = {
    FLIGHT_CANCELLED: "because a flight was cancelled",
    PAYMENT_REFUNDED: "because its payment was refunded",
}
_NOT_CONFIRMED: Final = {
    FLIGHT_CANCELLED: "a flight was cancelled",
    PAYMENT_REFUNDED: "its payment was refunded",
    SALE_CLOSED: "the sale of seats on its first flight had closed",
}


async def confirmed(conn: Conn, booking: Booking, pnr: str) -> None:
    """Sends the record locator and the seats."""
    seats = "\n".join(
        f"  {leg.flight_number} {leg.origin} to {leg.destination}, {_departure(leg)}: "
        + ", ".join(seat.seat_number for seat in booking.seats if seat.flight_id == leg.flight_id)
        for leg in booking.legs
    )
    await _send(
        conn,
        booking,
        f"Your booking {pnr} is confirmed",
        f"Thank you. Your record locator is {pnr}. Check in with it and your last name.\n\n{seats}\n\n"
        f"Paid: {text_of(booking.total)}",
    )


async def refunded(conn: Conn, booking: Booking, *, reason: str) -> None:
    """Reports that the payment of an unconfirmed booking is refunded; `reason` is the booking's refund reason."""
    why = _NOT_CONFIRMED.get(reason, "the seats were no longer available")
    await _send(
        conn,
        booking,
        "Your payment is refunded",
        f"We could not confirm your booking: {why}. We refund your payment of {text_of(booking.total)} to the payment "
        "method that you used; you do not need to do anything.",
    )


async def cancelled(conn: Conn, cancellation: Cancellation) -> None:
    """Reports the cancellation of a confirmed booking or of some of its flights.

    Sends nothing for a booking that was never confirmed.
    """
    booking = cancellation.booking
    if booking.pnr is None:
        return
    why = _REASONS.get(booking.refund_reason or "", "as you asked")
    if not cancellation.whole:
        flights = ", ".join(f"{leg.flight_number} {leg.origin} to {leg.destination}" for leg in cancellation.legs)
        refund = booking.fare_of(*cancellation.legs)
        await _send(
            conn,
            booking,
            f"Flights of your booking {booking.pnr} were cancelled",
            f"We cancelled these flights of your booking {booking.pnr}, {why}: {flights}. We refund their fare of "
            f"{text_of(refund)} to the payment method that you used. The flights that have departed stay booked.",
        )
        return
    await _send(
        conn,
        booking,
        f"Your booking {booking.pnr} was cancelled",
        f"Your booking {booking.pnr} was cancelled, {why}. We refund your payment of {text_of(booking.total)} to the "
        "payment method that you used.",
    )


def _departure(leg: Leg) -> str:
    return airports.local_time(leg.departure_time, airports.zone(leg.origin))


async def _send(conn: Conn, booking: Booking, subject: str, text: str) -> None:
    if booking.contact_email:
        name = booking.travellers[0].given_name
        body = f"Dear {name},\n\n{text}\n\nSkyHigh\n"
        await outbox.enqueue(conn, [mail(SERVICE, to=booking.contact_email, subject=subject, text=body)])
