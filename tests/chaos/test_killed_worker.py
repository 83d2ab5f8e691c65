"""A seat service process is killed under load.

Acknowledged holds exist, and a retry finds out about the others.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections import Counter
from dataclasses import dataclass, field
from uuid import uuid4

import asyncpg
import grpc
import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.booking.agency import patiently
from tests.callers import Caller, Callers, a_few_at_once, read
from tests.chaos.conftest import Fleet
from tests.conftest import World
from tests.dates import new_flight_id
from tests.waiting import eventually, pause

CLIENTS = 12
KILLS = 4
HOLDS_BETWEEN_KILLS = 30
# Killed workers serve again within this time, even on a busy machine.
START_SECONDS = 120
# After these codes the client does not know whether its request had an effect.
UNANSWERED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(slots=True)
class History:
    """The requests of the clients and their responses."""

    acknowledged: dict[str, tuple[pb.HoldSeatRequest, pb.Hold]] = field(default_factory=dict)
    unknown: dict[str, pb.HoldSeatRequest] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)


@pytest.mark.timeout(900)
async def test_a_killed_worker_keeps_acknowledged_holds_and_responses(
    world: World, fleet: Fleet, database: asyncpg.Connection[asyncpg.Record]
) -> None:
    flights = [new_flight_id("KL") for _ in range(4)]
    for flight_id in flights:
        await fleet.callers.operations().provision(flight_id)
    history = History()
    stop = asyncio.Event()
    clients = [asyncio.create_task(_hold_seats(world, fleet, flights, history, stop)) for _ in range(CLIENTS)]

    async def under_load() -> bool:
        return len(history.acknowledged) >= enough

    async def has_workers() -> bool:
        return bool(fleet.workers())

    for _ in range(KILLS):
        enough = len(history.acknowledged) + HOLDS_BETWEEN_KILLS
        await eventually(under_load, within_seconds=START_SECONDS)
        await eventually(has_workers, within_seconds=START_SECONDS)
        os.kill(secrets.choice(fleet.workers()), signal.SIGKILL)
    enough = len(history.acknowledged) + HOLDS_BETWEEN_KILLS
    await eventually(under_load, within_seconds=START_SECONDS)
    stop.set()
    await asyncio.gather(*clients)
    await eventually(fleet.serves, within_seconds=START_SECONDS)

    assert set(history.refused) <= {"SEAT_TAKEN"}
    agent = fleet.callers.agent("killed")
    told = {hold.hold_id for _, hold in history.acknowledged.values()}
    kept = await database.fetch("SELECT hold_id::text FROM holds WHERE hold_id = ANY($1)", list(told))
    assert {row["hold_id"] for row in kept} == told
    repeats = await a_few_at_once(_outcome(agent, request) for request, _ in history.acknowledged.values())
    assert repeats == [hold for _, hold in history.acknowledged.values()]
    # The client does not know whether these had an effect: a retry gets a response, and the next retry the same one.
    first, second = [
        await a_few_at_once(_outcome(agent, request) for request in history.unknown.values()) for _ in range(2)
    ]
    assert first == second
    per_seat = await database.fetch(
        """
        SELECT flight_id, seat_number FROM seat_events WHERE to_state = 'HELD' AND flight_id = ANY($1)
        GROUP BY flight_id, seat_number HAVING count(*) > 1
        """,
        flights,
    )
    assert not per_seat


async def _hold_seats(world: World, fleet: Fleet, flights: list[str], history: History, stop: asyncio.Event) -> None:
    """Holds random seats until `stop` is set; reconnects after each cut connection."""
    while not stop.is_set():
        callers = Callers(fleet.callers.address, world.keys)
        agent = callers.agent("killed")
        try:
            while not stop.is_set():
                seat_number = f"{secrets.randbelow(30) + 1}{secrets.choice('ABCDEF')}"
                request = pb.HoldSeatRequest(
                    flight_id=secrets.choice(flights),
                    seat_number=seat_number,
                    passenger_id=f"P-{secrets.token_hex(6)}",
                    request_id=str(uuid4()),
                )
                try:
                    history.acknowledged[request.request_id] = (request, await agent.HoldSeat(request))
                except grpc.aio.AioRpcError as error:
                    if error.code() not in UNANSWERED:
                        history.refused[read(error).reason] += 1
                        continue
                    history.unknown[request.request_id] = request
                    break
                await pause(0.02)
        finally:
            await callers.close()


async def _outcome(agent: Caller, request: pb.HoldSeatRequest) -> object:
    try:
        return await patiently(lambda: agent.HoldSeat(request))
    except grpc.aio.AioRpcError as error:
        return read(error).reason
