"""The roles that may call each method of the flight service.

A method without a row is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.auth import Access, Effect, Role, allow

O, ANYBODY = Role.OPERATIONS, Role.ANYBODY  # noqa: E741

POLICY: Final[Mapping[str, Access]] = {
    "CreateFlight": allow(O, effect=Effect.WRITE),
    "CancelFlight": allow(O, effect=Effect.WRITE),
    "ListFlights": allow(ANYBODY, effect=Effect.READ),
    "GetFlight": allow(ANYBODY, effect=Effect.READ),
    "SearchFlights": allow(ANYBODY, effect=Effect.READ),
    "GetItinerary": allow(ANYBODY, effect=Effect.READ),
}
