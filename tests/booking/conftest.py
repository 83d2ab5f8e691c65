"""The services that a booking needs, in this process.

They are the flight, seat, payment and booking service, and the payment provider's mock. Locators are reserved at a fake
check-in service, unless a file runs a real one.

Each file has its own instances, because all instances of a service consume from one queue: an instance that outlives
its file would take the events of another file's. `VARIABLES` of a file are its settings, such as a shorter time to pay.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.booking.v1.booking_service_pb2_grpc import BookingServiceStub
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from booking_service import bookings as booking_steps
from booking_service.service import BOOKING_SERVICE
from deploy.local.process import LOOPBACK, free_ports
from deploy.mocks.payment_provider import ProviderSettings, serving
from flight_service.service import FLIGHT_SERVICE
from seat_service.service import SEAT_SERVICE
from services import db
from tests.booking.agency import Agency, Customer, asked, keyed, named_seat, state_of
from tests.booking.locator_desk import locator_desk
from tests.callers import refused
from tests.instances import connected, database_with, running
from tests.payment.bridge import bridge
from tests.payment.conftest import PROMPT, QUICK, payments
from tests.payment.rules import SECRET

if TYPE_CHECKING:
    from tests.conftest import World


@asynccontextmanager
async def opened(world: World, **variables: str) -> AsyncIterator[Agency]:
    """Runs an agency within the block; `variables` are environment variables.

    Its seats are in the session's database, so that it does not matter which instance of the seat service consumes an
    event.
    """
    databases = await database_with(world, "flight", "booking")
    settings = ProviderSettings(listen="127.0.0.1:0", webhook_secret=SECRET, seed=1)
    async with (
        serving(settings) as provider,
        payments(world, **(QUICK | variables), SKYHIGH_PAYMENT_PROVIDER_URL=provider.url) as paying,
        bridge(paying.callers) as provider.webhook_url,
        running(world, SEAT_SERVICE, SeatServiceStub, **variables) as seats,
        locator_desk() as desk,
    ):
        variables = (
            {"SKYHIGH_CHECKIN_ADDRESS": desk}
            | variables
            | databases
            | {
                "SKYHIGH_SEAT_ADDRESS": seats.address,
                "SKYHIGH_PAYMENT_ADDRESS": paying.callers.address,
                "SKYHIGH_FLIGHT_HORIZON_DAYS": "0",
            }
        )
        async with running(world, FLIGHT_SERVICE, FlightServiceStub, **variables) as flights:
            variables["SKYHIGH_FLIGHT_ADDRESS"] = flights.address
            url = databases["SKYHIGH_BOOKING_DATABASE_URL"]
            async with (
                running(world, BOOKING_SERVICE, BookingServiceStub, **variables) as bookings,
                connected(world.servers.database_url("seat")) as seat_database,
            ):
                database = await asyncpg.connect(url, server_settings={"search_path": "booking"})
                pool = await db.connect(url, schema="booking", size=4)
                yield Agency(seats, flights, paying, bookings, provider, database, seat_database, pool, variables)
                await pool.close()
                await database.close()


@pytest.fixture(scope="module")
async def any_agency(world: World, request: pytest.FixtureRequest) -> AsyncIterator[Agency]:
    """The agency of a file."""
    more: dict[str, str] = getattr(request.module, "VARIABLES", {})
    async with opened(world, **more) as agency:
        yield agency


@pytest.fixture
def agency(any_agency: Agency) -> Agency:
    """The agency; its provider answers promptly at the start of each test."""
    any_agency.provider.behaviour.now = PROMPT
    return any_agency


@pytest.fixture
def customer(agency: Agency) -> Customer:
    """A customer, a new one for each test."""
    return agency.customer()


@pytest.fixture
def stranger(agency: Agency) -> Customer:
    """Another customer."""
    return agency.customer()


@pytest.fixture
async def unreserved(world: World, agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch) -> pb.Booking:
    """A booking that stays CREATED, because the seat service was unavailable.

    Its timer `reserve` continues it; make_timer_due makes that timer due.
    """
    monkeypatch.setattr(booking_steps, "CALL_ENDED_AFTER", timedelta(hours=1))
    journey = await agency.flight()
    (unused_port,) = free_ports(1)
    away = {**agency.variables, "SKYHIGH_SEAT_ADDRESS": f"{LOOPBACK}:{unused_port}"}
    async with running(world, BOOKING_SERVICE, BookingServiceStub, **away) as bookings:
        # The request names the only seat, so the booking service reads no seat map before it writes the booking.
        request = keyed(asked(journey, seats=[named_seat(journey.flight_id, "10A")]), str(uuid4()))
        with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
            await Customer(agency, bookings.customer(customer.name.removeprefix("customer:"))).desk.CreateBooking(
                request
            )
    booking_id = await agency.database.fetchval("SELECT booking_id FROM bookings WHERE owner = $1", customer.name)
    booking: pb.Booking = await customer.get(pb.Booking(booking_id=str(booking_id)))
    assert state_of(booking) == "CREATED"
    return booking
