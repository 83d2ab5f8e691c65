"""Mails to those who booked, each in the transaction of what it tells."""

from __future__ import annotations

from typing import Final

from booking_service.records import Booking, Leg
from services import airports, outbox
from services.db import Conn
from services.mail import mail
from services.money import text_of

SERVICE: Final = "booking"


async def confirmed(conn: Conn, booking: Booking, pnr: str) -> None:
    """Tells the record locator and the seats."""
    seats = "\n".join(
        f"  {leg.flight_number} {leg.origin} to {leg.destination}, {_departure(leg)}: "
        + ", ".join(seat.seat_number for seat in booking.seats if seat.flight_id == leg.flight_id)
        for leg in booking.legs
    )
    await _tell(
        conn,
        booking,
        f"Your booking {pnr} is confirmed",
        f"Thank you. Your record locator is {pnr}; with your last name it opens the check-in.\n\n{seats}\n\n"
        f"Paid: {text_of(booking.total)}",
    )


async def refunded(conn: Conn, booking: Booking) -> None:
    """Tells that the payment came too late for the seats."""
    await _tell(
        conn,
        booking,
        "Your payment is given back",
        f"Your payment of {text_of(booking.total)} came when your seats were no longer to be had. We are giving it "
        "back by the way it came; you need not do anything. We would be glad to find you other seats.",
    )


async def cancelled(conn: Conn, booking: Booking) -> None:
    """Tells that a confirmed booking was cancelled; one that was never paid was no more than an intention."""
    if booking.pnr is None:
        return
    why = "because a flight was cancelled" if booking.cancel_reason == "FLIGHT_CANCELLED" else "as you asked"
    await _tell(
        conn,
        booking,
        f"Your booking {booking.pnr} was cancelled",
        f"Your booking {booking.pnr} was cancelled, {why}. What you paid, {text_of(booking.total)}, is given back "
        "by the way it came.",
    )


def _departure(leg: Leg) -> str:
    return airports.local_time(leg.departure_time, airports.zone(leg.origin))


async def _tell(conn: Conn, booking: Booking, subject: str, text: str) -> None:
    if booking.contact_email:
        name = booking.travellers[0].given_name
        body = f"Dear {name},\n\n{text}\n\nSkyHigh\n"
        await outbox.enqueue(conn, [mail(SERVICE, to=booking.contact_email, subject=subject, text=body)])
