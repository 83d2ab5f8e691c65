"""`skyhigh events`: prints the events that the services publish."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer

from operations.event_bodies import readable
from operations.local_stack import address_of
from operations.terminal import fail, print_json_line

CONNECT_TIMEOUT_SECONDS: Final = 5
RECENT: Final = 20
PREFETCH: Final = 200


@dataclass(frozen=True, slots=True)
class Heard:
    """An event as the broker delivered it."""

    event_id: str
    routing_key: str
    body: bytes
    time: str
    source: str


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(events)


def events(
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Only this routing key, such as seat.released.v1. Default: all.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new events, until Ctrl-C.")] = False,
    count: Annotated[
        int | None,
        typer.Option(
            "--count", "-n", min=1, metavar="N", help=f"Number of events. Default: {RECENT}, all with --follow."
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="Stop following after this time.")
    ] = None,
) -> None:
    """Print events as JSON lines, oldest first: the latest of the outboxes, or new ones from the broker."""
    if seconds is not None and not follow:
        raise typer.BadParameter("only allowed with --follow", param_hint="--seconds")
    with contextlib.suppress(KeyboardInterrupt):
        if follow:
            asyncio.run(_follow(address_of("SKYHIGH_AMQP_URL"), key or "#", count, seconds))
        else:
            asyncio.run(_recent(address_of("SKYHIGH_DATABASE_URL"), key, count or RECENT))


@asynccontextmanager
async def subscribed(amqp_url: str, routing_key: str) -> AsyncIterator[AsyncIterator[Heard]]:
    """Yields the events with this routing key that are published during the block.

    It reads from an exclusive queue of its own, so no other consumer misses a message. Raises OSError, TimeoutError or
    AMQPError if the broker is unavailable.
    """
    import aio_pika

    from services import amqp

    connection = await aio_pika.connect(
        amqp_url, timeout=CONNECT_TIMEOUT_SECONDS, client_properties={"connection_name": "skyhigh events"}
    )
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.declare_queue(exclusive=True, auto_delete=True)
        await queue.bind(amqp.EVENTS, routing_key=routing_key)

        async def hear() -> AsyncGenerator[Heard, None]:
            async with queue.iterator() as messages:
                async for message in messages:
                    await message.ack()
                    yield Heard(
                        event_id=message.message_id or "",
                        routing_key=message.routing_key or "",
                        body=message.body,
                        time=str(message.headers.get("cloudEvents:time", "")),
                        source=str(message.headers.get("cloudEvents:source", "")),
                    )

        async with contextlib.aclosing(hear()) as heard:
            yield heard


async def _follow(amqp_url: str, routing_key: str, count: int | None, seconds: float | None) -> None:
    from aio_pika.exceptions import AMQPError

    try:
        async with subscribed(amqp_url, routing_key) as heard:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    printed = 0
                    async for event in heard:
                        print_json_line(
                            time=event.time,
                            key=event.routing_key,
                            id=event.event_id,
                            source=event.source,
                            body=readable(event.routing_key, event.body),
                        )
                        printed += 1
                        if printed == count:
                            break
    except (AMQPError, OSError, TimeoutError) as error:
        fail(f"the broker is unreachable: {error or repr(error)}")


async def _recent(database_url: str, key: str | None, count: int) -> None:
    import asyncpg

    from deploy.local.services import SERVICES

    try:
        connection = await asyncpg.connect(database_url, timeout=CONNECT_TIMEOUT_SECONDS)
        try:
            rows = [row for service in SERVICES for row in await _outbox(connection, service.name, key, count)]
        finally:
            await connection.close()
    except (asyncpg.PostgresError, OSError, TimeoutError) as error:
        fail(f"the database is unreachable: {error or repr(error)}")
    for row in sorted(rows, key=lambda row: row["create_time"])[-count:]:
        print_json_line(
            time=row["create_time"].isoformat(),
            key=row["routing_key"],
            id=str(row["event_id"]),
            published=row["publish_time"].isoformat() if row["publish_time"] is not None else None,
            body=readable(row["routing_key"], row["body"]),
        )


async def _outbox(connection: Any, schema: str, key: str | None, count: int) -> list[Any]:
    # One SELECT for each of the outbox's two partial indexes, of unpublished and of published rows. The schema name is
    # safe in the SQL text, because it comes from SERVICES.
    columns = f"SELECT event_id, routing_key, body, create_time, publish_time FROM {schema}.outbox"  # noqa: S608
    rows: list[Any] = await connection.fetch(
        f"""
        ({columns} WHERE publish_time IS NULL AND ($1::text IS NULL OR routing_key = $1)
         ORDER BY create_time DESC LIMIT $2)
        UNION ALL
        ({columns} WHERE publish_time IS NOT NULL AND ($1::text IS NULL OR routing_key = $1)
         ORDER BY publish_time DESC LIMIT $2)
        """,
        key,
        count,
    )
    return rows
