"""Who may call which method of the booking service; a method without a row is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.auth import Access, Effect, Role, allow

C, A, ANYBODY = Role.CUSTOMER, Role.AGENT, Role.ANYBODY

POLICY: Final[Mapping[str, Access]] = {
    # It is how a customer gets a token.
    "CreateGuestSession": allow(ANYBODY, effect=Effect.WRITE),
    "CreateBooking": allow(C, A, effect=Effect.WRITE),
    "GetBooking": allow(C, A, effect=Effect.READ, owned=True),
    "WatchBooking": allow(C, A, effect=Effect.STREAM, owned=True),
    # Seats and money are the owner's own business: an agent changes and pays what it booked itself.
    "ChangeBookingSeats": allow(C, A, effect=Effect.WRITE, owned=True),
    "PayBooking": allow(C, A, effect=Effect.WRITE, owned=True),
    "CancelBooking": allow(C, A, effect=Effect.WRITE, owned=True),
}
