"""The mails to passengers about their waitlist entries."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Protocol

from services import airports
from services.mail import mail
from services.outbox import Event

SERVICE: Final = "waitlist"


class MailFacts(Protocol):
    """The attributes of an entry that a mail depends on."""

    @property
    def flight_id(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def seat_number(self) -> str | None: ...
    @property
    def offer_expire_time(self) -> datetime | None: ...
    @property
    def contact_email(self) -> str | None: ...
    @property
    def contact_name(self) -> str: ...


def mail_of(entry: MailFacts, *, reason: str = "", origin: str = "") -> Event | None:
    """Returns the mail about the entry's present state; None if no mail is due.

    No mail is due without an address, and for most states and reasons (`reason` of the last transition). Times in the
    text are local times of the airport `origin`, or UTC if it is not known.
    """
    if not entry.contact_email:
        return None
    match entry.state:
        case "LEFT" if reason == "CHECK_IN_CLOSED":
            subject = f"The waitlist has closed: {entry.flight_id}"
            text = "Check-in has closed, so you are no longer on this flight's waitlist. You keep your present seat."
        case "LEFT" if reason == "ENTITLEMENT_ENDED":
            subject = f"You are no longer on the waitlist: {entry.flight_id}"
            text = (
                "You are no longer a passenger of this flight who needs a seat, so you are no longer on its waitlist."
            )
        case "LEFT" if reason == "FLIGHT_CANCELLED":
            subject = f"Your flight is cancelled: {entry.flight_id}"
            text = (
                "Your flight was cancelled, so you are no longer on its waitlist. The seller of your ticket refunds "
                "its price, or books you on another flight."
            )
        case "ASSIGNED":
            subject = f"Seat {entry.seat_number} is yours: {entry.flight_id}"
            text = f"Seat {entry.seat_number}, which you were waiting for, is now yours. Your former seat was released."
        case "OFFERED" if entry.offer_expire_time is not None:
            subject = f"Seat {entry.seat_number} is offered to you: {entry.flight_id}"
            text = (
                f"Seat {entry.seat_number}, which you were waiting for, is free. We hold it for you until "
                f"{airports.local_time(entry.offer_expire_time, airports.zone(origin))}; accept or decline it before."
            )
        case _:
            return None
    pnr = entry.owner.partition(":")[2]
    letter = (
        f"Dear {entry.contact_name},\n\nthis is about your flight {entry.flight_id}, booking {pnr}.\n\n"
        f"{text}\n\nSkyHigh\n"
    )
    return mail(SERVICE, to=entry.contact_email, subject=subject, text=letter)
