"""Flights for tests, and a slow search to compare with."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from google.protobuf.message import Message
from skyhigh.flight.v1 import flight_service_pb2 as pb
from skyhigh.seat.v1 import seat_service_pb2

from flight_service import counts, flights
from flight_service.aircraft import AIRCRAFT, fares
from flight_service.counts import Count
from flight_service.flights import NewFlight
from flight_service.records import Flight
from services import airports, db
from services.db import Pool
from services.proto import timestamp
from tests.callers import Caller, Callers

SHORTEST: Final = timedelta(minutes=45)
LONGEST: Final = timedelta(hours=8)
Way = tuple[NewFlight, ...]


def flight(
    origin: str,
    destination: str,
    departure: datetime,
    minutes: float = 60,
    *,
    cents: int = 10_000,
    aircraft_type: str = "A320",
    **more: Any,
) -> NewFlight:
    """Returns a flight; a departure without a zone is in local time of the origin."""
    zone = airports.zone(origin)
    assert zone is not None
    moment = (departure if departure.tzinfo else departure.replace(tzinfo=zone)).astimezone(UTC)
    number = f"SH{secrets.randbelow(9000) + 1000}"
    return NewFlight(
        flight_id=more.pop("flight_id", f"{number}-{secrets.token_hex(6)}"),
        flight_number=number,
        origin=origin,
        destination=destination,
        departure_time=moment,
        arrival_time=moment + timedelta(minutes=minutes),
        departure_date=moment.astimezone(zone).date(),
        aircraft_type=aircraft_type,
        layout_id=AIRCRAFT[aircraft_type].layout_id,
        fares=fares(aircraft_type, cents),
        seats=AIRCRAFT[aircraft_type].cabins,
        **more,
    )


def after(before: NewFlight, destination: str, wait: timedelta, minutes: float = 60, **more: Any) -> NewFlight:
    """Returns a flight from the destination of another, `wait` after its arrival."""
    return flight(before.destination, destination, before.arrival_time + wait, minutes, **more)


def itinerary_id(*way: NewFlight) -> str:
    """Returns the itinerary id as the flight service forms it."""
    return f"CF_{way[0].origin}_{way[-1].destination}_{'_'.join(each.flight_id for each in way)}"


def standing(new: NewFlight) -> Flight:
    """Returns a flight as the service reads it from the database."""
    facts = {name: getattr(new, name) for name in NewFlight.__slots__}
    return Flight(**facts, state="SCHEDULED", cancel_reason="", cancel_time=None)


def ways(schedule: Sequence[NewFlight], source: str, destination: str, day: date, *, hops: int = 3) -> Iterator[Way]:
    """Yields every itinerary by trying all flights for each leg, as FLT-2 says."""

    leaving: defaultdict[str, list[NewFlight]] = defaultdict(list)
    for each in schedule:
        leaving[each.origin].append(each)

    def go_on(way: Way) -> Iterator[Way]:
        if way[-1].destination == destination:
            yield way
            return
        if len(way) == hops + 1:
            return
        touched = [way[0].origin, *(each.destination for each in way)]
        for following in leaving[way[-1].destination]:
            wait = following.departure_time - way[-1].arrival_time
            if SHORTEST <= wait <= LONGEST and following.destination not in touched:
                yield from go_on((*way, following))

    for first in leaving[source]:
        if first.departure_date == day:
            yield from go_on((first,))


@dataclass(frozen=True)
class Airline:
    """A flight service, its database, and the seat service that it calls."""

    callers: Callers
    pool: Pool
    seats: Callers

    @property
    def operations(self) -> Caller:
        """A caller who may create and cancel flights."""
        return self.callers.operations()

    @property
    def anybody(self) -> Caller:
        """A caller with an invalid token."""
        return self.callers.anybody("nonsense")

    async def add(self, *new: NewFlight) -> None:
        """Inserts flights, without seats at the seat service."""
        async with db.transaction(self.pool) as conn:
            await flights.insert(conn, new)

    async def count(self, new: NewFlight, *, version: int = 1, **available_seats: int) -> None:
        """Stores the number of free seats of a flight, by cabin."""
        async with db.transaction(self.pool) as conn:
            kept = [Count(new.flight_id, cabin, free, version) for cabin, free in available_seats.items()]
            await counts.keep(conn, kept)

    async def count_all(self, free: Mapping[str, Mapping[str, int]]) -> None:
        """Stores the number of free seats of many flights, by flight id and cabin."""
        async with db.transaction(self.pool) as conn:
            kept = [Count(flight_id, cabin, seats, 1) for flight_id, by in free.items() for cabin, seats in by.items()]
            await counts.keep(conn, kept)

    async def search(self, source: str, destination: str, day: date, **more: Any) -> pb.SearchFlightsResponse:
        """Searches; returns the first page."""
        answer: pb.SearchFlightsResponse = await self.anybody.SearchFlights(
            pb.SearchFlightsRequest(source=source, destination=destination, date=str(day), **more)
        )
        return answer

    async def search_all(self, source: str, destination: str, day: date, **more: Any) -> list[pb.Itinerary]:
        """Searches; returns the itineraries of all pages."""
        found: list[pb.Itinerary] = []
        page = await self.search(source, destination, day, **more)
        found.extend(page.itineraries)
        while page.next_page_token:
            page = await self.search(source, destination, day, page_token=page.next_page_token, **more)
            found.extend(page.itineraries)
        assert page.total_size == len(found)
        return found

    async def found(self, source: str, destination: str, day: date, **more: Any) -> set[str]:
        """Returns the ids of all itineraries that a search finds."""
        itineraries = await self.search_all(source, destination, day, **more)
        ids = {each.itinerary_id for each in itineraries}
        assert len(ids) == len(itineraries)
        return ids

    async def get(self, flight_id: str) -> pb.Flight:
        """Reads a flight."""
        found: pb.Flight = await self.anybody.GetFlight(pb.GetFlightRequest(flight_id=flight_id))
        return found

    async def cancel(self, flight_id: str, **more: Any) -> pb.Flight:
        """Cancels a flight."""
        cancelled: pb.Flight = await self.operations.CancelFlight(pb.CancelFlightRequest(flight_id=flight_id, **more))
        return cancelled

    async def provisioned(self, flight_id: str) -> int:
        """Returns the number of seats that the flight has at the seat service."""
        seat_map = await self.seats.service("flight").GetSeatMap(
            seat_service_pb2.GetSeatMapRequest(flight_id=flight_id)
        )
        return len(seat_map.seats)


def asked(new: NewFlight, **more: Any) -> pb.CreateFlightRequest:
    """Returns a request that creates this flight, with the fare of its last cabin."""
    request = pb.CreateFlightRequest(
        flight_number=new.flight_number,
        flight_id=new.flight_id,
        origin=new.origin,
        destination=new.destination,
        departure_time=timestamp(new.departure_time),
        arrival_time=timestamp(new.arrival_time),
        aircraft_type=new.aircraft_type,
        gate=new.gate,
    )
    cents = [*new.fares.values()][-1]
    request.price.currency_code, request.price.units, request.price.nanos = (
        "USD",
        cents // 100,
        cents % 100 * 10_000_000,
    )
    for field, value in more.items():
        if isinstance(value, Message):
            getattr(request, field).MergeFrom(value)
        else:
            setattr(request, field, value)
    return request


def delayed(new: NewFlight, by: timedelta) -> NewFlight:
    """Returns the flight with later times."""
    return replace(new, departure_time=new.departure_time + by, arrival_time=new.arrival_time + by)


def ids(found: Iterable[Way]) -> set[str]:
    """Returns the itinerary ids."""
    return {itinerary_id(*way) for way in found}
