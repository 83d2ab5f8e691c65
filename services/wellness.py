"""Health of a process: a writable database is reachable and `ready` is true.

A probe asks Postgres every PROBE_SECONDS through a connection of its own. A process becomes unhealthy only after
MEMORY_SECONDS without a response, so that a short delay is no outage, and healthy again with the first response. The
probe does not use the pool: a process whose calls wait for pooled connections is busy, not unhealthy.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

import asyncpg

from services import db, telemetry

PROBE_SECONDS: Final = 0.5
PROBE_TIMEOUT_SECONDS: Final = 1.0
MEMORY_SECONDS: Final = 2.0

_log = telemetry.log("health")


async def watch(
    database_url: str, announce: Callable[[bool], Awaitable[None]], ready: Callable[[], bool] = lambda: True
) -> None:
    """Probes until cancelled, and announces each change of health.

    A process starts as healthy if `ready` returns True, and is unhealthy while it returns False.
    """
    well, answered_at = ready(), time.monotonic()
    connection: asyncpg.Connection[asyncpg.Record] | None = None
    try:
        while True:
            error: Exception | None = None
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                    if connection is None:
                        connection = await asyncpg.connect(
                            database_url,
                            target_session_attrs=db.writable_host(database_url),
                            server_settings={"application_name": "health"},
                        )
                    if await connection.fetchval("SHOW transaction_read_only") == "on":
                        raise asyncpg.ReadOnlySQLTransactionError("the database takes no writes")
                answered_at = time.monotonic()
            except db.UNREACHABLE as failure:
                error = failure
                if connection is not None:
                    connection.terminate()
                    connection = None
            now_well = ready() and (error is None or (time.monotonic() - answered_at < MEMORY_SECONDS and well))
            if now_well != well:
                well = now_well
                _log.warning("well again" if well else "unwell", cause=repr(error) if error else "not ready")
                await announce(well)
            await asyncio.sleep(PROBE_SECONDS)
    finally:
        if connection is not None:
            with contextlib.suppress(*db.UNREACHABLE):
                connection.terminate()
