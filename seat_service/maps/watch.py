"""Watches of seat maps: a stream with a snapshot, then changes (SEAT-13).

In each process one task reads the map of each watched flight. Each watcher compares the version that it sent last with
the latest one. So a slow watcher skips versions, and nothing is buffered for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.layouts.cabin_layouts import Layout
from seat_service.layouts.flight_layouts import FlightLayouts
from seat_service.maps.map_rendering import MapRenderer
from seat_service.maps.seat_map import STATES, SeatMaps, Snapshot
from services import db, running_call, telemetry

# The versions of a flight from which a watch can resume without a new snapshot: on a busy flight the last seconds.
REMEMBERED_VERSIONS: Final = 64
# For how long the versions are kept after the last watcher left, so that a phone that lost its network can resume.
LINGER_SECONDS: Final = 60
# The pause after an unexpected error, so that a defect does not flood the log.
FAILURE_PAUSE_SECONDS: Final = 1.0

_log = telemetry.log("watch")


class Watches:
    """All watches of a process."""

    def __init__(
        self,
        maps: SeatMaps,
        layouts: FlightLayouts,
        renderer: MapRenderer,
        *,
        interval_seconds: float,
        heartbeat_seconds: float,
    ) -> None:
        self._maps = maps
        self._layouts = layouts
        self._renderer = renderer
        self._interval_seconds = interval_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._feeds: dict[str, _Feed] = {}

    async def watch(self, flight_id: str, *, known_version: int) -> AsyncIterator[pb.SeatMapUpdate]:
        """Yields updates of a flight's map until cancelled. Raises FLIGHT_NOT_FOUND.

        The first is a snapshot, unless the process still remembers `known_version`. Without a change it yields a
        heartbeat every `heartbeat_seconds`.
        """
        layout = await self._layouts.of(flight_id)
        async with self._feed(flight_id) as feed:
            sent = feed.remembered(known_version)
            if sent is None:
                sent = feed.latest
                yield pb.SeatMapUpdate(
                    version=sent.version,
                    snapshot=pb.SeatMap.FromString(self._renderer.protobuf(sent, known_version=0)),
                )
            else:
                await running_call.open_stream()
            while True:
                if feed.latest.version > sent.version:
                    sent, before = feed.latest, sent
                    yield _update(layout, before, sent)
                try:
                    # Not `asyncio.wait_for`: it can lose a cancellation that arrives together with a change.
                    async with asyncio.timeout(self._heartbeat_seconds):
                        await feed.moved_beyond(sent.version)
                except TimeoutError:
                    yield pb.SeatMapUpdate(version=sent.version, heartbeat=pb.SeatMapUpdate.Heartbeat())

    @contextlib.asynccontextmanager
    async def _feed(self, flight_id: str) -> AsyncIterator[_Feed]:
        feed = self._feeds.get(flight_id)
        if feed is None:
            first = await self._maps.read(flight_id)
            # While this task read the map, another watcher may have created the feed.
            feed = self._feeds.setdefault(flight_id, _Feed(self._maps, first, self._interval_seconds))
        feed.join()
        try:
            await feed.refresh()
            yield feed
        finally:
            if feed.leave() == 0:
                asyncio.get_running_loop().call_later(LINGER_SECONDS, self._forget, flight_id, feed)

    def _forget(self, flight_id: str, feed: _Feed) -> None:
        if feed.watchers == 0 and self._feeds.get(flight_id) is feed:
            del self._feeds[flight_id]


class _Feed:
    """The latest versions of one flight's map.

    A task reads the map while the feed has watchers.
    """

    def __init__(self, maps: SeatMaps, first: Snapshot, interval_seconds: float) -> None:
        self._maps = maps
        self._interval_seconds = interval_seconds
        self._versions: deque[Snapshot] = deque([first], maxlen=REMEMBERED_VERSIONS)
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.watchers = 0

    @property
    def latest(self) -> Snapshot:
        return self._versions[-1]

    def remembered(self, version: int) -> Snapshot | None:
        return next((snapshot for snapshot in self._versions if snapshot.version == version), None)

    def join(self) -> None:
        self.watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._look())

    def leave(self) -> int:
        self.watchers -= 1
        if self.watchers == 0 and self._task is not None:
            self._task.cancel()
            self._task = None
        return self.watchers

    async def moved_beyond(self, version: int) -> None:
        while self.latest.version <= version:
            await self._moved.wait()

    async def refresh(self) -> None:
        snapshot = await self._maps.read(self.latest.flight_id)
        if snapshot.version > self.latest.version:
            self._versions.append(snapshot)
            self._moved.set()
            self._moved = asyncio.Event()

    async def _look(self) -> None:
        # A cancellation may be lost (`services.tasks`): so the task also ends when it is no longer the feed's task.
        while self._task is asyncio.current_task():
            await asyncio.sleep(self._interval_seconds)
            try:
                await self.refresh()
            except db.UNREACHABLE as error:
                # Watchers get heartbeats meanwhile. The next refresh brings all changes since their last version.
                _log.warning("watch failed to read; retrying", flight_id=self.latest.flight_id, error=repr(error))
            except Exception as error:
                # If this task ended, its watchers would get heartbeats for ever and never a change.
                _log.error("watch failed", flight_id=self.latest.flight_id, error=repr(error), exc_info=error)
                await asyncio.sleep(FAILURE_PAUSE_SECONDS)


def _update(layout: Layout, before: Snapshot, after: Snapshot) -> pb.SeatMapUpdate:
    changes = pb.SeatMapUpdate.Changes(
        seats=[
            pb.SeatMapUpdate.Changes.Change(seat_number=seat.seat_number, state=pb.Seat.State.Value(STATES[new]))
            for seat, old, new in zip(layout.seats, before.states, after.states, strict=True)
            if old != new
        ]
    )
    if not changes.seats:
        # A seat was held and released between the two versions: the states are equal again.
        return pb.SeatMapUpdate(version=after.version, heartbeat=pb.SeatMapUpdate.Heartbeat())
    return pb.SeatMapUpdate(version=after.version, changes=changes)
