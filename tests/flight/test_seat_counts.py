"""seat.availability.v1: the highest version counts (FLT-3).

Events may arrive in any order and repeatedly.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date, datetime, time
from itertools import permutations
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import aio_pika
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skyhigh.flight.v1 import flight_service_pb2 as pb
from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1.seat_service_pb2 import Seat

from flight_service import handlers
from flight_service.flights import NewFlight
from services import amqp, db
from tests.callers import seat
from tests.flight.airline import Airline, asked, flight
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World

Event = events_pb2.SeatAvailability


@pytest.fixture
def new(day: date) -> NewFlight:
    """A flight of two cabins that is not in the database yet."""
    return flight("LHR", "CDG", datetime.combine(day, time(9)), aircraft_type="A321")


def counted(new: NewFlight, version: int, *, economy: int, business: int = 16) -> Event:
    event = Event()
    counts = event.flights.add(flight_id=new.flight_id, version=version, available=economy + business, total=186)
    counts.cabins.add(cabin=Seat.BUSINESS, available=business, unavailable=16 - business)
    counts.cabins.add(cabin=Seat.ECONOMY, available=economy, unavailable=170 - economy)
    return event


async def apply(airline: Airline, event: Event) -> None:
    async with db.transaction(airline.pool) as conn:
        await handlers.on_seat_availability(conn, event)


async def free(airline: Airline, new: NewFlight) -> tuple[int, ...]:
    return tuple(cabin.available_seats for cabin in (await airline.get(new.flight_id)).cabins)


@asynccontextmanager
async def seat_service(world: World) -> AsyncIterator[aio_pika.abc.AbstractExchange]:
    """Opens the exchange to which the seat service publishes."""
    async with await amqp.connect(world.servers.amqp_url("seat"), name=f"tests {secrets.token_hex(4)}") as connection:
        channel = await connection.channel()
        yield await channel.get_exchange(amqp.EVENTS, ensure=False)


async def publish(exchange: aio_pika.abc.AbstractExchange, event: Event, event_id: UUID | None = None) -> None:
    message = aio_pika.Message(event.SerializeToString(), message_id=str(event_id or uuid4()))
    await exchange.publish(message, routing_key="seat.availability.v1")


async def test_the_newest_count_applies_in_any_order(airline: Airline, day: date) -> None:
    for order in permutations([(1, 100), (2, 50), (3, 70)]):
        new = flight("LHR", "CDG", datetime.combine(day, time(9)), aircraft_type="A321")
        await airline.add(new)
        for version, economy in order:
            await apply(airline, counted(new, version, economy=economy))
            await apply(airline, counted(new, version, economy=economy))
        assert await free(airline, new) == (16, 70)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(versions=st.lists(st.integers(1, 20), min_size=1, max_size=8))
async def test_an_older_count_never_overwrites_a_newer(airline: Airline, versions: list[int]) -> None:
    new = flight("LHR", "CDG", datetime(2081, 5, 1, 9))  # noqa: DTZ001
    await airline.add(new)
    known = 0
    for version in versions:
        # Each version has one count.
        await airline.count(new, version=version, ECONOMY=100 + version)
        known = max(known, version)
        assert await free(airline, new) == (100 + known,)


async def test_a_message_may_contain_a_flight_twice(airline: Airline, new: NewFlight) -> None:
    await airline.add(new)
    event = counted(new, 7, economy=70)
    event.MergeFrom(counted(new, 5, economy=50))
    await apply(airline, event)
    assert await free(airline, new) == (16, 70)


async def test_counts_can_precede_their_flight(airline: Airline, new: NewFlight) -> None:
    await apply(airline, counted(new, 3, economy=1, business=0))
    created = await airline.operations.CreateFlight(asked(new))
    assert (created.available_seats, created.total_seats) == (1, 186)


async def test_an_unknown_cabin_is_ignored(airline: Airline, new: NewFlight) -> None:
    await airline.add(new)
    event = counted(new, 3, economy=9)
    event.flights[0].cabins.add(cabin=99, available=4)
    event.flights[0].cabins.add(available=4)
    await apply(airline, event)
    assert await free(airline, new) == (16, 9)


async def test_a_search_uses_the_new_count_at_once(airline: Airline, new: NewFlight, day: date) -> None:
    await airline.add(new)
    assert len(await airline.found("LHR", "CDG", day, seats=2)) == 1
    await apply(airline, counted(new, 2, economy=1))
    assert await airline.found("LHR", "CDG", day, seats=2) == set()
    (found,) = await airline.search_all("LHR", "CDG", day)
    assert (found.available_seats, found.flights[0].available_seats) == (1, 17)
    await apply(airline, counted(new, 3, economy=2))
    assert len(await airline.found("LHR", "CDG", day, seats=2)) == 1


async def test_events_are_applied_once_each(world: World, airline: Airline, new: NewFlight) -> None:
    await airline.add(new)
    async with seat_service(world) as exchange:
        event_id = uuid4()
        for _ in range(2):
            await publish(exchange, counted(new, 9, economy=90), event_id)
        await publish(exchange, counted(new, 4, economy=40))
        await publish(exchange, counted(new, 12, economy=12, business=0))

        async def newest() -> bool:
            return await free(airline, new) == (0, 12)

        await eventually(newest)
    assert await free(airline, new) == (0, 12)


async def test_a_search_excludes_held_seats(airline: Airline, day: date) -> None:
    """The seat service publishes its counts without a call of the test."""
    new = flight("OSL", "TRD", datetime.combine(day, time(9)))
    await airline.operations.CreateFlight(asked(new))
    agent = airline.seats.agent()

    async def shows(seats: int) -> bool:
        (found,) = (await airline.search("OSL", "TRD", day)).itineraries
        return found.available_seats == seats

    assert await shows(180)
    hold = await agent.hold_seats(seat(new.flight_id, "12A"), seat(new.flight_id, "12B"))
    await eventually(lambda: shows(178))
    await agent.cancel(hold)
    await eventually(lambda: shows(180))


def test_the_cabins_equal_the_seat_services() -> None:
    assert {name for name, number in Seat.Cabin.items() if number} == handlers.CABINS
    assert {name for name, number in pb.Cabin.items() if number} == handlers.CABINS
