"""Rules of the chassis as functions, for the tests and for the planted bugs that must break them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aio_pika
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from services import db, outbox
from services.cache import Versioned, VersionedCache
from services.db import Pool
from services.outbox import Event, Relay
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractExchange, AbstractQueue


async def the_newest_value_stays(cache: VersionedCache) -> None:
    """A writer with an older value does not replace a newer one in the cache."""
    name = f"name-{secrets.token_hex(4)}"
    (generation,) = await cache.generations([name])
    assert await cache.set_if_newer(name, Versioned(5, b"five"), generation=generation)
    for version in (4, 5, 1):
        assert not await cache.set_if_newer(name, Versioned(version, b"late"), generation=generation)
        assert await cache.get([name]) == [Versioned(5, b"five")]
    assert await cache.set_if_newer(name, Versioned(10, b"ten"), generation=generation)
    assert await cache.get([name]) == [Versioned(10, b"ten")]


@asynccontextmanager
async def listening(amqp_url: str, routing_key: str) -> AsyncIterator[AbstractQueue]:
    """Yields a new queue that receives the events of one routing key."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind("skyhigh.events", routing_key=routing_key)
        yield queue


async def next_message(queue: AbstractQueue) -> Any:
    """Waits for the next message. Fails if none comes."""
    messages: list[Any] = []

    async def came() -> bool:
        messages.append(await queue.get(no_ack=True, fail=False))
        return messages[-1] is not None

    await eventually(came)
    return messages[-1]


async def enqueue(pool: Pool, routing_key: str, text: str = "") -> Event:
    """Writes one event in a transaction of its own."""
    event = Event(uuid4(), routing_key, StringValue(value=text))
    async with db.transaction(pool) as conn:
        await outbox.enqueue(conn, [event])
    return event


async def an_event_outlives_a_lost_broker(relay: Callable[[], Relay], pool: Pool, amqp_url: str) -> None:
    """EVT-1: an event survives the loss of the broker.

    If a relay fails between publishing and the broker's confirmation, the next relay publishes again.
    """
    routing_key = f"test.{secrets.token_hex(4)}.v1"
    # Connects once before the test: a broker that does not know the relay yet receives all events of the last hour
    # again, whatever the relay did with them.
    await relay()._connected()
    async with listening(amqp_url, routing_key) as queue:
        event = await enqueue(pool, routing_key, "kept")

        async def lost(self: AbstractExchange, *args: Any, **more: Any) -> None:
            raise ConnectionResetError("the broker is away")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(aio_pika.Exchange, "publish", lost)
            with pytest.raises(ConnectionResetError):
                await relay().publish_batch()
        assert await relay().publish_batch() == 1
        message = await next_message(queue)
        assert message.message_id == str(event.event_id)
        assert await relay().publish_batch() == 0
