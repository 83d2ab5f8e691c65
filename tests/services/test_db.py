"""The sessions of a service's pool."""

from __future__ import annotations

import asyncpg

from services import db
from tests.conftest import World
from tests.instances import own_database


async def test_statements_count_days_in_utc_whatever_the_zone_of_the_database(world: World) -> None:
    url = await own_database(world)
    name = url.rpartition("/")[2]
    owner = await asyncpg.connect(world.servers.database_url())
    await owner.execute(f"ALTER DATABASE {name} SET TimeZone = 'America/New_York'")
    await owner.close()
    pool = await db.connect(url, schema="seat", size=1)
    try:
        # New York's summer time ended on this day.
        moment = "timestamptz '1999-10-31 22:00Z'"
        assert await pool.fetchval(f"SELECT extract(epoch FROM {moment} - ({moment} - interval '1 day'))") == 86400
        assert str(await pool.fetchval("SELECT (timestamptz '1999-10-31 02:00Z')::date")) == "1999-10-31"
    finally:
        await pool.close()
