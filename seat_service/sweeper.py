"""Background tasks: the sweeper and the reconciler of maps and counts.

The sweeper expires lapsed holds and ends lapsed offers. Correctness does not depend on the sweeper: a lapsed hold
counts as free at once (SEAT-3). The sweeper releases its seats and publishes that. Any number of processes can sweep
holds at the same time, because each skips the rows that another one has locked (SKIP LOCKED).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import accumulate
from typing import Final

from prometheus_client import Counter

from seat_service import availability, blocks, seat_map, seats
from seat_service.cabin_layouts import Layout
from seat_service.inventory import Inventory
from seat_service.requests import Effects
from services import cache, db, telemetry
from services.cache import VersionedCache
from services.db import Pool

ACTOR: Final = "sweeper"
# Holds and seats of one sweep. Many, because a sweep writes one event for each flight and not for each hold. Few enough
# for less than one second, because callers that need one of these seats wait for its lock. A hold has up to 36 seats.
HOLDS_PER_SWEEP: Final = 4000
SEATS_PER_SWEEP: Final = 12_000
OFFERS_PER_SWEEP: Final = 500
# Flights reconciled in one pass, and the pause between passes: all flights of a small airline's day within one minute,
# at 1 % of a core.
FLIGHTS_PER_PASS: Final = 200
RECONCILE_SECONDS: Final = 5.0
# Longer than it takes from a change to the removal of the old map from the cache.
SETTLE_SECONDS: Final = 1.0

DRIFT: Final = Counter("skyhigh_seat_map_drift_total", "Cached maps that differed from the truth and were dropped.")
SWEPT: Final = Counter("skyhigh_seat_swept_total", "Rows that the sweeper ended.", ["kind"])
_log = telemetry.log("sweeper")


async def sweep(pool: Pool, inventory: Inventory, *, interval_seconds: float) -> None:
    """Expires lapsed holds and ends lapsed offers, until cancelled."""
    while True:
        try:
            holds = await sweep_holds(pool, inventory)
            offers = await sweep_offers(pool, inventory)
        except db.CONFLICTS:
            continue
        if not (holds or offers):
            await asyncio.sleep(interval_seconds)


async def sweep_holds(pool: Pool, inventory: Inventory) -> bool:
    """Expires the holds that lapsed first; returns True if more may be due."""
    effects = Effects()
    async with db.transaction(pool) as conn:
        due = await conn.fetch(
            """
            SELECT hold_id, (SELECT count(*) FROM hold_seats WHERE hold_seats.hold_id = holds.hold_id) AS seats
            FROM holds WHERE state = 'HELD' AND expire_time <= statement_timestamp()
            ORDER BY expire_time LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
            """,
            HOLDS_PER_SWEEP,
        )
        seats_so_far = accumulate(row["seats"] for row in due)
        swept = [row["hold_id"] for row, total in zip(due, seats_so_far, strict=True) if total <= SEATS_PER_SWEEP]
        if swept:
            await seats.expire_locked(conn, swept, actor=ACTOR, effects=effects)
    inventory.tell(effects)
    SWEPT.labels("hold").inc(len(swept))
    return len(due) == HOLDS_PER_SWEEP or len(swept) < len(due)


async def sweep_offers(pool: Pool, inventory: Inventory) -> bool:
    """Ends the offers whose window ended first; returns True if more may be due."""
    effects = Effects()
    async with db.transaction(pool) as conn:
        lapsed = await blocks.lapse_offers(conn, limit=OFFERS_PER_SWEEP, actor=ACTOR, effects=effects)
    inventory.tell(effects)
    SWEPT.labels("offer").inc(lapsed)
    return lapsed == OFFERS_PER_SWEEP


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
