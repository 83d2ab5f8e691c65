"""Watching resources: each as it is, then after each change; and how many watches anybody may have open.

One task of a process looks at all that is watched together; a watcher compares what it sent last with what is there
now. So one that falls behind skips versions instead of piling them up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final, Generic, Protocol, TypeVar
from uuid import UUID

from services import db
from services.db import Conn, Pool
from services.errors import ResourceExhausted, Unavailable

# A page is closed, or a phone finds its network again, in about this time.
PLACE_FREE_SECONDS: Final = 5


class Versioned(Protocol):
    """A row that counts its changes."""

    @property
    def key(self) -> UUID: ...

    @property
    def version(self) -> int: ...


Row = TypeVar("Row", bound=Versioned)
Newer = Callable[[Conn, Mapping[UUID, int]], Awaitable[Sequence[Row]]]


class WatchPlaces:
    """The watches that each principal has open in this process: no one of them takes the room of all."""

    def __init__(self, *, per_principal: int) -> None:
        self._per_principal = per_principal
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def taken_by(self, principal: str) -> Iterator[None]:
        """Takes a place for the block. Raises TOO_MANY_WATCHES where the principal has no more."""
        if self._open[principal] >= self._per_principal:
            raise ResourceExhausted(
                "TOO_MANY_WATCHES",
                f"{self._per_principal} watches are open already",
                metadata={"limit": str(self._per_principal)},
                retry_after_seconds=PLACE_FREE_SECONDS,
            )
        self._open[principal] += 1
        try:
            yield
        finally:
            self._open[principal] -= 1
            if not self._open[principal]:
                del self._open[principal]


class Watches(Generic[Row]):
    """All watches of this process. `newer` returns those of the rows that have a higher version than is known."""

    def __init__(self, pool: Pool, newer: Newer[Row], *, interval_seconds: float, heartbeat_seconds: float) -> None:
        self._pool = pool
        self._newer = newer
        self._interval_seconds = interval_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._feeds: dict[UUID, _Feed[Row]] = {}

    async def follow(self, first: Row) -> AsyncIterator[Row | None]:
        """Yields the row, then each newer version that is seen, until cancelled; None where a heartbeat is due."""
        sent_version = 0
        with self._feed(first) as feed:
            while True:
                if feed.latest.version > sent_version:
                    sent_version = feed.latest.version
                    yield feed.latest
                try:
                    # Not wait_for, which may swallow a cancellation that comes together with a change.
                    async with asyncio.timeout(self._heartbeat_seconds):
                        await feed.moved_beyond(sent_version)
                except TimeoutError:
                    yield None

    async def look(self) -> None:
        """Looks at what is watched until cancelled. While the truth is away, watchers get heartbeats."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            if not self._feeds:
                continue
            with contextlib.suppress(Unavailable, *db.AWAY):
                async with db.snapshot(self._pool) as conn:
                    changed = await self._newer(conn, {key: feed.latest.version for key, feed in self._feeds.items()})
                for row in changed:
                    feed = self._feeds.get(row.key)
                    if feed is not None:
                        feed.offer(row)

    @contextlib.contextmanager
    def _feed(self, first: Row) -> Iterator[_Feed[Row]]:
        feed = self._feeds.setdefault(first.key, _Feed(first))
        feed.offer(first)
        feed.watchers += 1
        try:
            yield feed
        finally:
            feed.watchers -= 1
            if feed.watchers == 0:
                del self._feeds[first.key]


class _Feed(Generic[Row]):
    """The latest version of one row, for as long as anybody watches it."""

    def __init__(self, first: Row) -> None:
        self.latest = first
        self.watchers = 0
        self._moved = asyncio.Event()

    def offer(self, row: Row) -> None:
        if row.version > self.latest.version:
            self.latest = row
            self._moved.set()
            self._moved = asyncio.Event()

    async def moved_beyond(self, version: int) -> None:
        while self.latest.version <= version:
            await self._moved.wait()
