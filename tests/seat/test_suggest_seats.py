"""The RPC SuggestSeats uses the current map (SEAT-14).

The rules of suggestions are tested in test_suggestions.py.
"""

from __future__ import annotations

import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.callers import Caller, Callers, refused, seat
from tests.dates import flight_id
from tests.instances import Database
from tests.seat.rules import new_flight_id, rows
from tests.waiting import eventually


def ask(flight: str, party_size: int = 3, **more: object) -> pb.SuggestSeatsRequest:
    return pb.SuggestSeatsRequest(flight_id=flight, party_size=party_size, **more)  # type: ignore[arg-type]


async def test_suggestions_are_free_and_complete_and_ranked(callers: Callers, flight: str, database: Database) -> None:
    before = await rows(database, flight)
    suggestions = (await callers.customer().SuggestSeats(ask(flight))).suggestions
    assert 0 < len(suggestions) <= 5
    assert [each.score for each in suggestions] == sorted((each.score for each in suggestions), reverse=True)
    states = await callers.agent().states(flight)
    for suggestion in suggestions:
        assert len(set(suggestion.seat_numbers)) == 3
        assert {states[number] for number in suggestion.seat_numbers} == {"AVAILABLE"}
        assert suggestion.explanation
    assert await rows(database, flight) == before


async def test_a_taken_seat_is_not_suggested(agent: Caller, flight: str) -> None:
    best = (await agent.SuggestSeats(ask(flight, 2))).suggestions[0]
    await agent.hold_seats(*(seat(flight, number) for number in best.seat_numbers))

    async def others() -> bool:
        now = (await agent.SuggestSeats(ask(flight, 2))).suggestions
        return not any(set(each.seat_numbers) & set(best.seat_numbers) for each in now)

    await eventually(others)


async def test_suggestions_stay_in_the_requested_cabin(operations: Caller, agent: Caller) -> None:
    flight = new_flight_id()
    await operations.provision(flight, "A321-16C")
    seats = (await agent.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight))).seats
    business = {seat.seat_number for seat in seats if seat.cabin == pb.Seat.BUSINESS}
    for suggestion in (await agent.SuggestSeats(ask(flight, 2, cabin=pb.Seat.BUSINESS))).suggestions:
        assert set(suggestion.seat_numbers) <= business


async def test_a_full_cabin_gets_no_suggestion(agent: Caller, flight: str) -> None:
    assert not (await agent.SuggestSeats(ask(flight, 1, cabin=pb.Seat.FIRST))).suggestions


async def test_an_unknown_flight_is_not_found(agent: Caller) -> None:
    with refused("NOT_FOUND", "FLIGHT_NOT_FOUND"):
        await agent.SuggestSeats(ask(flight_id("SH000")))


@pytest.mark.parametrize("party_size", [0, 10, -1, 2**31 - 1])
async def test_a_party_of_zero_or_ten_is_malformed(agent: Caller, flight: str, party_size: int) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await agent.SuggestSeats(ask(flight, party_size))
    assert "party_size" in refusal.fields
