"""CreateFlight: provisions the seats first, so that no flight lacks its seats.

If the process dies in between, the seats belong to a flight that no reader sees; a retry continues from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from skyhigh.flight.v1 import flight_service_pb2 as pb

from flight_service import counts, flights, refusals
from flight_service.aircraft import AIRCRAFT, fares
from flight_service.flights import NewFlight
from flight_service.peers import Peers
from flight_service.records import Flight
from services import airports, db
from services.check_in_times import CheckInTimes
from services.db import Conn, Pool
from services.errors import FieldViolation, InvalidArgument
from services.idempotency import RequestKey
from services.money import amount_of
from services.transitions import Transitions


class Creating:
    """Creates single flights for operations."""

    def __init__(self, pool: Pool, peers: Peers, transitions: Transitions) -> None:
        self._pool = pool
        self._peers = peers
        self._transitions = transitions

    async def create(self, request: pb.CreateFlightRequest, key: RequestKey | None) -> pb.Flight:
        """(nothing) → SCHEDULED. A repeat with the same facts returns the flight.

        Raises INVALID_FIELD, FLIGHT_EXISTS.
        """
        known = await self._transitions.known(key, pb.Flight)
        if known is not None:
            return known
        new = new_flight(request)
        await self._provide(new)

        async def insert(conn: Conn) -> pb.Flight:
            await flights.insert(conn, [new])
            standing = await flights.find(conn, new.flight_id)
            if not _same(standing, new):
                raise refusals.flight_exists(new.flight_id)
            (shown,) = await counts.shown(conn, [standing])
            return shown

        return await self._transitions.run(key, pb.Flight, insert)

    async def _provide(self, new: NewFlight) -> None:
        """Provisions the seats, unless the flight exists and has them."""
        async with db.session(self._pool) as conn:
            standing = (await flights.find_all(conn, [new.flight_id])).get(new.flight_id)
            to_come: bool = await conn.fetchval("SELECT $1 > statement_timestamp()", new.departure_time)
        if standing is not None:
            return
        if not to_come:
            raise InvalidArgument.of(FieldViolation("departure_time", "must be in the future"))
        await self._peers.provision(new.flight_id, new.layout_id, new.departure_time)


def new_flight(request: pb.CreateFlightRequest) -> NewFlight:
    """Returns the requested flight. Raises INVALID_FIELD."""
    violations = list(_violations(request))
    if violations:
        raise InvalidArgument.of(*violations)
    departure_time = _moment("departure_time", request.departure_time)
    departure_date = departure_time.astimezone(airports.zone(request.origin)).date()
    times = CheckInTimes.of(request)
    return NewFlight(
        flight_id=request.flight_id or f"{request.flight_number}-{departure_date}",
        flight_number=request.flight_number,
        origin=request.origin,
        destination=request.destination,
        departure_time=departure_time,
        arrival_time=_moment("arrival_time", request.arrival_time),
        departure_date=departure_date,
        aircraft_type=request.aircraft_type,
        layout_id=AIRCRAFT[request.aircraft_type].layout_id,
        fares=fares(request.aircraft_type, amount_of(request.price, field="price").minor_units),
        seats=AIRCRAFT[request.aircraft_type].cabins,
        gate=request.gate,
        check_in_opens_before=times.opens_before,
        check_in_closes_before=times.closes_before,
        boarding_before=times.boarding_before,
    )


def _violations(request: pb.CreateFlightRequest) -> Iterator[FieldViolation]:
    if airports.zone(request.origin) is None:
        yield FieldViolation("origin", f"must be the IATA code of a known airport, not {request.origin}")
    if airports.zone(request.destination) is None:
        yield FieldViolation("destination", f"must be the IATA code of a known airport, not {request.destination}")
    if request.aircraft_type not in AIRCRAFT:
        known = ", ".join(sorted(AIRCRAFT))
        yield FieldViolation("aircraft_type", f"must be one of {known}, not {request.aircraft_type}")
    yield from CheckInTimes.of(request).violations()


def _moment(field: str, given: Timestamp) -> datetime:
    try:
        moment = given.ToDatetime(UTC)
        # The local date in any time zone must be one that Python's datetime can represent.
        moment - timedelta(days=1), moment + timedelta(days=1)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument.of(FieldViolation(field, "must be a time in the years 1 to 9999")) from error
    return moment


def _same(standing: Flight, new: NewFlight) -> bool:
    return all(getattr(standing, fact.name) == getattr(new, fact.name) for fact in fields(new))
