"""A service's credentials give access only to what it owns.

That is its own queues, event types and rows (attacks 33 and 34).
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import aio_pika
import asyncpg
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelClosed
from skyhigh.payment.v1 import events_pb2

from services import amqp
from services.auth import Role
from services.inbox import dead_queue
from tests.security.belongings import Belongings
from tests.security.system import SERVICES, System
from tests.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.conftest import World

NAMES: Final = [service.name for service in SERVICES]
Attempt = Callable[[AbstractChannel], Awaitable[Any]]


@asynccontextmanager
async def channel_of(world: World, service: str) -> AsyncIterator[Callable[[], Awaitable[AbstractChannel]]]:
    """Yields a function that opens channels with a service's credentials.

    A refusal closes a channel.
    """
    async with await aio_pika.connect(world.servers.amqp_url(service)) as connection:

        async def opened() -> AbstractChannel:
            return await connection.channel()

        yield opened


def publishing(exchange: str, routing_key: str, body: bytes = b"") -> Attempt:
    """Returns an attempt to publish with the broker's confirmation."""

    async def attempt(channel: AbstractChannel) -> None:
        target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
        message = aio_pika.Message(body, message_id=str(uuid4()))
        await target.publish(message, routing_key=routing_key, mandatory=False, timeout=PATIENCE_SECONDS)

    return attempt


def binding(queue: str, exchange: str, routing_key: str) -> Attempt:
    """Returns an attempt to bind a queue of one's own to events that are meant for others."""

    async def attempt(channel: AbstractChannel) -> None:
        mine = await channel.declare_queue(queue, auto_delete=True)
        await mine.bind(exchange, routing_key=routing_key, timeout=PATIENCE_SECONDS)

    return attempt


def reading(queue: str) -> Attempt:
    """Returns an attempt to consume a message from a queue."""

    async def attempt(channel: AbstractChannel) -> None:
        theirs = await channel.get_queue(queue, ensure=False)
        await theirs.get(no_ack=True, fail=False, timeout=PATIENCE_SECONDS)

    return attempt


def ending(queue: str, *, purge: bool) -> Attempt:
    """Returns an attempt to empty a queue or to delete it."""

    async def attempt(channel: AbstractChannel) -> None:
        if purge:
            await (await channel.get_queue(queue, ensure=False)).purge(timeout=PATIENCE_SECONDS)
        else:
            await channel.queue_delete(queue, timeout=PATIENCE_SECONDS)

    return attempt


def declaring(queue: str) -> Attempt:
    """Returns an attempt to declare a queue with another service's name first."""

    async def attempt(channel: AbstractChannel) -> None:
        await channel.declare_queue(queue, auto_delete=True, timeout=PATIENCE_SECONDS)

    return attempt


async def new_exchange(channel: AbstractChannel) -> None:
    await channel.declare_exchange(f"skyhigh.{secrets.token_hex(4)}", auto_delete=True, timeout=PATIENCE_SECONDS)


def attempts(service: str, other: str) -> dict[str, Attempt]:
    """Returns the attacks that a compromised service could try."""
    mine, theirs = f"{service}.{secrets.token_hex(4)}", f"{other}.events"
    return {
        "speaks for another": publishing(amqp.EVENTS, f"{other}.confirmed.v1"),
        "pays": publishing(amqp.EVENTS, "payment.succeeded.v1"),
        "writes another's mail": publishing(amqp.EVENTS, f"{other}.mail.v1"),
        "fills another's queue": publishing("", theirs),
        "fills another's queue by the dead": publishing(amqp.DEAD, theirs),
        "buries for another": publishing(amqp.DEAD, dead_queue(other)),
        "uses the broker's own exchange": publishing("amq.topic", "payment.succeeded.v1"),
        "reads another's mail": binding(mine, amqp.EVENTS, f"{other}.mail.v1"),
        "reads everything": binding(mine, amqp.EVENTS, "#"),
        "reads everything of another": binding(mine, amqp.EVENTS, f"{other}.#"),
        "reads all mail": binding(mine, amqp.EVENTS, "*.mail.v1"),
        "reads another's dead letters": binding(mine, amqp.DEAD, dead_queue(other)),
        "reads all dead letters": binding(mine, amqp.DEAD, "#"),
        "reads another's queue": reading(theirs),
        "opens another's dead letters": reading(dead_queue(other)),
        "empties another's queue": ending(theirs, purge=True),
        "removes another's queue": ending(theirs, purge=False),
        "takes another's name": declaring(f"{other}.{secrets.token_hex(4)}"),
        "makes an exchange": new_exchange,
    }


async def is_refused(attempt: Attempt, channel: AbstractChannel) -> bool:
    """Returns whether the broker refused the attempt with ACCESS_REFUSED."""
    try:
        await attempt(channel)
    except ChannelClosed as error:
        return "ACCESS_REFUSED" in str(error)
    return False


@pytest.mark.usefixtures("nothing_changed", "system")
@pytest.mark.parametrize("service", [name for name in NAMES if name != "payment"])
async def test_a_service_account_is_limited_to_its_queues(world: World, service: str) -> None:
    other = next(name for name in ("booking", "checkin") if name != service)
    done = []
    async with channel_of(world, service) as opened:
        for what, attempt in attempts(service, other).items():
            if not await is_refused(attempt, await opened()):
                done.append(what)
        assert done == []
        # The service can do what it needs to do.
        topic = "abuse" if service == "gateway" else service
        await publishing(amqp.EVENTS, f"{topic}.test.v1")(await opened())
        await binding(f"{service}.{secrets.token_hex(4)}", amqp.EVENTS, "payment.succeeded.v1")(await opened())


@pytest.mark.usefixtures("nothing_changed")
async def test_a_forged_payment_event_confirms_nothing(world: World, system: System, belongings: Belongings) -> None:
    """Even a well-formed event about a real intent is refused."""
    values = belongings.values[Role.CUSTOMER]
    forged = events_pb2.PaymentSucceeded(intent_id=values["intent_id"], reference=f"booking/{values['booking_id']}")
    for service in ("booking", "checkin", "waitlist"):
        async with channel_of(world, service) as opened:
            with pytest.raises(ChannelClosed, match="ACCESS_REFUSED"):
                await publishing(amqp.EVENTS, "payment.succeeded.v1", forged.SerializeToString())(await opened())


@pytest.mark.parametrize("service", NAMES)
async def test_a_service_account_reads_only_its_schema(system: System, service: str) -> None:
    """An SQL injection runs as this role.

    It can neither read another service's rows nor leave the database.
    """
    connection = await asyncpg.connect(system.databases[service])
    other = "payment" if service != "payment" else "booking"
    try:
        for statement in (
            f"SELECT * FROM {other}.outbox",
            f"UPDATE {other}.outbox SET publish_time = now()",
            f"CREATE TABLE {other}.mine (a int)",
            "CREATE TABLE public.mine (a int)",
            "CREATE ROLE mine",
            f"SET ROLE {other}",
            "SELECT usename, passwd FROM pg_shadow",
            "SELECT pg_read_file('/etc/passwd')",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SELECT pg_reload_conf()",
            "ALTER SYSTEM SET log_statement = 'all'",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()
