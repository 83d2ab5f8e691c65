"""The transition HELD → EXPIRED, of holds that have lapsed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from seat_service.holds.locks import lock_holds, seats_of
from seat_service.holds.releases import Release, free
from seat_service.requests import Effects
from services.db import Conn

EXPIRED: Final = "EXPIRED"


async def expire(conn: Conn, hold_ids: Sequence[UUID], *, actor: str, effects: Effects) -> int:
    """Expires those of the holds that have lapsed: HELD → EXPIRED; returns how many.

    The database's clock decides. A hold that was confirmed, cancelled, extended or expired meanwhile stays as it is.
    """
    await lock_holds(conn, hold_ids)
    return await expire_locked(conn, hold_ids, actor=actor, effects=effects)


async def expire_locked(conn: Conn, hold_ids: Sequence[UUID], *, actor: str, effects: Effects) -> int:
    """Expires holds as `expire` does; the caller has locked them."""
    rows = await conn.fetch(
        """
        UPDATE holds SET state = 'EXPIRED', end_time = statement_timestamp()
        WHERE hold_id = ANY($1::uuid[]) AND state || '' = 'HELD' AND expire_time <= statement_timestamp()
        RETURNING hold_id
        """,
        list(hold_ids),
    )
    seats = await seats_of(conn, [row["hold_id"] for row in rows])
    await free(
        conn,
        [Release(seat, actor, EXPIRED, None) for of_hold in seats.values() for seat in of_hold],
        effects=effects,
    )
    return len(rows)
