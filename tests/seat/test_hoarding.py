"""The limit of held seats per principal, and the cool-down after lapses (SEAT-16)."""

from __future__ import annotations

from datetime import timedelta

from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.aging import age_holds, lapse_holds
from tests.callers import Caller, Callers, refused, seat
from tests.dates import new_flight_id
from tests.instances import Database, Instance
from tests.seat.rules import at_once, outcomes, rows, violations
from tests.waiting import eventually

NUMBERS = [f"{row}{letter}" for row in range(14, 30) for letter in "ABCDEF"]


async def test_the_tenth_held_seat_of_a_flight_is_refused(callers: Callers, flight: str, database: Database) -> None:
    customer = callers.customer()
    for number in NUMBERS[:9]:
        await customer.hold(flight, number)
    before = await rows(database, flight)
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS") as refusal:
        await customer.hold(flight, NUMBERS[9])
    assert refusal.info.metadata == {"limit": "9"}
    assert refusal.retry_after_seconds is not None
    # The caller is told to wait until the first of its holds expires.
    assert 0 < refusal.retry_after_seconds <= 120
    assert await rows(database, flight) == before


async def test_the_limit_counts_each_flight_and_principal_separately(
    operations: Caller, callers: Callers, flight: str
) -> None:
    onward = new_flight_id()
    await operations.provision(onward)
    customer = callers.customer()
    await customer.hold_seats(*(seat(flight, number) for number in NUMBERS[:9]))
    await customer.hold(onward, "20A")
    await callers.customer().hold(flight, NUMBERS[9])


async def test_seats_of_one_call_are_counted_together(callers: Callers, flight: str) -> None:
    customer = callers.customer()
    await customer.hold(flight, NUMBERS[0])
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_HELD_SEATS"):
        await customer.hold_seats(*(seat(flight, number) for number in NUMBERS[1:10]))
    await customer.hold_seats(*(seat(flight, number) for number in NUMBERS[1:9]))


async def test_a_hold_of_two_flights_counts_per_flight(
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


async def test_a_change_cannot_exceed_the_limit(callers: Callers, flight: str, database: Database) -> None:
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
    # Changing one seat for another does not exceed the limit.
    await customer.ChangeHoldSeats(
        pb.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=[seat(flight, NUMBERS[9], "P1")])
    )


async def test_released_and_confirmed_seats_are_not_counted(callers: Callers, flight: str) -> None:
    customer = callers.customer()
    first = await customer.hold_seats(*(seat(flight, number) for number in NUMBERS[:5]))
    second = await customer.hold_seats(*(seat(flight, number) for number in NUMBERS[5:9]))
    await customer.cancel(first)
    await callers.agent().confirm(second)
    await customer.hold_seats(*(seat(flight, number) for number in NUMBERS[10:19]))


async def test_concurrent_holds_cannot_exceed_the_limit(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    results = await at_once(
        *((callers, second)[n % 2].customer("racer").hold(flight, number) for n, number in enumerate(NUMBERS[:60]))
    )
    assert outcomes(results) == {"OK": 9, "TOO_MANY_HELD_SEATS": 51}
    assert await violations(database, flight) == []


async def test_agents_and_services_have_no_limit(agent: Caller, service: Caller, flight: str) -> None:
    for number in NUMBERS[:12]:
        await agent.hold(flight, number)
    for number in NUMBERS[12:24]:
        await service.hold(flight, number)


async def lapses(strict: Instance, caller: Caller, flight: str, number: str) -> pb.Hold:
    """Lets a hold lapse; waits until the sweeper has recorded the lapse."""
    hold = await caller.hold(flight, number)
    await lapse_holds(strict.database, hold)

    async def swept() -> bool:
        state = await strict.database.fetchval("SELECT state::text FROM holds WHERE hold_id = $1", hold.hold_id)
        return bool(state == "EXPIRED")

    await eventually(swept)
    return hold


async def test_the_cool_down_grows_with_each_lapse(strict: Instance, strict_flight: str) -> None:
    callers, flight = strict.callers, strict_flight
    customer = callers.customer()
    lapsed = [await lapses(strict, customer, flight, number) for number in ("20A", "20B")]
    before = await rows(strict.database, flight)
    with refused("RESOURCE_EXHAUSTED", "COOLING_DOWN") as refusal:
        await customer.hold(flight, "20C")
    assert refusal.retry_after_seconds is not None
    assert 0 < refusal.retry_after_seconds <= 60
    assert await rows(strict.database, flight) == before
    # Another customer is not cooled down, and an agent may still hold seats.
    await callers.customer().hold(flight, "21A")
    await callers.agent().hold(flight, "21B")
    # The customer can hold again after the time that the refusal names.
    await age_holds(strict.database, *lapsed, by=timedelta(seconds=refusal.retry_after_seconds))
    await lapses(strict, customer, flight, "20C")
    with refused("RESOURCE_EXHAUSTED", "COOLING_DOWN") as longer:
        await customer.hold(flight, "20D")
    assert longer.retry_after_seconds is not None
    assert 60 < longer.retry_after_seconds <= 120


async def test_cancelled_holds_cause_no_cool_down(strict: Instance, strict_flight: str) -> None:
    customer = strict.callers.customer()
    for _ in range(5):
        await customer.cancel(await customer.hold(strict_flight, "20A"))
    await customer.hold(strict_flight, "20A")


async def test_an_agent_has_no_cool_down(strict: Instance, strict_flight: str) -> None:
    agent = strict.callers.agent()
    for number in ("20A", "20B", "20C", "20D"):
        await lapses(strict, agent, strict_flight, number)
    await agent.hold(strict_flight, "20E")
