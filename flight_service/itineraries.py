"""Finds every route from one airport to another that begins on a day.

Two flights connect if the second departs neither too soon nor too late after the first arrives. A route touches no
airport twice, its first and last included, and has at most four flights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from typing import Final, TypeAlias

from flight_service.records import Flight
from flight_service.timetable import Timetable

MOST_FLIGHTS: Final = 4
LONGEST_FLIGHT: Final = timedelta(hours=24)
# Seen from UTC, a local day begins at the earliest 14 h before the UTC day of the same date (at +14:00). It ends at the
# latest 36 h after the beginning of that UTC day (at -12:00).
FIRST_MIDNIGHT: Final = timedelta(hours=-14)
LAST_MIDNIGHT: Final = timedelta(hours=36)
PREFIX: Final = "CF"

Route: TypeAlias = tuple[Flight, ...]


@dataclass(frozen=True, slots=True)
class Connections:
    """The shortest and the longest connection time, both inclusive."""

    shortest: timedelta
    longest: timedelta

    def days_ahead(self, day: date) -> tuple[date, date]:
        """Returns the first and the last UTC day of a route's departures.

        The route begins on the local day `day`.
        """
        reach = LAST_MIDNIGHT + (MOST_FLIGHTS - 1) * (LONGEST_FLIGHT + self.longest)
        return day + timedelta(days=FIRST_MIDNIGHT.days), day + timedelta(days=reach.days)

    def join(self, flight: Flight, following: Flight) -> bool:
        """Returns whether a passenger can change from the first flight to the second."""
        wait = following.departure_time - flight.arrival_time
        return following.origin == flight.destination and self.shortest <= wait <= self.longest


@dataclass(frozen=True, slots=True)
class Market:
    """Source, destination, and the local day of departure at the source."""

    source: str
    destination: str
    day: date


def routes(timetable: Timetable, market: Market, connections: Connections) -> list[Route]:
    """Returns every route of the market, in no particular order."""
    return list(_Finder(timetable, market.destination, connections).routes(market))


class _Finder:
    """Finds routes to one airport.

    It remembers for each flight the connecting flights from which the destination can be reached, so that the search
    rarely follows a dead end.
    """

    def __init__(self, timetable: Timetable, destination: str, connections: Connections) -> None:
        self._timetable = timetable
        self._destination = destination
        self._connections = connections
        self._known: dict[tuple[str, int], Sequence[Flight]] = {}

    def routes(self, market: Market) -> Iterator[Route]:
        for first in self._timetable.departures_on(market.source, market.day):
            if self._arrives(first, MOST_FLIGHTS - 1):
                yield from self._extended((first,), frozenset((first.origin, first.destination)))

    def _extended(self, route: Route, airports: frozenset[str]) -> Iterator[Route]:
        last = route[-1]
        if last.destination == self._destination:
            yield route
            return
        for following in self._onward(last, MOST_FLIGHTS - len(route)):
            if following.destination not in airports:
                yield from self._extended((*route, following), airports | {following.destination})

    def _arrives(self, flight: Flight, more: int) -> bool:
        """Returns whether at most `more` further flights lead to the destination.

        It ignores the rule that no airport is touched twice.
        """
        return flight.destination == self._destination or (more > 0 and bool(self._onward(flight, more)))

    def _onward(self, flight: Flight, more: int) -> Sequence[Flight]:
        """Returns the connecting flights that lead to the destination.

        Each of them reaches it with at most `more` flights, itself included.
        """
        known = self._known.get((flight.flight_id, more))
        if known is None:
            earliest = flight.arrival_time + self._connections.shortest
            latest = flight.arrival_time + self._connections.longest
            known = [
                following
                for following in self._timetable.departures_between(flight.destination, earliest, latest)
                if self._arrives(following, more - 1)
            ]
            self._known[(flight.flight_id, more)] = known
        return known


def is_journey(route: Sequence[Flight], connections: Connections) -> bool:
    """Returns whether the flights connect in this order and touch no airport twice."""
    airports = [route[0].origin, *(flight.destination for flight in route)]
    return len(set(airports)) == len(airports) and all(
        connections.join(flight, following) for flight, following in pairwise(route)
    )


def itinerary_id(route: Route) -> str:
    """Returns `CF_<from>_<to>_<flight>_<flight>…`; no part contains an underscore."""
    return "_".join((PREFIX, route[0].origin, route[-1].destination, *(flight.flight_id for flight in route)))


def parts_of(itinerary_id: str) -> tuple[str, str, list[str]]:
    """Returns source, destination and flight ids of an itinerary id."""
    _, source, destination, *flight_ids = itinerary_id.split("_")
    return source, destination, flight_ids


def minutes(route: Route) -> int:
    """Returns the whole minutes from the first departure to the last arrival."""
    return (route[-1].arrival_time - route[0].departure_time) // timedelta(minutes=1)
