"""Reconciles cached maps and published seat counts with Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from prometheus_client import Counter

from seat_service.layouts.cabin_layouts import Layout
from seat_service.maps import availability, seat_map
from services import cache, db, telemetry
from services.cache import VersionedCache
from services.db import Pool

# Flights reconciled in one pass, and the pause between passes: all flights of a small airline's day within one minute,
# at 1 % of a core.
FLIGHTS_PER_PASS: Final = 200
RECONCILE_SECONDS: Final = 5.0
# Longer than it takes from a change to the removal of the old map from the cache.
SETTLE_SECONDS: Final = 1.0
DRIFT: Final = Counter("skyhigh_seat_map_drift_total", "Cached maps that differed from the truth and were dropped.")
_log = telemetry.log("sweeper")


async def reconcile(pool: Pool, versioned_cache: VersionedCache, layouts: Mapping[str, Layout]) -> None:
    """Reconciles all flights in rounds, FLIGHTS_PER_PASS in each pass, until cancelled.

    It removes and counts cached maps that differ from Postgres, and publishes seat counts whose event is missing.
    """
    position = ""
    while True:
        await asyncio.sleep(RECONCILE_SECONDS)
        position = await reconcile_slice(pool, versioned_cache, layouts, after=position)


async def reconcile_slice(
    pool: Pool, versioned_cache: VersionedCache, layouts: Mapping[str, Layout], *, after: str
) -> str:
    """Reconciles the flights that follow `after`; returns the last one.

    Returns "" if there are none: then a new round begins.
    """
    async with db.transaction(pool) as conn:
        rows = await conn.fetch(
            "SELECT flight_id FROM flights WHERE flight_id > $1 ORDER BY flight_id LIMIT $2", after, FLIGHTS_PER_PASS
        )
    flight_ids = [row["flight_id"] for row in rows]
    if not flight_ids:
        return ""
    try:
        drifted = await _drifted(pool, versioned_cache, flight_ids)
        if drifted:
            # The process that has just changed a flight is removing its map from the cache. So only maps that still
            # differ after a pause have drifted.
            await asyncio.sleep(SETTLE_SECONDS)
            drifted &= await _drifted(pool, versioned_cache, sorted(drifted))
        if drifted:
            await versioned_cache.invalidate(sorted(drifted))
            DRIFT.inc(len(drifted))
            _log.warning("cached maps differed from the database", flights=sorted(drifted))
    except cache.UNREACHABLE:
        pass
    async with db.transaction(pool) as conn:
        await availability.announce(conn, flight_ids, layouts=layouts)
    last: str = flight_ids[-1]
    return last


async def _drifted(pool: Pool, versioned_cache: VersionedCache, flight_ids: list[str]) -> set[str]:
    cached = dict(zip(flight_ids, await versioned_cache.get(flight_ids), strict=True))
    async with db.transaction(pool) as conn:
        truth = {snapshot.flight_id: snapshot.compact() for snapshot in await seat_map.load(conn, flight_ids)}
    return {flight_id for flight_id, value in cached.items() if value is not None and value != truth.get(flight_id)}
