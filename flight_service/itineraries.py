"""How flights connect: every way from one airport to another that begins on a day.

Flights connect where the next one leaves neither too soon nor too late after the arrival of the one before. No airport
is touched twice, the first and the last included. A way is at most four flights long.
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
# Where a day begins last, and where it ends last, seen from UTC: at +14:00 and at -12:00.
FIRST_MIDNIGHT: Final = timedelta(hours=-14)
LAST_MIDNIGHT: Final = timedelta(hours=36)
PREFIX: Final = "CF"

Route: TypeAlias = tuple[Flight, ...]


@dataclass(frozen=True, slots=True)
class Connections:
    """Between which lengths flights connect, both included."""

    shortest: timedelta
    longest: timedelta

    def days_ahead(self, day: date) -> tuple[date, date]:
        """Returns the first and the last day of UTC on which flights of a way that begins on a local day can depart."""
        reach = LAST_MIDNIGHT + (MOST_FLIGHTS - 1) * (LONGEST_FLIGHT + self.longest)
        return day + timedelta(days=FIRST_MIDNIGHT.days), day + timedelta(days=reach.days)

    def join(self, flight: Flight, following: Flight) -> bool:
        """Whether one can change from a flight to another."""
        wait = following.departure_time - flight.arrival_time
        return following.origin == flight.destination and self.shortest <= wait <= self.longest


@dataclass(frozen=True, slots=True)
class Market:
    """From where to where, and on which day at the place of departure."""

    source: str
    destination: str
    day: date


def routes(timetable: Timetable, market: Market, connections: Connections) -> list[Route]:
    """Returns every way, in no order."""
    return list(_Finder(timetable, market.destination, connections).routes(market))


class _Finder:
    """Looks for ways to one airport; knows of each flight which others lead on to it, so that few looks are in vain."""

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
        """Whether at most so many more flights end at the destination, whatever airports they touch."""
        return flight.destination == self._destination or (more > 0 and bool(self._onward(flight, more)))

    def _onward(self, flight: Flight, more: int) -> Sequence[Flight]:
        """Returns the connecting flights with which at most so many flights end at the destination."""
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
    """Whether flights connect one after the other, and touch no airport twice."""
    airports = [route[0].origin, *(flight.destination for flight in route)]
    return len(set(airports)) == len(airports) and all(
        connections.join(flight, following) for flight, following in pairwise(route)
    )


def itinerary_id(route: Route) -> str:
    """Returns `CF_<from>_<to>_<flight>_<flight>…`. No part has an underscore of its own."""
    return "_".join((PREFIX, route[0].origin, route[-1].destination, *(flight.flight_id for flight in route)))


def parts_of(itinerary_id: str) -> tuple[str, str, list[str]]:
    """Returns from where, to where, and the ids of the flights."""
    _, source, destination, *flight_ids = itinerary_id.split("_")
    return source, destination, flight_ids


def minutes(route: Route) -> int:
    """Returns the whole minutes from the first departure to the last arrival."""
    return (route[-1].arrival_time - route[0].departure_time) // timedelta(minutes=1)
