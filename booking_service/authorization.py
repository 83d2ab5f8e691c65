"""The roles that may call each method of the booking service.

A method without a row is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.auth import Access, Effect, Role, allow

C, A, ANYBODY = Role.CUSTOMER, Role.AGENT, Role.ANYBODY

POLICY: Final[Mapping[str, Access]] = {
    # A customer gets the first token by this call.
    "CreateGuestSession": allow(ANYBODY, effect=Effect.WRITE),
    "CreateBooking": allow(C, A, effect=Effect.WRITE),
    "GetBooking": allow(C, A, effect=Effect.READ, owned=True),
    "WatchBooking": allow(C, A, effect=Effect.STREAM, owned=True),
    # Only the owner changes seats and pays. An agent can do so for a booking that it made itself.
    "ChangeBookingSeats": allow(C, A, effect=Effect.WRITE, owned=True),
    "PayBooking": allow(C, A, effect=Effect.WRITE, owned=True),
    "CancelBooking": allow(C, A, effect=Effect.WRITE, owned=True),
}
