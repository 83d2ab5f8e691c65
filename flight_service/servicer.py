"""Converts between the proto messages and domain calls; makes no decisions."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from skyhigh.flight.v1 import flight_service_pb2 as pb
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceServicer

from flight_service import counts, flights
from flight_service.creating import Creating
from flight_service.itineraries import MOST_FLIGHTS, Market
from flight_service.search import Question, Search
from services import airports, db, paging
from services.db import Conn, Pool
from services.errors import FieldViolation, InvalidArgument
from services.paging import PageTokens
from services.running_call import running
from services.transitions import Transitions

Context = Any


class FlightServicer(FlightServiceServicer):
    """Implements FlightService, as its proto documents it."""

    def __init__(
        self, *, pool: Pool, transitions: Transitions, creating: Creating, search: Search, page_tokens: PageTokens
    ) -> None:
        self._pool = pool
        self._transitions = transitions
        self._creating = creating
        self._search = search
        self._page_tokens = page_tokens

    async def CreateFlight(self, request: pb.CreateFlightRequest, context: Context) -> pb.Flight:
        return await self._creating.create(request, running().request_key(request))

    async def CancelFlight(self, request: pb.CancelFlightRequest, context: Context) -> pb.Flight:
        async def cancel(conn: Conn) -> pb.Flight:
            flight = await flights.cancel(conn, request.flight_id, reason=request.reason or "CANCELLED")
            (shown,) = await counts.shown(conn, [flight])
            return shown

        return await self._transitions.run(running().request_key(request), pb.Flight, cancel)

    async def ListFlights(self, request: pb.ListFlightsRequest, context: Context) -> pb.ListFlightsResponse:
        for field, airport in (("origin", request.origin), ("destination", request.destination)):
            if airport:
                _zone(field, airport)
        state = pb.Flight.Status.Name(request.status) if request.status else None
        query = f"flights {request.origin} {request.destination} {request.date} {state or ''}".rstrip()
        principal = running().principal.name
        position = self._page_tokens.read(request.page_token, query=query, principal=principal)
        size = paging.page_size(request.page_size)
        async with db.session(self._pool) as conn:
            found = await flights.list_page(
                conn,
                origin=request.origin,
                destination=request.destination,
                day=_day(request.date) if request.date else None,
                state=state,
                after=(datetime.fromisoformat(position[0]), position[1]) if position else None,
                limit=size + 1,
            )
            page, rest = found[:size], found[size:]
            shown = await counts.shown(conn, page)
        token = ""
        if rest:
            position = (page[-1].departure_time.isoformat(), page[-1].flight_id)
            token = self._page_tokens.write(position, query=query, principal=principal)
        return pb.ListFlightsResponse(flights=shown, next_page_token=token)

    async def GetFlight(self, request: pb.GetFlightRequest, context: Context) -> pb.Flight:
        async with db.session(self._pool) as conn:
            (shown,) = await counts.shown(conn, [await flights.find(conn, request.flight_id)])
        return shown

    async def SearchFlights(self, request: pb.SearchFlightsRequest, context: Context) -> pb.SearchFlightsResponse:
        question = _question(request)
        query = f"search {question}"
        principal = running().principal.name
        position = self._page_tokens.read(request.page_token, query=query, principal=principal)
        answer = await self._search.answer(
            question, after=tuple(position) if position else None, size=paging.page_size(request.page_size)
        )
        token = self._page_tokens.write(answer.last, query=query, principal=principal) if answer.last else ""
        return pb.SearchFlightsResponse(
            itineraries=answer.itineraries, next_page_token=token, total_size=answer.total_size
        )

    async def GetItinerary(self, request: pb.GetItineraryRequest, context: Context) -> pb.Itinerary:
        return await self._search.itinerary(request.itinerary_id, cabin=_cabin(request.cabin))


def _question(request: pb.SearchFlightsRequest) -> Question:
    zone = _zone("source", request.source)
    _zone("destination", request.destination)
    most_changes = request.max_hops if request.HasField("max_hops") else MOST_FLIGHTS - 1
    return Question(
        market=Market(request.source, request.destination, _day(request.date)),
        zone=zone,
        seats=request.seats if request.HasField("seats") else 1,
        most_changes=0 if request.direct_only else most_changes,
        cabin=_cabin(request.cabin),
        sort=request.sort or pb.SearchFlightsRequest.PRICE,
    )


def _cabin(asked: pb.Cabin.ValueType) -> str:
    return pb.Cabin.Name(asked or pb.ECONOMY)


def _zone(field: str, airport: str) -> ZoneInfo:
    zone = airports.zone(airport)
    if zone is None:
        raise InvalidArgument.of(FieldViolation(field, f"must be the IATA code of a known airport, not {airport}"))
    return zone


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
        # The search also reads neighbouring days, which do not exist at the ends of the calendar.
        day + timedelta(weeks=1), day - timedelta(weeks=1)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument.of(FieldViolation("date", f"must be a date of the calendar, not {text}")) from error
    return day
