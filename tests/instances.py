"""Further instances of services, on the session's database or on one of their own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import aio_pika
import asyncpg
import grpc
from aio_pika.exceptions import ChannelNotFoundEntity

from deploy.local.process import serves_grpc
from seat_service.service import SEAT_SERVICE
from services import app, db
from services.app import Config, Service
from services.db import Pool
from services.inbox import RETRY_DELAYS_SECONDS, delay_queue
from tests.callers import Callers

if TYPE_CHECKING:
    from tests.conftest import World

    Database: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Database = asyncpg.Connection


TEMPLATE_DATABASE: Final = "migrated"
"""A database that the session migrates once.

No service connects to it, because Postgres copies only a database without connections.
"""
MAINTENANCE_DATABASE: Final = "postgres"
CONSUMERS: Final = "events", "mails", "manifests"
"""The names of our services' consumers.

Their queues are on the broker, which all tests of a process share.
"""


@dataclass(frozen=True, slots=True)
class Instance:
    """A seat service in this process: its callers, and its database to inspect."""

    callers: Callers
    database: Database
    database_url: str
    pool: Pool
    """A pool like the service's own, for tests that call functions of the service."""


@asynccontextmanager
async def instance(world: World, *, database_url: str | None = None, **variables: str) -> AsyncIterator[Instance]:
    """Runs a seat service within the block; `variables` are environment variables."""
    url = database_url or world.servers.database_url("seat")
    settings = world.settings(SKYHIGH_SEAT_DATABASE_URL=url, **variables)
    async with app.serving(SEAT_SERVICE, settings, ["127.0.0.1:0"]) as (port,):
        callers = Callers(f"127.0.0.1:{port}", world.keys)
        async with connected(url) as database, pooled(url) as pool:
            yield Instance(callers, database, url, pool)
        await callers.close()


async def serves(port: int, service: str) -> bool:
    """Returns whether a service answers at this port, also if it was just killed."""
    with suppress(OSError, TimeoutError, EOFError):
        return await serves_grpc(port, service)()
    return False


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Database]:
    """Opens a connection with the seat service's role."""
    database = await asyncpg.connect(url, server_settings={"search_path": "seat"})
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def pooled(url: str) -> AsyncIterator[Pool]:
    """Opens a pool with the settings of a service's pool."""
    pool = await db.connect(url, schema="seat", size=4)
    try:
        yield pool
    finally:
        await pool.close()


async def own_database(world: World) -> str:
    """Creates a migrated database with no rows for a seat service; returns its URL."""
    return (await database_with(world, "seat"))["SKYHIGH_SEAT_DATABASE_URL"]


def _in(url: str, database: str) -> str:
    return f"{url.rpartition('/')[0]}/{database}"


@asynccontextmanager
async def running(
    world: World, service: Service[Config], stub: Callable[[grpc.aio.Channel], Any], **variables: str
) -> AsyncIterator[Callers]:
    """Runs any of our services in this process within the block; yields its callers.

    `variables` are environment variables, such as the addresses of the services that it calls. Its database is that of
    the session or one that `database_with` created; both are migrated.
    """
    settings = world.settings_of(service.settings, **variables)
    async with app.serving(service, settings, ["127.0.0.1:0"]) as (port,):
        callers = Callers(f"127.0.0.1:{port}", world.keys, stub)
        yield callers
        await callers.close()


async def database_with(world: World, *services: str) -> dict[str, str]:
    """Creates a migrated database with no rows; returns its URL for each service.

    The keys of the result are the names of the environment variables. Copying the template takes a fraction of the time
    that migrations take. The services' queues are emptied first: events of earlier tests concern rows that this
    database never had, so their consumer would retry them again and again before it reads the test's own events.
    """
    await _empty_queues(world, services)
    name = f"tests_{secrets.token_hex(6)}"
    owner = await asyncpg.connect(_in(world.servers.database_url(), MAINTENANCE_DATABASE))
    try:
        # With this strategy Postgres needs a tenth of the time of its default, which writes each page to the
        # write-ahead log. Postgres 14 and older always copy files.
        by_files = "STRATEGY file_copy" if owner.get_server_version().major >= 15 else ""
        await owner.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE_DATABASE} {by_files}")
    finally:
        await owner.close()
    return {f"SKYHIGH_{s.upper()}_DATABASE_URL": _in(world.servers.database_url(s), name) for s in services}


async def _empty_queues(world: World, services: Sequence[str]) -> None:
    names = [f"{service}.{consumer}" for service in services for consumer in CONSUMERS]
    delayed = [delay_queue(name, seconds) for name in names for seconds in RETRY_DELAYS_SECONDS]
    async with await aio_pika.connect(world.servers.amqp_url()) as connection:
        # The delay queues are emptied first. A message whose delay ends meanwhile moves to the service's queue, which
        # is emptied later.
        for name in [*delayed, *names]:
            channel = await connection.channel()
            # Not every service has each of these consumers, and no queue exists before a service's first start. The
            # broker closes the channel when it refuses.
            with suppress(ChannelNotFoundEntity):
                queue = await channel.get_queue(name)
                await queue.purge()
                await channel.close()
