"""Consumes events: each is applied once, in one transaction with its inbox row.

Each queue is a quorum queue with a delivery limit. If a handler fails, the message waits in a delay queue, longer after
each failure. After the last retry it goes to the service's dead-letter queue with the reason, so that the queue keeps
moving.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError
from google.protobuf.message import DecodeError, Message

from services import amqp, db, tasks, telemetry
from services.batch import Batcher
from services.db import Conn, Pool
from services.errors import Unavailable

# A message is tried at once and once more after each delay. A defect that lasts longer needs a person.
RETRY_DELAYS_SECONDS: Final = (1, 5, 30)
# Deliveries without an acknowledgement, for example because the handler kills its process. They are counted apart from
# the retries above.
DELIVERY_LIMIT: Final = 10
OUTAGE_PAUSE_SECONDS: Final = 0.5
RECONNECT_SECONDS: Final = 1.0
# How often a consumer checks that its queue still exists.
LOOK_SECONDS: Final = 10.0
PREFETCH: Final = 32
# Prefetch for events that are applied one by one. Each holds a database connection while its handler waits for another
# system, such as a mail server that hangs, and calls need the other connections.
PREFETCH_SINGLE: Final = 2
LARGEST_BODY_BYTES: Final = 1 << 20

# Longer than a message stays in a queue, or in the dead-letter queue until a person replays it.
KEPT_DAYS: Final = 30

_log = telemetry.log("inbox")

Handler = Callable[[Conn, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Subscription:
    """The handler of one event type.

    `handle` gets the decoded message and runs in the transaction that writes the inbox row.
    """

    routing_key: str
    message: type[Message]
    handle: Handler


@dataclass(frozen=True, slots=True)
class _Received:
    event_id: UUID
    body: bytes
    subscription: Subscription
    event: Message


class Consumer:
    """Consumes the queue `<service>.<name>` and passes each event to its handler.

    `tell` is called after each commit that applied an event; it wakes the tasks that do the follow-up work. Events that
    arrive together share a transaction. `together` is False if a handler has an effect that a rollback does not
    reverse, such as a sent mail.
    """

    def __init__(
        self,
        pool: Pool,
        amqp_url: str,
        *,
        service: str,
        name: str,
        subscriptions: Sequence[Subscription],
        tell: Callable[[], None] = lambda: None,
        together: bool = True,
    ) -> None:
        self._pool = pool
        self._amqp_url = amqp_url
        self._service = service
        self._queue = f"{service}.{name}"
        self._subscriptions = {subscription.routing_key: subscription for subscription in subscriptions}
        self._tell = tell
        self._together = together
        self._in_hand: set[asyncio.Task[Any]] = set()
        self._batch: Batcher[_Received, bool] = Batcher(f"inbox {self._queue}", self._apply_batch, largest=PREFETCH)

    async def run(self) -> None:
        """Consumes until cancelled, and reconnects after an outage of the broker.

        Each connection declares the queue again, which restores it on a broker that has lost its data.
        """
        while True:
            try:
                async with await amqp.connect(self._amqp_url, name=f"{self._queue} consumer") as connection:
                    await self._consume(connection)
            except (AMQPError, OSError, TimeoutError) as error:
                _log.warning("consumer lost its connection; reconnecting", queue=self._queue, error=repr(error))
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _consume(self, connection: AbstractConnection) -> None:
        """Consumes until the connection ends.

        Raises AMQPError if the queue no longer exists.
        """
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH if self._together else PREFETCH_SINGLE)
        queue = await declare_queues(
            channel, service=self._service, queue=self._queue, routing_keys=list(self._subscriptions)
        )
        await queue.consume(partial(self._receive, channel))
        lost = amqp.loss_of(connection)
        try:
            while not channel.is_closed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await lost.wait()
                        return
                # The broker ends the consumers of a deleted queue without an error, so only this check detects the
                # deletion.
                looking = await connection.channel()
                await looking.declare_queue(self._queue, passive=True)
                await looking.close()
        finally:
            await self._cancel_handlers()

    async def _cancel_handlers(self) -> None:
        """Cancels the handlers of unacknowledged messages.

        The broker delivers these messages again. A handler that waits for the database would otherwise block the
        reconnection.
        """
        await tasks.end(self._in_hand)

    async def _receive(self, channel: AbstractChannel, message: AbstractIncomingMessage) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._in_hand.add(task)
        task.add_done_callback(self._in_hand.discard)
        try:
            fresh = await self._apply_with_retries(message)
        except Exception as error:
            await self._retry_or_dead_letter(channel, message, error)
            return
        await message.ack()
        telemetry.EVENTS_CONSUMED.labels(self._queue, "applied" if fresh else "repeated").inc()

    async def _apply_with_retries(self, message: AbstractIncomingMessage) -> bool:
        """Applies a message; retries while the database is unavailable.

        The message stays unacknowledged meanwhile: each return to its queue would count against its delivery limit.
        Returns whether the event was new.
        """
        while True:
            try:
                return await self._apply(message)
            except (Unavailable, *db.UNREACHABLE, *db.ROLLED_BACK) as error:
                _log.warning(
                    "event not applied yet, a dependency is unavailable; retrying",
                    queue=self._queue,
                    event_id=message.message_id,
                    error=repr(error),
                )
                await asyncio.sleep(OUTAGE_PAUSE_SECONDS)

    async def _apply(self, message: AbstractIncomingMessage) -> bool:
        if len(message.body) > LARGEST_BODY_BYTES:
            raise DecodeError(f"body of {len(message.body)} bytes")
        # A message from a delay queue has the queue's name as its routing key; a header keeps the original one.
        routing_key = str(message.headers.get("x-routing-key") or message.routing_key)
        subscription = self._subscriptions[routing_key]
        event = subscription.message.FromString(message.body)
        received = _Received(UUID(str(message.message_id)), message.body, subscription, event)
        if self._together:
            return await self._batch.submit(received)
        return (await self._apply_batch([received]))[0]

    async def _apply_batch(self, received: Sequence[_Received]) -> list[bool]:
        """Applies events in one transaction; returns for each whether it was new.

        If it raises, the Batcher applies each event in a transaction of its own.
        """
        async with db.transaction(self._pool) as conn:
            fresh = await note(conn, consumer=self._queue, event_ids=[each.event_id for each in received])
            once = {each.event_id: each for each in received if each.event_id in fresh}
            # The event body starts with the id of its resource; all processes sort by it, so that they lock rows in one
            # order.
            for each in sorted(once.values(), key=lambda each: each.body):
                await each.subscription.handle(conn, each.event)
        if fresh:
            self._tell()
        return [each.event_id in fresh for each in received]

    async def _retry_or_dead_letter(
        self, channel: AbstractChannel, message: AbstractIncomingMessage, error: Exception
    ) -> None:
        failures = int(str(message.headers.get("x-failures", 0)))
        headers = {
            **message.headers,
            "x-failures": failures + 1,
            "x-routing-key": str(message.headers.get("x-routing-key") or message.routing_key),
            "x-reason": f"{type(error).__name__}: {telemetry.without_row(error)}"[:500],
            "x-queue": self._queue,
        }
        copy = aio_pika.Message(
            message.body,
            message_id=message.message_id,
            content_type=message.content_type,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            headers=headers,
        )
        if failures < len(RETRY_DELAYS_SECONDS):
            target = delay_queue(self._queue, RETRY_DELAYS_SECONDS[failures])
            _log.warning("event failed; retrying", queue=self._queue, event_id=message.message_id, error=repr(error))
        else:
            target = dead_queue(self._service)
            _log.error(
                "event moved to the dead-letter queue",
                queue=self._queue,
                event_id=message.message_id,
                error=repr(error),
            )
        # The broker confirms the copy before the original is acknowledged, so that a crash in between cannot lose the
        # event.
        dead = await channel.get_exchange(amqp.DEAD, ensure=False)
        await dead.publish(copy, routing_key=target)
        await message.ack()
        telemetry.EVENTS_CONSUMED.labels(self._queue, "failed").inc()


async def note(conn: Conn, *, consumer: str, event_ids: Sequence[UUID]) -> set[UUID]:
    """Writes the inbox rows of events that a consumer applies.

    Runs in the transaction of the effect. Returns the ids that the consumer had not applied before.
    """
    rows = await conn.fetch(
        """
        INSERT INTO inbox (consumer, event_id) SELECT $1, event_id FROM unnest($2::uuid[]) AS event_id ORDER BY event_id
        ON CONFLICT DO NOTHING RETURNING event_id
        """,
        consumer,
        list(event_ids),
    )
    return {row["event_id"] for row in rows}


async def forget_old(conn: Conn, *, limit: int) -> int:
    """Deletes up to `limit` of the oldest inbox rows that are older than KEPT_DAYS.

    Returns how many it deleted.
    """
    status = await conn.execute(
        """
        WITH old AS MATERIALIZED (
            SELECT consumer, event_id FROM inbox WHERE receive_time < now() - make_interval(days => $1)
            ORDER BY receive_time LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        DELETE FROM inbox USING old WHERE inbox.consumer = old.consumer AND inbox.event_id = old.event_id
        """,
        KEPT_DAYS,
        limit,
    )
    return int(status.split()[-1])


def dead_queue(service: str) -> str:
    """Returns the name of a service's dead-letter queue."""
    return f"{service}.dead"


def delay_queue(queue: str, seconds: int) -> str:
    """Returns the name of the queue in which a failed message waits for `seconds`."""
    return f"{queue}.delay-{seconds}s"


async def declare_queues(
    channel: AbstractChannel, *, service: str, queue: str, routing_keys: list[str]
) -> aio_pika.abc.AbstractQueue:
    """Declares a queue with its bindings, delay queues and dead-letter queue."""
    dead = await channel.declare_queue(dead_queue(service), durable=True, arguments={"x-queue-type": "quorum"})
    await dead.bind(amqp.DEAD, routing_key=dead_queue(service))
    declared = await channel.declare_queue(
        queue,
        durable=True,
        arguments={
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": amqp.DEAD,
            "x-dead-letter-routing-key": dead_queue(service),
        },
    )
    for routing_key in routing_keys:
        await declared.bind(amqp.EVENTS, routing_key=routing_key)
    # Messages return from the delay queues through this binding. The default exchange would deliver them too, but a
    # user who may publish to it may publish to the queues of all services.
    await declared.bind(amqp.DEAD, routing_key=queue)
    for seconds in RETRY_DELAYS_SECONDS:
        delay = await channel.declare_queue(
            delay_queue(queue, seconds),
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-message-ttl": seconds * 1000,
                "x-dead-letter-exchange": amqp.DEAD,
                "x-dead-letter-routing-key": queue,
            },
        )
        await delay.bind(amqp.DEAD, routing_key=delay_queue(queue, seconds))
    return declared
