"""Mails to passengers whose manifest entry has a contact address."""

from __future__ import annotations

from datetime import date
from typing import Final

from checkin_service.records import CheckIn
from services import airports, outbox
from services.db import Conn
from services.mail import mail
from services.money import Amount, text_of

SERVICE: Final = "checkin"


async def payment_timed_out(conn: Conn, check_in: CheckIn, *, keeps_seat: bool) -> None:
    """Notifies the passenger that the unpaid fee cancelled the check-in."""
    await _send(
        conn,
        check_in,
        "Your check-in was cancelled",
        f"The baggage fee of {text_of(Amount(check_in.fee_currency, check_in.fee_cents))} was not paid in time, so "
        f"your check-in was cancelled{'' if keeps_seat else ' and your seat was released'}. You can check in again "
        f"while check-in is open.{' Your booking keeps its seat.' if keeps_seat else ''}",
    )


async def payment_refunded(conn: Conn, check_in: CheckIn, paid: Amount | None) -> None:
    """Notifies the passenger that a payment that was not due is refunded."""
    await _send(
        conn,
        check_in,
        "Your payment is refunded",
        f"Your payment{f' of {text_of(paid)}' if paid else ''} came too late or was no longer due. We refund it to the "
        "payment method that you used; you do not need to do anything.",
    )


async def seat_released(conn: Conn, check_in: CheckIn) -> None:
    """Notifies the passenger that the release of the seat cancelled the check-in."""
    refund = " We refund the baggage fee that you paid." if check_in.fee_pay_time is not None else ""
    await _send(
        conn,
        check_in,
        "Your check-in was cancelled",
        f"Seat {check_in.seat_number} is no longer reserved for you, so your check-in was cancelled and your boarding "
        f"pass is no longer valid.{refund} Please choose another seat and check in again, or come to our desk at the "
        "airport.",
    )


async def seat_no_longer_fits(conn: Conn, check_in: CheckIn) -> None:
    """Notifies the passenger that the seat no longer fits: the check-in is cancelled."""
    refund = " We refund the baggage fee that you paid." if check_in.fee_pay_time is not None else ""
    await _send(
        conn,
        check_in,
        "Your check-in was cancelled",
        f"Your booking changed, and seat {check_in.seat_number} no longer fits it: it is in another cabin, or its "
        "row is not for every passenger. So your check-in was cancelled and your boarding pass is no longer valid."
        f"{refund} Please choose another seat and check in again, or come to our desk at the airport.",
    )


async def flight_cancelled(conn: Conn, check_in: CheckIn) -> None:
    """Notifies the passenger that the cancelled flight cancelled the check-in."""
    refund = " We refund the baggage fee that you paid." if check_in.fee_pay_time is not None else ""
    await _send(
        conn,
        check_in,
        "Your flight is cancelled",
        f"Your flight was cancelled, so your check-in was cancelled and your boarding pass is no longer valid.{refund} "
        "The seller of your ticket refunds its price, or books you on another flight.",
    )


async def _send(conn: Conn, check_in: CheckIn, subject: str, text: str) -> None:
    row = await conn.fetchrow(
        """
        SELECT contact_email, given_name, flight_number, origin, destination, departure_date, departure_time
        FROM passengers JOIN flights USING (flight_id) WHERE flight_id = $1 AND passenger_id = $2
        """,
        check_in.flight_id,
        check_in.passenger_id,
    )
    if row is None or not row["contact_email"]:
        return
    departure_date: date = row["departure_date"]
    departure = airports.local_time(row["departure_time"], airports.zone(row["origin"]))
    journey = f"{row['flight_number']} from {row['origin']} to {row['destination']}, which departs at {departure}"
    await outbox.enqueue(
        conn,
        [
            mail(
                SERVICE,
                to=row["contact_email"],
                subject=f"{subject}: {row['flight_number']} on {departure_date.isoformat()}",
                text=f"Dear {row['given_name']},\n\nthis is about your flight {journey}.\n\n{text}\n\nSkyHigh\n",
            )
        ],
    )
