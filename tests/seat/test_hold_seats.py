"""HoldSeats: 1 to 9 seats on 1 to 4 flights, all or none, no deadlock (SEAT-5)."""

from __future__ import annotations

from uuid import uuid4

import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.callers import Caller, Callers, refused, seat
from tests.dates import flight_id
from tests.instances import Database
from tests.seat.rules import (
    all_or_none,
    at_once,
    new_flight_id,
    one_taken_seat_is_enough_to_get_none,
    outcomes,
    rows,
    violations,
)


@pytest.fixture
async def flights(operations: Caller) -> list[str]:
    """Four flights."""
    flight_ids = [new_flight_id() for _ in range(4)]
    for each in flight_ids:
        await operations.provision(each)
    return flight_ids


async def test_nine_seats_on_four_flights_are_one_hold(agent: Caller, flights: list[str], database: Database) -> None:
    seats = [seat(flights[n % 4], f"2{n}A", f"P{n}") for n in range(9)]
    hold = await agent.hold_seats(*seats, purpose=pb.Hold.BOOKING)
    assert list(hold.seats) == seats
    assert {each["state"] for flight in flights for each in (await rows(database, flight))["hold_seats"]} == {"HELD"}
    assert await database.fetchval("SELECT count(*) FROM holds WHERE hold_id = $1::text::uuid", hold.hold_id) == 1
    assert await violations(database, *flights) == []


async def test_nine_seats_each_on_four_flights_are_one_hold(
    callers: Callers, flights: list[str], database: Database
) -> None:
    customer = callers.customer()
    seats = [seat(flight, f"2{n}A", f"P{n}") for flight in flights for n in range(9)]
    hold = await customer.hold_seats(*seats, purpose=pb.Hold.BOOKING)
    assert list(hold.seats) == seats
    extended = await customer.ExtendHold(pb.ExtendHoldRequest(hold_id=hold.hold_id))
    moved = [seat(each.flight_id, each.seat_number.replace("A", "B"), each.passenger_id) for each in extended.seats]
    changed = await customer.ChangeHoldSeats(pb.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=moved))
    assert len(changed.seats) == 36
    assert len((await callers.agent().confirm(hold)).seats) == 36
    assert len((await customer.cancel(hold)).seats) == 36
    assert await violations(database, *flights) == []


async def test_one_taken_seat_of_36_refuses_the_hold(agent: Caller, flights: list[str], database: Database) -> None:
    await agent.hold(flights[3], "28A")
    before = [await rows(database, flight) for flight in flights]
    with refused("ABORTED", "SEAT_TAKEN") as refusal:
        await agent.hold_seats(*(seat(flight, f"2{n}A") for flight in flights for n in range(9)))
    assert refusal.info.metadata == {"flight_id": flights[3], "seat_number": "28A", "state": "HELD"}
    assert [await rows(database, flight) for flight in flights] == before


async def test_the_largest_hold_fits_into_a_call(operations: Caller, agent: Caller) -> None:
    flights = [new_flight_id().ljust(40, "X") for _ in range(4)]
    for flight in flights:
        await operations.provision(flight)
    needs = [f"{letter}{letter}{letter}{letter}" for letter in "ABCDEFGH"]
    asked = [
        seat(flight, f"{20 + n}A", f"{n}".ljust(64, "x"), special_services=needs, cabin=pb.Seat.ECONOMY)
        for flight in flights
        for n in range(9)
    ]
    assert len((await agent.hold_seats(*asked)).seats) == 36


async def test_one_taken_seat_refuses_the_hold(callers: Callers, flights: list[str], database: Database) -> None:
    await one_taken_seat_is_enough_to_get_none(callers, database, flights)


async def test_one_missing_seat_refuses_the_hold(agent: Caller, flights: list[str], database: Database) -> None:
    with refused("NOT_FOUND", "SEAT_NOT_FOUND"):
        await agent.hold_seats(seat(flights[0], "20A"), seat(flights[1], "31A"))
    with refused("NOT_FOUND", "FLIGHT_NOT_FOUND"):
        await agent.hold_seats(seat(flights[0], "20A"), seat(flight_id("SH000"), "20A"))
    assert (await rows(database, flights[0]))["hold_seats"] == []


async def test_one_passenger_with_a_seat_refuses_the_hold(agent: Caller, flights: list[str]) -> None:
    await agent.hold(flights[0], "20A", "P1")
    with refused("FAILED_PRECONDITION", "PASSENGER_HOLDS_SEAT"):
        await agent.hold_seats(seat(flights[0], "21A", "P1"), seat(flights[0], "21B", "P2"))
    # The refused request has not taken seat 21B.
    await agent.hold_seats(seat(flights[0], "21B", "P2"))


