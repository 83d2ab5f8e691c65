"""An event counts as published only if a queue has it.

A confirmation is not enough if the broker has no queue, or a new disk since.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractQueue
from skyhigh.seat.v1 import events_pb2

from services import amqp, db, inbox, outbox, tasks
from services.db import Conn, Pool
from services.inbox import Consumer, Subscription
from services.outbox import Event, Relay, enqueue
from tests.conftest import World
from tests.system.faults.proxy import proxied
from tests.waiting import eventually


@dataclass
class Post:
    """A relay on a database of its own.

    No other test uses its routing key and its marker exchange.
    """

    pool: Pool
    url: str
    channel: AbstractChannel
    name: str

    @property
    def routing_key(self) -> str:
        return f"{self.name}.told.v1"

    @property
    def mark(self) -> str:
        return f"{self.name}.relay"

    def relay(self) -> Relay:
        return Relay(self.pool, self.url, source=f"skyhigh/{self.name}")

    async def tell(self, count: int = 1, *, routing_key: str | None = None) -> list[UUID]:
        events = [Event(uuid4(), routing_key or self.routing_key, events_pb2.SeatReleased()) for _ in range(count)]
        async with db.transaction(self.pool) as conn:
            await enqueue(conn, events)
        return [event.event_id for event in events]

    async def listen(self) -> AbstractQueue:
        queue = await self.channel.declare_queue(f"{self.name}.{secrets.token_hex(4)}", exclusive=True)
        await queue.bind(amqp.EVENTS, routing_key=self.routing_key)
        return queue

    async def published(self, event_ids: Sequence[UUID]) -> set[UUID]:
        async with db.transaction(self.pool) as conn:
            rows = await conn.fetch(
                "SELECT event_id FROM outbox WHERE event_id = ANY($1::uuid[]) AND publish_time IS NOT NULL", event_ids
            )
        return {row["event_id"] for row in rows}

    async def age(self, event_ids: Sequence[UUID], age: timedelta) -> None:
        async with db.transaction(self.pool) as conn:
            await conn.execute(
                """
                UPDATE outbox SET create_time = create_time - $2::interval, publish_time = publish_time - $2::interval
                WHERE event_id = ANY($1::uuid[])
                """,
                event_ids,
                age,
            )

    async def heard_through(self, routing_key: str, flight_id: str, heard: list[str]) -> bool:
        """Publishes the event on the first call; returns whether it was received."""
        async with db.transaction(self.pool) as conn:
            if not await conn.fetchval("SELECT true FROM outbox WHERE traceparent = $1", flight_id):
                await enqueue(
                    conn, [Event(uuid4(), routing_key, events_pb2.SeatReleased(flight_id=flight_id), flight_id)]
                )
        return flight_id in heard

    async def received(self, queue: AbstractQueue, count: int) -> list[UUID]:
        found: list[UUID] = []

        async def enough() -> bool:
            if (message := await queue.get(no_ack=True, fail=False)) is not None:
                found.append(UUID(str(message.message_id)))
            return len(found) >= count

        await eventually(enough)
        return found


@pytest.fixture
async def post(world: World, pool: Pool) -> AsyncIterator[Post]:
    url = world.servers.amqp_url()
    async with await aio_pika.connect(url) as connection:
        made = Post(pool, url, await connection.channel(), f"post-{secrets.token_hex(4)}")
        async with db.transaction(pool) as conn:
            await conn.execute("DELETE FROM outbox")
        yield made
        await (await connection.channel()).exchange_delete(made.mark)


@asynccontextmanager
async def running(relay: Relay | Consumer) -> AsyncIterator[None]:
    task = asyncio.create_task(relay.run())
    try:
        yield
    finally:
        await tasks.end([task])


async def test_an_event_without_a_queue_is_published_later(post: Post) -> None:
    told = await post.tell()
    async with running(post.relay()):

        async def returned() -> bool:
            async with db.transaction(post.pool) as conn:
                return bool(
                    await conn.fetchval("SELECT try_time > create_time FROM outbox WHERE event_id = $1", told[0])
                )

        await eventually(returned)
        assert await post.published(told) == set()
        queue = await post.listen()
        assert await post.received(queue, 1) == told
        await eventually(lambda: post.published(told))


async def test_unroutable_events_delay_no_others(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "RELAY_BATCH", 2)
    queue = await post.listen()
    unheard = await post.tell(3, routing_key=f"{post.name}.other.v1")
    told = await post.tell()
    async with running(post.relay()):
        await eventually(lambda: post.published(told))
    assert await post.received(queue, 1) == told
    assert await post.published(unheard) == set()


async def test_an_event_without_consumer_needs_no_queue(post: Post) -> None:
    told = await post.tell(routing_key="waitlist.assigned.v1")
    async with running(post.relay()):
        await eventually(lambda: post.published(told))


async def test_a_new_broker_gets_the_last_hours_events(post: Post) -> None:
    queue = await post.listen()
    told, long_ago = await post.tell(3), await post.tell(2)
    async with running(post.relay()):
        await post.received(queue, 5)
        await eventually(lambda: post.published(told))
        await eventually(lambda: post.published(long_ago))
    await post.age(told, timedelta(minutes=50))
    await post.age(long_ago, timedelta(hours=1, minutes=10))
    await queue.purge()
    # The relay publishes nothing again to the same broker.
    async with running(post.relay()):
        (fresh,) = await post.tell()
        assert await post.received(queue, 1) == [fresh]
        await eventually(lambda: post.published([fresh]))
    await post.channel.exchange_delete(post.mark)
    async with running(post.relay()):
        assert sorted(await post.received(queue, 4)) == sorted([*told, fresh])
        await eventually(lambda: post.published(told))
        assert await queue.get(no_ack=True, fail=False) is None


async def test_an_idle_relay_detects_a_new_broker(post: Post) -> None:
    queue = await post.listen()
    told = await post.tell()
    async with proxied(post.url) as (proxy, url), running(Relay(post.pool, url, source=f"skyhigh/{post.name}")):
        assert await post.received(queue, 1) == told
        await eventually(lambda: post.published(told))
        await post.channel.exchange_delete(post.mark)
        proxy.cut()
        assert await post.received(queue, 1) == told


async def test_processes_that_detect_a_new_broker_lose_nothing(post: Post) -> None:
    queue = await post.listen()
    told = await post.tell(20)
    async with running(post.relay()), running(post.relay()), running(post.relay()):
        # An event may arrive twice, which its consumer detects; no event is missing.
        seen: set[UUID] = set()

        async def all_came() -> bool:
            if (message := await queue.get(no_ack=True, fail=False)) is not None:
                seen.add(UUID(str(message.message_id)))
            return seen == set(told)

        await eventually(all_came)

        async def all_published() -> bool:
            return await post.published(told) == set(told)

        await eventually(all_published)


async def test_a_consumer_declares_a_lost_queue_again(post: Post) -> None:
    name, heard = f"lost-{secrets.token_hex(4)}", list[str]()

    async def handle(conn: Conn, event: events_pb2.SeatReleased) -> None:
        heard.append(event.flight_id)

    async with proxied(post.url) as (proxy, url):
        consumer = Consumer(
            post.pool,
            url,
            service="seat",
            name=name,
            subscriptions=[Subscription(post.routing_key, events_pb2.SeatReleased, handle)],
        )
        async with running(consumer), running(post.relay()):
            await eventually(lambda: post.heard_through(post.routing_key, "first", heard))
            await post.channel.queue_delete(f"seat.{name}")
            proxy.cut()
            await eventually(lambda: post.heard_through(post.routing_key, "second", heard))
    await post.channel.queue_delete(f"seat.{name}")


async def test_a_consumer_detects_a_deleted_queue(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "LOOK_SECONDS", 0.05)
    name, heard = f"lost-{secrets.token_hex(4)}", list[str]()

    async def handle(conn: Conn, event: events_pb2.SeatReleased) -> None:
        heard.append(event.flight_id)

    consumer = Consumer(
        post.pool,
        post.url,
        service="seat",
        name=name,
        subscriptions=[Subscription(post.routing_key, events_pb2.SeatReleased, handle)],
    )
    async with running(consumer), running(post.relay()):
        await eventually(lambda: post.heard_through(post.routing_key, "first", heard))
        await post.channel.queue_delete(f"seat.{name}")
        await eventually(lambda: post.heard_through(post.routing_key, "second", heard))
    await post.channel.queue_delete(f"seat.{name}")
