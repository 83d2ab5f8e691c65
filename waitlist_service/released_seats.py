"""Matches released seats with waiting entries.

A match is written before its seat is claimed. Matching runs under the lock of the flight's row. So two processes never
match one seat with two entries, and no younger entry gets a seat before an older one that wants it, even if a process
dies in between (docs/decisions/0017).

A seat that comes from a late event or from the map may be taken already: its match is uncertain. Until the result of
that claim is known, the other free seats that its entry wants are kept: no younger entry gets them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

from services import timers
from services.db import Conn, GuardMissed
from waitlist_service.entries import ASSIGN
from waitlist_service.matching import FreedSeat, Wishes, match

# The entries of the first page: usually one of the oldest wants a released seat. Each further page has PAGE entries.
FIRST_PAGE: Final = 8
PAGE: Final = 200
# Only the waitlist can claim an offered seat before the offer ends. A claim that begins at least so long before the end
# cannot lose the seat to another caller: a claim takes at most some seconds.
CLAIM_TIME: Final = timedelta(seconds=5)
# An offer of at most this age has so much time left; see `offer_time`.
FRESH: Final = timedelta(seconds=5)
# The assumed age of a seat map; only a map from a failing cache can be older.
MAP_AGE: Final = timedelta(seconds=2)
# The largest assumed difference between the clocks of the seat service's database and of this one.
CLOCK_SKEW: Final = timedelta(seconds=1)
RETURN_SEAT: Final = "hand-back"


async def match_with_entries(conn: Conn, flight_id: str, freed: Mapping[str, datetime | None]) -> set[str]:
    """Matches released seats with waiting entries, in order of joining.

    Runs in the caller's transaction. `freed` has for each seat the time at which it was known to be OFFERED; None if
    other callers can take it, too. Kept seats of the flight are matched with them. The timer ASSIGN, which is set here,
    claims the seat of each match. Returns the seats that no waiting entry wants.
    """
    if not await lock(conn, flight_id):
        return set(freed)
    unmatched, certain, kept_before = await _unmatched(conn, flight_id, freed)
    unwanted = {seat.seat_number for seat in unmatched}
    left: Sequence[FreedSeat] = unmatched
    matched: dict[UUID, FreedSeat] = {}
    kept: set[str] = set()
    forbidden: list[tuple[UUID, str, str]] = []
    after = 0
    while left:
        numbers, page = await _page(conn, flight_id, after, PAGE if after else max(FIRST_PAGE, len(left)))
        if not page:
            break
        unwanted -= {seat.seat_number for seat in left if any(entry.wants(seat) for entry in page)}
        forbidden += _forbidden(page, left)
        found = match(page, left, certain=certain)
        matched |= found.seats
        kept |= found.kept
        left = found.left
        after = numbers[-1]
    if kept or kept_before:
        await _keep(conn, flight_id, kept, freed)
    await _record_skips(conn, forbidden)
    await _write_matches(conn, flight_id, matched, certain)
    return unwanted


def offer_time(release_time: datetime, expire_time: datetime) -> datetime:
    """Returns the time from which FRESH is counted for a seat that was released and offered.

    That is the release, or an earlier time if the offer is so short that it ends before FRESH and CLAIM_TIME.
    """
    return min(release_time, expire_time - FRESH - CLAIM_TIME)


async def return_seats_later(conn: Conn, flight_id: str, seat_numbers: set[str]) -> None:
    """Sets the timers that return unwanted OFFERED seats to general sale.

    The caller has found that no entry wants them, in the same transaction.
    """
    if seat_numbers:
        await timers.set_timers(conn, RETURN_SEAT, [f"{flight_id}/{number}" for number in sorted(seat_numbers)])


async def lock(conn: Conn, flight_id: str) -> bool:
    """Locks a flight's row until the transaction ends; returns False if there is none."""
    row = await conn.fetchrow("SELECT flight_id FROM flights WHERE flight_id = $1 FOR NO KEY UPDATE", flight_id)
    return row is not None


