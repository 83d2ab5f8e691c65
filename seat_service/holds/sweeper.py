"""The sweeper expires lapsed holds and ends lapsed offers.

Correctness does not depend on it: a lapsed hold counts as free at once (SEAT-3). The sweeper releases its seats and
publishes that. Any number of processes can sweep holds at the same time, because each skips the rows that another one
has locked (SKIP LOCKED).
"""

from __future__ import annotations

import asyncio
from itertools import accumulate
from typing import Final

from prometheus_client import Counter

from seat_service.holds import blocks
from seat_service.holds.expire import expire_locked
from seat_service.inventory import Inventory
from seat_service.requests import Effects
from services import db
from services.db import Pool

ACTOR: Final = "sweeper"
# Holds and seats of one sweep. Many, because a sweep writes one event for each flight and not for each hold. Few enough
# for less than one second, because callers that need one of these seats wait for its lock. A hold has up to 36 seats.
HOLDS_PER_SWEEP: Final = 4000
SEATS_PER_SWEEP: Final = 12_000
OFFERS_PER_SWEEP: Final = 500
SWEPT: Final = Counter("skyhigh_seat_swept_total", "Rows that the sweeper ended.", ["kind"])


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
            await expire_locked(conn, swept, actor=ACTOR, effects=effects)
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
