"""A service that missed the cancellation of a flight learns of it from the flight service's list."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
import pytest
from skyhigh.flight.v1 import flight_service_pb2 as pb
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceServicer, add_FlightServiceServicer_to_server

from booking_service import handlers as booking
from checkin_service import handlers as checkin
from seat_service import handlers as seat
from seat_service.flights import cancellations as seat_cancellations
from services import cancelled_flights, db
from services.errors import InvalidArgument
from services.proto import timestamp
from services.reconciler import Reconciler
from tests.checkin.fakes import refuse
from tests.conftest import World
from tests.dates import new_flight_id
from tests.instances import database_with
from waitlist_service import cancellations as waitlist_cancellations
from waitlist_service import handlers as waitlist

SERVICES: Final[dict[str, tuple[str, cancelled_flights.Cancel]]] = {
    "booking": (cancelled_flights.KNOWN, booking.on_flight_cancelled),
    "checkin": (cancelled_flights.KNOWN, checkin.on_flight_cancelled),
    "seat": (seat_cancellations.KNOWN, seat.on_flight_cancelled),
    "waitlist": (waitlist_cancellations.KNOWN, waitlist.on_flight_cancelled),
}
PAGE: Final = 2


class Flights(FlightServiceServicer):
    """Lists cancelled flights, two per page."""

    def __init__(self) -> None:
        self.cancelled: list[pb.Flight] = []
        self.asked = 0
        self.tokens_expired = False

    async def ListFlights(self, request: pb.ListFlightsRequest, context: Any) -> pb.ListFlightsResponse:
        self.asked += 1
        assert request.status == pb.Flight.CANCELLED
        if request.page_token and self.tokens_expired:
            await refuse(context, InvalidArgument("INVALID_PAGE_TOKEN", "page_token: from another query"))
        first = int(request.page_token or 0)
        rest = len(self.cancelled) > first + PAGE
        return pb.ListFlightsResponse(
            flights=self.cancelled[first : first + PAGE], next_page_token=str(first + PAGE) if rest else ""
        )


@asynccontextmanager
async def flights_served() -> AsyncIterator[tuple[Flights, str]]:
    flights, server = Flights(), grpc.aio.server()
    add_FlightServiceServicer_to_server(flights, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield flights, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize("service", SERVICES)
async def test_a_missed_cancellation_is_repaired_in_every_service(world: World, service: str) -> None:
    known, cancel = SERVICES[service]
    url = (await database_with(world, service))[f"SKYHIGH_{service.upper()}_DATABASE_URL"]
    pool = await db.connect(url, schema=service, size=4)
    now = datetime.now(UTC)
    woken: list[None] = []
    async with flights_served() as (flights, address):
        flights.cancelled = [
            pb.Flight(flight_id=new_flight_id(), cancel_reason="STRIKE", cancel_time=timestamp(now)) for _ in range(5)
        ]
        ids = sorted(each.flight_id for each in flights.cancelled)

        async def known_here() -> list[str]:
            async with db.session(pool) as conn:
                return sorted(row[0] for row in await conn.fetch(known, ids))

        comparing = cancelled_flights.comparison(pool, address, identity=None, known=known, cancel=cancel)
        async with comparing as comparison:
            reconciler = Reconciler(pool, [comparison], interval=timedelta(), tell=lambda: woken.append(None))
            await reconciler.look(comparison)
            assert await known_here() == ids
            async with db.session(pool) as conn:
                timers = [row[0] for row in await conn.fetch("SELECT subject FROM timers ORDER BY subject")]
            assert timers == ids, "each flight has a timer that ends what there is"
            asked, repairs = flights.asked, len(woken)
            await reconciler.look(comparison)
            assert (flights.asked, len(woken)) == (asked + 3, repairs), "what is known is not cancelled again"
    await pool.close()


async def test_an_expired_page_token_restarts_the_round(world: World) -> None:
    known, cancel = SERVICES["seat"]
    url = (await database_with(world, "seat"))["SKYHIGH_SEAT_DATABASE_URL"]
    pool = await db.connect(url, schema="seat", size=4)
    async with flights_served() as (flights, address):
        flights.cancelled = [
            pb.Flight(flight_id=new_flight_id(), cancel_reason="FOG", cancel_time=timestamp(datetime.now(UTC)))
            for _ in range(3)
        ]
        flights.tokens_expired = True
        comparing = cancelled_flights.comparison(pool, address, identity=None, known=known, cancel=cancel)
        async with comparing as comparison:
            reconciler = Reconciler(pool, [comparison], interval=timedelta(), tell=lambda: None)
            await reconciler.look(comparison)
            flights.tokens_expired = False
            await reconciler.look(comparison)
        async with db.session(pool) as conn:
            assert len(await conn.fetch(known, [each.flight_id for each in flights.cancelled])) == 3
    await pool.close()
