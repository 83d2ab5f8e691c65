"""HoldSeat: one of many callers gets the seat (SEAT-2, SEAT-4, SEAT-6, SEAT-11)."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.callers import Caller, Callers, refused
from tests.dates import NEXT_DAY, flight_id, new_flight_id
from tests.instances import Database
from tests.seat.rules import answers, at_once, one_of_many_gets_the_seat, outcomes, rows, violations

# In the A320, rows 12 and 13 are exit rows, rows 11 and 14 have no oxygen mask for an infant, and row 20 has neither
# rule.
ORDINARY, EXIT_ROW, NO_INFANTS = "20A", "12B", "14A"


async def test_a_free_seat_is_held_for_120_seconds(agent: Caller, flight: str) -> None:
    hold = await agent.hold(flight, "12A", "P1")
    assert hold.state == pb.Hold.HELD
    assert hold.purpose == pb.Hold.CHECK_IN
    assert [(seat.flight_id, seat.seat_number, seat.passenger_id) for seat in hold.seats] == [(flight, "12A", "P1")]
    assert hold.expire_time.seconds - hold.create_time.seconds == pytest.approx(120, abs=1)
    assert hold.extensions_left == 9
    assert (await agent.states(flight))["12A"] == "HELD"


async def test_a_booking_seat_is_held_for_15_minutes(agent: Caller, flight: str) -> None:
    hold = await agent.hold(flight, "12A", purpose=pb.Hold.BOOKING)
    assert hold.purpose == pb.Hold.BOOKING
    assert hold.expire_time.seconds - hold.create_time.seconds == pytest.approx(900, abs=1)


async def test_the_response_equals_that_of_get_hold(agent: Caller, flight: str) -> None:
    hold = await agent.hold(flight, "12A")
    assert await agent.get(hold) == hold


async def test_the_ledger_has_actor_and_request(
    agent: Caller, flight: str, request_id: str, database: Database
) -> None:
    hold = await agent.hold(flight, "12A", request_id=request_id)
    (event,) = await database.fetch("SELECT * FROM seat_events WHERE flight_id = $1", flight)
    assert (event["version"], event["from_state"], event["to_state"]) == (1, "AVAILABLE", "HELD")
    assert (str(event["hold_id"]), event["actor"], str(event["request_id"])) == (hold.hold_id, agent.name, request_id)
    assert await violations(database, flight) == []


async def test_a_session_holds_only_for_its_passengers(callers: Callers, flight: str) -> None:
    session = callers.passenger(f"P1:{flight}", f"P2:{flight}")
    await session.hold(flight, "20A", "P1")
    await session.hold(flight, "20B", "P2")
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await session.hold(flight, "20C", "P3")


async def test_a_passenger_of_another_flight_is_not_found(callers: Callers, flight: str) -> None:
    session = callers.passenger(f"P1:{flight_id('SH999')}")
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await session.hold(flight, "20A", "P1")


async def test_a_hold_by_an_agent_belongs_to_the_owner(callers: Callers, agent: Caller, flight: str) -> None:
    owner = callers.passenger(f"P1:{flight}")
    hold = await agent.hold(flight, "20A", "P1", owner=owner.name)
    assert (await owner.confirm(hold)).state == pb.Hold.CONFIRMED


async def test_only_agents_and_services_hold_for_others(callers: Callers, flight: str, database: Database) -> None:
    customer = callers.customer()
    with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
        await customer.hold(flight, "20A", owner="customer:somebody-else")
    assert (await rows(database, flight))["holds"] == []
    await customer.hold(flight, "20A", owner=customer.name)


@pytest.mark.parametrize("seat_number", ["31A", "99Z", "12G", "130A"])
async def test_a_seat_outside_the_layout_is_not_found(agent: Caller, flight: str, seat_number: str) -> None:
    with refused("NOT_FOUND", "SEAT_NOT_FOUND") as refusal:
        await agent.hold(flight, seat_number)
    assert refusal.info.metadata == {"flight_id": flight, "seat_number": seat_number}


async def test_a_flight_without_seats_is_not_found(agent: Caller) -> None:
    with refused("NOT_FOUND", "FLIGHT_NOT_FOUND") as refusal:
        await agent.hold(flight_id("SH000"), "12A")
    assert refusal.info.metadata == {"flight_id": flight_id("SH000")}


async def test_a_taken_seat_is_refused_with_its_state(callers: Callers, agent: Caller, flight: str) -> None:
    held = await agent.hold(flight, "20A")
    await agent.confirm(await agent.hold(flight, "20B"))
    await agent.BlockSeat(pb.BlockSeatRequest(flight_id=flight, seat_number="20C", reason="BROKEN"))
    for seat_number, state in (("20A", "HELD"), ("20B", "CONFIRMED"), ("20C", "BLOCKED")):
        with refused("ABORTED", "SEAT_TAKEN") as refusal:
            await callers.customer().hold(flight, seat_number)
        assert refusal.info.metadata == {"flight_id": flight, "seat_number": seat_number, "state": state}
    assert (await agent.get(held)) == held


async def test_a_passenger_gets_one_held_seat_per_flight(agent: Caller, flight: str, database: Database) -> None:
    await agent.hold(flight, "20A", "P1")
    before = await rows(database, flight)
    with refused("FAILED_PRECONDITION", "PASSENGER_HOLDS_SEAT"):
        await agent.hold(flight, "20B", "P1")
    assert await rows(database, flight) == before


async def test_a_passenger_with_a_confirmed_seat_may_hold_another(agent: Caller, flight: str) -> None:
    await agent.confirm(await agent.hold(flight, "20A", "P1"))
    await agent.hold(flight, "20B", "P1")


async def test_a_seat_of_another_cabin_is_refused(
    callers: Callers, operations: Caller, agent: Caller, flight: str
) -> None:
    two_class = new_flight_id(on=NEXT_DAY)
    await operations.provision(two_class, "A321-16C")
    seats = (await agent.GetSeatMap(pb.GetSeatMapRequest(flight_id=two_class))).seats
    business = next(seat.seat_number for seat in seats if seat.cabin == pb.Seat.BUSINESS)
    session = callers.passenger(f"P1:{two_class}:ECONOMY", f"P2:{two_class}:BUSINESS")
    with refused("FAILED_PRECONDITION", "CABIN_NOT_ALLOWED") as refusal:
        await session.hold(two_class, business, "P1")
    assert refusal.info.metadata["cabin"] == "BUSINESS"
    await session.hold(two_class, business, "P2")
    with refused("FAILED_PRECONDITION", "CABIN_NOT_ALLOWED"):
        await agent.hold(two_class, business, profile=pb.PassengerProfile(cabin=pb.Seat.ECONOMY))


@pytest.mark.parametrize("kind", ["CHILD", "ADULT+INFT", "ADULT+CHLD", "ADULT+WCHR", "ADULT+BLND", "ADULT+VGML+UMNR"])
async def test_an_exit_row_accepts_only_eligible_adults(callers: Callers, flight: str, kind: str) -> None:
    session = callers.passenger(f"P1:{flight}:ECONOMY:{kind}")
    with refused("FAILED_PRECONDITION", "EXIT_ROW_NOT_ALLOWED") as refusal:
        await session.hold(flight, EXIT_ROW, "P1")
    assert refusal.info.metadata == {"seat_number": EXIT_ROW}


async def test_an_infant_gets_only_seats_with_a_mask(callers: Callers, flight: str) -> None:
    session = callers.passenger(f"P1:{flight}:ECONOMY:ADULT+INFT")
    with refused("FAILED_PRECONDITION", "INFANT_NOT_ALLOWED"):
        await session.hold(flight, NO_INFANTS, "P1")
    await session.hold(flight, ORDINARY, "P1")


async def test_a_special_meal_does_not_exclude_from_exit_rows(callers: Callers, flight: str) -> None:
    await callers.passenger(f"P1:{flight}:ECONOMY:ADULT+VGML").hold(flight, EXIT_ROW, "P1")


async def test_a_session_cannot_change_its_passengers_profile(callers: Callers, flight: str) -> None:
    session = callers.passenger(f"P1:{flight}:ECONOMY:CHILD")
    with refused("FAILED_PRECONDITION", "EXIT_ROW_NOT_ALLOWED"):
        await session.hold(flight, EXIT_ROW, "P1", profile=pb.PassengerProfile(type=pb.PassengerProfile.ADULT))


async def test_an_agent_sends_the_passengers_profile(agent: Caller, flight: str) -> None:
    with refused("FAILED_PRECONDITION", "EXIT_ROW_NOT_ALLOWED"):
        await agent.hold(flight, EXIT_ROW, profile=pb.PassengerProfile(special_services=["WCHC"]))
    await agent.hold(flight, EXIT_ROW, profile=pb.PassengerProfile(type=pb.PassengerProfile.ADULT))


async def test_of_200_callers_one_gets_the_seat(callers: Callers, flight: str, database: Database) -> None:
    await one_of_many_gets_the_seat([callers], database, flight)


async def test_of_200_callers_of_two_processes_one_wins(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    await one_of_many_gets_the_seat([callers, second], database, flight)


async def test_concurrent_holds_of_a_passenger_get_one_seat(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    numbers = [f"{row}{letter}" for row in range(20, 30) for letter in "ABC"]
    results = await at_once(
        *(each.agent().hold(flight, number, "P1") for number in numbers for each in (callers, second))
    )
    assert outcomes(results)["OK"] == 1
    assert outcomes(results).keys() <= {"OK", "PASSENGER_HOLDS_SEAT", "SEAT_TAKEN"}
    assert await violations(database, flight) == []


async def test_concurrent_repeats_on_two_processes_hold_once(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    for seat_number in ("20A", "21A", "22A", "23A"):
        request_id = str(uuid4())
        results = await at_once(
            *(
                each.agent("desk").hold(flight, seat_number, "P" + seat_number, request_id=request_id)
                for each in [callers, second] * 5
            )
        )
        assert len({hold.hold_id for hold in answers(results)}) == 1
        assert outcomes(results) == {"OK": 10}
    assert await violations(database, flight) == []


async def test_a_cancelled_call_does_not_affect_the_batch(agent: Caller, flight: str) -> None:
    leaving = [asyncio.ensure_future(agent.hold(flight, f"{row}A", timeout=0.001)) for row in range(15, 25)]
    staying = [agent.hold(flight, f"{row}B") for row in range(15, 25)]
    assert outcomes(await at_once(*staying)) == {"OK": 10}
    await asyncio.gather(*leaving, return_exceptions=True)