async def test_a_session_holds_only_for_its_own_passengers(callers: Callers, flights: list[str]) -> None:
    session = callers.passenger(f"P1:{flights[0]}", f"P1:{flights[1]}")
    await session.hold_seats(seat(flights[0], "20A", "P1"), seat(flights[1], "20A", "P1"))
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await session.hold_seats(seat(flights[2], "20A", "P1"))


async def test_the_seat_rules_apply_to_each_passenger(agent: Caller, flights: list[str]) -> None:
    child = seat(flights[0], "12A", type=pb.PassengerProfile.CHILD)
    with refused("FAILED_PRECONDITION", "EXIT_ROW_NOT_ALLOWED"):
        await agent.hold_seats(seat(flights[0], "12B"), child)


@pytest.mark.parametrize(
    ("numbers", "field"),
    [
        ([], "seats"),
        ([f"2{n}A" for n in range(10)], "seats"),
        (["20A", "20A"], "seats"),
    ],
)
async def test_zero_ten_or_duplicate_seats_are_malformed(
    agent: Caller, flight: str, numbers: list[str], field: str
) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await agent.hold_seats(*(seat(flight, number) for number in numbers))
    assert refusal.fields == [field]


async def test_ten_seats_of_one_flight_are_malformed(agent: Caller, flights: list[str]) -> None:
    asked = [seat(flights[0], "20A"), *(seat(flights[1], f"2{n}A") for n in range(10)), seat(flights[2], "20A")]
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await agent.hold_seats(*asked)
    assert refusal.fields == ["seats"]
    hold = await agent.hold_seats(*asked[:10])
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await agent.ChangeHoldSeats(pb.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=asked))
    assert refusal.fields == ["seats"]


async def test_hundreds_of_seats_are_too_many(agent: Caller) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD"):
        await agent.hold_seats(*(seat(flight_id(f"SH{n}"), "20A") for n in range(500)))


async def test_a_passenger_twice_on_a_flight_is_malformed(agent: Caller, flight: str) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await agent.hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P1"))
    assert refusal.fields == ["seats"]


async def test_five_flights_are_too_many(operations: Caller, agent: Caller, flights: list[str], flight: str) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await agent.hold_seats(*(seat(each, "20A") for each in [*flights, flight]))
    assert refusal.fields == ["seats"]


async def test_crossing_holds_get_both_seats_or_neither(
    callers: Callers, second: Callers, flights: list[str], database: Database
) -> None:
    await all_or_none([callers, second], database, flights[:2], many=1000)


async def test_holds_with_crossing_passengers_do_not_deadlock(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    def hold(n: int) -> object:
        # The same two passengers on different seats, in both orders.
        row = 14 + n % 16
        first, then = ("P1", "P2") if n % 2 else ("P2", "P1")
        agent = (callers, second)[n % 2].agent(f"desk-{n}")
        return agent.hold_seats(seat(flight, f"{row}A", first), seat(flight, f"{row}B", then))

    counted = outcomes(await at_once(*(hold(n) for n in range(60))))
    assert counted["OK"] == 1
    assert counted.keys() <= {"OK", "PASSENGER_HOLDS_SEAT", "SEAT_TAKEN"}
    assert await violations(database, flight) == []


async def test_confirm_and_cancel_of_many_seats_are_atomic(
    agent: Caller, flights: list[str], database: Database
) -> None:
    hold = await agent.hold_seats(*(seat(flight, "20A") for flight in flights))
    assert (await agent.confirm(hold)).state == pb.Hold.CONFIRMED
    assert {(await agent.states(flight))["20A"] for flight in flights} <= {"CONFIRMED", "HELD"}
    await agent.cancel(hold)
    assert await violations(database, *flights) == []
    for transition in ("CONFIRMED", "AVAILABLE"):
        transactions = await database.fetch(
            "SELECT DISTINCT transaction FROM seat_events WHERE flight_id = ANY($1) AND to_state::text = $2",
            flights,
            transition,
        )
        assert len(transactions) == 1


async def test_a_repeat_with_the_same_key_returns_the_hold(agent: Caller, flights: list[str]) -> None:
    request_id = str(uuid4())
    seats = [seat(flight, "20A", "P1") for flight in flights]
    first = await agent.hold_seats(*seats, request_id=request_id)
    assert await agent.hold_seats(*seats, request_id=request_id) == first
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await agent.hold_seats(*seats[:3], request_id=request_id)
