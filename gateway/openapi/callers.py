"""The callers of each RPC, from the authorization tables of all services."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from booking_service.authorization import POLICY as BOOKING
from checkin_service.authorization import POLICY as CHECKIN
from flight_service.authorization import POLICY as FLIGHT
from gateway.exposure import ServiceExposure
from gateway.guard.authorization import POLICY as GATEWAY
from payment_service.authorization import POLICY as PAYMENT
from seat_service.authorization import POLICY as SEAT
from services.auth import Access, Role
from waitlist_service.authorization import POLICY as WAITLIST

# The authorization table of each service, by the name of its cluster.
POLICIES: Final[Mapping[str, Mapping[str, Access]]] = {
    "seat": SEAT,
    "checkin": CHECKIN,
    "waitlist": WAITLIST,
    "payment": PAYMENT,
    "flight": FLIGHT,
    "booking": BOOKING,
    "gateway": GATEWAY,
}
ROLES: Final = tuple(role for role in Role if role is not Role.ANYBODY)


def access_to(service: ServiceExposure, rpc: str) -> Access:
    """Returns the RPC's row of its table. Raises KeyError if there is none."""
    return POLICIES[service.cluster][rpc]


def in_words(access: Access) -> str:
    """Returns a sentence that says which roles may call."""
    if access.public:
        return "Needs no token."
    names = [f"`{role}`" for role in ROLES if role in access.roles]
    everybody = len(names) == len(ROLES)
    who = "Whoever has a token" if everybody else " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"Callers: {who}.{' A passenger or a customer reaches only what is its own.' if access.owned else ''}"
