"""WatchCheckIn: the check-in, then each change of it, and heartbeats."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import groupby
from typing import Final
from uuid import uuid4

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from tests.callers import Caller, refused
from tests.checkin.airport import Airport
from tests.waiting import PATIENCE_SECONDS, eventually

VARIABLES: Final = {"SKYHIGH_CHECKIN_HEARTBEAT_SECONDS": "0.6"}


async def watch(caller: Caller, checkin_id: str, seen: list[str], *, until: int) -> None:
    """Watches until a state is shown; appends states to `seen`, `-` for a heartbeat."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for update in caller.WatchCheckIn(pb.WatchCheckInRequest(checkin_id=checkin_id)):
            if update.HasField("heartbeat"):
                seen.append("-")
                continue
            seen.append(pb.CheckIn.State.Name(update.checkin.state))
            if update.checkin.state == until:
                return
    raise AssertionError(seen)


async def test_each_change_is_shown(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    watched: list[list[str]] = [[], [], []]
    watching = [
        asyncio.create_task(watch(each, traveller.checkin_id, seen, until=pb.CheckIn.COMPLETED))
        for each, seen in zip((traveller.desk, airport.agent, airport.operations), watched, strict=True)
    ]

    def all_saw(state: str) -> Callable[[], Awaitable[bool]]:
        async def saw() -> bool:
            return all(state in seen for seen in watched)

        return saw

    await eventually(all_saw("INITIATED"))
    await traveller.declare(30)
    await eventually(all_saw("WAITING_FOR_PAYMENT"))
    await traveller.pay()
    await asyncio.gather(*watching)
    for seen in watched:
        # A change within a state shows the state again: a fee is noted a moment before the check-in completes.
        states = [state for state, _ in groupby(state for state in seen if state != "-")]
        assert states == ["INITIATED", "WAITING_FOR_PAYMENT", "COMPLETED"]


async def test_a_failed_payment_is_shown(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.waiting()
    stream = traveller.desk.WatchCheckIn(pb.WatchCheckInRequest(checkin_id=traveller.checkin_id))
    assert (await stream.read()).checkin.last_payment_error == ""
    await traveller.fail_to_pay()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await stream.read()).checkin.last_payment_error != "DECLINED":
            pass
    stream.cancel()


async def test_a_quiet_watch_sends_heartbeats(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.completed()
    stream = traveller.desk.WatchCheckIn(pb.WatchCheckInRequest(checkin_id=traveller.checkin_id))
    assert (await stream.read()).checkin.state == pb.CheckIn.COMPLETED
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert (await stream.read()).HasField("heartbeat")
    stream.cancel()


async def test_a_foreign_check_in_is_not_shown(airport: Airport) -> None:
    traveller, stranger = await airport.traveller("P1"), await airport.traveller("P2")
    await traveller.start()
    for checkin_id in (traveller.checkin_id, str(uuid4())):
        with refused("NOT_FOUND", "CHECK_IN_NOT_FOUND"):
            await watch(stranger.desk, checkin_id, [], until=pb.CheckIn.COMPLETED)
