"""WatchCheckIn: a check-in as it is, then after each change, and heartbeats."""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import uuid4

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from tests.callers import Caller, refused
from tests.checkin.airport import Airport

VARIABLES: Final = {"SKYHIGH_CHECKIN_HEARTBEAT_SECONDS": "0.6"}


async def states(caller: Caller, checkin_id: str, *, until: int) -> list[str]:
    """Watches until a state shows; returns what was seen, `-` for heartbeats."""
    seen = []
    async with asyncio.timeout(10):
        async for update in caller.WatchCheckIn(pb.WatchCheckInRequest(checkin_id=checkin_id)):
            if update.HasField("heartbeat"):
                seen.append("-")
                continue
            seen.append(pb.CheckIn.State.Name(update.checkin.state))
            if update.checkin.state == until:
                return seen
    raise AssertionError(seen)


async def test_each_change_is_shown(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    watching = [
        asyncio.create_task(states(each, traveller.checkin_id, until=pb.CheckIn.COMPLETED))
        for each in (traveller.desk, airport.agent, airport.operations)
    ]
    await asyncio.sleep(0.3)
    await traveller.declare(30)
    await asyncio.sleep(0.3)
    await traveller.pay()
    for seen in await asyncio.gather(*watching):
        assert [state for state in seen if state != "-"] == ["INITIATED", "WAITING_FOR_PAYMENT", "COMPLETED"]


async def test_a_failed_payment_is_shown(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.waiting()
    stream = traveller.desk.WatchCheckIn(pb.WatchCheckInRequest(checkin_id=traveller.checkin_id))
    assert (await stream.read()).checkin.last_payment_error == ""
    await traveller.fail_to_pay()
    async with asyncio.timeout(5):
        while (await stream.read()).checkin.last_payment_error != "DECLINED":
            pass
    stream.cancel()


async def test_a_quiet_one_shows_that_the_stream_lives(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.completed()
    stream = traveller.desk.WatchCheckIn(pb.WatchCheckInRequest(checkin_id=traveller.checkin_id))
    assert (await stream.read()).checkin.state == pb.CheckIn.COMPLETED
    async with asyncio.timeout(5):
        assert (await stream.read()).HasField("heartbeat")
    stream.cancel()


async def test_a_stranger_sees_nothing(airport: Airport) -> None:
    traveller, stranger = await airport.traveller("P1"), await airport.traveller("P2")
    await traveller.start()
    for checkin_id in (traveller.checkin_id, str(uuid4())):
        with refused("NOT_FOUND", "CHECK_IN_NOT_FOUND"):
            await states(stranger.desk, checkin_id, until=pb.CheckIn.COMPLETED)
