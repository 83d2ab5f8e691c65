"""Background work that tidies: lapsed holds, lapsed offers, and what a killed process left behind.

Nothing depends on it for truth. A lapsed hold counts as free whether it was swept or not; the sweeper tells others.
Any number of processes sweep side by side, each taking other rows (SKIP LOCKED).
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
# Wide, because a sweep sends one event for each flight that it touches; less than a second of work, because whoever
# wants one of these seats waits for it. A hold has up to 36.
HOLDS_PER_SWEEP: Final = 4000
SEATS_PER_SWEEP: Final = 12_000
OFFERS_PER_SWEEP: Final = 500
# Flights looked at in one pass, and the pause after it: a day of a small airline in a minute, at one percent of a core.
FLIGHTS_PER_PASS: Final = 200
RECONCILE_SECONDS: Final = 5.0
# Longer than a change takes to be dropped from the cache.
SETTLE_SECONDS: Final = 1.0

DRIFT: Final = Counter("skyhigh_seat_map_drift_total", "Cached maps that differed from the truth and were dropped.")
SWEPT: Final = Counter("skyhigh_seat_swept_total", "Rows that the sweeper ended.", ["kind"])
_log = telemetry.log("sweeper")


async def sweep(pool: Pool, inventory: Inventory, *, interval_seconds: float) -> None:
    """Ends lapsed holds and offers until cancelled."""
    while True:
        try:
            holds = await sweep_holds(pool, inventory)
            offers = await sweep_offers(pool, inventory)
        except db.OVERTAKEN:
            continue
        if not (holds or offers):
            await asyncio.sleep(interval_seconds)


async def sweep_holds(pool: Pool, inventory: Inventory) -> bool:
    """Ends the holds that lapsed longest ago; returns whether more of them may be due."""
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
    """Ends the offers whose window ended longest ago; returns whether more of them may be due."""
    effects = Effects()
    async with db.transaction(pool) as conn:
        lapsed = await blocks.lapse_offers(conn, limit=OFFERS_PER_SWEEP, actor=ACTOR, effects=effects)
    inventory.tell(effects)
    SWEPT.labels("offer").inc(lapsed)
    return lapsed == OFFERS_PER_SWEEP


async def reconcile(pool: Pool, versioned_cache: VersionedCache, layouts: Mapping[str, Layout]) -> None:
    """Walks over all flights again and again, a slice at a time, until cancelled.

    Drops cached maps that differ from the truth, and counts them; announces availability that nobody announced.
    """
    position = ""
    while True:
        await asyncio.sleep(RECONCILE_SECONDS)
        position = await reconcile_slice(pool, versioned_cache, layouts, after=position)


async def reconcile_slice(
    pool: Pool, versioned_cache: VersionedCache, layouts: Mapping[str, Layout], *, after: str
) -> str:
    """Reconciles the flights that follow `after`; returns where to go on, "" after the last."""
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
            # What changed this moment is being dropped by the process that changed it; only what stays has drifted.
            await asyncio.sleep(SETTLE_SECONDS)
            drifted &= await _drifted(pool, versioned_cache, sorted(drifted))
        if drifted:
            await versioned_cache.invalidate(sorted(drifted))
            DRIFT.inc(len(drifted))
            _log.warning("cached maps had drifted", flights=sorted(drifted))
    except cache.AWAY:
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
