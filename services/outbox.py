"""Publishes events that were written in the transaction of their change.

The relay selects unpublished rows FOR UPDATE SKIP LOCKED, publishes them, and marks them when the broker has confirmed.
So each event is published at least once, by any number of processes, and none is lost while the broker is down. A
cursor over ids would skip events, because a lower id may commit later.

A confirmed event is not always delivered. A broker that has no queue for an event confirms it and returns it: the row
stays unpublished and is retried. A broker that lost its disk has lost confirmed events: the relay finds its own mark
missing and publishes the events of the last hour again. Consumers that have applied them ignore them (decision 34).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractExchange
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity
from aiormq.abc import DeliveredMessage
from google.protobuf.message import Message
from pamqp import commands

from services import amqp, db, telemetry
from services.db import Conn, Pool
from services.errors import Unavailable

RELAY_BATCH: Final = 500
# Usually a commit wakes the relay. The poll finds rows that a killed process left behind.
POLL_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
# A starting or reconnecting consumer has declared its queue within this time.
RETURNED_RETRY_SECONDS: Final = 2.0
# A consumer that is down for longer has a person who looks after it. Reconcilers find older lost events.
REPUBLISHED_HOURS: Final = 1
# Events that no service consumes today. Any other event counts as published only if a queue took it.
WITHOUT_CONSUMER: Final = frozenset(
    {"checkin.completed.v1", "checkin.cancelled.v1", "waitlist.assigned.v1", "abuse.detected.v1"}
)
CONFIRM_TIMEOUT_SECONDS: Final = 10
# Operators ask about the events of last night, hardly about those of last month.
KEPT_HOURS: Final = 72

_log = telemetry.log("outbox")


@dataclass(frozen=True, slots=True)
class Event:
    """An event: its routing key, such as `seat.released.v1`, and its message."""

    event_id: UUID
    routing_key: str
    body: Message
    traceparent: str | None = None


async def enqueue(conn: Conn, events: Sequence[Event]) -> None:
    """Writes events to the outbox, in the caller's transaction."""
    if events:
        await conn.execute(
            """
            INSERT INTO outbox (event_id, routing_key, body, traceparent)
            SELECT event_id, routing_key, body, traceparent
            FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::text[])
                AS new (event_id, routing_key, body, traceparent)
            """,
            [event.event_id for event in events],
            [event.routing_key for event in events],
            [event.body.SerializeToString() for event in events],
            [event.traceparent for event in events],
        )


