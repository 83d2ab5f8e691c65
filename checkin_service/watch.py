"""Watching check-ins: each as it is, then after each change.

One task of this process looks at all watched check-ins together; a watcher compares what it sent last with what is
there now. So one that falls behind skips versions instead of piling them up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from uuid import UUID

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from checkin_service import records
from checkin_service.records import CheckIn
from services import db
from services.db import Pool
from services.errors import Unavailable


class Watches:
    """All watches of this process."""

    def __init__(self, pool: Pool, *, interval_seconds: float, heartbeat_seconds: float) -> None:
        self._pool = pool
        self._interval_seconds = interval_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._feeds: dict[UUID, _Feed] = {}

    async def watch(self, checkin_id: UUID, *, pnr: str | None) -> AsyncIterator[pb.CheckInUpdate]:
        """Yields updates until cancelled. Raises CHECK_IN_NOT_FOUND."""
        async with db.transaction(self._pool) as conn:
            first = await records.find(conn, checkin_id, pnr=pnr)
        sent_version = 0
        with self._feed(first) as feed:
            while True:
                if feed.latest.version > sent_version:
                    sent_version = feed.latest.version
                    yield pb.CheckInUpdate(checkin=feed.latest.message())
                try:
                    await asyncio.wait_for(feed.moved_beyond(sent_version), self._heartbeat_seconds)
                except TimeoutError:
                    yield pb.CheckInUpdate(heartbeat=pb.CheckInUpdate.Heartbeat())

    async def look(self) -> None:
        """Looks at what is watched until cancelled. While the truth is away, watchers get heartbeats."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            if not self._feeds:
                continue
            with contextlib.suppress(Unavailable, *db.AWAY):
                async with db.transaction(self._pool) as conn:
                    changed = await records.newer(
                        conn, {checkin_id: feed.latest.version for checkin_id, feed in self._feeds.items()}
                    )
                for check_in in changed:
                    feed = self._feeds.get(check_in.checkin_id)
                    if feed is not None:
                        feed.offer(check_in)

    @contextlib.contextmanager
    def _feed(self, first: CheckIn) -> Iterator[_Feed]:
        feed = self._feeds.setdefault(first.checkin_id, _Feed(first))
        feed.offer(first)
        feed.watchers += 1
        try:
            yield feed
        finally:
            feed.watchers -= 1
            if feed.watchers == 0:
                del self._feeds[first.checkin_id]


class _Feed:
    """The latest version of one check-in, for as long as anybody watches it."""

    def __init__(self, first: CheckIn) -> None:
        self.latest = first
        self.watchers = 0
        self._moved = asyncio.Event()

    def offer(self, check_in: CheckIn) -> None:
        if check_in.version > self.latest.version:
            self.latest = check_in
            self._moved.set()
            self._moved = asyncio.Event()

    async def moved_beyond(self, version: int) -> None:
        while self.latest.version <= version:
            await self._moved.wait()
