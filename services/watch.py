"""Watches of resources: the current row, then each change.

One task per process reads all watched rows together. Each watcher compares the latest version with the one that it sent
last, so that a slow watcher skips versions instead of queuing them. The module also limits the open watches per
principal.
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

# Usual time until a web page is closed or a phone has reconnected.
PLACE_FREE_SECONDS: Final = 5


class Versioned(Protocol):
    """A row with a version that grows with each change."""

    @property
    def key(self) -> UUID: ...

    @property
    def version(self) -> int: ...


Row = TypeVar("Row", bound=Versioned)
Newer = Callable[[Conn, Mapping[UUID, int]], Awaitable[Sequence[Row]]]


class WatchPlaces:
    """Counts the open watches of each principal in this process.

    The limit keeps one principal from using up the capacity of all.
    """

    def __init__(self, *, per_principal: int) -> None:
        self._per_principal = per_principal
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def taken_by(self, principal: str) -> Iterator[None]:
        """Counts one watch of the principal while the block runs.

        Raises TOO_MANY_WATCHES if the principal has `per_principal` open watches.
        """
        if self._open[principal] >= self._per_principal:
            raise ResourceExhausted(
                "TOO_MANY_WATCHES",
                f"you have {self._per_principal} open watches, which is the limit; close one first",
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
    """All watches of one kind of row in this process.

    `newer` returns the rows whose version is higher than the known one.
    """

    def __init__(self, pool: Pool, newer: Newer[Row], *, interval_seconds: float, heartbeat_seconds: float) -> None:
        self._pool = pool
        self._newer = newer
        self._interval_seconds = interval_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._feeds: dict[UUID, _Feed[Row]] = {}

    async def follow(self, first: Row) -> AsyncIterator[Row | None]:
        """Yields the row, then each newer version, until cancelled.

        Yields None when a heartbeat is due. It may skip versions.
        """
        sent_version = 0
        with self._feed(first) as feed:
            while True:
                if feed.latest.version > sent_version:
                    sent_version = feed.latest.version
                    yield feed.latest
                try:
                    # asyncio.wait_for may lose a cancellation that arrives together with a change.
                    async with asyncio.timeout(self._heartbeat_seconds):
                        await feed.moved_beyond(sent_version)
                except TimeoutError:
                    yield None

    async def look(self) -> None:
        """Reads the watched rows every `interval_seconds` until cancelled.

        While the database is unavailable, watchers get only heartbeats.
        """
        while True:
            await asyncio.sleep(self._interval_seconds)
            if not self._feeds:
                continue
            with contextlib.suppress(Unavailable, *db.UNREACHABLE):
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
    """The latest version of one row; it lives as long as the row has watchers."""

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