class Relay:
    """Publishes the events of the outbox.

    `source` is their CloudEvents source, such as `skyhigh/seat`.
    """

    def __init__(self, pool: Pool, amqp_url: str, *, source: str) -> None:
        self._pool = pool
        self._amqp_url = amqp_url
        self._source = source
        self._woken = asyncio.Event()
        self._connection: AbstractConnection | None = None
        self._exchange: AbstractExchange | None = None
        self._lost = asyncio.Event()

    def wake(self) -> None:
        """Wakes the relay after the commit of a transaction with events."""
        self._woken.set()

    async def run(self) -> None:
        """Publishes until cancelled; retries while the broker or database is unavailable."""
        try:
            while True:
                self._woken.clear()
                try:
                    # Connects even if there is nothing to publish, to detect a broker that has lost its data.
                    await self._connected()
                    while await self.publish_batch() == RELAY_BATCH:
                        pass
                    await self._measure()
                except (AMQPError, Unavailable, *db.UNREACHABLE) as error:
                    _log.warning("relay failed to publish; retrying", error=repr(error))
                    await self._disconnect()
                    await asyncio.sleep(RETRY_SECONDS)
                # asyncio.wait_for may lose a cancellation that arrives together with the wake-up.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._woken.wait()
        finally:
            await self._disconnect()

    async def publish_batch(self) -> int:
        """Publishes the oldest unpublished events, and marks those that a queue took.

        Returns how many events it tried.
        """
        async with db.transaction(self._pool) as conn:
            rows = await conn.fetch(
                """
                SELECT event_id, routing_key, body, traceparent, create_time FROM outbox
                WHERE publish_time IS NULL AND try_time <= statement_timestamp()
                ORDER BY try_time LIMIT $1 FOR UPDATE SKIP LOCKED
                """,
                RELAY_BATCH,
            )
            if not rows:
                return 0
            exchange = await self._connected()
            answers = await asyncio.gather(
                *(
                    exchange.publish(
                        self._message(
                            row["event_id"],
                            row["routing_key"],
                            row["body"],
                            row["traceparent"],
                            row["create_time"],
                        ),
                        routing_key=row["routing_key"],
                        mandatory=row["routing_key"] not in WITHOUT_CONSUMER,
                        timeout=CONFIRM_TIMEOUT_SECONDS,
                    )
                    for row in rows
                )
            )
            returned = {
                row["event_id"]: row["routing_key"]
                for row, answer in zip(rows, answers, strict=True)
                if isinstance(answer, DeliveredMessage) and isinstance(answer.delivery, commands.Basic.Return)
            }
            await self._mark([row["event_id"] for row in rows if row["event_id"] not in returned], conn)
            if returned:
                # Returned events move behind the others, so that they do not delay them.
                await conn.execute(
                    "UPDATE outbox SET try_time = clock_timestamp() + $2 WHERE event_id = ANY($1::uuid[])",
                    list(returned),
                    timedelta(seconds=RETURNED_RETRY_SECONDS),
                )
        if returned:
            telemetry.OUTBOX_RETURNED.inc(len(returned))
            _log.warning(
                "events returned, no queue is bound to their routing keys",
                count=len(returned),
                routing_keys=sorted(set(returned.values())),
            )
        telemetry.OUTBOX_PUBLISHED.inc(len(rows) - len(returned))
        return len(rows)

    async def _mark(self, event_ids: Sequence[UUID], conn: Conn) -> None:
        await conn.execute(
            """
            UPDATE outbox SET publish_time = clock_timestamp()
            WHERE event_id = ANY($1::uuid[]) AND publish_time IS NULL
            """,
            event_ids,
        )

    def _message(
        self, event_id: UUID, routing_key: str, body: bytes, traceparent: str | None, time: datetime
    ) -> aio_pika.Message:
        headers = {
            "cloudEvents:specversion": "1.0",
            "cloudEvents:id": str(event_id),
            "cloudEvents:type": routing_key,
            "cloudEvents:source": self._source,
            "cloudEvents:time": time.isoformat(),
        }
        if traceparent is not None:
            headers["traceparent"] = traceparent
        return aio_pika.Message(
            body,
            message_id=str(event_id),
            content_type="application/protobuf",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            headers=dict(headers),
        )

    async def _connected(self) -> AbstractExchange:
        if self._exchange is None or self._lost.is_set():
            await self._disconnect()
            self._connection = await amqp.connect(self._amqp_url, name=f"{self._source} relay")
            self._lost = amqp.loss_of(self._connection)
            await self._publish_again_if_lost(self._connection)
            channel = await self._connection.channel(publisher_confirms=True, on_return_raises=False)
            self._exchange = await channel.get_exchange(amqp.EVENTS, ensure=False)
        return self._exchange

    async def _publish_again_if_lost(self, connection: AbstractConnection) -> None:
        """Marks the last hour's events as unpublished if the broker lacks our mark.

        The mark is the exchange `<service>.relay`. It is declared afterwards: if the process dies before, the next
        connection does the same again.
        """
        mark = f"{self._source.rpartition('/')[2]}.relay"
        channel = await connection.channel()
        try:
            await channel.declare_exchange(mark, passive=True)
        except ChannelNotFoundEntity:
            again = await self._unmark()
            _log.warning("broker is new or lost its data; events published again", mark=mark, published_again=again)
            channel = await connection.channel()
            await channel.declare_exchange(mark, type=aio_pika.ExchangeType.FANOUT, durable=True)
        await channel.close()

    async def _unmark(self) -> int:
        async with db.transaction(self._pool) as conn:
            since = await conn.fetchval("SELECT statement_timestamp() - make_interval(hours => $1)", REPUBLISHED_HOURS)

        async def unmark(conn: Conn, *, limit: int) -> int:
            status = await conn.execute(
                """
                WITH told AS MATERIALIZED (
                    SELECT event_id FROM outbox WHERE publish_time >= $1
                    ORDER BY publish_time LIMIT $2 FOR UPDATE SKIP LOCKED
                )
                UPDATE outbox SET publish_time = NULL, try_time = statement_timestamp()
                FROM told WHERE outbox.event_id = told.event_id
                """,
                since,
                limit,
            )
            return int(status.split()[-1])

        return await db.in_batches(self._pool, unmark)

    async def _disconnect(self) -> None:
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(AMQPError, OSError, TimeoutError):
                async with asyncio.timeout(2):
                    await connection.close()

    async def _measure(self) -> None:
        async with db.transaction(self._pool) as conn:
            waiting, age = await conn.fetchrow(  # type: ignore[misc]
                """
                SELECT count(*), coalesce(extract(epoch FROM now() - min(create_time)), 0)::float8
                FROM outbox WHERE publish_time IS NULL
                """
            )
        telemetry.OUTBOX_WAITING.set(waiting)
        telemetry.OUTBOX_AGE_SECONDS.set(age)


async def forget_old(conn: Conn, *, limit: int) -> int:
    """Deletes up to `limit` of the oldest events published more than KEPT_HOURS ago.

    Returns how many it deleted.
    """
    status = await conn.execute(
        """
        WITH old AS MATERIALIZED (
            SELECT event_id FROM outbox WHERE publish_time < now() - make_interval(hours => $1)
            ORDER BY publish_time LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        DELETE FROM outbox USING old WHERE outbox.event_id = old.event_id
        """,
        KEPT_HOURS,
        limit,
    )
    return int(status.split()[-1])
