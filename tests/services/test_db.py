"""The sessions of a service's pool."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

import asyncpg

from deploy.local.process import LOOPBACK
from services import db
from tests.conftest import World
from tests.instances import own_database
from tests.waiting import eventually


async def test_statements_use_utc_whatever_the_database_zone(world: World) -> None:
    url = await own_database(world)
    name = url.rpartition("/")[2]
    owner = await asyncpg.connect(world.servers.database_url())
    await owner.execute(f"ALTER DATABASE {name} SET TimeZone = 'America/New_York'")
    await owner.close()
    pool = await db.connect(url, schema="seat", size=1)
    try:
        # Daylight saving time ended in New York on this day.
        moment = "timestamptz '1999-10-31 22:00Z'"
        assert await pool.fetchval(f"SELECT extract(epoch FROM {moment} - ({moment} - interval '1 day'))") == 86400
        assert str(await pool.fetchval("SELECT (timestamptz '1999-10-31 02:00Z')::date")) == "1999-10-31"
    finally:
        await pool.close()


async def test_a_session_ended_by_the_server_is_unavailable(world: World) -> None:
    url = world.servers.database_url("seat")
    told, ended = asyncio.Event(), asyncio.Event()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                if b"57P01" in data:
                    told.set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_postgres, to_postgres = await asyncio.open_connection(LOOPBACK, world.servers.ports.postgres)
        copying = asyncio.create_task(copy(reader, to_postgres))
        await copy(from_postgres, writer)
        # Postgres has closed the session. The client reads that only now.
        await ended.wait()
        copying.cancel()
        to_postgres.close()
        writer.close()

    async with await asyncio.start_server(forward, LOOPBACK, 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        through_proxy = url.replace(f":{urlsplit(url).port}/", f":{port}/")
        pool = await db.connect(through_proxy, schema="seat", size=1)
        pid = await pool.fetchval("SELECT pg_backend_pid()")
        other = await asyncpg.connect(url)
        await other.execute("SELECT pg_terminate_backend($1)", pid)
        await other.close()
        await told.wait()

        await eventually(lambda: _refuses(pool))
        ended.set()
        # The pool opens another session.
        await eventually(lambda: _answers(pool))
        await pool.close()


async def _answers(pool: db.Pool) -> bool:
    try:
        return bool(await pool.fetchval("SELECT 1"))
    except db.UNREACHABLE:
        return False


async def _refuses(pool: db.Pool) -> bool:
    return not await _answers(pool)
