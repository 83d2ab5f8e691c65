"""CreateFlight: a flight with its seats, once, however often it is requested."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money
from skyhigh.flight.v1 import flight_service_pb2 as pb
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub

from flight_service import flights
from flight_service.flights import NewFlight
from flight_service.service import FLIGHT_SERVICE
from services.db import Conn
from tests.callers import refused
from tests.flight.airline import Airline, asked, delayed, flight, itinerary_id
from tests.instances import Database, running

if TYPE_CHECKING:
    from tests.conftest import World


@pytest.fixture
def new(day: date) -> NewFlight:
    """A flight that does not exist yet."""
    return flight("LHR", "CDG", datetime.combine(day, time(9)), 75, cents=12_345)


async def create(airline: Airline, request: pb.CreateFlightRequest) -> pb.Flight:
    created: pb.Flight = await airline.operations.CreateFlight(request)
    return created


async def test_a_created_flight_has_its_seats(airline: Airline, day: date) -> None:
    new = flight("LHR", "JFK", datetime.combine(day, time(9)), 480, cents=30_000, aircraft_type="B789")
    created = await create(airline, asked(new, flight_id="", gate="B3"))
    assert created.flight_id == f"{new.flight_number}-{day}"
    assert created.status == pb.Flight.SCHEDULED
    assert [(each.cabin, each.price.units, each.total_seats, each.available_seats) for each in created.cabins] == [
        (pb.BUSINESS, 900, 32, 32),
        (pb.PREMIUM_ECONOMY, 480, 35, 35),
        (pb.ECONOMY, 300, 219, 219),
    ]
    assert (created.price.units, created.total_seats, created.available_seats) == (300, 286, 286)
    assert (created.gate, created.layout_id, created.departure_date) == ("B3", "B789-3C", str(day))
    assert (created.origin_time_zone, created.destination_time_zone) == ("Europe/London", "America/New_York")
    assert (created.check_in_opens_before.seconds, created.check_in_closes_before.seconds) == (86_400, 3_600)
    assert created.boarding_before.seconds == 2_400
    assert await airline.get(created.flight_id) == created
    assert await airline.provisioned(created.flight_id) == 286
    assert created.flight_id in str(await airline.found("LHR", "JFK", day))


async def test_the_id_has_the_local_date_of_the_origin(airline: Airline, day: date) -> None:
    """In Kiritimati a day begins 14 hours before it begins in London."""
    new = flight("CXI", "HNL", datetime.combine(day, time(1)))
    created = await create(airline, asked(new, flight_id=""))
    assert created.flight_id == f"{new.flight_number}-{day}"
    assert created.departure_time.ToDatetime(UTC).date() == day - timedelta(days=1)


async def test_its_own_check_in_window_is_kept(airline: Airline, new: NewFlight) -> None:
    request = asked(new, check_in_opens_before=Duration(seconds=172_800), check_in_closes_before=Duration())
    created = await create(airline, request)
    assert (created.check_in_opens_before.seconds, created.check_in_closes_before.seconds) == (172_800, 0)
    assert created.HasField("check_in_closes_before")


async def test_a_repeat_returns_the_existing_flight(airline: Airline, new: NewFlight) -> None:
    created = await create(airline, asked(new))
    assert await create(airline, asked(new)) == created
    await airline.count(new, ECONOMY=3)
    again = await create(airline, asked(new))
    assert (again.flight_id, again.available_seats) == (created.flight_id, 3)


@pytest.mark.parametrize("change", ["time", "price", "aircraft", "gate", "route", "window"])
async def test_an_existing_id_with_other_facts_is_refused(airline: Airline, new: NewFlight, change: str) -> None:
    await create(airline, asked(new))
    request = {
        "time": asked(delayed(new, timedelta(minutes=1))),
        "price": asked(new, price=Money(units=124)),
        "aircraft": asked(new, aircraft_type="B738"),
        "gate": asked(new, gate="A1"),
        "route": asked(new, destination="ORY"),
        "window": asked(new, check_in_opens_before=Duration(seconds=172_800)),
    }[change]
    with refused("ALREADY_EXISTS", "FLIGHT_EXISTS") as refusal:
        await create(airline, request)
    assert refusal.info.metadata == {"flight_id": new.flight_id}


async def test_concurrent_repeats_create_one_flight(
    airline: Airline, new: NewFlight, flight_database: Database
) -> None:
    created = await asyncio.gather(*(create(airline, asked(new)) for _ in range(20)))
    assert all(each == created[0] for each in created)
    rows = await flight_database.fetch("SELECT cabin FROM flight_cabins WHERE flight_id = $1", new.flight_id)
    assert len(rows) == 1


async def test_concurrent_requests_with_other_facts_create_one_flight(airline: Airline, new: NewFlight) -> None:
    requests = [asked(new, price=Money(units=n)) for n in range(20)]
    answers = await asyncio.gather(*(create(airline, each) for each in requests), return_exceptions=True)
    (created,) = [each for each in answers if isinstance(each, pb.Flight)]
    assert await airline.get(new.flight_id) == created


async def test_many_repeats_of_a_key_return_one_response(airline: Airline, new: NewFlight) -> None:
    key = str(uuid4())
    operations = airline.operations
    first = await operations.CreateFlight(asked(new), metadata=[("idempotency-key", key)])
    await airline.count(new, ECONOMY=3)
    answers = await asyncio.gather(*(operations.CreateFlight(asked(new, request_id=key)) for _ in range(20)))
    assert all(each == first for each in answers), "also the number of seats is that of the first answer"
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await operations.CreateFlight(asked(new, request_id=key, gate="A1"))


async def test_concurrent_requests_with_one_key_return_equal_responses(airline: Airline, new: NewFlight) -> None:
    request = asked(new, request_id=str(uuid4()))
    answers = await asyncio.gather(*(create(airline, request) for _ in range(50)))
    assert len({each.SerializeToString(deterministic=True) for each in answers}) == 1


async def test_a_retry_completes_a_flight_after_a_crash(
    airline: Airline, new: NewFlight, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(conn: Conn, new: Sequence[NewFlight]) -> set[str]:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(flights, "insert", dies)
        with refused("INTERNAL", "INTERNAL"):
            await create(airline, asked(new))
    assert await airline.provisioned(new.flight_id) == 180
    with refused("NOT_FOUND", "FLIGHT_NOT_FOUND"):
        await airline.get(new.flight_id)
    assert itinerary_id(new) not in await airline.found("LHR", "CDG", new.departure_date)
    await create(airline, asked(new))
    assert itinerary_id(new) in await airline.found("LHR", "CDG", new.departure_date)


async def test_seats_of_another_layout_are_refused(airline: Airline, new: NewFlight) -> None:
    await airline.seats.operations().provision(new.flight_id, "E190-100Y")
    with refused("ALREADY_EXISTS", "FLIGHT_EXISTS"):
        await create(airline, asked(new))


async def test_a_flight_is_not_created_without_the_seat_service(
    world: World, airline: Airline, variables: dict[str, str], new: NewFlight
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        alone = variables | {"SKYHIGH_SEAT_ADDRESS": address}
        async with running(world, FLIGHT_SERVICE, FlightServiceStub, **alone) as callers:
            with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE") as refusal:
                await callers.operations().CreateFlight(asked(new))
            assert refusal.retry_after_seconds
    with refused("NOT_FOUND", "FLIGHT_NOT_FOUND"):
        await airline.get(new.flight_id)


@pytest.mark.parametrize(
    ("more", "fields"),
    [
        ({"origin": "QQQ"}, ["origin"]),
        ({"destination": "QQQ"}, ["destination"]),
        ({"origin": "QQQ", "destination": "QQZ", "aircraft_type": "A380"}, ["origin", "destination", "aircraft_type"]),
        ({"aircraft_type": "A380"}, ["aircraft_type"]),
        ({"departure_time": Timestamp(seconds=1_600_000_000), "arrival_time": Timestamp(seconds=1_600_003_600)},
         ["departure_time"]),
        ({"check_in_opens_before": Duration(seconds=3600)}, ["check_in_opens_before"]),
        ({"check_in_closes_before": Duration(seconds=86_400)}, ["check_in_opens_before"]),
        ({"check_in_opens_before": Duration(seconds=-5)}, ["check_in_opens_before"]),
        ({"check_in_opens_before": Duration(nanos=500), "check_in_closes_before": Duration()},
         ["check_in_opens_before"]),
        ({"check_in_closes_before": Duration(seconds=90_000)}, ["check_in_closes_before"]),
        ({"flight_number": "sh1"}, ["flight_number"]),
        ({"flight_id": "SH_101"}, ["flight_id"]),
        ({"flight_id": "SH"}, ["flight_id"]),
        ({"gate": "gate"}, ["gate"]),
        ({"destination": "LHR"}, ["destination"]),
        ({"price": Money(currency_code="EUR")}, ["price"]),
        ({"price": Money(units=20_001)}, ["price"]),
        ({"price": Money(units=20_000, nanos=10_000_000)}, ["price"]),
        ({"departure_time": Timestamp(seconds=10**10), "arrival_time": Timestamp(seconds=10**10 + 3600)},
         ["departure_time"]),
        ({"departure_time": Timestamp(seconds=10**10), "arrival_time": Timestamp(seconds=10**11)}, ["arrival_time"]),
        ({"price": Money(units=-1)}, ["price"]),
        ({"price": Money(nanos=1)}, ["price"]),
        ({"departure_time": Timestamp(nanos=-1)}, ["departure_time"]),
        ({"arrival_time": Timestamp(nanos=2_000_000_000)}, ["arrival_time"]),
        ({"request_id": "x"}, ["request_id"]),
    ],
)  # fmt: skip
async def test_a_malformed_field_is_named(
    airline: Airline, new: NewFlight, more: dict[str, object], fields: list[str]
) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await create(airline, asked(new, **more))
    assert refusal.fields == fields


@pytest.mark.parametrize(
    ("departure", "arrival"),
    [
        (10**15, 10**15 + 60),
        (-(10**15), -(10**15) + 60),
        (253_402_214_399, 253_402_300_799),
        (253_402_300_799, 253_402_300_799),
        (0, 0),
    ],
)
async def test_impossible_times_are_refused(airline: Airline, new: NewFlight, departure: int, arrival: int) -> None:
    request = asked(new)
    request.departure_time.seconds, request.arrival_time.seconds = departure, arrival
    with refused("INVALID_ARGUMENT", "INVALID_FIELD"):
        await create(airline, request)
    with refused("NOT_FOUND", "FLIGHT_NOT_FOUND"):
        await airline.get(new.flight_id)


@pytest.mark.parametrize("nanos", [0, 500, 999_999_999])
async def test_an_arrival_at_the_departure_time_is_refused(airline: Airline, new: NewFlight, nanos: int) -> None:
    """The database stores microseconds, so 500 ns later is the same moment."""
    request = asked(new)
    request.arrival_time.CopyFrom(request.departure_time)
    request.arrival_time.nanos += nanos
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await create(airline, request)
    assert refusal.fields == ["arrival_time"]
