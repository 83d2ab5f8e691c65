"""The current limits and blocks, in memory.

Streams wait here for their changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from dataclasses import dataclass
from typing import Final

from gateway.filters import Blocked, Filter, filters
from gateway.guard import abuse, limits
from gateway.guard.settings import RateLimits
from gateway.limits import DEFAULTS, Limit
from services import db, telemetry
from services.db import Pool

_log = telemetry.log("policy")
RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Resource:
    """A filter's configuration for Envoy, and its version: a digest of the content."""

    filter: Filter
    version: str


class Policy:
    """Limits and blocks, read periodically.

    Keeps the last ones while Postgres is unavailable.
    """

    def __init__(self, pool: Pool, *, rate_limits: RateLimits, poll_seconds: float) -> None:
        self._pool = pool
        self._rate_limits = rate_limits
        self._poll_seconds = poll_seconds
        self._woken = asyncio.Event()
        self._changed = asyncio.Condition()
        self.limits: tuple[Limit, ...] = DEFAULTS
        self.blocks: tuple[Blocked, ...] = ()
        self.resources: dict[str, Resource] = {}

    @property
    def enforced(self) -> bool:
        """Whether limits and blocks refuse calls."""
        return self._rate_limits is RateLimits.ON

    def wake(self) -> None:
        """Makes `run` read at once.

        Called after a transaction that changed limits or blocks.
        """
        self._woken.set()

    async def run(self) -> None:
        """Reads on every wake-up, and at least once per poll interval, until cancelled."""
        while True:
            self._woken.clear()
            with contextlib.suppress(*db.UNREACHABLE):
                await self.read()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._woken.wait()

    async def read(self) -> None:
        """Reads the current limits and blocks.

        If they have changed, wakes the tasks that wait in `other_than`.
        """
        async with db.snapshot(self._pool) as conn:
            self.limits, self.blocks = await limits.read(conn), await abuse.standing(conn)
        built = {
            name: Resource(configured, _version(configured))
            for name, configured in filters(self.limits, self.blocks, enforced=self.enforced).items()
        }
        if built != self.resources:
            _log.info("policy changed", limits=len(self.limits), blocks=len(self.blocks))
            async with self._changed:
                self.resources = built
                self._changed.notify_all()

    async def other_than(self, name: str, version: str) -> Resource:
        """Waits until a resource has another version, and returns it.

        Raises KeyError for an unknown name.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self.resources) and self.resources[name].version != version)
            return self.resources[name]


def _version(configured: Filter) -> str:
    return hashlib.blake2b(json.dumps(configured.value, sort_keys=True).encode(), digest_size=8).hexdigest()
