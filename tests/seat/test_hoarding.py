"""How many seats one principal may hold, and what becomes of one whose holds keep lapsing (SEAT-16)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.callers import Caller, Callers, refused, seat
from tests.instances import Database, Instance, instance, own_database
from tests.seat.rules import at_once, lapse, new_flight_id, outcomes, rows, violations
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World

NUMBERS = [f"{row}{letter}" for row in range(14, 30) for letter in "ABCDEF"]


@pytest.fixture(scope="module")
async def strict(world: World) -> AsyncIterator[Instance]:
    """A service that cools down whoever lets two holds lapse, for half a second and then twice as long each time."""
    async with instance(
        world,
        database_url=await own_database(world),
        SKYHIGH_CHECK_IN_HOLD_TTL_SECONDS="0.1",
        SKYHIGH_SEAT_SWEEP_INTERVAL_SECONDS="0.02",
        SKYHIGH_SEAT_LAPSES_ALLOWED="2",
        SKYHIGH_SEAT_COOL_DOWN_SECONDS="0.5",
    ) as other:
        yield other


async def test_the_tenth_seat_of_a_flight_is_too_many(callers: Callers, flight: str, database: Database) -> None:
    customer = callers.customer()
    for number in NUMBERS[:9]:
        await customer.hold(flight, number)
    before = await rows(database, flight)
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS") as refusal:
        await customer.hold(flight, NUMBERS[9])
    assert refusal.info.metadata == {"limit": "9"}
    assert refusal.retry_after_seconds is not None
    # When the first of its holds ends there is room again.
    assert 0 < refusal.retry_after_seconds <= 120
    assert await rows(database, flight) == before


async def test_another_flight_and_another_principal_have_limits_of_their_own(
    operations: Caller, callers: Callers, flight: str
) -> None:
    onward = new_flight_id()
    await operations.provision(onward)
    customer = callers.customer()
    await customer.hold_seats(*(seat(flight, number) for number in NUMBERS[:9]))
    await customer.hold(onward, "20A")
    await callers.customer().hold(flight, NUMBERS[9])


async def test_seats_of_one_call_count_together(callers: Callers, flight: str) -> None:
    customer = callers.customer()
    await customer.hold(flight, NUMBERS[0])
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS"):
        await customer.hold_seats(*(seat(flight, number) for number in NUMBERS[1:10]))
    await customer.hold_seats(*(seat(flight, number) for number in NUMBERS[1:9]))


async def test_the_limit_is_each_flights_own_within_one_hold(
    operations: Caller, callers: Callers, flight: str, database: Database
) -> None:
    onward = new_flight_id()
    await operations.provision(onward)
    customer = callers.customer()
    await customer.hold(onward, NUMBERS[20])
    before = [await rows(database, each) for each in (flight, onward)]
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS"):
        await customer.hold_seats(*(seat(each, number) for each in (flight, onward) for number in NUMBERS[:9]))
    assert [await rows(database, each) for each in (flight, onward)] == before
    await customer.hold_seats(
        *(seat(flight, number) for number in NUMBERS[:9]), *(seat(onward, number) for number in NUMBERS[:8])
    )


async def test_a_change_cannot_slip_past_the_limit(callers: Callers, flight: str, database: Database) -> None:
    customer = callers.customer()
    await customer.hold_seats(*(seat(flight, number) for number in NUMBERS[:8]))
    hold = await customer.hold(flight, NUMBERS[8], "P1")
    before = await rows(database, flight)
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS"):
        await customer.ChangeHoldSeats(
            pb.ChangeHoldSeatsRequest(
                hold_id=hold.hold_id, seats=[seat(flight, NUMBERS[8], "P1"), seat(flight, NUMBERS[9])]
            )
        )
    assert await rows(database, flight) == before
    # One for one is no more than before.
    await customer.ChangeHoldSeats(
        pb.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=[seat(flight, NUMBERS[9], "P1")])
    )


async def test_what_is_given_back_or_confirmed_no_longer_counts(callers: Callers, flight: str) -> None:
    customer = callers.customer()
    first = await customer.hold_seats(*(seat(flight, number) for number in NUMBERS[:5]))
    second = await customer.hold_seats(*(seat(flight, number) for number in NUMBERS[5:9]))
    await customer.cancel(first)
    await callers.agent().confirm(second)
    await customer.hold_seats(*(seat(flight, number) for number in NUMBERS[10:19]))


async def test_calls_that_race_get_no_more_than_the_limit(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    results = await at_once(
        *((callers, second)[n % 2].customer("racer").hold(flight, number) for n, number in enumerate(NUMBERS[:60]))
    )
    assert outcomes(results) == {"OK": 9, "TOO_MANY_HELD_SEATS": 51}
    assert await violations(database, flight) == []


async def test_who_acts_for_others_is_not_bound(agent: Caller, service: Caller, flight: str) -> None:
    for number in NUMBERS[:12]:
        await agent.hold(flight, number)
    for number in NUMBERS[12:24]:
        await service.hold(flight, number)


async def lapses(caller: Caller, callers: Callers, flight: str, number: str) -> None:
    """Lets a hold lapse, and waits until that is on record."""
    hold = await caller.hold(flight, number)
    await lapse(hold)

    async def free() -> bool:
        return (await callers.agent().states(flight))[number] == "AVAILABLE"

    await eventually(free)


async def test_who_lets_holds_lapse_is_cooled_down_longer_each_time(strict: Instance) -> None:
    flight = new_flight_id()
    callers = strict.callers
    await callers.operations().provision(flight)
    customer = callers.customer()
    await lapses(customer, callers, flight, "20A")
    await lapses(customer, callers, flight, "20B")
    before = await rows(strict.database, flight)
    with refused("RESOURCE_EXHAUSTED", "COOLING_DOWN") as refusal:
        await customer.hold(flight, "20C")
    assert refusal.retry_after_seconds is not None
    assert 0 < refusal.retry_after_seconds <= 0.5
    assert await rows(strict.database, flight) == before
    # Somebody else is not concerned, and neither is an agent who holds for the customer.
    await callers.customer().hold(flight, "21A")
    # It was told for how long.
    await asyncio.sleep(refusal.retry_after_seconds)
    await lapses(customer, callers, flight, "20C")
    with refused("RESOURCE_EXHAUSTED", "COOLING_DOWN") as longer:
        await customer.hold(flight, "20D")
    assert longer.retry_after_seconds is not None
    assert 0.5 < longer.retry_after_seconds <= 1


async def test_who_gives_holds_back_is_not_cooled_down(strict: Instance) -> None:
    flight = new_flight_id()
    await strict.callers.operations().provision(flight)
    customer = strict.callers.customer()
    for _ in range(5):
        await customer.cancel(await customer.hold(flight, "20A", purpose=pb.Hold.BOOKING))
    await customer.hold(flight, "20A")


async def test_an_agent_is_never_cooled_down(strict: Instance) -> None:
    flight = new_flight_id()
    await strict.callers.operations().provision(flight)
    agent = strict.callers.agent()
    for number in ("20A", "20B", "20C", "20D"):
        await lapses(agent, strict.callers, flight, number)
    await agent.hold(flight, "20E")
