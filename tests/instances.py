"""More seat services beside the session's own, on its database or on one of their own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from seat_service.service import SEAT_SERVICE
from services import app, db, migrate
from services.auth import Access
from services.db import Pool
from tests.callers import Callers

if TYPE_CHECKING:
    from tests.conftest import World

    Database: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Database = asyncpg.Connection


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


async def empty_database(world: World) -> str:
    """Creates a database with nothing but the empty schema `seat`; returns its URL. Nobody sweeps it."""
    name = f"tests_{secrets.token_hex(6)}"
    owner_url = world.servers.database_url()
    owner = await asyncpg.connect(owner_url)
    await owner.execute(f"CREATE DATABASE {name}")
    await owner.close()
    owner = await asyncpg.connect(_in(owner_url, name))
    await owner.execute("CREATE SCHEMA seat AUTHORIZATION seat")
    await owner.close()
    return _in(world.servers.database_url("seat"), name)


async def own_database(world: World) -> str:
    """Creates a database as the seat service migrates it; returns its URL."""
    url = await empty_database(world)
    await migrate.migrate(url, schema="seat", package="seat_service")
    return url


def _in(url: str, database: str) -> str:
    return f"{url.rpartition('/')[0]}/{database}"
