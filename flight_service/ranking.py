"""Orders routes by price, duration or departure.

Ties are ordered by duration, then by departure, then by itinerary id.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

from skyhigh.flight.v1.flight_service_pb2 import SearchFlightsRequest

from flight_service.itineraries import Route, itinerary_id, minutes

Sort: TypeAlias = SearchFlightsRequest.Sort.ValueType
# The sort criterion, the duration in minutes, the departure in microseconds since 1970, and the itinerary id, which is
# unique.
Key: TypeAlias = tuple[int, int, int, str]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Ranked(NamedTuple):
    """A route that is for sale in a cabin, with its sort key."""

    key: Key
    route: Route
    flight_ids: frozenset[str]
    fare_cents: int
    """The fare of one adult, all flights together."""


def rank(routes: Sequence[Route], *, cabin: str, sort: Sort) -> list[Ranked]:
    """Returns the routes whose flights all have the cabin, in sort order.

    No two keys are equal.
    """
    return sorted(_ranked(route, cabin, sort) for route in routes if all(cabin in flight.fares for flight in route))


def _ranked(route: Route, cabin: str, sort: Sort) -> Ranked:
    fare_cents = sum(flight.fares[cabin] for flight in route)
    duration = minutes(route)
    departure = (route[0].departure_time - _EPOCH) // timedelta(microseconds=1)
    first = {
        SearchFlightsRequest.PRICE: fare_cents,
        SearchFlightsRequest.DURATION: duration,
        SearchFlightsRequest.DEPARTURE: departure,
    }[sort]
    return Ranked(
        (first, duration, departure, itinerary_id(route)),
        route,
        frozenset(flight.flight_id for flight in route),
        fare_cents,
    )
