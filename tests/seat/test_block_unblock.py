"""BlockSeat and UnblockSeat: agents block free seats and unblock them (SEAT-2)."""

from __future__ import annotations

import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.callers import Caller, Callers, refused
from tests.dates import flight_id
from tests.instances import Database
from tests.seat.rules import at_once, outcomes, rows, violations


def block(flight: str, seat_number: str = "20A", **more: str) -> pb.BlockSeatRequest:
    return pb.BlockSeatRequest(flight_id=flight, seat_number=seat_number, **{"reason": "BROKEN", **more})


def unblock(flight: str, seat_number: str = "20A", **more: str) -> pb.UnblockSeatRequest:
    return pb.UnblockSeatRequest(flight_id=flight, seat_number=seat_number, **more)


async def test_a_blocked_seat_cannot_be_held(callers: Callers, agent: Caller, flight: str, database: Database) -> None:
    blocked = await agent.BlockSeat(block(flight))
    assert (blocked.seat_number, blocked.state) == ("20A", pb.Seat.BLOCKED)
    assert (blocked.cabin, blocked.position) == (pb.Seat.ECONOMY, pb.Seat.WINDOW)
    with refused("ABORTED", "SEAT_TAKEN"):
        await callers.customer().hold(flight, "20A")
    assert await violations(database, flight) == []


async def test_an_unblocked_seat_can_be_held(agent: Caller, flight: str, database: Database) -> None:
    await agent.BlockSeat(block(flight))
    assert (await agent.UnblockSeat(unblock(flight))).state == pb.Seat.AVAILABLE
    await agent.hold(flight, "20A")
    assert await violations(database, flight) == []


async def test_the_ledger_has_actor_and_reason_of_a_block(
    agent: Caller, flight: str, database: Database, request_id: str
) -> None:
    await agent.BlockSeat(block(flight, reason="Seat cover torn", request_id=request_id))
    await agent.UnblockSeat(unblock(flight, reason="REPAIRED"))
    await agent.BlockSeat(block(flight))
    await agent.UnblockSeat(unblock(flight))
    events = (await rows(database, flight))["events"]
    assert [(event["to_state"], event["reason"]) for event in events] == [
        ("BLOCKED", "Seat cover torn"),
        ("AVAILABLE", "REPAIRED"),
        ("BLOCKED", "BROKEN"),
        ("AVAILABLE", "UNBLOCKED"),
    ]
    assert {event["actor"] for event in events} == {agent.name}
    assert str(events[0]["request_id"]) == request_id


async def test_a_repeat_changes_nothing(agent: Caller, flight: str, database: Database) -> None:
    for call, request in ((agent.BlockSeat, block(flight)), (agent.UnblockSeat, unblock(flight))):
        first = await call(request)
        before = await rows(database, flight)
        assert await call(request) == first
        assert await rows(database, flight) == before


async def test_unblocking_a_free_seat_changes_nothing(agent: Caller, flight: str, database: Database) -> None:
    before = await rows(database, flight)
    assert (await agent.UnblockSeat(unblock(flight))).state == pb.Seat.AVAILABLE
    assert await rows(database, flight) == before


@pytest.mark.parametrize("state", ["HELD", "CONFIRMED"])
async def test_an_occupied_seat_is_neither_blocked_nor_unblocked(
    agent: Caller, flight: str, database: Database, state: str
) -> None:
    hold = await agent.hold(flight, "20A")
    if state == "CONFIRMED":
        await agent.confirm(hold)
    before = await rows(database, flight)
    for call in (agent.BlockSeat(block(flight)), agent.UnblockSeat(unblock(flight))):
        with refused("ABORTED", "SEAT_OCCUPIED") as refusal:
            await call
        assert refusal.info.metadata == {"flight_id": flight, "seat_number": "20A", "state": state}
    assert await rows(database, flight) == before


async def test_an_unknown_flight_or_seat_is_not_found(agent: Caller, flight: str) -> None:
    for call in (agent.BlockSeat(block(flight, "31A")), agent.UnblockSeat(unblock(flight, "31A"))):
        with refused("NOT_FOUND", "SEAT_NOT_FOUND"):
            await call
    unknown = flight_id("SH000")
    for call in (agent.BlockSeat(block(unknown)), agent.UnblockSeat(unblock(unknown))):
        with refused("NOT_FOUND", "FLIGHT_NOT_FOUND"):
            await call


async def test_a_block_needs_a_reason(agent: Caller, flight: str) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await agent.BlockSeat(pb.BlockSeatRequest(flight_id=flight, seat_number="20A"))
    assert refusal.fields == ["reason"]


async def test_an_unblocked_seat_is_offered_to_an_open_waitlist(
    agent: Caller, service: Caller, flight: str, database: Database
) -> None:
    await agent.BlockSeat(block(flight))
    await service.SetWaitlistOpen(pb.SetWaitlistOpenRequest(flight_id=flight, open=True))
    assert (await agent.UnblockSeat(unblock(flight))).state == pb.Seat.OFFERED
    (event,) = await database.fetch(
        "SELECT * FROM seat_events JOIN outbox USING (event_id) WHERE flight_id = $1", flight
    )
    assert (event["to_state"], event["routing_key"]) == ("OFFERED", "seat.released.v1")
    # An agent may block an OFFERED seat as well as an AVAILABLE one.
    assert (await agent.BlockSeat(block(flight))).state == pb.Seat.BLOCKED
    assert await violations(database, flight) == []


async def test_hold_and_block_at_once_leave_one_winner(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    numbers = [f"{row}{letter}" for row in range(14, 24) for letter in "ABC"]
    calls = [(callers.agent().hold(flight, each), second.agent().BlockSeat(block(flight, each))) for each in numbers]
    counted = outcomes(await at_once(*(call for pair in calls for call in pair)))
    assert counted["OK"] == len(numbers)
    assert counted.keys() <= {"OK", "SEAT_TAKEN", "SEAT_OCCUPIED"}
    assert await violations(database, flight) == []
