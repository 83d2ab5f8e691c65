"""ProvisionSeats: the seats of a flight, once, from a cabin layout (SEAT-1)."""

from __future__ import annotations

import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.layouts.cabin_layouts import load_layouts
from tests.callers import Caller, Callers, refused
from tests.instances import Database
from tests.seat.rules import at_once, new_flight_id, outcomes, rows, violations


def provision(flight_id: str, layout_id: str = "A320-180Y", request_id: str = "") -> pb.ProvisionSeatsRequest:
    return pb.ProvisionSeatsRequest(flight_id=flight_id, layout_id=layout_id, request_id=request_id)


@pytest.mark.parametrize("layout_id", sorted(load_layouts()))
async def test_a_flight_has_each_seat_of_its_layout_once(
    operations: Caller, agent: Caller, database: Database, layout_id: str
) -> None:
    flight, layout = new_flight_id(), load_layouts()[layout_id]
    answer = await operations.ProvisionSeats(provision(flight, layout_id))
    assert (answer.flight_id, answer.layout_id, answer.total_seats) == (flight, layout_id, len(layout.seats))
    seat_map = await agent.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight))
    assert [seat.seat_number for seat in seat_map.seats] == [seat.seat_number for seat in layout.seats]
    assert {seat.state for seat in seat_map.seats} == {pb.Seat.AVAILABLE}
    assert seat_map.version == 1
    assert await violations(database, flight) == []


async def test_a_repeat_changes_nothing(operations: Caller, agent: Caller, flight: str, database: Database) -> None:
    await agent.hold(flight, "20A")
    before = await rows(database, flight)
    answer = await operations.ProvisionSeats(provision(flight))
    assert answer.total_seats == 180
    assert await rows(database, flight) == before


async def test_another_layout_is_refused(operations: Caller, flight: str, database: Database) -> None:
    before = await rows(database, flight)
    with refused("ALREADY_EXISTS", "FLIGHT_EXISTS") as refusal:
        await operations.ProvisionSeats(provision(flight, "E190-100Y"))
    assert refusal.info.metadata == {"layout_id": "A320-180Y"}
    assert await rows(database, flight) == before


async def test_an_unknown_layout_is_not_found(operations: Caller, database: Database) -> None:
    flight = new_flight_id()
    with refused("NOT_FOUND", "LAYOUT_NOT_FOUND") as refusal:
        await operations.ProvisionSeats(provision(flight, "A380-853"))
    assert refusal.info.metadata == {"layout_id": "A380-853"}
    assert (await rows(database, flight))["flight"] == []


async def test_concurrent_requests_provision_the_flight_once(
    callers: Callers, second: Callers, database: Database
) -> None:
    flight = new_flight_id()
    results = await at_once(*(each.operations().ProvisionSeats(provision(flight)) for each in [callers, second] * 5))
    assert outcomes(results) == {"OK": 10}
    assert await violations(database, flight) == []


async def test_concurrent_requests_with_two_layouts_have_one_winner(
    callers: Callers, second: Callers, database: Database
) -> None:
    flight = new_flight_id()
    results = await at_once(
        callers.operations().ProvisionSeats(provision(flight, "A320-180Y")),
        second.operations().ProvisionSeats(provision(flight, "E190-100Y")),
    )
    assert outcomes(results) == {"OK": 1, "FLIGHT_EXISTS": 1}
    assert await violations(database, flight) == []


async def test_a_flight_is_found_after_it_was_missing(operations: Caller, agent: Caller) -> None:
    flight = new_flight_id()
    for _ in range(2):
        with refused("NOT_FOUND", "FLIGHT_NOT_FOUND"):
            await agent.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight))
        with refused("NOT_FOUND", "FLIGHT_NOT_FOUND"):
            await agent.hold(flight, "20A")
    await operations.ProvisionSeats(provision(flight))
    await agent.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight))
    await agent.hold(flight, "20A")
