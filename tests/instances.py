"""More services beside the session's own, on its databases or on some of their own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import aio_pika
import asyncpg
import grpc
from aio_pika.exceptions import ChannelNotFoundEntity

from deploy.local.process import serves_grpc
from seat_service.service import SEAT_SERVICE
from services import app, db
from services.app import Config, Service
from services.auth import Access
from services.db import Pool
from services.inbox import RETRY_DELAYS_SECONDS, delay_queue
from tests.callers import Callers

if TYPE_CHECKING:
    from tests.conftest import World

    Database: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Database = asyncpg.Connection


TEMPLATE_DATABASE: Final = "migrated"
"""A database that the session migrates once. No service connects to it: Postgres copies only idle databases."""
MAINTENANCE_DATABASE: Final = "postgres"
CONSUMERS: Final = "events", "mails", "manifests"
"""The names of our services' consumers; their queues live on the broker that all tests of a process share."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A seat service in this process: its callers, and its database for a look behind the contract."""

    callers: Callers
    database: Database
    database_url: str
    pool: Pool
    """As the service has it, for what is called in the service itself."""


@asynccontextmanager
async def instance(
    world: World,
    *,
    database_url: str | None = None,
    policy: Mapping[str, Access] = SEAT_SERVICE.policy,
    **variables: str,
) -> AsyncIterator[Instance]:
    """Serves within the block; `variables` are environment variables."""
    url = database_url or world.servers.database_url("seat")
    settings = world.settings(SKYHIGH_SEAT_DATABASE_URL=url, **variables)
    service = replace(SEAT_SERVICE, policy=policy)
    async with app.serving(service, settings, ["127.0.0.1:0"]) as (port,):
        callers = Callers(f"127.0.0.1:{port}", world.keys)
        async with connected(url) as database, pooled(url) as pool:
            yield Instance(callers, database, url, pool)
        await callers.close()


async def serves(port: int, service: str) -> bool:
    """Whether somebody serves a proto service at this port now, be it that it was just killed."""
    with suppress(OSError, TimeoutError, EOFError):
        return await serves_grpc(port, service)()
    return False


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Database]:
    """A plain connection as the seat service's role."""
    database = await asyncpg.connect(url, server_settings={"search_path": "seat"})
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def pooled(url: str) -> AsyncIterator[Pool]:
    """A pool as a service has it."""
    pool = await db.connect(url, schema="seat", size=4)
    try:
        yield pool
    finally:
        await pool.close()


async def own_database(world: World) -> str:
    """Creates a database as the seat service migrates it; returns its URL. No service runs on it."""
    return (await database_with(world, "seat"))["SKYHIGH_SEAT_DATABASE_URL"]


def _in(url: str, database: str) -> str:
    return f"{url.rpartition('/')[0]}/{database}"


@asynccontextmanager
async def running(
    world: World, service: Service[Config], stub: Callable[[grpc.aio.Channel], Any], **variables: str
) -> AsyncIterator[Callers]:
    """Serves any of our services in this process within the block; yields its callers.

    `variables` are environment variables, such as the addresses of the services that it calls. Its database is the
    session's or one of `database_with`: both are migrated.
    """
    settings = world.settings_of(service.settings, **variables)
    async with app.serving(service, settings, ["127.0.0.1:0"]) as (port,):
        callers = Callers(f"127.0.0.1:{port}", world.keys, stub)
        yield callers
        await callers.close()


async def database_with(world: World, *services: str) -> dict[str, str]:
    """Creates a migrated database with no rows; returns each of these services' URL, as its variable has it.

    A copy of the template that the session migrated once takes a fraction of what migrating takes. The services'
    queues are emptied: events of earlier tests are about rows that this database never had, and would be tried again
    and again before the test's own.
    """
    await _empty_queues(world, services)
    name = f"tests_{secrets.token_hex(6)}"
    owner = await asyncpg.connect(_in(world.servers.database_url(), MAINTENANCE_DATABASE))
    try:
        # Copying files takes Postgres a tenth of what its default takes, which writes each page to the log. Postgres 14
        # and older always copy files.
        by_files = "STRATEGY file_copy" if owner.get_server_version().major >= 15 else ""
        await owner.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE_DATABASE} {by_files}")
    finally:
        await owner.close()
    return {f"SKYHIGH_{s.upper()}_DATABASE_URL": _in(world.servers.database_url(s), name) for s in services}


async def _empty_queues(world: World, services: Sequence[str]) -> None:
    names = [f"{service}.{consumer}" for service in services for consumer in CONSUMERS]
    delayed = [delay_queue(name, seconds) for name in names for seconds in RETRY_DELAYS_SECONDS]
    async with await aio_pika.connect(world.servers.amqp_url()) as connection:
        # Those that wait come first: one that is due meanwhile is then in its queue.
        for name in [*delayed, *names]:
            channel = await connection.channel()
            # A service has not each of the consumers, and none before its first start. A refusal closes the channel.
            with suppress(ChannelNotFoundEntity):
                queue = await channel.get_queue(name)
                await queue.purge()
                await channel.close()
