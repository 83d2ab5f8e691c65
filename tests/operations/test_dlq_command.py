"""`skyhigh dlq` shows and replays dead letters.

They are shown without being consumed, and are replayed to the queue they came from.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb
from typer.testing import CliRunner

from operations.__main__ import app
from services import amqp, inbox, tasks
from services.db import Conn
from services.inbox import DELIVERY_LIMIT, Consumer, Subscription, dead_queue, declare_queues
from tests.dates import flight_id
from tests.instances import own_database, pooled
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World

QUEUE: Final = "seat.dlqtest"
FLIGHT: Final = flight_id("SH9")
RELEASED: Final = events_pb2.SeatReleased(
    flight_id=FLIGHT,
    seats=[events_pb2.SeatReleased.ReleasedSeat(seat_number="12A", version=3, state=pb.Seat.AVAILABLE)],
)


@pytest.fixture
async def channel(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AbstractChannel]:
    """Yields a channel of the broker's owner, as which the commands connect too.

    The seat service has no dead letters before and after the test.
    """
    monkeypatch.setenv("SKYHIGH_HOME", str(world.folder / "no stack"))
    monkeypatch.setenv("SKYHIGH_AMQP_URL", world.servers.amqp_url())
    async with await aio_pika.connect(world.servers.amqp_url()) as connection:
        channel = await connection.channel()
        queue = await declare_queues(channel, service="seat", queue=QUEUE, routing_keys=[])
        dead = await channel.get_queue(dead_queue("seat"))
        await dead.purge()
        yield channel
        await queue.delete(if_unused=False, if_empty=False)
        await dead.purge()


async def _dlq(*arguments: str, code: int = 0) -> str:
    """Runs the command; returns what it printed."""
    result = await asyncio.to_thread(CliRunner().invoke, app, ["dlq", *arguments])
    assert result.exit_code == code, result.output
    return result.output


async def _shown() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await _dlq("show", "seat")).splitlines()]


async def _dead(channel: AbstractChannel) -> int:
    queue = await channel.declare_queue(dead_queue("seat"), passive=True)
    return queue.declaration_result.message_count or 0


async def _bury(channel: AbstractChannel, *, queue: str = QUEUE, **headers: Any) -> str:
    """Publishes an event as a consumer moves it to the dead letters; returns its id."""
    event_id = str(uuid4())
    message = aio_pika.Message(
        RELEASED.SerializeToString(),
        message_id=event_id,
        headers={
            "cloudEvents:id": event_id,
            "x-failures": 4,
            "x-routing-key": "seat.released.v1",
            "x-reason": "ValueError: no such flight",
            "x-queue": queue,
            **headers,
        },
    )
    dead = await channel.get_exchange(amqp.DEAD, ensure=False)
    await dead.publish(message, routing_key=dead_queue("seat"))
    return event_id


async def test_an_event_that_failed_is_shown_and_applied_after_its_replay(
    world: World, channel: AbstractChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "RETRY_DELAYS_SECONDS", ())
    broken, applied = True, list[str]()

    async def handle(_: Conn, event: events_pb2.SeatReleased) -> None:
        if event.flight_id == FLIGHT:
            if broken:
                raise ValueError("no such flight")
            applied.append(event.flight_id)

    async with pooled(await own_database(world)) as pool:
        consumer = Consumer(
            pool,
            world.servers.amqp_url("seat"),
            service="seat",
            name=QUEUE.removeprefix("seat."),
            subscriptions=[Subscription("seat.released.v1", events_pb2.SeatReleased, handle)],
        )
        running = asyncio.create_task(consumer.run())
        event_id = str(uuid4())
        exchange = await channel.get_exchange(amqp.DEAD, ensure=False)
        message = aio_pika.Message(
            RELEASED.SerializeToString(), message_id=event_id, headers={"x-routing-key": "seat.released.v1"}
        )
        await exchange.publish(message, routing_key=QUEUE)
        await eventually(partial(_dead, channel))

        assert re.search(r"^seat +1$", await _dlq("list"), re.MULTILINE)
        shown = [
            {
                "id": event_id,
                "queue": QUEUE,
                "key": "seat.released.v1",
                "failures": 1,
                "reason": "ValueError: no such flight",
                "body": {
                    "flightId": FLIGHT,
                    "seats": [{"seatNumber": "12A", "version": "3", "state": "AVAILABLE"}],
                },
            }
        ]
        assert await _shown() == shown
        assert await _shown() == shown

        broken = False
        assert event_id in await _dlq("replay", "seat", "--id", event_id)

        async def is_applied() -> bool:
            return bool(applied)

        await eventually(is_applied)
        await tasks.end([running])
    assert applied == [FLIGHT]
    assert await _shown() == []


async def test_looking_keeps_the_order(channel: AbstractChannel) -> None:
    event_ids = [await _bury(channel) for _ in range(5)]
    for _ in range(2):
        assert [letter["id"] for letter in await _shown()] == event_ids
    few = await _dlq("show", "seat", "--count", "2")
    assert [json.loads(line)["id"] for line in few.splitlines()] == event_ids[:2]
    assert [letter["id"] for letter in await _shown()] == event_ids


async def test_show_keeps_the_order_of_more_than_a_thousand_messages(channel: AbstractChannel) -> None:
    dead = await channel.get_queue(dead_queue("seat"))
    await dead.purge()
    event_ids = [await _bury(channel) for _ in range(1_010)]
    for _ in range(2):
        # A message that another test left in a delay queue may arrive at any time.
        shown = [letter["id"] for letter in await _shown() if letter["id"] in event_ids]
        assert shown == event_ids[: len(shown)]
        assert len(shown) > 10
    await dead.purge()


async def test_replay_sends_each_message_without_an_id_back(channel: AbstractChannel) -> None:
    dead = await channel.get_exchange(amqp.DEAD, ensure=False)
    bodies = [b"first", b"second"]
    for body in bodies:
        message = aio_pika.Message(body, headers={"x-queue": QUEUE, "x-routing-key": "seat.released.v1"})
        await dead.publish(message, routing_key=dead_queue("seat"))
    assert "2 replayed" in await _dlq("replay", "seat", "--all")
    queue = await channel.get_queue(QUEUE)
    for body in bodies:
        returned = await queue.get(timeout=20)
        assert returned.body == body
        await returned.ack()


async def test_a_replayed_message_begins_anew(channel: AbstractChannel) -> None:
    first, second = await _bury(channel, traceparent="00-1-2-01"), await _bury(channel)
    await _dlq("replay", "seat", "--id", second)
    assert [letter["id"] for letter in await _shown()] == [first]
    assert "1 replayed" in await _dlq("replay", "seat", "--all")
    queue = await channel.get_queue(QUEUE)
    messages = [await queue.get(timeout=20) for _ in range(2)]
    assert [message.message_id for message in messages] == [second, first]
    assert _headers(messages[1]) == {
        "cloudEvents:id": first,
        "traceparent": "00-1-2-01",
        "x-routing-key": "seat.released.v1",
    }
    assert messages[1].body == RELEASED.SerializeToString()
    for message in messages:
        await message.ack()


async def test_a_message_that_killed_its_consumers_is_told_from_the_brokers_headers(channel: AbstractChannel) -> None:
    queue = await channel.get_queue(QUEUE)
    await queue.bind(amqp.EVENTS, routing_key="dlqtest.poison.v1")
    exchange = await channel.get_exchange(amqp.EVENTS, ensure=False)
    await exchange.publish(aio_pika.Message(b"\xff\xff", message_id="poison"), routing_key="dlqtest.poison.v1")
    await _give_back_until_dead(queue)
    await eventually(partial(_dead, channel))
    assert await _shown() == [
        {
            "id": "poison",
            "queue": QUEUE,
            "key": "dlqtest.poison.v1",
            "failures": 0,
            "reason": "delivery_limit",
            "body": {"unknownBytes": 2},
        }
    ]
    await _dlq("replay", "seat", "--all")
    message = await queue.get(timeout=20)
    assert _headers(message) == {"x-routing-key": "dlqtest.poison.v1"}
    await message.ack()


def _headers(message: AbstractIncomingMessage) -> dict[str, Any]:
    # A quorum queue adds a count of deliveries to each message, even if it is zero.
    return {name: value for name, value in message.headers.items() if (name, value) != ("x-delivery-count", 0)}


async def _give_back_until_dead(queue: AbstractQueue) -> None:
    for _ in range(DELIVERY_LIMIT + 1):
        message = await queue.get(timeout=20)
        await message.nack(requeue=True)


async def test_what_has_no_way_back_stays(channel: AbstractChannel) -> None:
    orphan, nameless = await _bury(channel, queue="seat.gone"), await _bury(channel, queue="")
    output = await _dlq("replay", "seat", "--all", code=1)
    assert f"{orphan}: the queue seat.gone no longer exists" in output
    assert f"{nameless}: its headers do not name its queue" in output
    assert "2 messages of seat could not be replayed" in output
    assert [letter["id"] for letter in await _shown()] == [orphan, nameless]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["show", "sea"], 1, "there is no service 'sea'; the services are seat"),
        (["replay", "seat"], 2, "--id / --all"),
        (["replay", "seat", "--all", "--id", "x"], 2, "--id / --all"),
        (["replay", "seat", "--id", "unheard-of"], 1, "no dead-lettered message of seat with the id unheard-of"),
    ],
)
async def test_what_is_wrong_is_named(channel: AbstractChannel, arguments: list[str], code: int, told: str) -> None:
    assert channel is not None
    assert told in await _dlq(*arguments, code=code)


async def test_a_broker_that_is_away_is_named(channel: AbstractChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert channel is not None
    monkeypatch.setenv("SKYHIGH_AMQP_URL", "amqp://127.0.0.1:1/")
    assert "the broker is unreachable" in await _dlq("list", code=1)
