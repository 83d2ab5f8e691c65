"""What waiting passengers are told by mail."""

from __future__ import annotations

from typing import Final

from skyhigh.checkin.v1 import checkin_service_pb2 as checkin

from services import outbox
from services.db import Conn
from services.mail import mail
from services.proto import rfc3339
from waitlist_service.entries import Entry

SERVICE: Final = "waitlist"


async def tell(conn: Conn, entry: Entry, passenger: checkin.ManifestPassenger) -> None:
    """Writes the mail that fits what became of the entry; nothing for one that ended otherwise."""
    match entry.state:
        case "ASSIGNED":
            subject = f"Seat {entry.seat_number} is yours: {entry.flight_id}"
            text = (
                f"Seat {entry.seat_number}, which you were waiting for, is yours now. Your former seat was given back."
            )
        case "OFFERED" if entry.offer_expire_time is not None:
            subject = f"Seat {entry.seat_number} is offered to you: {entry.flight_id}"
            text = (
                f"Seat {entry.seat_number}, which you were waiting for, is free. It is kept for you until "
                f"{rfc3339(entry.offer_expire_time)}; accept or decline it there before."
            )
        case _:
            return
    letter = (
        f"Dear {passenger.given_name},\n\nthis is about your flight {entry.flight_id}, booking {passenger.pnr}.\n\n"
        f"{text}\n\nSkyHigh\n"
    )
    await outbox.enqueue(conn, [mail(SERVICE, to=passenger.contact_email, subject=subject, text=letter)])
