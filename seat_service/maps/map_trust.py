"""The agreement of all processes whether cached maps may be read.

It is a row in Postgres (docs/decisions/0029). A process that cannot reach Redis returns maps that it could not store
there, and Redis may come back with older ones. So before it returns such a map it suspends the cache for all processes:
it commits a suspension, and waits until each process has read that. The suspension begins a new epoch with its own,
empty keys in Redis: no map that was cached before is ever returned again.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from services import db, telemetry
from services.cache import VersionedCache
from services.db import Pool

# A process relies on its last read of the epoch for this time. So a suspension takes effect after the same time.
TRUST_SECONDS: Final = 0.4
# If Postgres does not respond in this time, no other process can read a newer map from it, either.
READ_TIMEOUT_SECONDS: Final = 0.3
# Much longer than a call that reads a map may take (2 s): it returns its map while the suspension lasts.
SUSPENSION_SECONDS: Final = 4.0
RENEW_SECONDS: Final = 2.0

_log = telemetry.log("map_trust")


class MapTrust:
    """The epoch and suspension as this process knows them.

    It also sets the epoch of `cache`.
    """

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
        """Returns True if cached maps may be returned to clients.

        Reads Postgres if the last read is older than TRUST_SECONDS.
        """
        async with self._lock:
            if time.monotonic() - self._read_at >= TRUST_SECONDS:
                try:
                    async with asyncio.timeout(READ_TIMEOUT_SECONDS):
                        await self._read()
                except db.UNREACHABLE as error:
                    # Without Postgres no process can return a newer map, so that the cached maps remain valid.
                    _log.warning("epoch of the cached maps not read; cached maps stay in use", error=repr(error))
                    self._read_at = time.monotonic()
            return not self._suspended

    async def follow(self) -> None:
        """Reads the epoch now, whatever the age of the last read.

        Called after the commit of a change and before its map is removed, so that the map of the present epoch is
        removed and not one of an epoch that has ended.
        """
        async with self._lock:
            await self._read()

    async def suspend(self) -> None:
        """Suspends cached maps for all processes.

        Returns when no process reads cached maps any more; that lasts for at least RENEW_SECONDS.
        """
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
            # A new epoch: the other processes read it within TRUST_SECONDS. A suspension that was only renewed is known
            # to them already.
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
