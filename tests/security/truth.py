"""What is true in all schemas, as one digest for each table: an attack must leave every one as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

from tests.callers import eventually
from tests.instances import Database, connected

AT_REST_SECONDS: Final = 15
# Two looks that see the same, so far apart that whoever is at work has written something between them.
LOOK_SECONDS: Final = 0.3
# The work of machines, the count of wrong logins, and what tells of seats a second after they changed.
UNTOLD: Final = ("inbox", "timers", "login_tries", "availability", "seat_counts")
# Published or not is the relay's affair.
OUTBOX: Final = "SELECT (event_id, routing_key, body)::text FROM {} WHERE routing_key <> 'seat.availability.v1'"

Digests = Mapping[str, tuple[int, str]]
"""Rows and their checksum, by `schema.table`."""


async def digests(databases: Mapping[str, str]) -> Digests:
    """Looks at every table of every service; `databases` are their URLs by their names."""
    async with AsyncExitStack() as stack:
        found: dict[str, tuple[int, str]] = {}
        for schema, url in databases.items():
            database = await stack.enter_async_context(connected(url))
            found |= await _of_schema(database, schema)
        return found


async def at_rest(databases: Mapping[str, str]) -> Digests:
    """Waits until nobody changes anything any more, then looks."""
    seen: list[Digests] = [await digests(databases)]

    async def same_as_before() -> bool:
        await asyncio.sleep(LOOK_SECONDS)
        seen.append(await digests(databases))
        return seen[-1] == seen[-2]

    await eventually(same_as_before, within_seconds=AT_REST_SECONDS)
    return seen[-1]


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
