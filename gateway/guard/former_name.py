"""The migrations that were recorded while this package was named `gateway.rate_limit`.

A migration is recorded by its package and file. Without these records under the new name, a database of an earlier
version would get the same migrations again, which fails.
"""

from __future__ import annotations

from typing import Final

import asyncpg

from services import db
from services.app import DATABASE_PATIENCE_SECONDS

FORMER_PACKAGE: Final = "gateway.rate_limit"


async def copy_migration_records(url: str, *, schema: str, package: str) -> None:
    """Records the migrations of FORMER_PACKAGE under `package` too. Idempotent.

    The old records stay, because processes of the earlier version may still start during an upgrade. Does nothing on a
    new database. Waits up to DATABASE_PATIENCE_SECONDS for a database that is unavailable.
    """
    await db.wait_until_there(url, patience_seconds=DATABASE_PATIENCE_SECONDS)
    connection = await asyncpg.connect(url, server_settings={"search_path": schema, "statement_timeout": "60000"})
    try:
        if await connection.fetchval("SELECT to_regclass('migrations') IS NULL"):
            return
        await connection.execute(
            """
            INSERT INTO migrations (name, digest, apply_time)
            SELECT $2 || substr(name, length($1) + 1), digest, apply_time
            FROM migrations WHERE starts_with(name, $1 || '/')
            ON CONFLICT DO NOTHING
            """,
            FORMER_PACKAGE,
            package,
        )
    finally:
        await connection.close()
