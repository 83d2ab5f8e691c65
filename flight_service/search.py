"""Searches itineraries: cached routes, with present free seats (FLT-2, FLT-3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from skyhigh.flight.v1 import flight_service_pb2 as pb

from flight_service import counts, flights, itineraries, refusals
from flight_service.itineraries import Connections, Market, Route
from flight_service.ranking import Key, Ranked, Sort
from flight_service.records import Flight, FreeSeats, usd
from flight_service.routes_cache import RoutesCache
from flight_service.timetable import Timetable, Timetables
from services import db
from services.db import Pool
from services.errors import FieldViolation, InvalidArgument


@dataclass(frozen=True, slots=True)
class Question:
    """What a party searches for."""

    market: Market
    zone: ZoneInfo
    """The time zone of the source."""
    seats: int
    most_changes: int
    cabin: str
    sort: Sort


@dataclass(frozen=True, slots=True)
class Answer:
    """A page of itineraries.

    `total_size` counts the itineraries of all pages. `last` is the key of the page's last itinerary, or None on the
    last page.
    """

    itineraries: Sequence[pb.Itinerary]
    total_size: int
    last: Key | None


class Search:
    """Searches itineraries."""

    def __init__(self, pool: Pool, timetables: Timetables, routes: RoutesCache, connections: Connections) -> None:
        self._pool = pool
        self._timetables = timetables
        self._routes = routes
        self._connections = connections

    async def answer(self, question: Question, *, after: Key | None, size: int) -> Answer:
        """Returns the page of itineraries after the key `after`.

        Raises INVALID_FIELD for a past day.
        """
        timetable = await self._timetables.between(*self._connections.days_ahead(question.market.day))
        today = timetable.read_time.astimezone(question.zone).date()
        if question.market.day < today:
            description = f"must not be in the past; the local date at {question.market.source} is {today}"
            raise InvalidArgument.of(FieldViolation("date", description))
        routes = await self._routes.of(question.market, timetable)
        ranked = [
            each
            for each in routes.ranked(cabin=question.cabin, sort=question.sort)
            if len(each.route) <= question.most_changes + 1
        ]
        asked = {flight.flight_id: flight for each in ranked for flight in each.route}
        async with db.session(self._pool) as conn:
            free = await counts.free_seats(conn, list(asked))
        fitting = _fitting(ranked, _without_room(asked.values(), free, question, timetable))
        page = [each for each in fitting if after is None or each.key > after][: size + 1]
        more = len(page) > size
        page = page[:size]
        return Answer(_messages(page, free, question.cabin), len(fitting), page[-1].key if more else None)

    async def itinerary(self, itinerary_id: str, *, cabin: str) -> pb.Itinerary:
        """Returns the present state of an itinerary. Raises ITINERARY_NOT_FOUND.

        An itinerary with a cancelled flight has no free seat. One with a flight that lacks the cabin has neither seats
        nor a price.
        """
        source, destination, flight_ids = itineraries.parts_of(itinerary_id)
        async with db.session(self._pool) as conn:
            found = await flights.find_all(conn, flight_ids)
            free = await counts.free_seats(conn, flight_ids)
        if not set(flight_ids) <= found.keys():
            raise refusals.itinerary_not_found()
        route = tuple(found[flight_id] for flight_id in flight_ids)
        if (route[0].origin, route[-1].destination) != (source, destination):
            raise refusals.itinerary_not_found()
        if not itineraries.is_journey(route, self._connections):
            raise refusals.itinerary_not_found()
        messages = {flight.flight_id: flight.message(free[flight.flight_id]) for flight in route}
        return _message(route, messages, free, cabin)


def _without_room(
    asked: Iterable[Flight], free: Mapping[str, FreeSeats], question: Question, timetable: Timetable
) -> set[str]:
    """Returns the flights with too few free seats, and those whose sale has closed."""
    return {
        flight.flight_id
        for flight in asked
        if flight.free(question.cabin, free[flight.flight_id]) < question.seats
        or flight.sale_end <= timetable.read_time
    }


def _fitting(ranked: Sequence[Ranked], without_room: set[str]) -> Sequence[Ranked]:
    return [each for each in ranked if without_room.isdisjoint(each.flight_ids)] if without_room else ranked


def _messages(page: Sequence[Ranked], free: Mapping[str, FreeSeats], cabin: str) -> list[pb.Itinerary]:
    # Most flights of a page are part of several itineraries.
    shown = {flight.flight_id: flight for each in page for flight in each.route}
    messages = {flight_id: flight.message(free[flight_id]) for flight_id, flight in shown.items()}
    return [_message(each.route, messages, free, cabin) for each in page]


def _message(
    route: Route, messages: Mapping[str, pb.Flight], free: Mapping[str, FreeSeats], cabin: str
) -> pb.Itinerary:
    return pb.Itinerary(
        itinerary_id=itineraries.itinerary_id(route),
        type=pb.Itinerary.DIRECT if len(route) == 1 else pb.Itinerary.COMPUTED,
        flights=[messages[flight.flight_id] for flight in route],
        total_price=usd(sum(flight.fares[cabin] for flight in route))
        if all(cabin in flight.fares for flight in route)
        else None,
        duration_minutes=itineraries.minutes(route),
        hops=len(route) - 1,
        available_seats=min(flight.free(cabin, free[flight.flight_id]) for flight in route),
    )
