"""Whether the cached maps may be read: an agreement of all processes, kept in Postgres (docs/decisions/0029).

A process that cannot reach Redis shows maps that no other process can learn of from Redis, and Redis may come back with
older ones. So it suspends the cache for all processes first: it commits that, and waits until each of them has read it.
The suspension opens a new epoch, whose keys are empty: no map that was cached before it is ever shown again.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from services import db, telemetry
from services.cache import VersionedCache
from services.db import Pool

# A process relies on what it read about the epoch for so long. A suspension takes effect after the same time.
TRUST_SECONDS: Final = 0.4
# Postgres that does not respond in this time shows no newer map to others either.
READ_TIMEOUT_SECONDS: Final = 0.3
# Much longer than a read of a map takes (READ, 2 s): its result is shown within the suspension.
SUSPENSION_SECONDS: Final = 4.0
RENEW_SECONDS: Final = 2.0

_log = telemetry.log("map_trust")


class MapTrust:
    """What this process knows of the epoch; `cache` follows it."""

    def __init__(self, pool: Pool, cache: VersionedCache) -> None:
        self._pool = pool
        self._cache = cache
        self._read_at = float("-inf")
        self._suspended = False
        self._lock = asyncio.Lock()
        self._own_epoch: int | None = None
        self._own_end = float("-inf")
        self._effective_at = 0.0

    async def cache_is_readable(self) -> bool:
        """Whether cached maps may be shown. Postgres is asked if the last look is too old."""
        async with self._lock:
            if time.monotonic() - self._read_at >= TRUST_SECONDS:
                try:
                    async with asyncio.timeout(READ_TIMEOUT_SECONDS):
                        await self._read()
                except db.AWAY as error:
                    # Without Postgres no process shows a newer map, so that the cached ones stay good.
                    _log.warning("epoch not read", error=repr(error))
                    self._read_at = time.monotonic()
            return not self._suspended

    async def follow(self) -> None:
        """Reads the epoch now: a change that committed before is to be dropped from the cache under this epoch."""
        async with self._lock:
            await self._read()

    async def suspend(self) -> None:
        """Returns when no process shows cached maps any more, for at least RENEW_SECONDS."""
        async with self._lock:
            if self._own_end - time.monotonic() < RENEW_SECONDS:
                await self._renew()
        await asyncio.sleep(max(0.0, self._effective_at - time.monotonic()))

    async def _renew(self) -> None:
        began = time.monotonic()
        async with db.session(self._pool) as conn:
            epoch: int = await conn.fetchval(
                """
                UPDATE map_cache
                SET epoch = epoch + (suspended_until <= clock_timestamp())::int,
                    suspended_until = greatest(suspended_until, clock_timestamp() + make_interval(secs => $1))
                WHERE one RETURNING epoch
                """,
                SUSPENSION_SECONDS,
            )
        if epoch != self._own_epoch:
            # A suspension that went on without a gap is known to all processes already.
            self._effective_at = time.monotonic() + TRUST_SECONDS
            _log.warning("cached maps suspended", epoch=epoch)
        self._own_epoch, self._own_end = epoch, began + SUSPENSION_SECONDS
        self._cache.epoch, self._suspended, self._read_at = epoch, True, began

    async def _read(self) -> None:
        began = time.monotonic()
        async with db.session(self._pool) as conn:
            row = await conn.fetchrow(
                "SELECT epoch, suspended_until > clock_timestamp() AS suspended FROM map_cache WHERE one"
            )
        assert row is not None
        self._cache.epoch, self._suspended, self._read_at = row["epoch"], row["suspended"], began
