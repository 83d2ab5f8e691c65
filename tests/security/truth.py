"""One digest for each table of all schemas: an attack must leave every digest as it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from tests.instances import Database, connected
from tests.waiting import eventually, pause

# The pause between two looks that have to agree: long enough for a busy service to write something in between.
LOOK_SECONDS: Final = 0.3
# Not compared: the tables of background work, the count of failed logins, and the seat counts, which follow the seats a
# second later.
UNTOLD: Final = ("inbox", "timers", "reconciliations", "login_tries", "availability", "seat_counts")
# Without `publish_time`, which only the relay writes.
OUTBOX: Final = "SELECT (event_id, routing_key, body)::text FROM {} WHERE routing_key <> 'seat.availability.v1'"

Digests = Mapping[str, tuple[int, str]]
"""Number of rows and checksum, by `schema.table`."""


class Truth:
    """Reads every table of every service."""

    def __init__(self, databases: Mapping[str, Database]) -> None:
        self._databases = databases
        self._last: Digests = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls, urls: Mapping[str, str]) -> AsyncIterator[Truth]:
        """Connects within the block.

        `urls` are the databases by the names of their schemas.
        """
        async with AsyncExitStack() as stack:
            yield cls({schema: await stack.enter_async_context(connected(url)) for schema, url in urls.items()})

    async def now(self) -> Digests:
        """Reads the digests once. A call's changes are committed before its response."""
        found = await asyncio.gather(*(_of_schema(database, schema) for schema, database in self._databases.items()))
        self._last = {table: digest for tables in found for table, digest in tables.items()}
        return self._last

    async def at_rest(self) -> Digests:
        """Returns the digests when no service is working any more.

        Returns at once if they equal those of the last look.
        """
        before = self._last
        if await self.now() != before:
            at_work: object = None

            async def same_as_before() -> bool:
                nonlocal at_work
                before = self._last
                await pause(LOOK_SECONDS)
                now = await self.now()
                at_work = [name for name in now if now[name] != before.get(name)] or await self._under_way()
                return not at_work

            try:
                await eventually(same_as_before)
            except AssertionError as error:
                raise AssertionError(f"still at work: {at_work}") from error
        return self._last

    async def _under_way(self) -> list[str]:
        """Returns the events that are not published yet, and the timers that are due."""
        waiting = await asyncio.gather(
            *(
                database.fetch(
                    f"""
                    SELECT 'event ' || routing_key || ' ' || body::text FROM {schema}.outbox WHERE publish_time IS NULL
                    UNION ALL
                    SELECT 'timer ' || timers::text FROM {schema}.timers
                    WHERE fire_time IS NULL AND due_time <= clock_timestamp() + interval '1 s'
                    """
                )
                for schema, database in self._databases.items()
            )
        )
        return [row[0] for rows in waiting for row in rows]


async def _of_schema(database: Database, schema: str) -> dict[str, tuple[int, str]]:
    tables = await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", schema)
    names = sorted(row["tablename"] for row in tables if row["tablename"] not in UNTOLD)
    lines = {f"{schema}.{name}": OUTBOX if name == "outbox" else f"SELECT {name}::text FROM {{}}" for name in names}
    looks = " UNION ALL ".join(
        f"""
        SELECT '{table}', count(*), md5(coalesce(string_agg(line, E'\\n' ORDER BY line), ''))
        FROM ({select.format(table)}) AS lines (line)
        """
        for table, select in lines.items()
    )
    return {row[0]: (row[1], row[2]) for row in await database.fetch(looks)}
