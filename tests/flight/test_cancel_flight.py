"""CancelFlight before departure: permanent, and published as an event."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, time, timedelta
from uuid import uuid4

import pytest
from skyhigh.flight.v1 import events_pb2
from skyhigh.flight.v1 import flight_service_pb2 as pb

from flight_service.flights import NewFlight
from tests.callers import refused
from tests.conftest import World
from tests.dates import new_flight_id
from tests.flight.airline import Airline, flight
from tests.instances import Database
from tests.services.rules import listening
from tests.waiting import eventually


@pytest.fixture
async def new(airline: Airline, day: date) -> NewFlight:
    """A scheduled flight."""
    new = flight("LHR", "CDG", datetime.combine(day, time(9)), 75)
    await airline.add(new)
    return new


async def events_of(database: Database, flight_id: str) -> list[events_pb2.FlightCancelled]:
    rows = await database.fetch("SELECT body FROM outbox WHERE routing_key = 'flight.cancelled.v1'")
    events = [events_pb2.FlightCancelled.FromString(row["body"]) for row in rows]
    return [event for event in events if event.flight_id == flight_id]


async def test_a_cancelled_flight_is_published_and_not_found(
    world: World, airline: Airline, new: NewFlight, day: date, flight_database: Database
) -> None:
    assert len(await airline.found("LHR", "CDG", day)) == 1
    before = datetime.now(UTC)
    # A queue must be bound for this event, because the relay does not publish an event that no queue receives.
    async with listening(world.servers.amqp_url(), "flight.cancelled.v1"):
        cancelled = await airline.cancel(new.flight_id, reason="STRIKE")
        await eventually(lambda: _told(flight_database))
    assert (cancelled.status, cancelled.cancel_reason) == (pb.Flight.CANCELLED, "STRIKE")
    assert (cancelled.available_seats, cancelled.total_seats) == (0, 180), "nobody may hold one any more"
    assert await airline.get(new.flight_id) == cancelled
    assert await airline.found("LHR", "CDG", day) == set()
    (event,) = await events_of(flight_database, new.flight_id)
    assert event.reason == "STRIKE"
    assert before <= event.cancel_time.ToDatetime(UTC) <= datetime.now(UTC)


async def _told(database: Database) -> bool:
    return not await database.fetchval("SELECT count(*) FROM outbox WHERE publish_time IS NULL")


async def test_cancelled_flights_are_listed_for_three_days(
    airline: Airline, new: NewFlight, flight_database: Database
) -> None:
    """Other services compare this list with the events that they received."""

    async def listed(status: pb.Flight.Status.ValueType) -> dict[str, pb.Flight]:
        found: dict[str, pb.Flight] = {}
        request = pb.ListFlightsRequest(status=status, page_size=100)
        while True:
            answer: pb.ListFlightsResponse = await airline.anybody.ListFlights(request)
            found |= {each.flight_id: each for each in answer.flights}
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    assert new.flight_id not in await listed(pb.Flight.CANCELLED)
    assert new.flight_id in await listed(pb.Flight.SCHEDULED)
    cancelled = await airline.cancel(new.flight_id, reason="STRIKE")
    assert (await listed(pb.Flight.CANCELLED))[new.flight_id] == cancelled
    assert cancelled.cancel_time.ToDatetime(UTC) <= datetime.now(UTC)
    assert new.flight_id not in await listed(pb.Flight.SCHEDULED)
    for age, is_listed in ((timedelta(days=2, hours=23), True), (timedelta(days=3, minutes=1), False)):
        await flight_database.execute(
            """
            UPDATE flights
            SET departure_time = now() - $2::interval, arrival_time = now() - $2::interval + interval '1 h',
                departure_date = (now() - $2::interval)::date
            WHERE flight_id = $1
            """,
            new.flight_id,
            age,
        )
        assert (new.flight_id in await listed(pb.Flight.CANCELLED)) is is_listed


async def test_a_repeat_changes_nothing(airline: Airline, new: NewFlight, flight_database: Database) -> None:
    first = await airline.cancel(new.flight_id, reason="STRIKE")
    assert await airline.cancel(new.flight_id, reason="FOG") == first
    assert len(await events_of(flight_database, new.flight_id)) == 1


async def test_concurrent_cancellations_cancel_once(
    airline: Airline, new: NewFlight, flight_database: Database
) -> None:
    answers = await asyncio.gather(*(airline.cancel(new.flight_id, reason=f"R{n}") for n in range(20)))
    assert all(each == answers[0] for each in answers)
    assert len(await events_of(flight_database, new.flight_id)) == 1


async def test_a_key_cancels_one_flight_only(airline: Airline, new: NewFlight) -> None:
    key = str(uuid4())
    first = await airline.cancel(new.flight_id, request_id=key)
    assert first.cancel_reason == "CANCELLED"
    assert await airline.cancel(new.flight_id, request_id=key) == first
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await airline.cancel(new.flight_id, request_id=key, reason="FOG")


async def test_a_departed_flight_is_not_cancelled(airline: Airline, flight_database: Database) -> None:
    departed = flight("LHR", "CDG", datetime.now(UTC) - timedelta(minutes=1))
    await airline.add(departed)
    with refused("FAILED_PRECONDITION", "FLIGHT_DEPARTED") as refusal:
        await airline.cancel(departed.flight_id)
    told = datetime.fromisoformat(refusal.info.metadata["departure_time"])
    assert told == departed.departure_time
    assert (await airline.get(departed.flight_id)).status == pb.Flight.SCHEDULED
    assert await events_of(flight_database, departed.flight_id) == []


async def test_a_flight_cancelled_before_departure_stays_cancelled(airline: Airline, flight_database: Database) -> None:
    departed = flight("LHR", "CDG", datetime.now(UTC) - timedelta(minutes=1))
    await airline.add(departed)
    await flight_database.execute(
        "UPDATE flights SET state = 'CANCELLED', cancel_time = now(), cancel_reason = 'FOG' WHERE flight_id = $1",
        departed.flight_id,
    )
    assert (await airline.cancel(departed.flight_id)).cancel_reason == "FOG"


async def test_an_unknown_flight_is_not_found(airline: Airline) -> None:
    with refused("NOT_FOUND", "FLIGHT_NOT_FOUND") as refusal:
        await airline.cancel(missing := new_flight_id())
    assert refusal.info.metadata == {"flight_id": missing}


@pytest.mark.parametrize(
    ("more", "field"),
    [({"flight_id": "SH_1"}, "flight_id"), ({"reason": "a\nb"}, "reason"), ({"reason": "x" * 121}, "reason")],
)
async def test_a_malformed_field_is_named(airline: Airline, new: NewFlight, more: dict[str, str], field: str) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airline.operations.CancelFlight(pb.CancelFlightRequest(**{"flight_id": new.flight_id} | more))
    assert refusal.fields == [field]
