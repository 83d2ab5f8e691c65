"""Seat maps of flights, served to many readers (SEAT-12, decision 4).

The state of a map is one short snapshot: a version, a time, and a letter for each seat. Redis caches the snapshot. All
processes read it there, so that no client sees a version go back; each process also keeps the bytes that it rendered
from it (map_rendering.py). After a change the process removes the cached snapshot, and the next reader loads the new
one from Postgres, once for all changes up to then. While Redis is down the snapshots come from Postgres, after all
processes have stopped reading cached maps (map_trust.py). All readers that arrive while one read is running share the
next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import refusals
from seat_service.maps.map_trust import MapTrust
from services import cache, db, telemetry
from services.batch import Batcher
from services.cache import Versioned, VersionedCache
from services.db import Conn, Pool
from services.errors import Refusal

CACHE_PREFIX: Final = "seatmap"
STATES: Final[Mapping[str, str]] = {
    value.name[0]: value.name for value in pb.Seat.State.DESCRIPTOR.values if value.number
}
# All changes of a flight within this time cost its readers one read of Postgres.
INVALIDATION_INTERVAL_SECONDS: Final = 0.05
# Readers that arrive within this time share one round trip to Redis, the most expensive part of a read.
READ_INTERVAL_SECONDS: Final = 0.002
# The pause between two tries to reach Redis while it is down.
CACHE_RETRY_SECONDS: Final = 1.0
_log = telemetry.log("seat_map")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The states of a flight's seats at one version of its map.

    `states` has a letter for each seat, in the order of the layout: see STATES.
    """

    flight_id: str
    layout_id: str
    version: int
    last_updated: datetime
    states: str

    def compact(self) -> Versioned:
        """Returns the snapshot as the cache stores it."""
        return Versioned(self.version, f"{self.layout_id} {self.last_updated.isoformat()} {self.states}".encode())

    @classmethod
    def parse(cls, flight_id: str, value: Versioned) -> Snapshot:
        """Reads a snapshot from its value in the cache."""
        layout_id, last_updated, states = value.body.decode().split(" ")
        return cls(flight_id, layout_id, value.version, datetime.fromisoformat(last_updated), states)


async def load(conn: Conn, flight_ids: Sequence[str]) -> list[Snapshot]:
    """Reads the snapshots of flights from Postgres; unknown flights are left out."""
    rows = await conn.fetch(
        """
        SELECT flights.flight_id, flights.layout_id, map.version, map.last_updated, map.states
        FROM flights
        CROSS JOIN LATERAL (
            SELECT 1 + sum(seats.version)::bigint AS version, max(seats.update_time) AS last_updated,
                   string_agg(left(seats.state::text, 1), '' ORDER BY seats.ordinal) AS states
            FROM seats WHERE seats.flight_id = flights.flight_id
        ) AS map
        WHERE flights.flight_id = ANY($1::text[])
        """,
        list(flight_ids),
    )
    return [Snapshot(**row) for row in rows]


