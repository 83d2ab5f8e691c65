"""Giving freed seats to who waits: decided and written down under the flight's lock, before anything is claimed.

So two processes never give one seat to two entries, and no younger entry is served before an older one that wants the
same seat, whatever dies in between (docs/decisions/0017).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final
from uuid import UUID, uuid4

from services import timers
from services.db import Conn, GuardMissed
from waitlist_service.entries import ASSIGN
from waitlist_service.matching import FreedSeat, Wishes, match

# Most releases are served by the first few who wait; who looks further looks far.
FIRST_PAGE: Final = 8
PAGE: Final = 200


async def serve(conn: Conn, flight_id: str, seat_numbers: Collection[str]) -> set[str]:
    """Matches freed seats with the entries that wait, in order of joining, in the caller's transaction.

    Each match is claimed by its timer. Returns the seats that nobody who waits wants.
    """
    if not await lock(conn, flight_id):
        return set(seat_numbers)
    left = await _unmatched(conn, flight_id, seat_numbers)
    unwanted = set(left)
    matched: dict[UUID, FreedSeat] = {}
    after = 0
    while left:
        numbers, page = await _page(conn, flight_id, after, PAGE if after else max(FIRST_PAGE, len(left)))
        if not page:
            break
        unwanted -= {number for number, seat in left.items() if any(entry.wants(seat) for entry in page)}
        found = match(page, list(left.values()))
        for seat in found.values():
            del left[seat.seat_number]
        matched |= found
        after = numbers[-1]
    await _write_down(conn, matched)
    return unwanted


async def lock(conn: Conn, flight_id: str) -> bool:
    """Locks a flight until the transaction ends. False where nobody ever waited for it."""
    row = await conn.fetchrow("SELECT flight_id FROM flights WHERE flight_id = $1 FOR NO KEY UPDATE", flight_id)
    return row is not None


async def _unmatched(conn: Conn, flight_id: str, seat_numbers: Collection[str]) -> dict[str, FreedSeat]:
    rows = await conn.fetch(
        """
        SELECT seat_number, ordinal, cabin::text, position::text FROM seats
        WHERE flight_id = $1 AND seat_number = ANY($2::text[]) AND NOT EXISTS (
            SELECT FROM entries
            WHERE entries.flight_id = $1 AND entries.seat_number = seats.seat_number
              AND entries.state = 'WAITING' AND entries.claim_id IS NOT NULL)
        """,
        flight_id,
        list(seat_numbers),
    )
    return {row["seat_number"]: FreedSeat(**row) for row in rows}


async def _page(conn: Conn, flight_id: str, after: int, limit: int) -> tuple[list[int], list[Wishes]]:
    rows = await conn.fetch(
        """
        SELECT number, entry_id, cabin::text, positions::text[], seat_numbers,
               ARRAY(SELECT skips.seat_number FROM skips
                     WHERE skips.entry_id = entries.entry_id AND skips.end_time > statement_timestamp()) AS skipped
        FROM entries
        WHERE flight_id = $1 AND state = 'WAITING' AND claim_id IS NULL AND number > $2
        ORDER BY number LIMIT $3
        """,
        flight_id,
        after,
        limit,
    )
    return [row["number"] for row in rows], [
        Wishes(row["entry_id"], row["cabin"], row["positions"], row["seat_numbers"], row["skipped"]) for row in rows
    ]


async def _write_down(conn: Conn, matched: Mapping[UUID, FreedSeat]) -> None:
    """WAITING → WAITING, with a seat and the id of its claim, and a timer that claims it."""
    if not matched:
        return
    entry_ids: Sequence[UUID] = list(matched)
    written = await conn.fetch(
        """
        UPDATE entries SET claim_id = found.claim_id, seat_number = found.seat_number,
                           match_time = statement_timestamp()
        FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS found (entry_id, claim_id, seat_number)
        WHERE entries.entry_id = found.entry_id AND entries.state = 'WAITING' AND entries.claim_id IS NULL
        RETURNING entries.entry_id
        """,
        entry_ids,
        [uuid4() for _ in entry_ids],
        [matched[entry_id].seat_number for entry_id in entry_ids],
    )
    if len(written) != len(matched):
        raise GuardMissed
    await timers.set_timers(conn, ASSIGN, [str(entry_id) for entry_id in entry_ids])
