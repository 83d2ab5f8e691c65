"""HoldSeat: one of many gets the seat (SEAT-2, SEAT-4, SEAT-6, SEAT-11)."""

from __future__ import annotations

import asyncio

import pytest

from skyhigh.seat.v1 import seat_service_pb2 as pb
from tests.callers import Caller, Callers, read, refused


async def test_a_free_seat_is_held_for_120_seconds(agent: Caller, flight: str) -> None:
    hold = await agent.hold(flight, "12A", "P1")
    assert hold.state == pb.Hold.HELD
    assert [(seat.flight_id, seat.seat_number, seat.passenger_id) for seat in hold.seats] == [(flight, "12A", "P1")]
    assert hold.expire_time.seconds - hold.create_time.seconds == pytest.approx(120, abs=1)
    assert hold.extensions_left == 9
    assert (await agent.states(flight))["12A"] == "HELD"