class SeatMaps:
    """Reads of seat maps, and the invalidation of cached maps after changes."""

    def __init__(self, pool: Pool, versioned_cache: VersionedCache) -> None:
        self._pool = pool
        self._cache = versioned_cache
        self._trust = MapTrust(pool, versioned_cache)
        self._cache_away_until = 0.0
        self._reads: Batcher[str, Snapshot] = Batcher(
            "seat_maps", self._read_batch, interval_seconds=READ_INTERVAL_SECONDS
        )
        self._truth: Batcher[str, Snapshot] = Batcher("seat_maps_truth", self._truth_batch)
        self._changed: set[str] = set()
        self._woken = asyncio.Event()

    async def read(self, flight_id: str, *, known_version: int = 0) -> Snapshot:
        """Returns a flight's snapshot. Raises FLIGHT_NOT_FOUND.

        It is never older than a snapshot that a client has got before. While Redis fails and recovers, two processes
        may disagree about it. So `known_version` is a lower bound: if the cached snapshot is older, Postgres is read.
        """
        snapshot = await self._reads.submit(flight_id)
        return snapshot if snapshot.version >= known_version else await self._truth.submit(flight_id)

    def changed(self, flight_ids: set[str]) -> None:
        """Notes that a committed transaction changed seats of these flights."""
        self._changed |= flight_ids
        self._woken.set()

    async def invalidate_changed(self) -> None:
        """Removes the cached maps of changed flights, until cancelled.

        A map that could not be removed is tried again.
        """
        while True:
            await self._woken.wait()
            self._woken.clear()
            flight_ids, self._changed = self._changed, set()
            try:
                await self._trust.follow()
                await self._cache.invalidate(list(flight_ids))
            except db.OUTAGE as error:
                _log.warning("map invalidation failed, database unavailable; retrying", error=repr(error))
                self.changed(flight_ids)
                await asyncio.sleep(CACHE_RETRY_SECONDS)
            except cache.UNREACHABLE as error:
                self._log_cache_outage(error)
                self.changed(flight_ids)
                # Another process may still reach Redis, and would return the map from before the change.
                with contextlib.suppress(*db.UNREACHABLE):
                    await self._trust.suspend()
                await asyncio.sleep(CACHE_RETRY_SECONDS)
            await asyncio.sleep(INVALIDATION_INTERVAL_SECONDS)

    async def _read_batch(self, flight_ids: Sequence[str]) -> list[Snapshot | Refusal]:
        wanted = list(dict.fromkeys(flight_ids))
        found = await self._cached(wanted)
        missing = [flight_id for flight_id in wanted if flight_id not in found]
        if missing:
            found.update(await self._loaded(missing))
        return [found.get(flight_id) or refusals.flight_not_found(flight_id) for flight_id in flight_ids]

    async def _truth_batch(self, flight_ids: Sequence[str]) -> list[Snapshot | Refusal]:
        loaded = await self._loaded(list(dict.fromkeys(flight_ids)))
        return [loaded.get(flight_id) or refusals.flight_not_found(flight_id) for flight_id in flight_ids]

    async def _cached(self, flight_ids: Sequence[str]) -> dict[str, Snapshot]:
        if not await self._trust.cache_is_readable() or time.monotonic() < self._cache_away_until:
            return {}
        try:
            values = await self._cache.get(flight_ids)
        except cache.UNREACHABLE as error:
            self._log_cache_outage(error)
            return {}
        return {
            flight_id: Snapshot.parse(flight_id, value)
            for flight_id, value in zip(flight_ids, values, strict=True)
            if value is not None
        }

    async def _loaded(self, flight_ids: Sequence[str]) -> dict[str, Snapshot]:
        generations: list[str] | None = None
        if time.monotonic() >= self._cache_away_until:
            try:
                generations = await self._cache.generations(flight_ids)
            except cache.UNREACHABLE as error:
                self._log_cache_outage(error)
        async with db.transaction(self._pool) as conn:
            loaded = {snapshot.flight_id: snapshot for snapshot in await load(conn, flight_ids)}
        if not loaded or (generations is not None and await self._recorded(loaded, flight_ids, generations)):
            return loaded
        # These snapshots could not be stored in the cache. Redis may come back with older ones, which no process may
        # return after these.
        await self._trust.suspend()
        return loaded

    async def _recorded(
        self, loaded: Mapping[str, Snapshot], flight_ids: Sequence[str], generations: Sequence[str]
    ) -> bool:
        """Stores snapshots in the cache before clients get them.

        Returns False if the cache did not respond.
        """
        try:
            await asyncio.gather(
                *(
                    self._cache.set_if_newer(flight_id, loaded[flight_id].compact(), generation=generation)
                    for flight_id, generation in zip(flight_ids, generations, strict=True)
                    if flight_id in loaded
                )
            )
        except cache.UNREACHABLE as error:
            self._log_cache_outage(error)
            return False
        return True

    def _log_cache_outage(self, error: Exception) -> None:
        if time.monotonic() >= self._cache_away_until:
            _log.warning("cache unavailable", error=repr(error))
        self._cache_away_until = time.monotonic() + CACHE_RETRY_SECONDS
