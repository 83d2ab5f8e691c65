"""FindPassengerSeats: the seats of passengers, for other services."""

from __future__ import annotations

import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.aging import lapse_holds
from tests.callers import Caller, Callers, refused, seat
from tests.dates import flight_id, new_flight_id
from tests.instances import Database, Instance
from tests.seat.rules import rows


def find(flight: str, *passenger_ids: str) -> pb.FindPassengerSeatsRequest:
    return pb.FindPassengerSeatsRequest(
        passengers=[
            pb.FindPassengerSeatsRequest.FlightPassenger(flight_id=flight, passenger_id=passenger_id)
            for passenger_id in passenger_ids
        ]
    )


async def seats_of(service: Caller, flight: str, *passenger_ids: str) -> set[tuple[str, str, str]]:
    """Returns passenger id, seat number and state of each seat."""
    found = (await service.FindPassengerSeats(find(flight, *passenger_ids))).seats
    return {(each.passenger_id, each.seat_number, pb.Seat.State.Name(each.state)) for each in found}


async def test_a_confirmed_seat_is_found_with_hold_and_time(
    agent: Caller, service: Caller, flight: str, database: Database
) -> None:
    hold = await agent.confirm(await agent.hold(flight, "20A", "P1"))
    (found,) = (await service.FindPassengerSeats(find(flight, "P1"))).seats
    assert (found.flight_id, found.passenger_id, found.seat_number) == (flight, "P1", "20A")
    assert (found.state, found.hold_id) == (pb.Seat.CONFIRMED, hold.hold_id)
    (row,) = (await rows(database, flight))["holds"]
    assert found.confirm_time.ToMicroseconds() == round(row["confirm_time"].timestamp() * 1e6)


async def test_a_held_seat_has_no_confirm_time(agent: Caller, service: Caller, flight: str) -> None:
    hold = await agent.hold(flight, "20A", "P1")
    (found,) = (await service.FindPassengerSeats(find(flight, "P1"))).seats
    assert (found.state, found.hold_id) == (pb.Seat.HELD, hold.hold_id)
    assert not found.HasField("confirm_time")


async def test_a_passenger_who_moves_has_both_seats(agent: Caller, service: Caller, flight: str) -> None:
    await agent.confirm(await agent.hold(flight, "20A", "P1"))
    move = await agent.hold(flight, "21A", "P1")
    assert await seats_of(service, flight, "P1") == {("P1", "20A", "CONFIRMED"), ("P1", "21A", "HELD")}
    await agent.confirm(move)
    assert await seats_of(service, flight, "P1") == {("P1", "21A", "CONFIRMED")}


async def test_only_the_requested_passengers_are_found(
    callers: Callers, agent: Caller, service: Caller, flight: str
) -> None:
    onward = new_flight_id()
    await callers.operations().provision(onward)
    await agent.hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P2"), seat(onward, "22C", "P1"))
    assert await seats_of(service, flight, "P1", "P3") == {("P1", "20A", "HELD")}
    assert await seats_of(service, onward, "P1", "P2") == {("P1", "22C", "HELD")}
    assert await seats_of(service, flight_id("SH000"), "P1") == set()


async def test_a_passenger_requested_twice_is_found_once(agent: Caller, service: Caller, flight: str) -> None:
    await agent.hold(flight, "20A", "P1")
    assert len((await service.FindPassengerSeats(find(flight, "P1", "P1"))).seats) == 1


async def test_a_released_seat_is_not_found(agent: Caller, service: Caller, flight: str) -> None:
    await agent.cancel(await agent.hold(flight, "20A", "P1"))
    await agent.cancel(await agent.confirm(await agent.hold(flight, "20B", "P2")))
    assert await seats_of(service, flight, "P1", "P2") == set()


async def test_a_lapsed_hold_is_not_found_before_the_sweep(unswept: Instance, unswept_flight: str) -> None:
    hold = await unswept.callers.agent().hold(unswept_flight, "20A", "P1")
    await lapse_holds(unswept.database, hold)
    assert await seats_of(unswept.callers.service(), unswept_flight, "P1") == set()
    assert [row["state"] for row in (await rows(unswept.database, unswept_flight))["holds"]] == ["HELD"]


async def test_two_hundred_passengers_fit_into_one_call(agent: Caller, service: Caller, flight: str) -> None:
    numbers = [f"{row}{letter}" for row in range(14, 31) for letter in "ABCDEF"][:99]
    for first in range(0, 99, 9):
        await agent.hold_seats(*(seat(flight, number, f"P{number}") for number in numbers[first : first + 9]))
    asked = [f"P{number}" for number in numbers] + [f"Q{n}" for n in range(101)]
    assert {number for _, number, _ in await seats_of(service, flight, *asked)} == set(numbers)
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await seats_of(service, flight, *asked, "one-too-many")
    assert refusal.fields == ["passengers"]


@pytest.mark.parametrize("role", ["agent", "operations", "customer", "passenger"])
async def test_only_a_service_may_find_seats(callers: Callers, flight: str, role: str) -> None:
    with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
        name = f"P1:{flight}" if role == "passenger" else "desk"
        await getattr(callers, role)(name).FindPassengerSeats(find(flight, "P1"))
