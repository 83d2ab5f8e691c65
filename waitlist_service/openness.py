"""Opens a flight's waitlist before its first entry; closes it after the last.

While the waitlist is open, the seat service makes released seats OFFERED, which only the waitlist can claim. The row of
the flight has the wanted setting (`open`), counts its changes (`revision`), and has the last revision that the seat
service knows (`told_revision`). The seat service ignores a stale revision, so that a late request to close never undoes
a newer one to open.
"""

from __future__ import annotations

from services import db
from services.db import Pool
from waitlist_service import refusals
from waitlist_service.peers import Peers


class Openness:
    """Opens and closes waitlists, at the seat service, too."""

    def __init__(self, pool: Pool, peers: Peers) -> None:
        self._pool = pool
        self._peers = peers

    async def open(self, flight_id: str) -> None:
        """Opens a flight's waitlist; returns when the seat service knows that.

        Also stores the flight's seats when it is opened. Raises FLIGHT_NOT_FOUND, FLIGHT_CANCELLED or Unavailable; then
        no passenger can join.
        """
        if await self._is_open(flight_id):
            return
        seats = await self._peers.seat_map(flight_id)
        async with db.transaction(self._pool) as conn:
            await conn.execute("INSERT INTO flights (flight_id) VALUES ($1) ON CONFLICT DO NOTHING", flight_id)
            await conn.execute(
                """
                INSERT INTO seats (flight_id, seat_number, ordinal, cabin, position, exit_row, infant_allowed)
                SELECT $1, seat_number, ordinal, cabin::cabin, position::seat_position, exit_row, infant_allowed
                FROM unnest($2::text[], $3::smallint[], $4::text[], $5::text[], $6::boolean[], $7::boolean[])
                    AS seat (seat_number, ordinal, cabin, position, exit_row, infant_allowed)
                ON CONFLICT DO NOTHING
                """,
                flight_id,
                [each.seat.seat_number for each in seats],
                [each.seat.ordinal for each in seats],
                [each.seat.cabin for each in seats],
                [each.seat.position for each in seats],
                [each.seat.exit_row for each in seats],
                [each.seat.infant_allowed for each in seats],
            )
            await conn.execute(
                """
                UPDATE flights SET open = true, revision = revision + 1
                WHERE flight_id = $1 AND NOT open AND cancel_time IS NULL
                """,
                flight_id,
            )
        await self.tell(flight_id)

    async def close_if_empty(self, flight_id: str) -> None:
        """Closes a flight's waitlist if it has no live entry.

        Also notifies the seat service.
        """
        async with db.transaction(self._pool) as conn:
            await conn.execute(
                """
                UPDATE flights SET open = false, revision = revision + 1
                WHERE flight_id = $1 AND open AND NOT EXISTS (
                    SELECT FROM entries
                    WHERE (CASE WHEN state IN ('WAITING', 'OFFERED') THEN entries.flight_id END) = $1)
                """,
                flight_id,
            )
        await self.tell(flight_id)

    async def tell(self, flight_id: str) -> None:
        """Sends the flight's `open` to the seat service.

        Does nothing if the seat service knows the latest revision.
        """
        async with db.transaction(self._pool) as conn:
            row = await conn.fetchrow(
                "SELECT open, revision FROM flights WHERE flight_id = $1 AND told_revision < revision", flight_id
            )
        if row is None:
            return
        await self._peers.set_open(flight_id, is_open=row["open"], revision=row["revision"])
        async with db.transaction(self._pool) as conn:
            await conn.execute(
                "UPDATE flights SET told_revision = $2 WHERE flight_id = $1 AND told_revision < $2",
                flight_id,
                row["revision"],
            )

    async def _is_open(self, flight_id: str) -> bool:
        async with db.transaction(self._pool) as conn:
            row = await conn.fetchrow(
                """
                SELECT open AND told_revision = revision AS is_open, cancel_time IS NOT NULL AS is_cancelled
                FROM flights WHERE flight_id = $1
                """,
                flight_id,
            )
        if row is not None and row["is_cancelled"]:
            raise refusals.flight_cancelled(flight_id)
        return row is not None and row["is_open"]
