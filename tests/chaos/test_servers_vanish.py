"""An outage of Redis or RabbitMQ costs speed, not correctness.

See docs/rules.md section 2, SEAT-12 and EVT-1.
"""

from __future__ import annotations

import asyncio
from uuid import uuid4

import aio_pika
import asyncpg
from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb

from services import amqp
from tests.booking.agency import patiently
from tests.callers import Caller
from tests.chaos.conftest import Fleet
from tests.conftest import World
from tests.waiting import PATIENCE_SECONDS, eventually

ROWS = range(1, 31)


async def test_maps_are_current_during_a_redis_outage(world: World, fleet: Fleet, chaotic_flight: str) -> None:
    agent = fleet.callers.agent()
    await agent.states(chaotic_flight)
    await world.supervisor.stop("redis")
    try:
        # The bench P8 measures how fast that is.
        for row in ROWS:
            await agent.hold(chaotic_flight, f"{row}A")
            states = await agent.states(chaotic_flight)
            # Without the cache every read comes from Postgres.
            assert [states[f"{n}A"] for n in ROWS] == ["HELD"] * row + ["AVAILABLE"] * (len(ROWS) - row)
    finally:
        await world.supervisor.start("redis")
    await agent.hold(chaotic_flight, "30F")

    async def change_is_visible() -> bool:
        return (await agent.states(chaotic_flight))["30F"] == "HELD"

    await eventually(change_is_visible)
    states = await agent.states(chaotic_flight)
    assert sum(state == "HELD" for state in states.values()) == len(ROWS) + 1


async def test_events_are_delivered_after_a_rabbitmq_outage(
    world: World, fleet: Fleet, chaotic_flight: str, database: asyncpg.Connection[asyncpg.Record]
) -> None:
    agent = fleet.callers.agent()
    url = world.servers.amqp_url("seat")
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(
            f"seat.chaos-{uuid4().hex}", durable=True, arguments={"x-queue-type": "quorum"}
        )
        await queue.bind(amqp.EVENTS, routing_key="seat.released.v1")
    await world.supervisor.stop("rabbitmq")
    try:
        for row in ROWS:
            hold = await agent.hold(chaotic_flight, f"{row}C")
            await agent.CancelHold(pb.CancelHoldRequest(hold_id=hold.hold_id))
        waiting = await database.fetchval(
            "SELECT count(*) FROM outbox WHERE publish_time IS NULL AND routing_key = 'seat.released.v1'"
        )
        assert waiting >= 1
    finally:
        await world.supervisor.start("rabbitmq")
    released = await _drain(url, queue.name, chaotic_flight, expected=len(ROWS))
    # Delivery is at least once, the effect once: each seat's new version is announced by one event with one id.
    assert sorted(released.values()) == sorted((f"{row}C", 2) for row in ROWS)


async def _drain(url: str, queue_name: str, flight_id: str, *, expected: int) -> dict[tuple[str, str], tuple[str, int]]:
    released: dict[tuple[str, str], tuple[str, int]] = {}
    async with asyncio.timeout(PATIENCE_SECONDS), await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(queue_name)
        async with queue.iterator() as messages:
            async for message in messages:
                async with message.process():
                    event = events_pb2.SeatReleased.FromString(message.body)
                    assert message.headers["cloudEvents:id"] == message.message_id
                    if event.flight_id == flight_id:
                        for seat in event.seats:
                            key = (str(message.message_id), seat.seat_number)
                            released[key] = (seat.seat_number, seat.version)
                if len(released) >= expected:
                    break
        await channel.queue_delete(queue_name)
    return released


async def test_a_broken_database_connection_loses_one_response(world: World, fleet: Fleet, chaotic_flight: str) -> None:
    agent = fleet.callers.agent()
    owner = await asyncpg.connect(world.servers.database_url("seat"))
    try:
        await owner.execute(
            """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE usename = current_user AND pid <> pg_backend_pid()
            """
        )
    finally:
        await owner.close()
    key = str(uuid4())
    hold = await _until_answered(agent, chaotic_flight, "7A", key)
    again = await agent.hold(chaotic_flight, "7A", "P7", request_id=key)
    assert again == hold


async def _until_answered(agent: Caller, flight_id: str, seat_number: str, key: str) -> pb.Hold:
    return await patiently(lambda: agent.hold(flight_id, seat_number, "P7", request_id=key))