async def lock_all(conn: Conn, flight_ids: Collection[str]) -> None:
    """Locks the rows of flights, in the order in which consumers lock them.

    A consumer sorts events by the bytes of their body, which begins with the length of the flight id and the id.
    """
    await conn.execute(
        """
        SELECT flight_id FROM flights WHERE flight_id = ANY($1::text[])
        ORDER BY length(flight_id), flight_id COLLATE "C" FOR NO KEY UPDATE
        """,
        list(set(flight_ids)),
    )


async def keeping(conn: Conn, flight_ids: Collection[str]) -> list[str]:
    """Returns those of the flights that have kept seats."""
    rows = await conn.fetch(
        "SELECT DISTINCT flight_id FROM seats WHERE kept AND flight_id = ANY($1::text[]) ORDER BY flight_id",
        list(set(flight_ids)),
    )
    return [row["flight_id"] for row in rows]


async def settled(conn: Conn, flight_id: str, seat_numbers: Collection[str]) -> set[str]:
    """Returns the seats of a map that can be trusted.

    A seat that was matched or claimed within the assumed age of the map is left out, because the map may show its state
    from before.
    """
    rows = await conn.fetch(
        """
        SELECT seat_number FROM seats
        WHERE flight_id = $1 AND seat_number = ANY($2::text[])
          AND coalesce(touch_time < statement_timestamp() - $3::interval - $4::interval, true)
        """,
        flight_id,
        list(seat_numbers),
        MAP_AGE,
        CLOCK_SKEW,
    )
    return {row["seat_number"] for row in rows}


async def touch(conn: Conn, seats: Collection[tuple[str, str]]) -> None:
    """Notes the present time for seats that were assigned, offered or taken.

    Older news of such a seat, from an event or the map, is then not trusted.
    """
    await conn.execute(
        """
        UPDATE seats SET touch_time = statement_timestamp()
        FROM (SELECT * FROM unnest($1::text[], $2::text[]) AS each (flight, number) ORDER BY flight, number) AS touched
        WHERE flight_id = touched.flight AND seat_number = touched.number
        """,
        [flight_id for flight_id, _ in seats],
        [seat_number for _, seat_number in seats],
    )


async def _unmatched(
    conn: Conn, flight_id: str, freed: Mapping[str, datetime | None]
) -> tuple[list[FreedSeat], set[str], bool]:
    """Returns the seats to match, the certain ones, and whether some were kept.

    A seat is certain if no other caller can have taken it: it was OFFERED a short time ago, and not touched since.
    """
    rows = await conn.fetch(
        """
        SELECT seats.seat_number, ordinal, cabin::text, position::text, exit_row, infant_allowed, kept,
               coalesce(since.offer_time > statement_timestamp() - $4::interval
                        AND coalesce(touch_time < since.offer_time - $5::interval, true), false) AS certain,
               EXISTS (SELECT FROM entries
                       WHERE entries.flight_id = $1 AND entries.seat_number = seats.seat_number
                         AND entries.state = 'WAITING' AND entries.claim_id IS NOT NULL) AS matched
        FROM seats
        LEFT JOIN unnest($2::text[], $3::timestamptz[]) AS freed (seat_number, offer_time) USING (seat_number)
        CROSS JOIN LATERAL (
            SELECT coalesce(freed.offer_time, seats.offer_time) AS offer_time
        ) AS since
        WHERE flight_id = $1 AND (seats.seat_number = ANY($2::text[]) OR kept)
        """,
        flight_id,
        list(freed),
        list(freed.values()),
        FRESH,
        CLOCK_SKEW,
    )
    facts = ("seat_number", "ordinal", "cabin", "position", "exit_row", "infant_allowed")
    unmatched = [FreedSeat(**{name: row[name] for name in facts}) for row in rows if not row["matched"]]
    return unmatched, {row["seat_number"] for row in rows if row["certain"]}, any(row["kept"] for row in rows)


async def _page(conn: Conn, flight_id: str, after: int, limit: int) -> tuple[list[int], list[Wishes]]:
    rows = await conn.fetch(
        """
        SELECT number, entry_id, cabin::text, positions::text[], seat_numbers, type::text, special_services,
               claim_id IS NOT NULL AS claiming,
               ARRAY(SELECT skips.seat_number FROM skips
                     WHERE skips.entry_id = entries.entry_id AND skips.end_time > statement_timestamp()) AS skipped,
               ARRAY(SELECT skips.seat_number FROM skips
                     WHERE skips.entry_id = entries.entry_id AND skips.end_time = 'infinity') AS refused
        FROM entries
        WHERE (CASE WHEN state IN ('WAITING', 'OFFERED') THEN flight_id END) = $1 AND number > $2
          AND state = 'WAITING' AND (claim_id IS NULL OR uncertain)
        ORDER BY number LIMIT $3
        """,
        flight_id,
        after,
        limit,
    )
    return [row["number"] for row in rows], [
        Wishes(**{name: value for name, value in row.items() if name != "number"}) for row in rows
    ]


def _forbidden(page: Sequence[Wishes], seats: Sequence[FreedSeat]) -> list[tuple[UUID, str, str]]:
    """Returns preferred seats for which the passengers are not eligible.

    Each comes with its entry and the reason. Seats that the entry has been refused for ever are left out.
    """
    return [
        (entry.entry_id, seat.seat_number, reason)
        for entry in page
        for seat in seats
        if seat.seat_number not in entry.refused and entry.wishes(seat) and (reason := entry.forbidden(seat))
    ]


async def _record_skips(conn: Conn, forbidden: Sequence[tuple[UUID, str, str]]) -> None:
    """Writes a row of `skips` for each seat that is not eligible for an entry."""
    if forbidden:
        await conn.execute(
            """
            INSERT INTO skips (entry_id, seat_number, reason, end_time)
            SELECT entry_id, seat_number, reason, 'infinity'
            FROM unnest($1::uuid[], $2::text[], $3::text[]) AS forbidden (entry_id, seat_number, reason)
            ON CONFLICT (entry_id, seat_number) DO UPDATE
            SET reason = excluded.reason, end_time = excluded.end_time, skip_time = statement_timestamp()
            """,
            *zip(*forbidden, strict=True),
        )


async def _keep(conn: Conn, flight_id: str, kept: Collection[str], freed: Mapping[str, datetime | None]) -> None:
    """Marks these seats of the flight as kept, and no others.

    A seat without a time in `freed` retains its offer time.
    """
    await conn.execute(
        """
        UPDATE seats SET kept = seats.seat_number = ANY($2::text[]),
                         offer_time = coalesce(told.offer_time, seats.offer_time)
        FROM seats AS before
        LEFT JOIN unnest($3::text[], $4::timestamptz[]) AS told (seat_number, offer_time) USING (seat_number)
        WHERE seats.flight_id = $1 AND (seats.kept OR seats.seat_number = ANY($2::text[]))
          AND before.flight_id = seats.flight_id AND before.seat_number = seats.seat_number
        """,
        flight_id,
        list(kept),
        list(freed),
        list(freed.values()),
    )


async def _write_matches(
    conn: Conn, flight_id: str, matched: Mapping[UUID, FreedSeat], certain: Collection[str]
) -> None:
    """Writes matches, within WAITING.

    Each entry gets a seat, a claim id, and a timer that claims the seat. Raises GuardMissed if an entry was moved or
    matched meanwhile.
    """
    if not matched:
        return
    entry_ids: Sequence[UUID] = list(matched)
    seat_numbers = [matched[entry_id].seat_number for entry_id in entry_ids]
    written = await conn.fetch(
        """
        WITH found AS (
            SELECT * FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::boolean[])
                AS found (entry_id, claim_id, seat_number, uncertain)
        ), touched AS (
            UPDATE seats SET touch_time = statement_timestamp()
            WHERE flight_id = $1 AND seat_number = ANY($4::text[])
        )
        UPDATE entries SET claim_id = found.claim_id, seat_number = found.seat_number,
                           match_time = statement_timestamp(), uncertain = found.uncertain
        FROM found
        WHERE entries.entry_id = found.entry_id AND entries.state || '' = 'WAITING' AND entries.claim_id IS NULL
        RETURNING entries.entry_id
        """,
        flight_id,
        entry_ids,
        [uuid4() for _ in entry_ids],
        seat_numbers,
        [seat_number not in certain for seat_number in seat_numbers],
    )
    if len(written) != len(matched):
        raise GuardMissed
    await timers.set_timers(conn, ASSIGN, [str(entry_id) for entry_id in entry_ids])
